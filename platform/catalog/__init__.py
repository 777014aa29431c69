"""Rows of the platform: spaces, node sessions, contexts, segments, usage, jobs."""
