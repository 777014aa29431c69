-- Retention: pins, terms, ends.

-- Bytes that pinning these blocks asks for on top.
local function bytes_to_pin(K, A, first, now_s)
  local asked, seen = 0, {}
  for_each(K, A, first, function(id, e)
    if is_alive(e, now_s) and e.pinned == 0 and not seen[id] then
      asked, seen[id] = asked + e.size, true
    end
    return false
  end)
  return asked
end

--[[ pin: keeps these blocks at least until then, within a budget.
KEYS     the books
ARGV     until_s, budget of all pins in bytes (-1: none), "all" (or none of them) or "fit" (the
         first ones that fit), ids
Returns  array: blocks pinned (-1: refused), pinned bytes before, bytes asked for on top
Flags    allow-oom
Worst    O(ids · log n) + O(pins that lapsed); PIN_MOST ids: 0.1 s
]]
local function pin(K, A)
  local us, until_s, budget = now_us(), tonumber(A[1]), tonumber(A[2])
  local now_s = math.floor(us / 1000000)
  while end_pins(K, us) == SWEEP_MOST do end
  local before, asked = used(K, "pinned_bytes"), bytes_to_pin(K, A, 4, now_s)
  local over = budget >= 0 and asked > 0 and before + asked > budget
  if over and A[3] == "all" then return { -1, before, asked } end
  local n = for_each(K, A, 4, function(id, e)
    local fits = e.pinned > 0 or budget < 0 or used(K, "pinned_bytes") + e.size <= budget
    if not is_alive(e, now_s) or not fits then return false end
    set_pin(K, id, e, math.max(e.pinned, until_s))
    save(K, id, e)
    schedule(K, id, e, now_s)
    return true
  end)
  return { n, before, asked }
end
register("pin", pin, { before = 3, each = 1, most = PIN_MOST })

--[[ unpin: the pins of these blocks end then.
KEYS     the books
ARGV     until_s (0: now), ids
Returns  how many were pinned
Flags    allow-oom
Worst    O(ids · log n)
]]
local function unpin(K, A)
  local us, until_s = now_us(), tonumber(A[1])
  local now_s = math.floor(us / 1000000)
  return for_each(K, A, 2, function(id, e)
    if has(e, GONE) or e.pinned == 0 then return false end
    set_pin(K, id, e, until_s > now_s and until_s or 0)
    save(K, id, e)
    if is_clean(e) then rank(K, id, e, us) end
    rank_cold(K, id, e, us)
    schedule(K, id, e, now_s)
    return true
  end)
end
register("unpin", unpin, { before = 1, each = 1, most = CALL_MOST })

-- Gives an entry terms `t`. Returns false if that is no change: a joined block has more already.
local function give_terms(e, t)
  local function longer(a, b) return (a == 0 or b == 0) and 0 or math.max(a, b) end
  local ends = end_of(e.stored, t.ttl, t.max_age, t.until_s)
  if not t.join or e.held ~= HELD then
    e.expires, e.idle, e.priority, e.held = ends, t.idle, t.priority, t.held
    return true
  end
  local expires, idle, priority = longer(e.expires, ends), longer(e.idle, t.idle), t.priority
  if expires == e.expires and idle == e.idle and priority <= e.priority then return false end
  e.expires, e.idle, e.priority = expires, idle, math.max(e.priority, priority)
  return true
end

-- Applies a new time of flush to a hot block that is not cold. Returns whether it became dirty.
local function retime_flush(K, id, e, us, flush_after)
  if flush_after < 0 then
    mark_clean(K, id, e, us)
  elseif has(e, DIRTY) then
    redis.call("ZADD", K[3], "XX", "LT", e.stored + flush_after, id)
  else
    mark_dirty(K, id, e, e.stored + flush_after)
    return true
  end
  return false
end

-- Gives a block terms, keeping its last uses. Saves it.
local function retain_block(K, us, id, e, t)
  local used_us, on_probation
  local read = redis.call("ZSCORE", cold_ranks(K), id)
  if has(e, HOT) then used_us, on_probation = last_use(K, id) end
  if not give_terms(e, t) then return end
  if has(e, HOT) and not has(e, COLD) and t.flush_after then
    if retime_flush(K, id, e, us, t.flush_after) then used_us = nil end
  end
  save(K, id, e)
  if used_us then rank(K, id, e, used_us, on_probation) end
  if read then rank_cold(K, id, e, used_us_of(read)) end
  schedule(K, id, e, math.floor(us / 1000000))
end

--[[ retain: gives stored blocks other terms. A block that is past its end then is a miss at once,
and removed by expire_due.
KEYS     the books
ARGV     "set" or "join" (a block that contexts hold gets the more generous of both terms), held (1:
         a context's terms), ttl_s, max_age_s, until_s (prolonged to), idle_s, priority,
         flush_after_s ("" leaves it, -1: never), ids. 0: no limit
Returns  how many of the blocks it knows
Flags    allow-oom
Worst    O(ids · log n); about 20 µs each
]]
local function retain(K, A)
  local us = now_us()
  local t = {
    join = A[1] == "join", held = tonumber(A[2]), ttl = tonumber(A[3]), max_age = tonumber(A[4]),
    until_s = tonumber(A[5]), idle = tonumber(A[6]), priority = tonumber(A[7]),
    flush_after = tonumber(A[8]),
  }
  return for_each(K, A, 9, function(id, e)
    if has(e, GONE) then return false end
    retain_block(K, us, id, e, t)
    return true
  end)
end
register("retain", retain, { before = 8, each = 1, most = CALL_MOST })

--[[ expire: removes these blocks from both tiers now.
KEYS     the books
ARGV     "1" (also pinned ones) or "0", ids
Returns  array: removed, kept because pinned
Flags    allow-oom
Worst    O(ids · log n)
]]
local function expire(K, A)
  local us, kept = now_us(), 0
  local removed = for_each(K, A, 2, function(id, e)
    if has(e, GONE) then return false end
    if e.pinned > us / 1000000 and A[1] == "0" then
      kept = kept + 1
      return false
    end
    drop(K, id, e, HOT + COLD, EXPIRED, us)
    return true
  end)
  if removed > 0 then count(K, "expired_blocks", removed) end
  return { removed, kept }
end
register("expire", expire, { before = 1, each = 1, most = CALL_MOST })

--[[ expire_due: removes blocks whose time has come, idle ones from the hot tier, and blocks over a
cold quota that was lowered.
KEYS     the books
ARGV     most blocks to look at
Returns  how many it looked at: at `most` there may be more
Flags    allow-oom
Worst    O((most + SWEEP_MOST) · log n)
]]
local function expire_due(K, A)
  local us, most = now_us(), tonumber(A[1])
  local ended = end_pins(K, us)
  end_future(K, us, most)
  local _, _, looks = drop_due(K, us, most, math.huge)
  local is_over = trim_cold(K, us)
  return (ended == SWEEP_MOST or is_over) and most or looks
end
register("expire_due", expire_due, { before = 1, each = 0, most = 0 })
