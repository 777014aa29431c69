"""Where Chromium is, how tests start it, and which pages the dashboard has."""

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PAGES = ("", "nodes/", "tiers/", "tenants/", "contexts/", "keys/", "jobs/", "audit/")
