-- Removals: which blocks left, for routers that were told where they are. Tombstones tell it: no
-- function writes anything for it.

do -- see repair.lua

-- When this server answered first, µs. What it was given then (a snapshot, a replica's copy) may
-- lack later tombstones.
local answers_from_us

-- Ids and scores of the tombstones behind `after`: about `most`, and all of the last score, since
-- one call may make thousands.
local function tombstones_behind(K, after, most)
  local after_us, found = string.format("(%.0f", after), {}
  local pairs_ = redis.call("ZRANGE", K[6], after_us, "+inf", "BYSCORE", "LIMIT", 0, most,
    "WITHSCORES")
  local last = pairs_[#pairs_]
  for i = 1, #pairs_, 2 do
    if #pairs_ < 2 * most or pairs_[i + 1] ~= last then found[#found + 1] = pairs_[i] end
  end
  if #pairs_ == 2 * most then
    for _, id in ipairs(redis.call("ZRANGE", K[6], last, last, "BYSCORE")) do
      found[#found + 1] = id
    end
  end
  return found, last
end

-- The ids of tombstones that are of this space.
local function of_space(K, ids, space)
  local out = {}
  for first = 1, #ids, SLICE do
    local last = math.min(first + SLICE - 1, #ids)
    for i, raw in ipairs(redis.call("HMGET", K[1], unpack(ids, first, last))) do
      local e = decode(raw)
      if has(e, GONE) and e.space == space then out[#out + 1] = ids[first + i - 1] end
    end
  end
  return out
end

--[[ removals: the blocks of a space that left both tiers behind a time, and were not stored again.
KEYS     the books
ARGV     space; time of the caller's last answer, µs (-1: begin now); about how many at most
Returns  array: time to ask behind next; 1: earlier removals are not all known any more, so whatever
         the caller knows of this space is void; the ids as one string
Flags    allow-oom
Worst    O(most + blocks that one call removed); about 1 µs each
]]
local function removals(K, A)
  local us, space, after = now_us(), tonumber(A[1]), tonumber(A[2])
  answers_from_us = answers_from_us or us
  local from = tonumber(redis.call("HGET", K[4], "removals_from_us") or "-1")
  if from < 0 then
    remember_from(K, string.format("%.0f", us))
    from = us
  end
  if after < 0 then return { us, 0, "" } end
  if after < math.max(from, answers_from_us) or after > us then return { us, 1, "" } end
  local ids, last = tombstones_behind(K, after, tonumber(A[3]))
  return { tonumber(last or after), 0, table.concat(of_space(K, ids, space)) }
end
register("removals", removals, { before = 3, each = 0, most = 0 })

end
