-- Removal: what is due, and making room in either tier.

local MOST_PRIORITY = 255 -- of one byte

-- Ends the pins whose time has come; they count as uses at that time. Returns how many.
local function end_pins(K, us)
  local now_s = math.floor(us / 1000000)
  local pins = of_slot(K, "p")
  local ids = redis.call("ZRANGE", pins, "-inf", now_s, "BYSCORE", "LIMIT", 0, SWEEP_MOST)
  for _, id in ipairs(ids) do
    local e = load_member(K, id, pins, is_pinned)
    if e then
      local ended_us = e.pinned * 1000000
      set_pin(K, id, e, 0)
      save(K, id, e)
      if is_clean(e) then rank(K, id, e, ended_us) end
      rank_cold(K, id, e, ended_us)
      schedule(K, id, e, now_s)
    end
  end
  return #ids
end

-- `what`: "evicted" or "idle" from the hot tier, "cold_evicted" from the cold one.
local function count_left(K, what, blocks, bytes)
  if blocks > 0 then
    count(K, what .. "_blocks", blocks)
    count(K, what .. "_bytes", bytes)
  end
end

-- Looks at up to `most` blocks whose time has come: expired ones leave both tiers, idle ones the
-- hot tier, the others are looked at again later. Stops at `enough` freed hot bytes. Returns blocks
-- removed, hot bytes freed, looks.
local function drop_due(K, us, most, enough)
  local now_s, looks, freed = math.floor(us / 1000000), 0, 0
  local expired, idle, idle_bytes = 0, 0, 0
  for _, id in ipairs(redis.call("ZRANGE", K[7], "-inf", now_s, "BYSCORE", "LIMIT", 0, most)) do
    if freed >= enough then break end
    local e = load_member(K, id, K[7], is_there)
    looks = looks + 1
    if not e then
      -- it left the set
    elseif is_expired(e, now_s) then
      freed, expired = freed + drop(K, id, e, HOT + COLD, EXPIRED, us), expired + 1
    else
      local used_us = e.idle > 0 and last_use(K, id)
      if used_us and math.floor(used_us / 1000000) + e.idle <= now_s then
        local size = drop(K, id, e, HOT, IDLE, us)
        freed, idle, idle_bytes = freed + size, idle + 1, idle_bytes + size
      end
      if not has(e, GONE) then schedule(K, id, e, now_s) end
    end
  end
  if expired > 0 then count(K, "expired_blocks", expired) end
  count_left(K, "idle", idle, idle_bytes)
  return expired + idle, freed, looks
end

-- Frees at least `bytes` of the hot tier if it can: what is due first, then victims; EVICT_MOST
-- blocks in all of a call. Returns blocks, bytes. Entries loaded before may be stale afterwards.
local function make_room(K, us, bytes)
  K.room = K.room or { left = EVICT_MOST, pins_ended = end_pins(K, us) }
  local blocks, freed, looks = drop_due(K, us, K.room.left, bytes)
  K.room.left = K.room.left - looks
  local evicted, evicted_bytes = 0, 0
  while freed < bytes and evicted < K.room.left do
    local ids = victims(K)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      if freed >= bytes then break end
      local e = load_member(K, id, K[2], is_clean)
      if e then
        local size = drop(K, id, e, HOT, EVICTED, us)
        freed, evicted, evicted_bytes = freed + size, evicted + 1, evicted_bytes + size
      end
    end
  end
  K.room.left = K.room.left - evicted
  count_left(K, "evicted", evicted, evicted_bytes)
  return blocks + evicted, freed
end

-- Frees the cold tier until it holds at most `most` bytes, or only pinned blocks and blocks above
-- `priority` are left: what is due first, then the longest unread. All turns of one call together
-- evict at most EVICT_MOST blocks. Returns blocks, bytes. Entries loaded before may be stale
-- afterwards.
local function make_cold_room(K, us, most, priority)
  local blocks, bytes = 0, 0
  local bound = "(" .. string.format("%.0f", (priority + 1) * BAND)
  if used(K, "cold_bytes") <= most then return 0, 0 end
  if not K.cold_left then
    K.cold_left = EVICT_MOST
    end_pins(K, us)
    drop_due(K, us, SWEEP_MOST, math.huge)
  end
  while used(K, "cold_bytes") > most and blocks < K.cold_left do
    local ranks = cold_ranks(K)
    local ids = redis.call("ZRANGE", ranks, "-inf", bound, "BYSCORE", "LIMIT", 0, EVICT_BATCH)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      if used(K, "cold_bytes") <= most or blocks == K.cold_left then break end
      local e = load_member(K, id, ranks, is_cold)
      if e then
        local freed = cold_bytes(e)
        drop(K, id, e, COLD, EVICTED_COLD, us)
        blocks, bytes = blocks + 1, bytes + freed
      end
    end
  end
  K.cold_left = K.cold_left - blocks
  count_left(K, "cold_evicted", blocks, bytes)
  return blocks, bytes
end

local function cold_evicts(K) return quota(K, "cold_evicts") == 1 end

-- Whether the cold tier has room for a block of this priority, made if the policy evicts; then
-- blocks and bytes evicted. A block larger than the quota never fits: nothing leaves for it.
local function has_cold_room(K, us, bytes, priority)
  local cold_quota, blocks, freed = quota(K, "cold_bytes"), 0, 0
  if bytes <= cold_quota and cold_evicts(K) then
    blocks, freed = make_cold_room(K, us, cold_quota - bytes, priority)
  end
  return used(K, "cold_bytes") + bytes <= cold_quota, blocks, freed
end

-- Takes up to SWEEP_MOST blocks from a cold tier over its quota, which was lowered, or which a
-- rebuild exceeded. Returns whether more may have to leave.
local function trim_cold(K, us)
  if not cold_evicts(K) then return false end
  K.cold_left = SWEEP_MOST
  return make_cold_room(K, us, quota(K, "cold_bytes"), MOST_PRIORITY) == SWEEP_MOST
end

--[[ evict: frees hot bytes: expired and idle blocks, then those that leave first.
KEYS     the books
ARGV     bytes
Returns  array: blocks and bytes removed
Flags    allow-oom
Worst    O(removed · log n); EVICT_MOST blocks
]]
local function evict(K, A)
  local blocks, freed = make_room(K, now_us(), tonumber(A[1]))
  return { blocks, freed }
end
register("evict", evict, { before = 1, each = 0, most = 0 })
