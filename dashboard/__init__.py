"""The operators' dashboard: server-rendered pages, live over a WebSocket."""
