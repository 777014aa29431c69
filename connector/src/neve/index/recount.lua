--[[
Audit: finds and repairs what crashes, lost writes or careless hands left in one bucket. It is joined
to functions.lua, whose locals it uses; KEYS are the same.

A recount goes through all entries in slices, beside live traffic, and is exact. What it counted, and
what was stored since it began, carries its number; each change of such a block changes what the
recount has counted so far (`charge`), too. In the end `:r` is what the counters must say.
  recount_begin → recount every entry (HSCAN from 0 to 0) → recount_segments all of `:s` and `:r`
  → recount_end
A walk that was broken off must begin anew with another number: the server refuses the old one.
]]

local HELD_AS = { "hot", "cold", "dirty", "pinned", "unstored" }
local RECOUNTS = 255 -- numbers fit one byte; 0 is an entry that was never counted
local SUPERSEDED = -1
local UNCOMMITTED_MS = 60000 -- what a writer gives a block until its commit

-- What a bucket's bookkeeping is made of. `:q` is written by the platform alone.
local TYPES = { i = "hash", l = "zset", d = "zset", u = "hash", x = "zset", e = "zset", p = "zset", s = "zset",
  f = "zset", r = "zset", c = "zset" }
local MOST = 1e17 -- above any rank, time in µs and sum of bytes
local COUNTERS_MOST = 1000 -- fields of `:u`; functions make about 30

--[[ mend: bookkeeping that makes functions fail is removed: keys of another type, scores and counters
that no function writes. A recount files and counts anew what they held; what the index held is
restored from the segments.                                                     flags: allow-oom
Returns {1 if the index itself is lost, else 0; keys removed; scores and counters removed}.
O(counters + removed · log n). ]]
local function mend(K)
  local keys, values, is_lost = 0, 0, 0
  local function remove(name)
    redis.call("UNLINK", of_slot(K, name))
    keys = keys + 1
    if name == "i" then is_lost = 1 end
  end
  for name, right in pairs(TYPES) do
    local key = of_slot(K, name)
    local is = redis.call("TYPE", key).ok
    if is ~= "none" and is ~= right then
      remove(name)
    elseif is == "zset" then
      values = values + redis.call("ZREMRANGEBYSCORE", key, "-inf", "(0")
        + redis.call("ZREMRANGEBYSCORE", key, MOST, "+inf")
    end
  end
  if redis.call("HLEN", K[4]) > COUNTERS_MOST then remove("u") end
  local counters = redis.call("HGETALL", K[4])
  for i = 1, #counters, 2 do
    local value = counters[i + 1]
    if not string.find(value, "^%-?%d+$") or math.abs(tonumber(value)) > MOST then
      values = values + redis.call("HDEL", K[4], counters[i])
    end
  end
  if keys + values > 0 then count(K, "mended", keys + values) end
  return { is_lost, keys, values }
end

