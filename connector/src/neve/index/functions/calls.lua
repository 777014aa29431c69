--[[
What a call may bring, and what it costs. A call holds up all tenants, so `register` gives each
function a bound on its values: above it the function does nothing and answers TOOMANY, to KEYS that
are not those of one bucket BADKEYS.
]]

local POLICY_MOST = 20000 -- name, value pairs of set_policy: five for each space with its own terms
local EVICT_MOST = 10000 -- blocks that one call may evict, however many it commits
local SWEEP_MOST = 1000 -- pins that one call may end, blocks over a lowered cold quota
-- Even the refusal of a call takes as long as Lua takes to see its values: 0.3 s for a million. No
-- client sends so many by mistake: such calls are counted, and the tenant is cut off.
local ABUSE = 100000
local TENANTS_MOST = 10000 -- that `caller` looks through: 10 ms
local abused = {} -- such calls by tenant, since this server loaded the library
-- Estimated cost of nodes' calls, in µs of the server's time: for each value in a call, for each
-- call, and for each block that a call evicts. Calls cannot be timed: the clocks that a function
-- can read stand still during its call, or also count other threads.
local COST_US = {
  locate = 0.5, match = 2, usage = 0.5, commit = 2.5, touch = 2, promote = 5, forget = 10,
}
local OTHER_US = 10 -- for each value of a function without a figure
local CALL_US, EVICTION_US = 10, 15
local spent_us = {} -- by tenant, since this server loaded the library

local function is_platform() return server.acl_check_cmd("STRLEN", "{t0.}:me") end

-- The tenant whose node calls; nil: the platform, or unknown. Valkey has checked that KEYS are the
-- tenant's own. A call may come without any, but only the tenant may ask for the length of its
-- `:me`.
local function caller(K)
  local tenant = string.match(K[1] or "", "^{t(%d+)%.")
  if tenant then return tonumber(tenant) end
  if is_platform() then return nil end
  for n = 1, TENANTS_MOST do
    if server.acl_check_cmd("STRLEN", "{t" .. n .. ".}:me") then return n end
  end
end

local function spend(tenant, us) spent_us[tenant] = (spent_us[tenant] or 0) + us end

-- Charges a call to its tenant. Returns the tenant; nil: the platform called.
local function meter(name, K, A)
  local tenant = caller(K)
  if not tenant then return nil end
  if #K + #A > ABUSE then abused[tenant] = (abused[tenant] or 0) + 1 end
  if is_platform() then return nil end
  spend(tenant, CALL_US + (#K + #A) * (COST_US[name] or OTHER_US))
  return tenant
end

-- Why a call does not have the function's shape: code and words; nil if it has.
local function misfit(shape, K, A)
  local before, each = shape.before, shape.each
  local blocks, ids = #K - #BOOKKEEPING, each > 0 and (#A - before) / each or 0
  if math.max(blocks, ids) > shape.most then
    return "TOOMANY", "a call takes " .. shape.most .. " at most"
  end
  if #A < before or ids ~= math.floor(ids) or (each == 0 and #A > before) then
    return "TOOMANY", "ARGV are " .. before .. " values, then " .. each .. " for each id"
  end
  local right = not shape.block_keys and 0 or each > 0 and ids or blocks
  if blocks < 0 or blocks ~= right then
    return "BADKEYS", "not as many KEYS as it takes"
  end
end

-- The books that KEYS 1 to 7 name, with `tag`, then the block keys. Nil and the number of a key
-- that is not this bucket's.
local function books_of(K)
  local tag = string.match(K[1] or "", "^{t%d+%.%d+%.%d+}:") or ""
  local books = { tag = tag }
  for n, name in ipairs(BOOKKEEPING) do
    books[n] = tag .. BOOKS .. name
    if K[n] ~= tag .. name and K[n] ~= books[n] then return nil, n end
  end
  for n = #BOOKKEEPING + 1, #K do books[n] = K[n] end
  return books
end

-- Registers a function that refuses, before anything else, what its clients never send. ARGV are
-- `before` values, then `each` for every id (segment, pair), of which there may be `most`. With
-- `block_keys` a block key stands behind the books for each id, or instead of ids if `each` is 0.
-- All carry `allow-oom`: without it a full server refuses them, also those that free memory.
local function register(name, callback, shape)
  local function refuse(code, words)
    return redis.error_reply(code .. " neve_" .. name .. ": " .. words)
  end
  local function bounded(K, A)
    local tenant = meter(name, K, A)
    local code, words = misfit(shape, K, A)
    if code then return refuse(code, words) end
    local books, wrong = books_of(K)
    if not books then
      return refuse("BADKEYS", "KEYS[" .. wrong .. "] is not this bucket's :" .. BOOKKEEPING[wrong])
    end
    local answer = callback(books, A)
    if tenant and books.room then spend(tenant, (EVICT_MOST - books.room.left) * EVICTION_US) end
    return answer
  end
  server.register_function {
    function_name = "neve_" .. name, callback = bounded, flags = { "allow-oom" },
  }
end
