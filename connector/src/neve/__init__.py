"""Neve: store, find and move KV-cache blocks. Imports nothing of Django or vLLM."""
