"""Replays requests through the real client, with real bytes, and checks every read."""
