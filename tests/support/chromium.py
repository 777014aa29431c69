"""Chromium's path and start options for tests, and the dashboard's pages."""

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PAGES = (
    "",
    "nodes/",
    "tiers/",
    "spaces/",
    "families/",
    "what-if/",
    "tenants/",
    "savings/",
    "system/",
    "contexts/",
    "keys/",
    "webhooks/",
    "jobs/",
    "audit/",
)
