-- Flush: from hot to cold, by workers.

local LEASE_MOST_S = 600 -- above any lease that workers take
local SKEW_S = 60 -- a time so little ahead is no sign of a clock that was set back

--[[ lease_dirty: gives out blocks whose flush is due, longest due first. Until the lease ends
nobody else gets them; a lapsed one is given out again.
KEYS     the books
ARGV     lease_s, most blocks, most bytes (one block may exceed them)
Returns  flat array: id, space, size, tokens, expiry, time of storing of each
Flags    allow-oom
Worst    O(given out + leased to others)
]]
local function lease_dirty(K, A)
  local now_s, most, most_bytes = now_us() / 1000000, tonumber(A[2]), tonumber(A[3])
  local leases, out, blocks, bytes, seen = of_slot(K, "f"), {}, 0, 0, 0
  redis.call("ZREMRANGEBYSCORE", leases, "-inf", now_s)
  while true do
    local ids = redis.call("ZRANGE", K[3], "-inf", now_s, "BYSCORE", "LIMIT", seen, SLICE)
    if #ids == 0 then return out end
    local leased = redis.call("ZMSCORE", leases, unpack(ids))
    for i, id in ipairs(ids) do
      local e = not leased[i] and load_member(K, id, K[3], is_dirty)
      if e then
        if blocks == most or bytes > 0 and bytes + e.size > most_bytes then return out end
        blocks, bytes = blocks + 1, bytes + e.size
        redis.call("ZADD", leases, now_s + tonumber(A[1]), id)
        for _, value in ipairs({ id, e.space, e.size, e.tokens, e.expires, e.stored }) do
          out[#out + 1] = value
        end
      end
    end
    seen = seen + #ids
  end
end
register("lease_dirty", lease_dirty, { before = 3, each = 0, most = 0 })

--[[ renew_leases: leases of these blocks that have not lapsed end lease_s from now; 0 returns them.
KEYS     the books
ARGV     lease_s, ids
Returns  0
Flags    allow-oom
Worst    O(ids · log n)
]]
local function renew_leases(K, A)
  local until_s = now_us() / 1000000 + tonumber(A[1])
  for i = 2, #A do redis.call("ZADD", of_slot(K, "f"), "XX", until_s, A[i]) end
  return 0
end
register("renew_leases", renew_leases, { before = 1, each = 1, most = CALL_MOST })

-- After the clock was set back: leases that end too far ahead are void, and dirty blocks that were
-- stored "in the future" count as stored now, so that their flush comes when the policy says. Looks
-- at `most` of them, at others each time: a policy may keep blocks dirty for long.
local function end_future(K, us, most)
  local now_s = math.floor(us / 1000000)
  redis.call("ZREMRANGEBYSCORE", of_slot(K, "f"), now_s + LEASE_MOST_S, "+inf")
  local later = redis.call("ZCOUNT", K[3], "(" .. now_s, "+inf")
  if later == 0 then return end
  local first = us % math.max(1, later - most + 1)
  local last = first + math.min(later, most) - 1
  for _, id in ipairs(redis.call("ZRANGE", K[3], first, last, "REV")) do
    local e = load_member(K, id, K[3], is_dirty)
    if e and e.stored > now_s + SKEW_S then
      e.stored = now_s
      save(K, id, e)
      redis.call("ZADD", K[3], now_s + math.max(0, terms_of(K, e.space).flush_after), id)
    end
  end
end

-- The cold tier has no room for a dirty block: its flush ends. Saves it.
local function refuse_flush(K, id, e, us)
  mark_clean(K, id, e, us)
  mark_unstored(K, e)
  save(K, id, e)
  count(K, "cold_refused_blocks", 1)
end

--[[ admit: which of these leased blocks shall be written to S3? Makes room for them in the cold
tier if the policy evicts. The others stay hot, clean, evictable and UNSTORED.
KEYS     the books
ARGV     bytes admitted before for the same segment, ids
Returns  array: blocks and bytes evicted from the cold tier, then 1 (write it) or 0 for each id
Flags    allow-oom
Worst    O(ids + evicted · log n); evicts at most EVICT_MOST blocks
]]
local function admit(K, A)
  local us, admitted, out = now_us(), tonumber(A[1]), { 0, 0 }
  for i = 2, #A do
    local e = load(K, A[i])
    out[i + 1] = 1 -- also of a block that left meanwhile: whoever reads it finds out
    if has(e, DIRTY) then
      local fits, blocks, bytes = has_cold_room(K, us, admitted + e.size, e.priority)
      out[1], out[2] = out[1] + blocks, out[2] + bytes
      if fits then
        admitted = admitted + e.size
      else
        e = load(K, A[i]) -- making room may have changed it
        if has(e, DIRTY) then refuse_flush(K, A[i], e, us) end
        out[i + 1] = 0
      end
    end
  end
  return out
end
register("admit", admit, { before = 1, each = 1, most = CALL_MOST })

local function is_open(K, segment)
  return redis.call("ZSCORE", of_slot(K, "s"), segment) ~= false
end

-- The outcome of one block of `flushed`.
local function flush_block(K, us, id, segment, place, open)
  local now_s, e = math.floor(us / 1000000), load(K, id)
  if is_placed(e, segment, place.offset) then return FLUSHED end
  if has(e, COLD) or not open or not is_alive(e, now_s) then return DEAD end
  local bytes = place.size > 0 and place.size or e.size
  local fits = has_cold_room(K, us, bytes, e.priority)
  e = load(K, id) -- making room may have changed it
  if not is_alive(e, now_s) then return DEAD end
  if not fits then
    refuse_flush(K, id, e, us)
    return COLD_FULL
  end
  mark_clean(K, id, e, us)
  mark_cold(K, e, segment, place)
  rank_cold(K, id, e, us)
  save(K, id, e)
  return FLUSHED
end

--[[ flushed: these blocks are, verified, in a live segment. May be repeated.
KEYS     the books
ARGV     segment, then id and place (read_place) of each block
Returns  array: FLUSHED, DEAD (it left meanwhile, or is cold elsewhere: dead bytes of the segment;
         all, if the segment is not open), COLD_FULL (the cold tier has no room and makes none: the
         block stays hot, clean, evictable and UNSTORED)
Flags    allow-oom
Worst    O(blocks + evicted · log n); evicts at most EVICT_MOST blocks
]]
local function flushed(K, A)
  local us, out, segment = now_us(), {}, tonumber(A[1])
  local open = is_open(K, segment)
  for i = 2, #A, 2 do
    out[#out + 1] = flush_block(K, us, A[i], segment, read_place(A[i + 1]), open)
  end
  return out
end
register("flushed", flushed, { before = 1, each = 2, most = CALL_MOST })
