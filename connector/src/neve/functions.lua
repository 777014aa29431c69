#!lua name=neve
--[[
Neve's hot tier: every change of the block index, in functions that each run atomically on one bucket.

KEYS of every function (neve/keys.py builds them, all in one hash slot):
  1 :i  HASH id -> packed entry          5 :q  HASH hot_bytes, cold_bytes, flush_after_s, ttl_s
  2 :l  ZSET id -> rank in µs            6 :x  ZSET id -> when it went, µs (tombstones)
  3 :d  ZSET id -> flush due, s          7 :e  ZSET id -> expiry, s
  4 :u  HASH usage counters              8…    block keys (commit only)

Ids are 16 raw bytes. Times are the server's own (TIME): one clock, whatever the nodes' clocks say.
`:l` holds the hot, clean blocks. A rank is the last access, or the end of the pin when that is
later: what ranks after `now` is pinned, so eviction stops there without searching.
Dirty blocks are in `:d` and not in `:l`: they cannot be evicted.
Invariants (tests/hot/test_state_machine.py): u.hot_bytes = Σ size of hot entries, u.cold_bytes = Σ size
of cold ones, u.dirty_bytes = Σ of dirty ones; hot_bytes never exceeds q.hot_bytes by a commit.
Functions that free memory carry `allow-oom`: a full server must still let them run.
]]

local HOT, COLD, DIRTY, GONE = 1, 2, 4, 8
local EVICTED, EXPIRED, QUOTA, CORRUPT = 1, 2, 3, 4 -- why an entry is GONE; 0 is "never stored"
local STORED, PRESENT, REFUSED, MISMATCH = 0, 1, 2, 3 -- outcomes of commit
local FLUSHED, DEAD, COLD_FULL = 0, 1, 2 -- outcomes of flushed

local ENTRY = "<BBHI4I4I4I4I4I4I4"
local TOMBSTONES_KEPT = 20000 -- a bucket remembers why at most so many blocks went
local SLICE = 500 -- arguments of one redis.call: Lua's stack is bounded
local EVICT_MOST = 10000 -- blocks that one commit may evict

local function now_us()
  local t = redis.call("TIME")
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function decode(raw)
  if not raw then return nil end
  local e = {}
  e.state, e.reason, e.reserved, e.space, e.size, e.tokens, e.expires, e.pinned, e.segment, e.offset =
    struct.unpack(ENTRY, raw)
  return e
end

local function has(e, bit_) return e ~= nil and bit.band(e.state, bit_) ~= 0 end

local function load(K, id) return decode(redis.call("HGET", K[1], id)) end

local function save(K, id, e)
  redis.call("HSET", K[1], id, struct.pack(ENTRY, e.state, e.reason, 0, e.space, e.size, e.tokens,
    e.expires, e.pinned, e.segment, e.offset))
end

local function count(K, name, by) redis.call("HINCRBY", K[4], name, by) end

-- A caller may read its `:q` only, so it must not put a key of its own in that place.
local function quota(K, name)
  if K[5] ~= string.sub(K[1], 1, -2) .. "q" then error("KEYS[5] is not this bucket's :q") end
  return tonumber(redis.call("HGET", K[5], name) or "0")
end

local function used(K, name) return tonumber(redis.call("HGET", K[4], name) or "0") end

local function block_key(K, e, id) return string.sub(K[1], 1, -3) .. ":b:" .. e.space .. ":" .. id end

local function is_expired(e, now_s) return e.expires > 0 and e.expires <= now_s and e.pinned <= now_s end

local function alive(e, now_s) return e ~= nil and not has(e, GONE) and not is_expired(e, now_s) end

local function clean(K, id, e)
  if has(e, DIRTY) then
    e.state = e.state - DIRTY
    redis.call("ZREM", K[3], id)
    count(K, "dirty_bytes", -e.size)
    count(K, "dirty_blocks", -1)
  end
