-- Numbers of a bucket: quotas and terms, counters, costs.

--[[ set_policy: writes `:q` anew. A function and not plain commands, so that it works on a full
server. Only the control plane's user may.
KEYS     the books
ARGV     name, value pairs: hot_bytes, cold_bytes, cold_evicts (1: a full cold tier evicts, 0: it
         refuses), eviction (a number of EVICTION), promote_window_s (0: never); flush_after_s (-1:
         never), ttl_s, idle_s (0: none), priority (0 leaves first), which may be repeated as
         `<name>:<space>` for one space
Returns  0
Flags    allow-oom
Worst    O(pairs)
]]
local function set_policy(K, A)
  redis.call("UNLINK", K[5])
  for first = 1, #A, SLICE do
    redis.call("HSET", K[5], unpack(A, first, math.min(first + SLICE - 1, #A)))
  end
  return 0
end
register("set_policy", set_policy, { before = 0, each = 2, most = POLICY_MOST })

--[[ usage: the bucket's numbers.
KEYS     the books
ARGV     none
Returns  flat array of names and values: counters of `:u`, numbers of `:q` with the prefix "quota_",
         "oldest_due_s" (the earliest flush due; absent when nothing is dirty)
Flags    allow-oom
Worst    O(spaces with terms of their own)
]]
local function usage(K)
  local out = redis.call("HGETALL", K[4])
  local quotas = redis.call("HGETALL", K[5])
  for i = 1, #quotas, 2 do
    out[#out + 1] = "quota_" .. quotas[i]
    out[#out + 1] = quotas[i + 1]
  end
  local oldest = redis.call("ZRANGE", K[3], 0, 0, "WITHSCORES")
  if oldest[2] then
    out[#out + 1] = "oldest_due_s"
    out[#out + 1] = oldest[2]
  end
  return out
end
register("usage", usage, { before = 0, each = 0, most = 0 })

--[[ taken: the cost of each tenant's calls on this server since it loaded the library.
KEYS     none: ask each primary
ARGV     none
Returns  flat array: tenant, calls with more than ABUSE values, µs (COST_US)
Flags    no-writes
Worst    O(tenants)
]]
local function taken()
  local out, tenants = {}, {}
  for tenant in pairs(abused) do tenants[tenant] = true end
  for tenant in pairs(spent_us) do tenants[tenant] = true end
  for tenant in pairs(tenants) do
    out[#out + 1] = tenant
    out[#out + 1] = abused[tenant] or 0
    out[#out + 1] = math.floor(spent_us[tenant] or 0)
  end
  return out
end
server.register_function { function_name = "neve_taken", callback = taken, flags = { "no-writes" } }
