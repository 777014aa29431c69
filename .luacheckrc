-- The hot tier's function library, as Valkey loads it: `make lint-lua`.
std = "lua51"
read_globals = { "server", "redis", "cjson", "struct", "bit" }
max_line_length = false
ignore = { "43.", "542" } -- shadowed names; empty branches whose comment says why
