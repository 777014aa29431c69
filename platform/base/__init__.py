"""Shared by all apps of the platform: problem documents, request ids, live hints, stored answers.

Must not be here: tenants, storage.
"""
