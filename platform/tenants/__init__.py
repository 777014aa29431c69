"""Who owns data and quota: tenants, members, API keys, quotas, audit, and the tenant scope."""
