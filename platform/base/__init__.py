"""Shared by all apps of the platform: problem documents, request ids, live hints, stored answers;
log lines and their events, counts for /metrics, traces.

Must not be here: tenants, storage.
"""
