"""Chromium's path and start options for tests."""

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
# What a walk behind a proxy opens; every_page.py follows links instead.
PAGES = (
    "",
    "why/",
    "nodes/",
    "tiers/",
    "spaces/",
    "spaces/compare/",
    "families/",
    "what-if/",
    "tenants/",
    "tenants/demo/",
    "tenants/demo/?tab=contexts",
    "tenants/demo/?tab=spaces",
    "tenants/demo/?tab=nodes",
    "tenants/demo/?tab=policy&cold_ttl_s=14+d",
    "tenants/demo/?tab=keys",
    "tenants/demo/?tab=people",
    "tenants/demo/?tab=audit",
    "tenants/demo/?tab=savings",
    "new-tenant/",
    "policies/",
    "savings/",
    "system/",
    "contexts/",
    "keys/",
    "webhooks/",
    "jobs/",
    "audit/",
)