end

local function rank(K, id, e, us)
  redis.call("ZADD", K[2], math.max(us, e.pinned * 1000000), id)
end

local function live_until(K, id, e, expires_s)
  e.expires = expires_s
  if expires_s > 0 then redis.call("ZADD", K[7], expires_s, id) else redis.call("ZREM", K[7], id) end
end

local function bury(K, id, e, reason, us)
  e.state, e.reason, e.segment, e.offset, e.expires, e.pinned = GONE, reason, 0, 0, 0, 0
  save(K, id, e)
  redis.call("ZREM", K[7], id)
  redis.call("ZADD", K[6], us, id)
  if redis.call("ZCARD", K[6]) > TOMBSTONES_KEPT then
    redis.call("HDEL", K[1], redis.call("ZPOPMIN", K[6])[1])
  end
end

-- Takes the bytes of one tier away; buries the entry when nothing is left. Returns freed hot bytes.
local function drop(K, id, e, tiers, reason, us)
  local freed = 0
  if has(e, HOT) and bit.band(tiers, HOT) ~= 0 then
    clean(K, id, e)
    redis.call("UNLINK", block_key(K, e, id))
    redis.call("ZREM", K[2], id)
    count(K, "hot_bytes", -e.size)
    count(K, "hot_blocks", -1)
    e.state = e.state - HOT
    freed = e.size
  end
  if has(e, COLD) and bit.band(tiers, COLD) ~= 0 then
    count(K, "cold_bytes", -e.size)
    count(K, "cold_blocks", -1)
    e.state, e.segment, e.offset = e.state - COLD, 0, 0
  end
  if e.state == 0 then bury(K, id, e, reason, us) else save(K, id, e) end
  return freed
end

-- Removes up to `most` blocks whose time has come. Returns blocks, hot bytes freed.
local function drop_expired(K, us, most, enough)
  local blocks, freed, now_s = 0, 0, math.floor(us / 1000000)
  for _, id in ipairs(redis.call("ZRANGE", K[7], "-inf", now_s, "BYSCORE", "LIMIT", 0, most)) do
    if freed >= enough then break end
    local e = load(K, id)
    if e.pinned > now_s then
      redis.call("ZADD", K[7], e.pinned, id)
    else
      freed = freed + drop(K, id, e, HOT + COLD, EXPIRED, us)
      blocks = blocks + 1
    end
  end
  if blocks > 0 then count(K, "expired_blocks", blocks) end
  return blocks, freed
end

-- Frees at least `bytes` of the hot tier if it can: expired blocks first, then the least recently
-- used ones that are clean, not pinned and idle since `idle_us`. Returns blocks, bytes.
local function make_room(K, us, bytes, idle_us)
  local blocks, freed = drop_expired(K, us, EVICT_MOST, bytes)
  local evicted, evicted_bytes = 0, 0
  while freed < bytes and evicted < EVICT_MOST do
    local ids = redis.call("ZRANGE", K[2], "-inf", idle_us, "BYSCORE", "LIMIT", 0, 16)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      if freed >= bytes then break end
      local size = drop(K, id, load(K, id), HOT, EVICTED, us)
      freed, evicted, evicted_bytes = freed + size, evicted + 1, evicted_bytes + size
    end
  end
  if evicted > 0 then
    count(K, "evicted_blocks", evicted)
    count(K, "evicted_bytes", evicted_bytes)
  end
  return blocks + evicted, freed
end

local function each(K, A, first, act)
  local n = 0
  for i = first, #A do
    local e = load(K, A[i])
    if e and act(A[i], e) then n = n + 1 end
  end
  return n
end

-- Nearly all entries asked for are alive and without an end: their answer is cut out of the entry
-- as it stands, without unpacking it. 0.3 ms for 512 ids instead of 0.8 (benchmarks/datapath.py).
local ANSWER_HEAD = { [HOT] = "\1\0\0\0", [COLD] = "\2\0\0\0", [HOT + COLD] = "\3\0\0\0",
  [HOT + DIRTY] = "\1\0\0\0", [HOT + COLD + DIRTY] = "\3\0\0\0" }
