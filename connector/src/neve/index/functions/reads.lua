-- Reads: where blocks are, that they were used, and which become hot again.

-- Reads of cold blocks are noted in 15 bits of `touched`, in units of TICK_S: 36 hours, then from
-- the beginning. 0: not read since it is cold. CLAIMED is added when a node was told to promote it.
local TICK_S, TICKS, CLAIMED = 4, 32768, 32768
local CLAIM_S = 32 -- until then nobody else promotes the block: longer than a read and a store

-- A row for a node that knows version 1; nil: it says nothing of codecs and kinds, nor of an offset
-- so large.
local function row_of_version_1(e)
  local is_plain = e.kind + e.hot_codec + e.cold_codec == 0
  if is_plain and e.offset < 2 ^ 32 then return pack_entry_1(e) end
end

-- The answer for one id, by its entry; nil and a reason: a miss.
local function row_of(raw, row_bytes, pack_row, now_s)
  local e = decode(raw)
  if not e then return nil, 0 end
  if not is_alive(e, now_s) then return nil, has(e, GONE) and e.reason or EXPIRED end
  if #raw == row_bytes then return raw end
  return pack_row(e), CORRUPT
end

-- The answers of `locate`, or of `match`: a row of `row_bytes` for each id. `pack_row` makes one of
-- an entry of another version. Nearly all entries have no end: they go through without being
-- unpacked, since making a string here costs more than the bytes sent.
local function rows(K, A, row_bytes, pack_row)
  local byte, out, n, now_s = string.byte, {}, 0, math.floor(now_us() / 1000000)
  for first = 2, #A, SLICE do
    local last = math.min(first + SLICE - 1, #A)
    local found = redis.call("HMGET", K[1], unpack(A, first, last))
    for i = 1, last - first + 1 do
      local raw, row, reason = found[i], nil, 0
      if raw and #raw == row_bytes and PLACES[byte(raw) % (2 * GONE)] then
        local a, b, c, d = byte(raw, EXPIRES_AT, EXPIRES_AT + 3)
        if a + b + c + d == 0 and byte(raw) % (2 * GONE) ~= GONE then row = raw end
      end
      if raw and not row then row, reason = row_of(raw, row_bytes, pack_row, now_s) end
      n = n + 1
      out[n] = row or string.char(0, reason) .. string.sub(EMPTY, 3, row_bytes)
      if not row and A[1] == "0" then return table.concat(out) end
    end
  end
  return table.concat(out)
end

--[[ locate: where are these blocks?
KEYS     the books
ARGV     all ("0": stop after the first miss, "1": answer for each), ids
Returns  string, ENTRY_BYTES for each id: its entry. Of a miss the state is 0, the reason is set,
         and all else is 0
Flags    allow-oom
Worst    O(ids); about 0.5 µs each, 3 µs for one of version 1
]]
local function locate(K, A) return rows(K, A, ENTRY_BYTES, pack_entry) end
register("locate", locate, { before = 1, each = 1, most = CALL_MOST })

--[[ match: the same for nodes of release 0.2.0. A block that they cannot read is a miss by
`corrupt`.
KEYS     the books
ARGV     all, ids, as for `locate`
Returns  string, ENTRY_1_BYTES for each id: its entry in the form of version 1
Flags    allow-oom
Worst    O(ids); about 3 µs each
]]
local function match(K, A) return rows(K, A, ENTRY_1_BYTES, row_of_version_1) end
register("match", match, { before = 1, each = 1, most = CALL_MOST })

-- The rank of a block of this score that is used now, and not on probation (any more).
local function used_at(score, us)
  return tonumber(score) - tonumber(score) % BAND + HALF + math.floor(us / RANK_US)
end

--[[ touch: these blocks were used now.
KEYS     the books
ARGV     ids
Returns  0
Flags    allow-oom
Worst    O(ids · log n)
]]
local function touch(K, A)
  local us = now_us()
  for first = 1, #A, SLICE do
    local last, ranks = math.min(first + SLICE - 1, #A), {}
    for i, score in ipairs(redis.call("ZMSCORE", K[2], unpack(A, first, last))) do
      local id = A[first + i - 1]
      if score then
        ranks[#ranks + 1] = used_at(score, us)
        ranks[#ranks + 1] = id
      else
        local e = load(K, id)
        if has(e, DIRTY) then use(K, id, e, us) else rank_cold(K, id, e, us) end
      end
    end
    if #ranks > 0 then
      redis.call("ZADD", K[2], "XX", "GT", unpack(ranks))
      redis.call("ZADD", cold_ranks(K), "XX", "GT", unpack(ranks))
    end
  end
  return 0
end
register("touch", touch, { before = 0, each = 1, most = CALL_MOST })

--[[ promote: these cold blocks are being read. Which shall the caller store as hot?
KEYS     the books
ARGV     ids
Returns  array: 1 for a block that is read for the second time within `promote_window_s` and that
         nobody else was told to store in the last CLAIM_S, else 0
Flags    allow-oom
Worst    O(ids · log n)
]]
local function promote(K, A)
  local us, window, out = now_us(), quota(K, "promote_window_s"), {}
  local now_s = math.floor(us / 1000000)
  local tick = math.max(1, math.floor(now_s / TICK_S) % TICKS)
  for n, id in ipairs(A) do
    local e = load(K, id)
    out[n] = 0
    if is_alive(e, now_s) then rank_cold(K, id, e, us) end
    if window > 0 and is_alive(e, now_s) and has(e, COLD) and not has(e, HOT) then
      local age_s = (tick - e.touched) % TICKS * TICK_S
      local is_claimed = e.touched >= CLAIMED and age_s < CLAIM_S
      if not is_claimed then
        out[n] = e.touched > 0 and age_s <= window and 1 or 0
        e.touched = tick + out[n] * CLAIMED
        save(K, id, e)
      end
    end
  end
  return out
end
register("promote", promote, { before = 0, each = 1, most = CALL_MOST })

--[[ forget: the copy of these blocks in one tier is bad or lost.
KEYS     the books
ARGV     "hot" or "cold", ids
Returns  how many had such a copy
Flags    allow-oom
Worst    O(ids · log n)
]]
local function forget(K, A)
  local us, tier = now_us(), A[1] == "hot" and HOT or COLD
  local n = for_each(K, A, 2, function(id, e)
    if not has(e, tier) then return false end
    drop(K, id, e, tier, CORRUPT, us)
    return true
  end)
  if n > 0 then count(K, "corrupt_blocks", n) end
  return n
end
register("forget", forget, { before = 1, each = 1, most = CALL_MOST })
