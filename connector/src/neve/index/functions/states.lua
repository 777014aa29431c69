-- Changes of an entry's state. They keep counters and sets right; unless they say so, save the
-- entry afterwards.

local TOMBSTONES_KEPT = 20000 -- a bucket remembers why at most so many blocks went

-- From this time on, µs, `:x` names every block that left both tiers and was not stored again.
local function remember_from(K, us) redis.call("HSET", K[4], "removals_from_us", us) end

-- Ends the flush of a dirty block: it may be evicted from now on.
local function mark_clean(K, id, e, us)
  if not has(e, DIRTY) then return end
  redis.call("ZREM", K[3], id)
  charge(K, e, "dirty", -1)
  rank(K, id, e, us, e.touched == 0 and policy(K).probation)
  e.state, e.touched = e.state - DIRTY, 0
end

-- The cold tier has no room for a hot, clean block.
local function mark_unstored(K, e)
  if has(e, UNSTORED) then return end
  e.state = e.state + UNSTORED - (has(e, LET_GO) and LET_GO or 0)
  charge(K, e, "unstored", 1)
end

-- The block goes to S3 (again), is there, or leaves: UNSTORED and LET_GO end.
local function end_refusal(K, e)
  if has(e, UNSTORED) then charge(K, e, "unstored", -1) end
  e.state = e.state - bit.band(e.state, UNSTORED + LET_GO)
end

-- A hot block must be flushed, and is not evicted before.
local function mark_dirty(K, id, e, due_s)
  end_refusal(K, e)
  local _, on_probation = last_use(K, id)
  e.state, e.touched = e.state + DIRTY, on_probation and 0 or 1
  redis.call("ZADD", K[3], due_s, id)
  redis.call("ZREM", K[2], id)
  charge(K, e, "dirty", 1)
end

-- A value that names a place in a segment: "offset", or "offset:size:codec" of an encoded block.
local function read_place(text)
  local offset, size, codec = string.match(text, "^(%d+):(%d+):(%d+)$")
  return { offset = tonumber(offset or text), size = tonumber(size or 0),
    codec = tonumber(codec or 0) }
end

local function put_place(e, segment, place)
  e.segment, e.offset = segment, place.offset
  e.cold_size, e.cold_codec = place.size, place.codec
end

-- The cold copy of a block is at this place of the segment.
local function mark_cold(K, e, segment, place)
  end_refusal(K, e)
  e.state = e.state + COLD
  put_place(e, segment, place)
  charge(K, e, "cold", 1)
  charge_segment(K, e, segment, 1)
end

-- A use; saves the entry if it changes. A dirty block has no rank: its entry notes the use.
local function use(K, id, e, us)
  rank_cold(K, id, e, us)
  if not has(e, DIRTY) then
    rank(K, id, e, us)
  elseif e.touched == 0 then
    e.touched = 1
    save(K, id, e)
  end
end

-- Sets when the block is looked at again. Call it after `rank`, when expires, idle or pinned
-- changed.
local function schedule(K, id, e, now_s)
  local at = e.expires > 0 and math.max(e.expires, e.pinned) or math.huge
  if e.idle > 0 and has(e, HOT) then
    local used_s = math.floor((last_use(K, id) or now_s * 1000000) / 1000000)
    at = math.min(at, math.max(used_s + e.idle, e.pinned))
  end
  if at < math.huge then redis.call("ZADD", K[7], at, id) else redis.call("ZREM", K[7], id) end
end

-- Charges or refunds the budget of pins. Rank and schedule the entry afterwards, too.
local function set_pin(K, id, e, until_s)
  local pins = of_slot(K, "p")
  if until_s > 0 then
    redis.call("ZADD", pins, until_s, id)
    redis.call("ZREM", K[2], id)
    redis.call("ZREM", cold_ranks(K), id)
  else
    redis.call("ZREM", pins, id)
  end
  local by = (until_s > 0 and 1 or 0) - (e.pinned > 0 and 1 or 0)
  if by ~= 0 then charge(K, e, "pinned", by) end
  e.pinned = until_s
end

-- Makes an entry without copies a tombstone, which tells the reason of the next miss, and saves it.
local function make_tombstone(K, id, e, reason, us)
  if e.pinned > 0 then set_pin(K, id, e, 0) end
  local gone = empty_entry()
  gone.state, gone.reason = GONE, reason
  gone.space, gone.size, gone.tokens = e.space, e.size, e.tokens
  e.state = GONE
  save(K, id, gone)
  redis.call("ZREM", K[7], id)
  redis.call("ZADD", K[6], us, id)
  if redis.call("ZCARD", K[6]) > TOMBSTONES_KEPT then
    local oldest = redis.call("ZPOPMIN", K[6])
    redis.call("HDEL", K[1], oldest[1])
    remember_from(K, oldest[2])
  end
end

-- Takes the hot copy of a block away. Returns the reason that its tombstone would give.
local function drop_hot(K, id, e, reason, us)
  mark_clean(K, id, e, us)
  remove_block(block_key(K, e, id))
  redis.call("ZREM", K[2], id)
  charge(K, e, "hot", -1)
  if reason == EVICTED or reason == IDLE then
    if has(e, UNSTORED) then
      reason = UNFLUSHED
      count(K, "lost_blocks", 1)
      count(K, "lost_bytes", e.size)
    elseif has(e, LET_GO) then
      reason = EVICTED_COLD
    end
  end
  end_refusal(K, e)
  e.state, e.touched, e.hot_codec = e.state - HOT, 0, 0
  return reason
end

-- Takes the cold copy away. A hot block that lost it is flushed again, unless the cold tier let it
-- go.
local function drop_cold(K, id, e, reason)
  charge(K, e, "cold", -1)
  charge_segment(K, e, e.segment, -1)
  redis.call("ZREM", cold_ranks(K), id)
  e.state, e.segment, e.offset = e.state - COLD, 0, 0
  e.cold_codec, e.cold_size = 0, 0
  local flush_after = has(e, HOT) and terms_of(K, e.space).flush_after or -1
  if has(e, HOT) and reason == EVICTED_COLD then
    e.state = e.state + LET_GO
  elseif flush_after >= 0 and not has(e, DIRTY) then
    mark_dirty(K, id, e, e.stored + flush_after)
  end
end

-- Takes the copies of one tier or both away, and saves the entry: as a tombstone when none is left.
-- Returns freed hot bytes.
local function drop(K, id, e, tiers, reason, us)
  local freed = 0
  if has(e, HOT) and bit.band(tiers, HOT) ~= 0 then
    reason = drop_hot(K, id, e, reason, us)
    freed = e.size
  end
  if has(e, COLD) and bit.band(tiers, COLD) ~= 0 then drop_cold(K, id, e, reason) end
  if e.state == 0 then make_tombstone(K, id, e, reason, us) else save(K, id, e) end
  return freed
end
