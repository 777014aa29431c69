-- Who leaves first. Ranks of one priority: in its first HALF blocks on probation, in the second the
-- others; both by last use.

-- Eviction policies (docs/decisions/007-eviction.md, neve.planner.simulate.hot) by their number in
-- `:q`: whether a block that nobody has used since it was stored is on probation, and which share
-- of the evictable blocks of one priority may be before they leave first. A use ends the probation.
local EVICTION = {
  [0] = { name = "lru", probation = false, share = 0 },
  [1] = { name = "2q", probation = true, share = 0.5 },
}
local EVICT_BATCH = 16 -- blocks between two looks at who leaves first

local function policy(K) return EVICTION[quota(K, "eviction")] or EVICTION[0] end

-- Call it for a hot, clean block. A pinned one gets its rank when its pin ends, which is a use.
local function rank(K, id, e, us, on_probation)
  if e.pinned > 0 then return end
  local first = e.priority * BAND + (on_probation and 0 or HALF)
  redis.call("ZADD", K[2], first + math.floor(us / RANK_US), id)
end

-- When a cold block was read or used last. A pinned one gets its rank when its pin ends.
local function rank_cold(K, id, e, us)
  if not has(e, COLD) or e.pinned > 0 then return end
  redis.call("ZADD", cold_ranks(K), e.priority * BAND + HALF + math.floor(us / RANK_US), id)
end

local function used_us_of(score) return tonumber(score) % HALF * RANK_US end

-- When an evictable block was used last, µs, and whether it is on probation; nil for others.
local function last_use(K, id)
  local score = redis.call("ZSCORE", K[2], id)
  if score then return used_us_of(score), tonumber(score) % BAND < HALF end
end

-- The blocks to evict next, of one priority and either on probation or not. O(log n).
local function victims(K)
  local first = redis.call("ZRANGE", K[2], 0, 0, "WITHSCORES")[2]
  if not first then return {} end
  local from = tonumber(first) - tonumber(first) % BAND
  local young = redis.call("ZCOUNT", K[2], from, from + HALF - 1)
  local others = redis.call("ZCOUNT", K[2], from + HALF, from + BAND - 1)
  if young <= policy(K).share * (young + others) then from = from + HALF end
  return redis.call("ZRANGE", K[2], from, from + HALF - 1, "BYSCORE", "LIMIT", 0, EVICT_BATCH)
end
