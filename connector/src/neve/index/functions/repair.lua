-- Repair: removes what crashes, lost writes or a tenant's own hands left in one bucket.

do -- a Lua chunk has 200 local names at most; no other part needs these

local MOST = 1e17 -- above any rank, time in µs and sum of bytes
local COUNTERS_MOST = 1000 -- fields of `:u`; functions make about 30

-- Removes a book of a wrong type, or wrong scores of a right one. Returns keys and scores removed.
local function mend_book(key, right)
  local is = redis.call("TYPE", key).ok
  if is ~= "none" and is ~= right then
    redis.call("UNLINK", key)
    return 1, 0
  end
  if is ~= "zset" then return 0, 0 end
  return 0, redis.call("ZREMRANGEBYSCORE", key, "-inf", "(0")
    + redis.call("ZREMRANGEBYSCORE", key, MOST, "+inf")
end

-- Removes counters that are no numbers, or all if they are too many. Returns keys and values
-- removed.
local function mend_counters(K)
  if redis.call("HLEN", K[4]) > COUNTERS_MOST then
    redis.call("UNLINK", K[4])
    return 1, 0
  end
  local counters, values = redis.call("HGETALL", K[4]), 0
  for i = 1, #counters, 2 do
    local value = counters[i + 1]
    if not string.find(value, "^%-?%d+$") or math.abs(tonumber(value)) > MOST then
      values = values + redis.call("HDEL", K[4], counters[i])
    end
  end
  return 0, values
end

--[[ mend: removes books that make functions fail: keys of another type, scores and counters that no
function writes. A recount files and counts their blocks again; a lost index is restored from the
segments.
KEYS     the books
ARGV     none
Returns  array: 1 if the index itself is lost, else 0; keys removed; scores and counters removed
Flags    allow-oom
Worst    O(counters + removed · log n)
]]
local function mend(K)
  local keys, values, is_lost = 0, 0, 0
  for name, right in pairs(BOOK_TYPES) do
    local removed, scores = mend_book(of_slot(K, name), right)
    keys, values = keys + removed, values + scores
    if name == "i" then is_lost = removed end
  end
  if keys + values > 0 then remember_from(K, now_us()) end
  local removed, counters = mend_counters(K)
  keys, values = keys + removed, values + counters
  if keys + values > 0 then count(K, "mended", keys + values) end
  return { is_lost, keys, values }
end
register("mend", mend, { before = 0, each = 0, most = 0 })

--[[ discard: removes fields of the index that hold no entry.
KEYS     the books
ARGV     fields
Returns  how many it removed
Flags    allow-oom
Worst    O(fields · log n)
]]
local function discard(K, A)
  local n = 0
  for _, field in ipairs(A) do
    local raw = redis.call("HGET", K[1], field)
    if raw and (#field ~= ID_BYTES or not is_sound(raw)) then
      redis.call("HDEL", K[1], field)
      for name, type_ in pairs(BOOK_TYPES) do
        if type_ == "zset" and name ~= "s" and name ~= "r" then
          redis.call("ZREM", of_slot(K, name), field)
        end
      end
      n = n + 1
    end
  end
  if n > 0 then
    count(K, "mended", n)
    remember_from(K, now_us())
  end
  return n
end
register("discard", discard, { before = 0, each = 1, most = CALL_MOST })

--[[ unplace: nobody knows these segments, so the blocks are not cold. Keeps no tombstone: if a
segment comes back, a rebuild finds its blocks.
KEYS     the books
ARGV     id, segment and offset of each block
Returns  how many were there
Flags    allow-oom
Worst    O(blocks · log n)
]]
local function unplace(K, A)
  local us, n = now_us(), 0
  for i = 1, #A, 3 do
    local id, e = A[i], load(K, A[i])
    if is_placed(e, tonumber(A[i + 1]), tonumber(A[i + 2])) then
      drop(K, id, e, COLD, 0, us)
      if has(e, GONE) then
        redis.call("ZREM", K[6], id)
        redis.call("HDEL", K[1], id)
      end
      n = n + 1
    end
  end
  if n > 0 then remember_from(K, us) end
  return n
end
register("unplace", unplace, { before = 0, each = 3, most = CALL_MOST })

--[[ end_strays: gives block keys that no entry owns the life of an uncommitted block, if they have
no end or a later one (from before the clock was set back): a late commit still finds them.
KEYS     the books, then block keys
ARGV     none
Returns  how many got an end
Flags    allow-oom
Worst    O(block keys)
]]
local function end_strays(K)
  local n = 0
  for i = #BOOKKEEPING + 1, #K do
    local id = string.sub(K[i], -ID_BYTES)
    local e = load(K, id)
    local is_owned = has(e, HOT) and block_key(K, e, id) == K[i]
    local left_ms = is_owned and 0 or redis.call("PTTL", K[i])
    if left_ms == -1 or left_ms > UNCOMMITTED_MS then
      redis.call("PEXPIRE", K[i], UNCOMMITTED_MS)
      n = n + 1
    end
  end
  return n
end
register("end_strays", end_strays, { before = 0, each = 0, most = CALL_MOST, block_keys = true })

end
