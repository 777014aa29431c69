"""GET /metrics: what operators watch, in Prometheus's text format. Reads only, when scraped."""
