-- The hot tier's function library, as Valkey loads it: `make lint-lua`.
std = "lua51"
read_globals = { "server", "redis", "cjson", "struct", "bit" }
max_line_length = 100
ignore = { "542" } -- an empty branch whose comment says why