--[[ discard: what stands under these fields of the index and is no entry is removed. ARGV: fields
Returns how many.                                                               flags: allow-oom ]]
local function discard(K, A)
  local n = 0
  for _, field in ipairs(A) do
    local raw = redis.call("HGET", K[1], field)
    if raw and (#field ~= ID_BYTES or not is_sound(raw)) then
      redis.call("HDEL", K[1], field)
      for name, type_ in pairs(TYPES) do
        if type_ == "zset" and name ~= "s" and name ~= "r" then redis.call("ZREM", of_slot(K, name), field) end
      end
      n = n + 1
    end
  end
  if n > 0 then count(K, "mended", n) end
  return n
end

--[[ recount_begin: begins a recount, whatever went on. Returns its number.      flags: allow-oom ]]
local function recount_begin(K)
  local number = used(K, "recounts") % RECOUNTS + 1
  redis.call("UNLINK", of_slot(K, "r"))
  redis.call("ZADD", of_slot(K, "r"), number, "number")
  redis.call("HSET", K[4], "recounts", number)
  return number
end

-- Sees to it that the block is where its state says. Returns whether something was missing.
local function file(K, id, e, us)
  local now_s, added = math.floor(us / 1000000), 0
  local is_ranked = redis.call("ZSCORE", K[2], id) ~= false
  if has(e, DIRTY) then added = redis.call("ZADD", K[3], "NX", now_s, id) end
  if e.pinned > 0 then added = added + redis.call("ZADD", of_slot(K, "p"), "NX", e.pinned, id) end
  if has(e, HOT) and not has(e, DIRTY) and e.pinned == 0 then
    if not is_ranked then
      rank(K, id, e, us)
      added = added + 1
    end
  elseif is_ranked then
    redis.call("ZREM", K[2], id)
    added = added + 1
  end
  local is_cold_ranked = redis.call("ZSCORE", cold_ranks(K), id) ~= false
  if is_cold_ranked ~= (has(e, COLD) and e.pinned == 0) then
    if is_cold_ranked then redis.call("ZREM", cold_ranks(K), id) else rank_cold(K, id, e, us) end
    added = added + 1
  end
  if (e.expires > 0 or e.idle > 0 and has(e, HOT)) and not redis.call("ZSCORE", K[7], id) then
    watch(K, id, e, now_s)
    added = added + 1
  end
  return added > 0
end

--[[ recount: these blocks are checked and counted. ARGV: number, ids             flags: allow-oom
A hot block whose value is not there, or has another length, is hot no more. Returns {blocks that were
hot without data, blocks that were missing where their state says}; {SUPERSEDED, 0}: begin anew.
About 6 µs a block. ]]
local function recount(K, A)
  local us, number, lost, unfiled, sums = now_us(), tonumber(A[1]), 0, 0, {}
  if recount_number(K) ~= number then return { SUPERSEDED, 0 } end
  local function add(name, by) sums[name] = (sums[name] or 0) + by end
  each(K, A, 2, function(id, e)
    if has(e, GONE) then return false end
    if has(e, HOT) then
      local key = block_key(K, e, id)
      if redis.pcall("STRLEN", key) == e.size then -- an error: no string stands there
        redis.call("PERSIST", key)
      else
        lost = lost + 1
        drop(K, id, e, HOT, CORRUPT, us)
        if has(e, GONE) then return false end
      end
    end
    if file(K, id, e, us) then unfiled = unfiled + 1 end
    if e.reason ~= number then
      local is_held = { hot = has(e, HOT), cold = has(e, COLD), dirty = has(e, DIRTY), pinned = e.pinned > 0,
        unstored = has(e, UNSTORED) }
      for what, holds in pairs(is_held) do
        if holds then
          add(what .. "_bytes", e.size)
          add(what .. "_blocks", 1)
        end
      end
      if has(e, COLD) then add(e.segment, e.size) end
      e.reason = number
      save(K, id, e)
    end
    return true
  end)
  for name, by in pairs(sums) do redis.call("ZINCRBY", of_slot(K, "r"), by, name) end
  if lost > 0 then count(K, "corrupt_blocks", lost) end
  return { lost, unfiled }
end

--[[ recount_segments: everything was counted: the live bytes of these segments are set right.
ARGV: number, segments. Returns a flat array: segment, said, is, of each that was wrong; {SUPERSEDED}
                                                                                flags: allow-oom ]]
local function recount_segments(K, A)
  local out = {}
  if recount_number(K) ~= tonumber(A[1]) then return { SUPERSEDED } end
  for i = 2, #A do
    local said = tonumber(redis.call("ZSCORE", of_slot(K, "s"), A[i]) or "0")
    local is = tonumber(redis.call("ZSCORE", of_slot(K, "r"), A[i]) or "0")
    if said ~= is then
      redis.call("ZADD", of_slot(K, "s"), is, A[i])
      for _, value in ipairs({ A[i], said, is }) do out[#out + 1] = value end
    end
  end
  return out
end

--[[ recount_end: so are the counters, and the recount is over. ARGV: number     flags: allow-oom
What a counter that said too little let in over a quota is evicted.
Returns a flat array: name, said, is, of each that was wrong; {SUPERSEDED}. ]]
local function recount_end(K, A)
  local out = {}
  if recount_number(K) ~= tonumber(A[1]) then return { SUPERSEDED } end
  for _, what in ipairs(HELD_AS) do
    for _, unit in ipairs({ "_bytes", "_blocks" }) do
      local said = used(K, what .. unit)
      local is = tonumber(redis.call("ZSCORE", of_slot(K, "r"), what .. unit) or "0")
      if said ~= is then
        redis.call("HSET", K[4], what .. unit, is)
        for _, value in ipairs({ what .. unit, said, is }) do out[#out + 1] = value end
      end
    end
  end
  redis.call("UNLINK", of_slot(K, "r"))
  local over = used(K, "hot_bytes") - quota(K, "hot_bytes")
  if over > 0 then make_room(K, now_us(), over) end
  trim_cold(K, now_us())
  return out
end

--[[ unplace: nobody knows these segments, so the blocks are not cold. If they come back a rebuild finds
the blocks: nothing is remembered of them. ARGV: id, segment, offset of each   flags: allow-oom
Returns how many stood there. ]]
local function unplace(K, A)
  local us, n = now_us(), 0
  for i = 1, #A, 3 do
    local id, e = A[i], load(K, A[i])
    if has(e, COLD) and e.segment == tonumber(A[i + 1]) and e.offset == tonumber(A[i + 2]) then
      drop(K, id, e, COLD, 0, us)
      if has(e, GONE) then
        redis.call("ZREM", K[6], id)
        redis.call("HDEL", K[1], id)
      end
      n = n + 1
    end
  end
  return n
end

--[[ end_strays: block keys that no entry owns get the end of an uncommitted one, if they have none or a
later one (from before the clock was set back): a commit that comes yet is in time.
KEYS: 8… the block keys. Returns how many.                                      flags: allow-oom ]]
local function end_strays(K)
  local n = 0
  for i = 8, #K do
    local id = string.sub(K[i], -16)
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

register("mend", mend, "allow-oom", 0, 0, 0)
register("discard", discard, "allow-oom", 0, 1, CALL_MOST)
register("recount_begin", recount_begin, "allow-oom", 0, 0, 0)
register("recount", recount, "allow-oom", 1, 1, CALL_MOST)
register("recount_segments", recount_segments, "allow-oom", 1, 1, CALL_MOST)
register("recount_end", recount_end, "allow-oom", 1, 0, 0)
register("unplace", unplace, "allow-oom", 0, 3, CALL_MOST)
register("end_strays", end_strays, "allow-oom", 0, 0, CALL_MOST, true)
