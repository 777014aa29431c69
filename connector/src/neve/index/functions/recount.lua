--[[
Recount: checks one bucket's counters against its entries, in slices beside live traffic, exactly.

Each entry that a recount counted, and each stored since it began, carries its number; every change
of such a block (`charge`) also changes the sums in `:r`. After a walk through all entries, `:r` is
what the counters and `:s` must say.
  recount_begin → recount every entry (HSCAN from 0 to 0) → recount_segments all of `:s` and `:r`
  → recount_end
A walk that was broken off begins anew with the next number: the server refuses the old one.
]]

local SUMMED = { "hot", "cold", "dirty", "pinned", "unstored" }
local RECOUNTS = 255 -- numbers fit one byte; 0 is an entry that was never counted
local SUPERSEDED = -1

--[[ recount_begin: begins a recount, and ends one in progress.
KEYS     the books
ARGV     none
Returns  its number
Flags    allow-oom
Worst    O(1)
]]
local function recount_begin(K)
  local number = used(K, "recounts") % RECOUNTS + 1
  redis.call("UNLINK", of_slot(K, "r"))
  redis.call("ZADD", of_slot(K, "r"), number, "number")
  redis.call("HSET", K[4], "recounts", number)
  return number
end
register("recount_begin", recount_begin, { before = 0, each = 0, most = 0 })

-- Sees to it that a block is in `set` if it should be, else not. Returns whether that was wrong.
local function file_in(set, id, should, add)
  local is = redis.call("ZSCORE", set, id) ~= false
  if is == should then return false end
  if is then redis.call("ZREM", set, id) else add() end
  return true
end

-- Sees to it that a block is in the sets of its state. Returns whether something was wrong.
local function file(K, id, e, us)
  local now_s, added = math.floor(us / 1000000), 0
  if has(e, DIRTY) then added = redis.call("ZADD", K[3], "NX", now_s, id) end
  if e.pinned > 0 then added = added + redis.call("ZADD", of_slot(K, "p"), "NX", e.pinned, id) end
  local free = e.pinned == 0
  local a = file_in(K[2], id, is_clean(e) and free, function() rank(K, id, e, us) end)
  local b = file_in(cold_ranks(K), id, is_cold(e) and free, function() rank_cold(K, id, e, us) end)
  local has_look = e.expires > 0 or e.idle > 0 and has(e, HOT)
  if has_look and not redis.call("ZSCORE", K[7], id) then
    schedule(K, id, e, now_s)
    added = added + 1
  end
  return a or b or added > 0
end

-- Whether the value of a hot block is there, which then has no end.
local function has_value(K, id, e)
  local key = block_key(K, e, id)
  if redis.pcall("STRLEN", key) ~= e.size then return false end -- an error: it is no string
  redis.call("PERSIST", key)
  return true
end

-- Adds an entry to `sums`.
local function sum_up(sums, e)
  local is = {
    hot = has(e, HOT), cold = has(e, COLD), dirty = has(e, DIRTY), pinned = e.pinned > 0,
    unstored = has(e, UNSTORED),
  }
  local function add(name, by) sums[name] = (sums[name] or 0) + by end
  for _, what in ipairs(SUMMED) do
    if is[what] then
      add(what .. "_bytes", what == "cold" and cold_bytes(e) or e.size)
      add(what .. "_blocks", 1)
    end
  end
  if is.cold then add(e.segment, cold_bytes(e)) end
end

--[[ recount: checks and counts these blocks. A hot block whose value is missing, or has another
length, is hot no more.
KEYS     the books
ARGV     number, ids
Returns  array: blocks that were hot without data, blocks that were in wrong sets; {SUPERSEDED, 0}:
         begin anew
Flags    allow-oom
Worst    O(ids · log n); about 6 µs each
]]
local function recount(K, A)
  local us, number, lost, unfiled, sums = now_us(), tonumber(A[1]), 0, 0, {}
  if recount_number(K) ~= number then return { SUPERSEDED, 0 } end
  for_each(K, A, 2, function(id, e)
    if has(e, GONE) then return end
    if has(e, HOT) and not has_value(K, id, e) then
      lost = lost + 1
      drop(K, id, e, HOT, CORRUPT, us)
      if has(e, GONE) then return end
    end
    if file(K, id, e, us) then unfiled = unfiled + 1 end
    if e.reason ~= number then
      sum_up(sums, e)
      e.reason = number
      save(K, id, e)
    end
  end)
  for name, by in pairs(sums) do redis.call("ZINCRBY", of_slot(K, "r"), by, name) end
  if lost > 0 then count(K, "corrupt_blocks", lost) end
  return { lost, unfiled }
end
register("recount", recount, { before = 1, each = 1, most = CALL_MOST })

--[[ recount_segments: all blocks were counted: sets the live bytes of these segments right.
KEYS     the books
ARGV     number, segments
Returns  flat array: segment, counter, truth of each that was wrong; {SUPERSEDED}: begin anew
Flags    allow-oom
Worst    O(segments · log n)
]]
local function recount_segments(K, A)
  local out = {}
  if recount_number(K) ~= tonumber(A[1]) then return { SUPERSEDED } end
  for i = 2, #A do
    local counter = tonumber(redis.call("ZSCORE", of_slot(K, "s"), A[i]) or "0")
    local truth = tonumber(redis.call("ZSCORE", of_slot(K, "r"), A[i]) or "0")
    if counter ~= truth then
      redis.call("ZADD", of_slot(K, "s"), truth, A[i])
      for _, value in ipairs({ A[i], counter, truth }) do out[#out + 1] = value end
    end
  end
  return out
end
register("recount_segments", recount_segments, { before = 1, each = 1, most = CALL_MOST })

--[[ recount_end: sets the counters right, and ends the recount. Evicts blocks that a counter below
the truth let in over a quota.
KEYS     the books
ARGV     number
Returns  flat array: name, counter, truth of each that was wrong; {SUPERSEDED}: begin anew
Flags    allow-oom
Worst    O(evicted · log n); EVICT_MOST hot and SWEEP_MOST cold blocks
]]
local function recount_end(K, A)
  local out = {}
  if recount_number(K) ~= tonumber(A[1]) then return { SUPERSEDED } end
  for _, what in ipairs(SUMMED) do
    for _, unit in ipairs({ "_bytes", "_blocks" }) do
      local counter = used(K, what .. unit)
      local truth = tonumber(redis.call("ZSCORE", of_slot(K, "r"), what .. unit) or "0")
      if counter ~= truth then
        redis.call("HSET", K[4], what .. unit, truth)
        for _, value in ipairs({ what .. unit, counter, truth }) do out[#out + 1] = value end
      end
    end
  end
  redis.call("UNLINK", of_slot(K, "r"))
  local over = used(K, "hot_bytes") - quota(K, "hot_bytes")
  if over > 0 then make_room(K, now_us(), over) end
  trim_cold(K, now_us())
  return out
end
register("recount_end", recount_end, { before = 1, each = 0, most = 0 })
