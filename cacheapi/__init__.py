"""HTTP: the cache endpoint for nodes (/cache/v1) and REST for teams and operators (/api/v1)."""