local NEVER = "\0\0\0\0"

--[[ match: where are these blocks?                                             flags: no-writes
ARGV: all ("0": stop behind the first miss, "1": answer for each), ids
Returns one string, 20 bytes an id: u8 state (HOT | COLD, 0 is a miss), u8 reason, u16 0, u32 size,
u32 segment, u32 offset, u32 pinned until. O(ids). ]]
local function match(K, A)
  local sub, byte = string.sub, string.byte
  local out, n, now_s = {}, 0, math.floor(now_us() / 1000000)
  for first = 2, #A, SLICE do
    local last = math.min(first + SLICE - 1, #A)
    local found = redis.call("HMGET", K[1], unpack(A, first, last))
    for i = 1, last - first + 1 do
      local raw = found[i]
      local head = raw and ANSWER_HEAD[byte(raw)]
      if head and sub(raw, 17, 20) == NEVER then -- offsets of ENTRY: size, segment + offset, pinned
        out[n + 1], out[n + 2], out[n + 3], out[n + 4] =
          head, sub(raw, 9, 12), sub(raw, 25, 32), sub(raw, 21, 24)
        n = n + 4
      else
        local e = decode(raw)
        n = n + 1
        if alive(e, now_s) then
          out[n] = struct.pack("<BBHI4I4I4I4", e.state % 4, 0, 0, e.size, e.segment, e.offset, e.pinned)
        else
          local reason = e and (has(e, GONE) and e.reason or EXPIRED) or 0
          out[n] = struct.pack("<BBHI4I4I4I4", 0, reason, 0, 0, 0, 0, 0)
          if A[1] == "0" then return table.concat(out) end
        end
      end
    end
  end
  return table.concat(out)
end

--[[ commit: makes blocks visible that were SET just before, or refuses and deletes them.
                                                                                flags: allow-oom
KEYS: 8… the block keys; ARGV: space, then id, size, tokens of each block (size: of the whole value)
Returns an array: STORED, PRESENT (already there), REFUSED (quota), MISMATCH (no or another value).
O(blocks + evicted · log n); evicts at most EVICT_MOST blocks for each block committed. ]]
local function commit(K, A)
  local us, out = now_us(), {}
  local now_s = math.floor(us / 1000000)
  local hot_quota, flush_after = quota(K, "hot_bytes"), quota(K, "flush_after_s")
  local ttl, space = quota(K, "ttl_s"), tonumber(A[1])
  for n = 1, #K - 7 do
    local key, id = K[7 + n], A[3 * n - 1]
    local size, tokens = tonumber(A[3 * n]), tonumber(A[3 * n + 1])
    local e = load(K, id)
    if e and not has(e, GONE) and is_expired(e, now_s) and not has(e, HOT) then
      drop(K, id, e, COLD, EXPIRED, us)
    end
    if redis.call("STRLEN", key) ~= size or (has(e, HOT) and e.size ~= size) then
      if not has(e, HOT) then redis.call("UNLINK", key) end
      out[n] = MISMATCH
    elseif has(e, HOT) then
      redis.call("PERSIST", key)
      if is_expired(e, now_s) then -- stored anew: its life begins again
        live_until(K, id, e, ttl > 0 and now_s + ttl or 0)
        save(K, id, e)
      end
      if not has(e, DIRTY) then redis.call("ZADD", K[2], "XX", "GT", us, id) end
      out[n] = PRESENT
    else
      local over = used(K, "hot_bytes") + size - hot_quota
      if over > 0 then
        -- What is larger than the quota never fits: refuse it without emptying the tier.
        if size <= hot_quota then
          local _, freed = make_room(K, us, over, us)
          over = over - freed
          e = load(K, id) -- eviction may have buried or forgotten it
        end
      end
      if over > 0 then
        redis.call("UNLINK", key)
        count(K, "refused_blocks", 1)
        count(K, "refused_bytes", size)
        if not has(e, COLD) then
          bury(K, id, { space = space, size = size, tokens = tokens }, QUOTA, us)
        end
        out[n] = REFUSED
      else
        if has(e, COLD) then
          e.state = HOT + COLD
          rank(K, id, e, us)
        else
          redis.call("ZREM", K[6], id)
          e = { state = HOT, reason = 0, space = space, size = size, tokens = tokens,
            expires = 0, pinned = 0, segment = 0, offset = 0 }
          live_until(K, id, e, ttl > 0 and now_s + ttl or 0)
          if flush_after >= 0 then
            e.state = HOT + DIRTY
            redis.call("ZADD", K[3], now_s + flush_after, id)
            count(K, "dirty_bytes", size)
            count(K, "dirty_blocks", 1)
          else
            rank(K, id, e, us)
          end
        end
        save(K, id, e)
        redis.call("PERSIST", key)
        count(K, "hot_bytes", size)
        count(K, "hot_blocks", 1)
        out[n] = STORED
      end
    end
  end
  return out
end

--[[ touch: these blocks were used now. ARGV: ids. Returns 0. O(ids · log n).    flags: allow-oom ]]
local function touch(K, A)
  local us = now_us()
  for _, id in ipairs(A) do redis.call("ZADD", K[2], "XX", "GT", us, id) end
  return 0
end

--[[ lease_dirty: gives out blocks whose flush is due; until the lease ends nobody else gets them.
ARGV: lease_s, most blocks, most bytes (of which one block may exceed)          flags: allow-oom
Returns a flat array: id, space, size, tokens, expiry of each. A lapsed lease is given out again. ]]
local function lease_dirty(K, A)
  local now_s, bytes, out = now_us() / 1000000, 0, {}
  for _, id in ipairs(redis.call("ZRANGE", K[3], "-inf", now_s, "BYSCORE", "LIMIT", 0, tonumber(A[2]))) do
    local e = load(K, id)
    if bytes > 0 and bytes + e.size > tonumber(A[3]) then break end
    bytes = bytes + e.size
    redis.call("ZADD", K[3], now_s + tonumber(A[1]), id)
    for _, value in ipairs({ id, e.space, e.size, e.tokens, e.expires }) do out[#out + 1] = value end
  end
  return out
end

--[[ flushed: these blocks stand, verified, in a live segment.                  flags: allow-oom
ARGV: segment number, then id, offset of each block
Returns an array: FLUSHED, DEAD (gone meanwhile or cold elsewhere: dead bytes of the segment),
COLD_FULL (the cold quota refuses it; it stays hot, clean and evictable). Repeating it is safe. ]]
local function flushed(K, A)
  local us, out = now_us(), {}
  local now_s, segment, cold_quota = math.floor(us / 1000000), tonumber(A[1]), quota(K, "cold_bytes")
  for i = 2, #A, 2 do
    local id, offset = A[i], tonumber(A[i + 1])
    local e, outcome = load(K, A[i]), DEAD
    if has(e, COLD) then
      if e.segment == segment and e.offset == offset then outcome = FLUSHED end
    elseif alive(e, now_s) then
      clean(K, id, e)
      if used(K, "cold_bytes") + e.size <= cold_quota then
        e.state, e.segment, e.offset = e.state + COLD, segment, offset
        count(K, "cold_bytes", e.size)
        count(K, "cold_blocks", 1)
        outcome = FLUSHED
      else
        count(K, "cold_refused_blocks", 1)
        outcome = COLD_FULL
      end
      save(K, id, e)
      rank(K, id, e, us)
    end
    out[#out + 1] = outcome
  end
  return out
end

--[[ keep_hot: S3 has no room for these leased blocks; they stay hot, clean and evictable. ARGV: ids
Returns how many.                                                               flags: allow-oom ]]
local function keep_hot(K, A)
  local us = now_us()
  local n = each(K, A, 1, function(id, e)
    if not has(e, DIRTY) then return false end
    clean(K, id, e)
    save(K, id, e)
    rank(K, id, e, us)
    return true
  end)
  if n > 0 then count(K, "cold_refused_blocks", n) end
  return n
end

--[[ pin: keep these blocks at least until then. ARGV: until_s, ids. Returns how many are pinned.
                                                                                flags: allow-oom ]]
local function pin(K, A)
  local us, until_s = now_us(), tonumber(A[1])
  return each(K, A, 2, function(id, e)
    if not alive(e, math.floor(us / 1000000)) then return false end
    e.pinned = math.max(e.pinned, until_s)
    save(K, id, e)
    if has(e, HOT) and not has(e, DIRTY) then
      redis.call("ZADD", K[2], "XX", "GT", e.pinned * 1000000, id)
    end
    return true
  end)
end

--[[ unpin: their pin ends then (0: now). ARGV: until_s, ids. Returns how many.  flags: allow-oom ]]
local function unpin(K, A)
  local us, until_s = now_us(), tonumber(A[1])
  return each(K, A, 2, function(id, e)
    if has(e, GONE) or e.pinned == 0 then return false end
    e.pinned = until_s
    save(K, id, e)
    if has(e, HOT) and not has(e, DIRTY) then rank(K, id, e, us) end
    return true
  end)
end

--[[ expire: remove these blocks from both tiers now, except pinned ones. ARGV: ids
Returns {removed, kept because pinned}.                                         flags: allow-oom ]]
local function expire(K, A)
  local us, kept = now_us(), 0
  local removed = each(K, A, 1, function(id, e)
    if has(e, GONE) then return false end
    if e.pinned > us / 1000000 then
      kept = kept + 1
      return false
    end
    drop(K, id, e, HOT + COLD, EXPIRED, us)
    return true
  end)
  if removed > 0 then count(K, "expired_blocks", removed) end
  return { removed, kept }
end

--[[ extend: these blocks live at least until then. ARGV: until_s (0: no end), ids. Returns how many.
                                                                                flags: allow-oom ]]
local function extend(K, A)
  local now_s, until_s = math.floor(now_us() / 1000000), tonumber(A[1])
  return each(K, A, 2, function(id, e)
    if not alive(e, now_s) or e.expires == 0 then return false end
    live_until(K, id, e, until_s == 0 and 0 or math.max(e.expires, until_s))
    save(K, id, e)
    return true
  end)
end

--[[ expire_due: remove blocks whose time has come. ARGV: most. Returns how many. flags: allow-oom ]]
local function expire_due(K, A)
  return (drop_expired(K, now_us(), tonumber(A[1]), math.huge))
end

--[[ evict: free hot bytes, of expired blocks and of those unused for idle_s.    flags: allow-oom
ARGV: bytes, idle_s. Returns {blocks, bytes} removed. ]]
local function evict(K, A)
  local us = now_us()
  local blocks, freed = make_room(K, us, tonumber(A[1]), us - tonumber(A[2]) * 1000000)
  return { blocks, freed }
end

--[[ forget: the copy of these blocks in one tier is bad or lost. ARGV: "hot" or "cold", ids
Returns how many.                                                               flags: allow-oom ]]
local function forget(K, A)
  local us, tier = now_us(), A[1] == "hot" and HOT or COLD
  local n = each(K, A, 2, function(id, e)
    if not has(e, tier) then return false end
    drop(K, id, e, tier, CORRUPT, us)
    return true
  end)
  if n > 0 then count(K, "corrupt_blocks", n) end
  return n
end

--[[ restore: index blocks that stand in a segment, after the index was lost.    flags: allow-oom
ARGV: segment, space, then id, size, tokens, expires_s, offset of each. Returns how many it took.
What the index already knows as cold, or as gone, it keeps: recovery never brings removed data back. ]]
local function restore(K, A)
  local us, n = now_us(), 0
  local now_s, segment, space = math.floor(us / 1000000), tonumber(A[1]), tonumber(A[2])
  for i = 3, #A, 5 do
    local id, e = A[i], load(K, A[i])
    local size, expires = tonumber(A[i + 1]), tonumber(A[i + 3])
    if not e and not (expires > 0 and expires <= now_s) then
      e = { state = 0, reason = 0, space = space, size = size, tokens = tonumber(A[i + 2]),
        expires = 0, pinned = 0, segment = 0, offset = 0 }
      live_until(K, id, e, expires)
    end
    if alive(e, now_s) and not has(e, COLD) and e.size == size then
      clean(K, id, e)
      e.state, e.segment, e.offset = e.state + COLD, segment, tonumber(A[i + 4])
      save(K, id, e)
      if has(e, HOT) then rank(K, id, e, us) end
      count(K, "cold_bytes", size)
      count(K, "cold_blocks", 1)
      n = n + 1
    end
  end
  return n
end

--[[ set_policy: writes the numbers of `:q`. Only the control plane's user may; a function and not a
plain HSET, so that it works on a full server too. ARGV: name, value pairs      flags: allow-oom ]]
local function set_policy(K, A) return redis.call("HSET", K[5], unpack(A)) end

--[[ usage: counters of `:u`, numbers of `:q` with the prefix "quota_", and "oldest_due_s" (the earliest
flush due, absent when nothing is dirty). Returns a flat array name, value.      flags: no-writes ]]
local function usage(K)
  local out = redis.call("HGETALL", K[4])
  local numbers = redis.call("HGETALL", K[5])
  for i = 1, #numbers, 2 do
    out[#out + 1] = "quota_" .. numbers[i]
    out[#out + 1] = numbers[i + 1]
  end
  local oldest = redis.call("ZRANGE", K[3], 0, 0, "WITHSCORES")
  if oldest[2] then
    out[#out + 1] = "oldest_due_s"
    out[#out + 1] = oldest[2]
  end
  return out
end

-- Written out: no loop is available while a library loads.
server.register_function { function_name = "neve_match", callback = match, flags = { "no-writes" } }
server.register_function { function_name = "neve_usage", callback = usage, flags = { "no-writes" } }
server.register_function { function_name = "neve_commit", callback = commit, flags = { "allow-oom" } }
server.register_function { function_name = "neve_touch", callback = touch, flags = { "allow-oom" } }
server.register_function { function_name = "neve_lease_dirty", callback = lease_dirty, flags = { "allow-oom" } }
server.register_function { function_name = "neve_flushed", callback = flushed, flags = { "allow-oom" } }
server.register_function { function_name = "neve_keep_hot", callback = keep_hot, flags = { "allow-oom" } }
server.register_function { function_name = "neve_set_policy", callback = set_policy, flags = { "allow-oom" } }
server.register_function { function_name = "neve_pin", callback = pin, flags = { "allow-oom" } }
server.register_function { function_name = "neve_unpin", callback = unpin, flags = { "allow-oom" } }
server.register_function { function_name = "neve_expire", callback = expire, flags = { "allow-oom" } }
server.register_function { function_name = "neve_extend", callback = extend, flags = { "allow-oom" } }
server.register_function { function_name = "neve_expire_due", callback = expire_due, flags = { "allow-oom" } }
server.register_function { function_name = "neve_evict", callback = evict, flags = { "allow-oom" } }
server.register_function { function_name = "neve_forget", callback = forget, flags = { "allow-oom" } }
server.register_function { function_name = "neve_restore", callback = restore, flags = { "allow-oom" } }
