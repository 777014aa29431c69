-- Entries of the index: reading, writing, and what holds for them. layout.lua says their fields.

local HELD = 1 -- the terms are those of contexts that hold the block, not its space's

local function is_sound(raw)
  return (#raw == ENTRY_BYTES or #raw == ENTRY_1_BYTES)
    and PLACES[bit.band(string.byte(raw), PLACE_BITS)] == true
end

-- Nil for bytes that no function wrote: a tenant's own hands may write anything into its `:i`. An
-- entry of version 1 becomes one of today's when it is saved.
local function decode(raw)
  if not raw or not is_sound(raw) then return nil end
  return #raw == ENTRY_BYTES and unpack_entry(raw) or unpack_entry_1(raw)
end

local function load(K, id) return decode(redis.call("HGET", K[1], id)) end

local function save(K, id, e) redis.call("HSET", K[1], id, pack_entry(e)) end

-- An entry with the terms of its space, to which the caller gives its state.
local function new_entry(K, space, size, tokens)
  local e = empty_entry()
  e.reason, e.space, e.size, e.tokens = recount_number(K), space, size, tokens
  return e
end

local function has(e, bit_) return e ~= nil and bit.band(e.state, bit_) ~= 0 end

local function is_there(e) return not has(e, GONE) end
local function is_dirty(e) return has(e, DIRTY) end
local function is_clean(e) return has(e, HOT) and not has(e, DIRTY) end
local function is_cold(e) return has(e, COLD) end
local function is_pinned(e) return not has(e, GONE) and e.pinned > 0 end

-- Whether the cold copy is at this place.
local function is_placed(e, segment, offset)
  return has(e, COLD) and e.segment == segment and e.offset == offset
end

local function is_expired(e, now_s)
  return e.expires > 0 and e.expires <= now_s and e.pinned <= now_s
end

local function is_alive(e, now_s)
  return e ~= nil and not has(e, GONE) and not is_expired(e, now_s)
end

-- The entry of a member of `set`. If it is missing or in another state, removes the stale member,
-- so that callers do not meet it again.
local function load_member(K, id, set, is_right)
  local e = load(K, id)
  if e and is_right(e) then return e end
  redis.call("ZREM", set, id)
end

-- Calls `act` with the entry of each id from A[first] on. Returns how often it said true.
local function for_each(K, A, first, act)
  local n = 0
  for i = first, #A do
    local e = load(K, A[i])
    if e and act(A[i], e) then n = n + 1 end
  end
  return n
end

local function is_recounted(K, e) return e.reason > 0 and e.reason == recount_number(K) end

-- Bytes of the cold copy, which may be encoded.
local function cold_bytes(e) return e.cold_size > 0 and e.cold_size or e.size end

-- Adds a block to (`by` 1), or takes it (-1) from what is "hot", "cold", "dirty", "pinned" or
-- "unstored".
local function charge(K, e, what, by)
  local bytes = by * (what == "cold" and cold_bytes(e) or e.size)
  count(K, what .. "_bytes", bytes)
  count(K, what .. "_blocks", by)
  if is_recounted(K, e) then
    redis.call("ZINCRBY", of_slot(K, "r"), bytes, what .. "_bytes")
    redis.call("ZINCRBY", of_slot(K, "r"), by, what .. "_blocks")
  end
end

-- The same with a segment's live bytes. At 0 the segment stays in `:s` until it is closed.
local function charge_segment(K, e, segment, by)
  local bytes = by * cold_bytes(e)
  redis.call("ZINCRBY", of_slot(K, "s"), bytes, segment)
  if is_recounted(K, e) then redis.call("ZINCRBY", of_slot(K, "r"), bytes, segment) end
end

-- The end of a life: `until_s` prolongs the time to live, and nothing but a pin the greatest age.
-- 0: no end. `retention.terms.end_of` says the same.
local function end_of(stored_s, ttl_s, max_age_s, until_s)
  local ends = ttl_s > 0 and math.max(stored_s + ttl_s, until_s) or 0
  if max_age_s > 0 and (ends == 0 or ends > stored_s + max_age_s) then
    ends = stored_s + max_age_s
  end
  return ends
end
