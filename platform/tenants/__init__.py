"""Tenants, which own data and quotas; members, API keys, audit, and the tenant scope."""
