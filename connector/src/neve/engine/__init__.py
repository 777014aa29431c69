"""What every engine's adapter needs: chains of ids, look-ups, load policy, transfers, staging.

Imports no engine. Modules that need torch are in `device`; no other module here imports it.
"""
