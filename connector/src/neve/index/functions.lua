#!lua name=neve
--[[
Neve's hot tier: every change of the block index, in functions that each run atomically on one bucket.

KEYS of every function (neve/formats/keys.py builds them, all in one hash slot) name a bucket's books, which
stand under other names (BOOKS) that nodes do not know:
  1 :i  HASH id -> packed entry          5 :q  HASH quotas and retention numbers (set_policy)
  2 :l  ZSET id -> rank                  6 :x  ZSET id -> when it went, µs (tombstones)
  3 :d  ZSET id -> flush due, s          7 :e  ZSET id -> when to look at it again, s
  4 :u  HASH usage counters              8…    block keys (commit only)
Derived inside, in the same slot (of_slot): the block keys of what leaves,
    :p  ZSET id -> end of its pin, s
    :s  ZSET segment -> bytes of it that the index names as blocks' cold copies: its live bytes
    :c  ZSET id -> rank in the cold tier: what may be evicted from it
    :f  ZSET id -> end of the lease, s (for who flushes; nodes never need it)
    :r  ZSET what a recount that goes on has counted so far (recount.lua); its "number" says which it is

Ids are 16 raw bytes. Times are the server's own (TIME): one clock, whatever the nodes' clocks say.
`:l` holds what may be evicted: lower priorities leave first, then those that EVICTION says, then the
least recently used. Dirty blocks are in `:d`, pinned ones in `:p`, and neither in `:l`.
`:c` holds the cold blocks that are not pinned: lower priorities leave first, then the longest unread,
where a use of the hot copy counts as a read (docs/decisions/013-cold-eviction.md).
A block is looked at again when its end comes, or when it may have been idle for too long.
Invariants (tests/hot/test_state_machine.py): u.hot_bytes = Σ size of hot entries, u.cold_bytes = Σ size
of cold ones = Σ of `:s`, u.dirty_bytes of dirty ones, u.pinned_bytes of those in `:p`, u.unstored_bytes of
UNSTORED ones; hot_bytes never exceeds q.hot_bytes by a commit, cold_bytes never q.cold_bytes by a flush,
pinned_bytes never the budget by a pin.
Functions that free memory carry `allow-oom`: a full server must still let them run.
A call holds up all tenants, so `register` gives each function a bound on what one call may bring: above
it the function does nothing and answers TOOMANY, to KEYS that are not one bucket's BADKEYS.
]]

local HOT, COLD, DIRTY, GONE = 1, 2, 4, 8
-- Of a hot, clean block without a cold copy: the cold tier had no room for it, or let its copy go.
local UNSTORED, LET_GO = 16, 32
-- Why an entry is GONE; 0 is "never stored". EVICTED: the hot tier was full, and the policy flushes no such
-- block. UNFLUSHED: its flush had been refused. COLD_EVICTED: the cold tier was full.
local EVICTED, EXPIRED, QUOTA, CORRUPT, IDLE, COLD_EVICTED, UNFLUSHED = 1, 2, 3, 4, 5, 6, 7
local STORED, PRESENT, REFUSED, MISMATCH, VANISHED = 0, 1, 2, 3, 4 -- outcomes of commit
local FLUSHED, DEAD, COLD_FULL = 0, 1, 2 -- outcomes of flushed

-- state, reason (of a block that is not gone: the number of the recount that counted it), touched (see `promote` and `use`), space, size, tokens, expires, pinned, segment, offset,
-- stored, idle, priority, held
local ENTRY = "<BBHI4I4I4I4I4I4I4I4I4BB"
local ENTRY_BYTES = 42
-- What `state` may say. A tenant's own hands may write anything into its `:i`: all else counts as not there.
local SOUND = { [HOT] = true, [COLD] = true, [HOT + COLD] = true, [HOT + DIRTY] = true, [GONE] = true }
local HELD = 1 -- the terms are those of contexts that hold the block, not its space's
-- Ranks of one priority: in its first HALF blocks on probation, in the second the others; both by last
-- use in units of 10 µs since 1970: enough until 2049.
local BAND, HALF = 5e14, 2.5e14
-- Eviction policies (docs/decisions/007-eviction.md, neve.planner.simulate.hot) by their number in `:q`:
-- whether a block that nobody has used since it was stored is on probation, and which share of the
-- evictable blocks of one priority may be before they leave first. A use ends the probation.
local EVICTION = {
  [0] = { name = "lru", probation = false, share = 0 },
  [1] = { name = "2q", probation = true, share = 0.5 },
}
-- Reads of cold blocks are noted in 15 bits, in units of TICK_S: 36 hours, then from the beginning.
local TICK_S, TICKS, CLAIMED = 4, 32768, 32768
local CLAIM_S = 32 -- so long nobody else is told to promote the block: longer than a read and a store
local TOMBSTONES_KEPT = 20000 -- a bucket remembers why at most so many blocks went
local SLICE = 500 -- arguments of one redis.call: Lua's stack is bounded
local EVICT_MOST = 10000 -- blocks that one call may evict, however many it commits
local CALL_MOST = 1000 -- ids of one call: neve.index.tier.CALL_IDS
local PIN_MOST = 10000 -- of one pin: the budget decides on all of them at once
local POLICY_MOST = 20000 -- name, value pairs of set_policy: five for each space with its own terms
-- Even the refusal of a call takes as long as Lua takes to see what it brings: 0.3 s for a million
-- values. No client sends so many by mistake: they are counted, and the tenant is cut off.
local ABUSE = 100000
local TENANTS_MOST = 10000 -- that `caller` looks through: 10 ms
local abused = {} -- such calls by tenant, since this server loaded the library
-- What nodes' calls cost the server, roughly: µs for each value that they bring, for each call, and for
-- each block that one evicts. Not measured call by call: no clock here runs on during a call, and counts
-- this thread alone.
local COST_US = { match = 0.5, usage = 0.5, commit = 2.5, touch = 2, promote = 5, forget = 10 }
local CALL_US, EVICTION_US = 10, 15
local spent_us = {} -- by tenant, since this server loaded the library
local ID_BYTES = 16
-- What stands before the letter of a book in its key. Functions run with their caller's rights, so a
-- node has the right to write the books; it must not be able to name them. Filled in by
-- neve.index.tier.functions_source.
local BOOKS = ""
local BOOKKEEPING = { "i", "l", "d", "u", "q", "x", "e" } -- KEYS 1 to 7 of every function
local LEASE_MOST_S = 600 -- above any lease that workers take
local SKEW_S = 60 -- a time so little ahead is no sign of a clock that was set back
local EVICT_BATCH = 16 -- blocks between two looks at who leaves first
local MOST_PRIORITY = 255 -- of one byte
local SWEEP_MOST = 1000 -- pins that one call may end

local function is_platform() return server.acl_check_cmd("STRLEN", "{t0.}:me") end

-- Whose node calls; nil: the platform, or nobody that can be told. Valkey has checked that KEYS are the
-- tenant's own. A call may come without any, but only the tenant may ask for the length of its `:me`.
local function caller(K)
  local tenant = string.match(K[1] or "", "^{t(%d+)%.")
  if tenant then return tonumber(tenant) end
  if is_platform() then return nil end
  for n = 1, TENANTS_MOST do
    if server.acl_check_cmd("STRLEN", "{t" .. n .. ".}:me") then return n end
  end
end

local function spend(tenant, us) spent_us[tenant] = (spent_us[tenant] or 0) + us end

-- Registers a function that refuses, before anything else, what its clients never send. ARGV are
-- `before` values, then `each` for every id (segment, pair), of which there may be `most`. Block keys
-- stand behind the bookkeeping's if `has_blocks`, one for each id, or instead of ids if `each` is 0.
-- KEYS 1 to 7 must be those of one bucket; the function gets its books instead, and `tag`.
local function register(name, callback, flag, before, each, most, has_blocks)
  local function refuse(code, words) return redis.error_reply(code .. " neve_" .. name .. ": " .. words) end
  local function bounded(K, A)
    local blocks, ids = #K - #BOOKKEEPING, each > 0 and (#A - before) / each or 0
    local tag = string.match(K[1] or "", "^{t%d+%.%d+%.%d+}:") or ""
    local tenant = caller(K)
    if tenant and #K + #A > ABUSE then abused[tenant] = (abused[tenant] or 0) + 1 end
    if tenant and COST_US[name] and not is_platform() then
      spend(tenant, CALL_US + (#K + #A) * COST_US[name])
    else
      tenant = nil
    end
    if math.max(blocks, ids) > most then
      return refuse("TOOMANY", "a call takes " .. most .. " at most")
    end
    if #A < before or ids ~= math.floor(ids) or (each == 0 and #A > before) then
      return refuse("TOOMANY", "ARGV are " .. before .. " values, then " .. each .. " for each id")
    end
    if blocks < 0 or (not has_blocks and blocks > 0) or (has_blocks and each > 0 and blocks ~= ids) then
      return refuse("BADKEYS", "not as many KEYS as it takes")
    end
    local books = { tag = tag }
    for n, name in ipairs(BOOKKEEPING) do
      books[n] = tag .. BOOKS .. name
      if K[n] ~= tag .. name and K[n] ~= books[n] then
        return refuse("BADKEYS", "KEYS[" .. n .. "] is not this bucket's :" .. name)
      end
    end
    for n = #BOOKKEEPING + 1, #K do books[n] = K[n] end
    local answer = callback(books, A)
    if tenant and books.room then spend(tenant, (EVICT_MOST - books.room.left) * EVICTION_US) end
    return answer
  end
  server.register_function { function_name = "neve_" .. name, callback = bounded, flags = { flag } }
end

local function now_us()
  local t = redis.call("TIME")
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- As `neve` writes them, and an entry holds: "05", "1e3" and "nan" would make an entry whose block key is
-- another one, or end a function halfway.
local function is_number(text)
  return #text <= 10 and string.find(text, "^%d+$") ~= nil and tostring(tonumber(text)) == text and tonumber(text) < 2 ^ 32
end

local function is_sound(raw) return #raw == ENTRY_BYTES and SOUND[bit.band(string.byte(raw), 15)] == true end

local function decode(raw)
  if not raw or not is_sound(raw) then return nil end
  local e = {}
  e.state, e.reason, e.touched, e.space, e.size, e.tokens, e.expires, e.pinned, e.segment, e.offset,
    e.stored, e.idle, e.priority, e.held = struct.unpack(ENTRY, raw)
  return e
end

local function has(e, bit_) return e ~= nil and bit.band(e.state, bit_) ~= 0 end

local function load(K, id) return decode(redis.call("HGET", K[1], id)) end

local function save(K, id, e)
  redis.call("HSET", K[1], id, struct.pack(ENTRY, e.state, e.reason, e.touched, e.space, e.size,
    e.tokens, e.expires, e.pinned, e.segment, e.offset, e.stored, e.idle, e.priority, e.held))
end

-- The entry of an id that stands in a set, if it is as it should be there; an id that no such entry
-- owns leaves the set: else whoever meets it, again and again, would fail.
local function load_member(K, id, set, is_right)
  local e = load(K, id)
  if e and is_right(e) then return e end
  redis.call("ZREM", set, id)
end

local function is_there(e) return not has(e, GONE) end
local function is_dirty(e) return has(e, DIRTY) end
local function is_clean(e) return has(e, HOT) and not has(e, DIRTY) end
local function is_cold(e) return has(e, COLD) end
local function is_pinned(e) return not has(e, GONE) and e.pinned > 0 end

local function count(K, name, by) redis.call("HINCRBY", K[4], name, by) end

local function of_slot(K, name) return K.tag .. BOOKS .. name end

local function numbers(K, ...) return redis.call("HMGET", K[5], ...) end

local function cold_ranks(K) return of_slot(K, "c") end

local function quota(K, name) return tonumber(numbers(K, name)[1] or "0") end

-- What a new block of this space gets: the space's own numbers, else the tenant's.
local function terms_of(K, space)
  local s = ":" .. space
  local q = numbers(K, "flush_after_s" .. s, "flush_after_s", "ttl_s" .. s, "ttl_s", "idle_s" .. s,
    "idle_s", "priority" .. s, "priority")
  local function pick(i) return tonumber(q[i] or q[i + 1] or "0") end
  return { flush_after = pick(1), ttl = pick(3), idle = pick(5), priority = pick(7) }
end

local function used(K, name) return tonumber(redis.call("HGET", K[4], name) or "0") end

-- The number of the recount that goes on; 0: none. New entries carry it: they count from the beginning.
local function recount_number(K)
  return tonumber(redis.call("ZSCORE", of_slot(K, "r"), "number") or "0")
end

local function is_recounted(K, e) return e.reason > 0 and e.reason == recount_number(K) end

-- A block comes to (1) or leaves (-1) what is held "hot", "cold", "dirty" or "pinned".
local function charge(K, e, what, by)
  count(K, what .. "_bytes", by * e.size)
  count(K, what .. "_blocks", by)
  if is_recounted(K, e) then
    redis.call("ZINCRBY", of_slot(K, "r"), by * e.size, what .. "_bytes")
    redis.call("ZINCRBY", of_slot(K, "r"), by, what .. "_blocks")
  end
end

-- So do a segment's live bytes with a cold block. At 0 it stays in `:s` until it is closed.
local function charge_segment(K, e, segment, by)
  redis.call("ZINCRBY", of_slot(K, "s"), by * e.size, segment)
  if is_recounted(K, e) then redis.call("ZINCRBY", of_slot(K, "r"), by * e.size, segment) end
end

local function block_key(K, e, id) return K.tag .. "b:" .. e.space .. ":" .. id end

-- As UNLINK does (lazyfree-lazy-expire), but a node that may do it to one key may not to a million.
local function remove_block(key) redis.call("PEXPIRE", key, 0) end

local function is_expired(e, now_s) return e.expires > 0 and e.expires <= now_s and e.pinned <= now_s end

local function alive(e, now_s) return e ~= nil and not has(e, GONE) and not is_expired(e, now_s) end

local function policy(K) return EVICTION[quota(K, "eviction")] or EVICTION[0] end

-- Call it for a hot, clean block. A pinned one gets its rank when its pin ends, which is a use.
local function rank(K, id, e, us, on_probation)
  if e.pinned > 0 then return end
  local first = e.priority * BAND + (on_probation and 0 or HALF)
  redis.call("ZADD", K[2], first + math.floor(us / 10), id)
end

-- When a cold block was read or used last. A pinned one gets its rank when its pin ends.
local function rank_cold(K, id, e, us)
  if not has(e, COLD) or e.pinned > 0 then return end
  redis.call("ZADD", cold_ranks(K), e.priority * BAND + HALF + math.floor(us / 10), id)
end

-- When an evictable block was used last, µs, and whether it is on probation; nil for others.
local function last_use(K, id)
  local score = redis.call("ZSCORE", K[2], id)
  if score then return tonumber(score) % HALF * 10, tonumber(score) % BAND < HALF end
end

-- Ends the flush of a dirty block: it may be evicted from now on. Save it afterwards.
local function clean(K, id, e, us)
  if not has(e, DIRTY) then return end
  redis.call("ZREM", K[3], id)
  charge(K, e, "dirty", -1)
  rank(K, id, e, us, e.touched == 0 and policy(K).probation)
  e.state, e.touched = e.state - DIRTY, 0
end

-- The cold tier has no room for a hot, clean block. Save it afterwards.
local function refuse_cold(K, e)
  if has(e, UNSTORED) then return end
  e.state = e.state + UNSTORED - (has(e, LET_GO) and LET_GO or 0)
  charge(K, e, "unstored", 1)
end

-- Nor is that so any more: it goes to S3 (again), stands there, or leaves. Save it afterwards.
local function end_refusal(K, e)
  if has(e, UNSTORED) then charge(K, e, "unstored", -1) end
  e.state = e.state - bit.band(e.state, UNSTORED + LET_GO)
end

-- A hot block must go to S3: it may not be evicted until it did. Save it afterwards.
local function soil(K, id, e, due_s)
  end_refusal(K, e)
  local _, on_probation = last_use(K, id)
  e.state, e.touched = e.state + DIRTY, on_probation and 0 or 1
  redis.call("ZADD", K[3], due_s, id)
  redis.call("ZREM", K[2], id)
  charge(K, e, "dirty", 1)
end

-- A use. What is dirty has no rank yet: its entry keeps that it was used, until it gets one.
local function use(K, id, e, us)
  rank_cold(K, id, e, us)
  if not has(e, DIRTY) then
    rank(K, id, e, us)
  elseif e.touched == 0 then
    e.touched = 1
    save(K, id, e)
  end
end

-- Sets when the block is looked at again. Call it behind `rank`, when expires, idle or pinned changed.
local function watch(K, id, e, now_s)
  local at = e.expires > 0 and math.max(e.expires, e.pinned) or math.huge
  if e.idle > 0 and has(e, HOT) then
    local used_s = math.floor((last_use(K, id) or now_s * 1000000) / 1000000)
    at = math.min(at, math.max(used_s + e.idle, e.pinned))
  end
  if at < math.huge then redis.call("ZADD", K[7], at, id) else redis.call("ZREM", K[7], id) end
end

-- The end of a life: `until_s` prolongs what the time to live gives, nothing but a pin the greatest age.
-- The same stands in platform/retention/terms.py. 0: no end.
local function end_of(stored_s, ttl_s, max_age_s, until_s)
  local ends = ttl_s > 0 and math.max(stored_s + ttl_s, until_s) or 0
  if max_age_s > 0 and (ends == 0 or ends > stored_s + max_age_s) then ends = stored_s + max_age_s end
  return ends
end

-- Charges or refunds the budget of pins. Save, rank and watch the entry afterwards.
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

-- Ends the pins whose time has come; they count as used at that time. Returns how many.
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
      if has(e, HOT) and not has(e, DIRTY) then rank(K, id, e, ended_us) end
      rank_cold(K, id, e, ended_us)
      watch(K, id, e, now_s)
    end
  end
  return #ids
end

local function bury(K, id, e, reason, us)
  if e.pinned > 0 then set_pin(K, id, e, 0) end
  e.state, e.reason, e.touched, e.segment, e.offset, e.expires = GONE, reason, 0, 0, 0, 0
  e.stored, e.idle, e.priority, e.held = 0, 0, 0, 0
  save(K, id, e)
  redis.call("ZREM", K[7], id)
  redis.call("ZADD", K[6], us, id)
  if redis.call("ZCARD", K[6]) > TOMBSTONES_KEPT then
    redis.call("HDEL", K[1], redis.call("ZPOPMIN", K[6])[1])
  end
end

-- Takes the bytes of one tier away; buries the entry when nothing is left. Returns freed hot bytes.
-- A block that only lost its cold copy is flushed again, unless the cold tier let it go.
local function drop(K, id, e, tiers, reason, us)
  local freed = 0
  if has(e, HOT) and bit.band(tiers, HOT) ~= 0 then
    clean(K, id, e, us)
    remove_block(block_key(K, e, id))
    redis.call("ZREM", K[2], id)
    charge(K, e, "hot", -1)
    if reason == EVICTED or reason == IDLE then
      if has(e, UNSTORED) then
        reason = UNFLUSHED
        count(K, "lost_blocks", 1)
        count(K, "lost_bytes", e.size)
      elseif has(e, LET_GO) then
        reason = COLD_EVICTED
      end
    end
    end_refusal(K, e)
    e.state, e.touched = e.state - HOT, 0
    freed = e.size
  end
  if has(e, COLD) and bit.band(tiers, COLD) ~= 0 then
    charge(K, e, "cold", -1)
    charge_segment(K, e, e.segment, -1)
    redis.call("ZREM", cold_ranks(K), id)
    e.state, e.segment, e.offset = e.state - COLD, 0, 0
    local flush_after = has(e, HOT) and terms_of(K, e.space).flush_after or -1
    if has(e, HOT) and reason == COLD_EVICTED then
      e.state = e.state + LET_GO
    elseif flush_after >= 0 and not has(e, DIRTY) then
      soil(K, id, e, e.stored + flush_after)
    end
  end
  if e.state == 0 then bury(K, id, e, reason, us) else save(K, id, e) end
  return freed
end

-- `what`: "evicted" or "idle" from the hot tier, "cold_evicted" from the cold one.
local function count_left(K, what, blocks, bytes)
  if blocks > 0 then
    count(K, what .. "_blocks", blocks)
    count(K, what .. "_bytes", bytes)
  end
end

-- Looks at up to `most` blocks whose time has come: expired ones go from both tiers, idle ones from
-- the hot tier, the others are looked at again later. Returns blocks removed, hot bytes freed, looks.
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
      if not has(e, GONE) then watch(K, id, e, now_s) end
    end
  end
  if expired > 0 then count(K, "expired_blocks", expired) end
  count_left(K, "idle", idle, idle_bytes)
  return expired + idle, freed, looks
end

-- The blocks to evict next, of one priority and either on probation or not. O(log n).
local function victims(K)
  local first = redis.call("ZRANGE", K[2], 0, 0, "WITHSCORES")[2]
  if not first then return {} end
  local from = tonumber(first) - tonumber(first) % BAND
  local young = redis.call("ZCOUNT", K[2], from, from + HALF - 1)
  local others = redis.call("ZCOUNT", K[2], from + HALF, from + BAND - 1)
  if young <= policy(K).share * (young + others) then from = from + HALF end
  return redis.call("ZRANGE", K[2], from, from + HALF - 1, "BYSCORE", "LIMIT", 0, EVICT_BATCH)
end

-- Frees at least `bytes` of the hot tier if it can: what is due first, then the victims; in all of a
-- call EVICT_MOST blocks. Returns blocks, bytes.
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

local function cold_evicts(K) return quota(K, "cold_evicts") == 1 end

-- Frees the cold tier until it holds at most `most` bytes, or only pinned blocks and such of a higher
-- priority than `priority` are left: what is due first, then the longest unread. All turns of one call
-- together evict at most EVICT_MOST blocks. Returns blocks and bytes evicted. Entries loaded before may be
-- stale afterwards.
local function make_cold_room(K, us, most, priority)
  local blocks, bytes, most_rank = 0, 0, (priority + 1) * BAND
  if used(K, "cold_bytes") <= most then return 0, 0 end
  if not K.cold_left then
    K.cold_left = EVICT_MOST
    end_pins(K, us)
    drop_due(K, us, SWEEP_MOST, math.huge)
  end
  while used(K, "cold_bytes") > most and blocks < K.cold_left do
    local ids = redis.call("ZRANGE", cold_ranks(K), "-inf", "(" .. string.format("%.0f", most_rank),
      "BYSCORE", "LIMIT", 0, EVICT_BATCH)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      if used(K, "cold_bytes") <= most or blocks == K.cold_left then break end
      local e = load_member(K, id, cold_ranks(K), is_cold)
      if e then
        drop(K, id, e, COLD, COLD_EVICTED, us)
        blocks, bytes = blocks + 1, bytes + e.size
      end
    end
  end
  K.cold_left = K.cold_left - blocks
  count_left(K, "cold_evicted", blocks, bytes)
  return blocks, bytes
end

-- Whether the cold tier has room for `bytes` of a block's priority, made if the policy evicts.
-- Returns blocks and bytes evicted, too. What is larger than the quota never fits: nothing leaves for it.
local function has_cold_room(K, us, bytes, priority)
  local cold_quota, blocks, freed = quota(K, "cold_bytes"), 0, 0
  if bytes <= cold_quota and cold_evicts(K) then
    blocks, freed = make_cold_room(K, us, cold_quota - bytes, priority)
  end
  return used(K, "cold_bytes") + bytes <= cold_quota, blocks, freed
end

-- Brings a cold tier that holds more than its quota (it was lowered, or a rebuild found more) below it, by
-- SWEEP_MOST blocks. Returns whether more may have to leave.
local function trim_cold(K, us)
  if not cold_evicts(K) then return false end
  K.cold_left = SWEEP_MOST
  return make_cold_room(K, us, quota(K, "cold_bytes"), MOST_PRIORITY) == SWEEP_MOST
end

local function each(K, A, first, act)
  local n = 0
  for i = first, #A do
    local e = load(K, A[i])
    if e and act(A[i], e) then n = n + 1 end
  end
  return n
end

--[[ match: where are these blocks?                                             flags: allow-oom
ARGV: all ("0": stop behind the first miss, "1": answer for each), ids
Returns one string, 42 bytes an id: its entry as it stands; of a miss the state is 0, and but for the
reason nothing else is said. O(ids); nearly all entries asked for are without an end, and go through
without being unpacked: a string made here costs more than bytes sent. ]]
local function match(K, A)
  local byte, out, n, now_s = string.byte, {}, 0, math.floor(now_us() / 1000000)
  for first = 2, #A, SLICE do
    local last = math.min(first + SLICE - 1, #A)
    local found = redis.call("HMGET", K[1], unpack(A, first, last))
    for i = 1, last - first + 1 do
      local raw, endless = found[i], false
      if raw and is_sound(raw) and byte(raw) % (2 * GONE) < GONE then
        local a, b, c, d = byte(raw, 17, 20) -- `expires`
        endless = a + b + c + d == 0
      end
      local e = not endless and decode(raw)
      n = n + 1
      if endless or alive(e, now_s) then
        out[n] = raw
      else
        local reason = e and (has(e, GONE) and e.reason or EXPIRED) or 0
        out[n] = string.char(0, reason) .. string.rep("\0", 40)
        if A[1] == "0" then return table.concat(out) end
      end
    end
  end
  return table.concat(out)
end

--[[ commit: makes blocks visible that were SET just before, or refuses and deletes them.
                                                                                flags: allow-oom
KEYS: 8… the block keys; ARGV: space, then id, size, tokens of each block (size: of the whole value)
Returns an array: STORED, PRESENT (already there), REFUSED (quota), MISMATCH (another value), VANISHED (no
value: it was evicted, or refused to another writer, between SET and commit: store it again).
What is there already is used before the others make room, so that they do not evict it.
BADKEYS, before anything is done, when a block key is not that of its id: what stands there would be in
nobody's books. O(blocks + evicted · log n); evicts at most EVICT_MOST blocks. ]]
local function commit(K, A)
  local us, out = now_us(), {}
  local now_s = math.floor(us / 1000000)
  local hot_quota, space = quota(K, "hot_bytes"), tonumber(A[1])
  local terms = terms_of(K, A[1])
  local prefix = K.tag .. "b:" .. A[1] .. ":"
  if not is_number(A[1]) then return redis.error_reply("BADKEYS neve_commit: the space is no number") end
  for n = 1, #K - 7 do
    if #A[3 * n - 1] ~= ID_BYTES or K[7 + n] ~= prefix .. A[3 * n - 1] then
      return redis.error_reply("BADKEYS neve_commit: KEYS[" .. 7 + n .. "] is not the key of its id")
    end
    if not is_number(A[3 * n]) or not is_number(A[3 * n + 1]) then
      return redis.error_reply("BADKEYS neve_commit: sizes and tokens are numbers of 32 bits")
    end
  end
  local function is_present(n)
    local key, id, size = K[7 + n], A[3 * n - 1], tonumber(A[3 * n])
    local e = load(K, id)
    if not has(e, HOT) or e.size ~= size or redis.call("STRLEN", key) ~= size then return false end
    redis.call("PERSIST", key)
    use(K, id, e, us)
    if is_expired(e, now_s) then -- stored anew: its life begins again
      e.stored, e.expires = now_s, end_of(now_s, terms.ttl, 0, 0)
      save(K, id, e)
      watch(K, id, e, now_s)
    end
    out[n] = PRESENT
    return true
  end
  local rest = {}
  for n = 1, #K - 7 do
    if not is_present(n) then rest[#rest + 1] = n end
  end
  for _, n in ipairs(rest) do
    local key, id = K[7 + n], A[3 * n - 1]
    local size, tokens = tonumber(A[3 * n]), tonumber(A[3 * n + 1])
    local e = load(K, id)
    if e and not has(e, GONE) and is_expired(e, now_s) and not has(e, HOT) then
      drop(K, id, e, COLD, EXPIRED, us)
    end
    local length = redis.call("STRLEN", key)
    if length == 0 or length ~= size or (has(e, HOT) and e.size ~= size) then
      if not has(e, HOT) then remove_block(key) end
      out[n] = length == 0 and VANISHED or MISMATCH
    elseif is_present(n) then
      -- the same id twice in one call
    else
      local over = used(K, "hot_bytes") + size - hot_quota
      if over > 0 then
        -- What is larger than the quota never fits: refuse it without emptying the tier.
        if size <= hot_quota then
          local _, freed = make_room(K, us, over)
          over = over - freed
          e = load(K, id) -- eviction may have buried or forgotten it
        end
      end
      if over > 0 then
        remove_block(key)
        count(K, "refused_blocks", 1)
        count(K, "refused_bytes", size)
        if not has(e, COLD) then
          bury(K, id, { space = space, size = size, tokens = tokens, pinned = 0 }, QUOTA, us)
        end
        out[n] = REFUSED
      else
        if has(e, COLD) then
          e.state, e.touched = HOT + COLD, 0
          rank(K, id, e, us)
          rank_cold(K, id, e, us)
        else
          redis.call("ZREM", K[6], id)
          e = { state = HOT, reason = recount_number(K), touched = 0, space = space, size = size, tokens = tokens,
            expires = end_of(now_s, terms.ttl, 0, 0), pinned = 0, segment = 0, offset = 0,
            stored = now_s, idle = terms.idle, priority = terms.priority, held = 0 }
          if terms.flush_after >= 0 then
            e.state = HOT + DIRTY
            -- A chain's blocks are due in its order, so that they lie so in the segment.
            redis.call("ZADD", K[3], (us + n) / 1000000 + terms.flush_after, id)
            charge(K, e, "dirty", 1)
          else
            rank(K, id, e, us, policy(K).probation)
          end
        end
        save(K, id, e)
        watch(K, id, e, now_s)
        redis.call("PERSIST", key)
        charge(K, e, "hot", 1)
        out[n] = STORED
      end
    end
  end
  return out
end

--[[ touch: these blocks were used now. ARGV: ids. Returns 0. O(ids · log n).    flags: allow-oom ]]
local function touch(K, A)
  local us = now_us()
  local t = math.floor(us / 10)
  for first = 1, #A, SLICE do
    local last, ranks = math.min(first + SLICE - 1, #A), {}
    for i, score in ipairs(redis.call("ZMSCORE", K[2], unpack(A, first, last))) do
      local id = A[first + i - 1]
      if score then
        ranks[#ranks + 1] = tonumber(score) - tonumber(score) % BAND + HALF + t
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

--[[ promote: these cold blocks are being read: which shall the caller store as hot?
                                                                                flags: allow-oom
ARGV: ids. Returns an array: 1 for a block that is read for the second time within `promote_window_s`
and that nobody else was told to store in the last CLAIM_S, else 0. O(ids). ]]
local function promote(K, A)
  local us, window, out = now_us(), quota(K, "promote_window_s"), {}
  local now_s = math.floor(us / 1000000)
  local tick = math.max(1, math.floor(now_s / TICK_S) % TICKS) -- 0: not read yet
  for n, id in ipairs(A) do
    local e = load(K, id)
    out[n] = 0
    if alive(e, now_s) then rank_cold(K, id, e, us) end
    if window > 0 and alive(e, now_s) and has(e, COLD) and not has(e, HOT) then
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

--[[ lease_dirty: gives out blocks whose flush is due, longest due first; until the lease ends nobody
else gets them. A lapsed lease is given out again.                              flags: allow-oom
ARGV: lease_s, most blocks, most bytes (of which one block may exceed)
Returns a flat array: id, space, size, tokens, expiry, time of storing of each.
O(given out + leased to others). ]]
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

--[[ renew_leases: those of these blocks that still run end lease_s from now; 0 gives them back.
ARGV: lease_s, ids. Returns 0. O(ids · log n).                                  flags: allow-oom ]]
local function renew_leases(K, A)
  local until_s = now_us() / 1000000 + tonumber(A[1])
  for i = 2, #A do redis.call("ZADD", of_slot(K, "f"), "XX", until_s, A[i]) end
  return 0
end

--[[ open_segment: blocks may be said to stand in this segment from now on. ARGV: segment. Returns 0.
                                                                                flags: allow-oom ]]
local function open_segment(K, A)
  redis.call("ZADD", of_slot(K, "s"), "NX", 0, A[1])
  return 0
end

--[[ close_segments: those without live bytes get no blocks any more, so that they can be deleted: a
worker that slept for hours says `flushed` in vain. ARGV: segments      flags: allow-oom
Returns an array: the live bytes of each; 0 is closed. ]]
local function close_segments(K, A)
  local out = {}
  for i, segment in ipairs(A) do
    out[i] = tonumber(redis.call("ZSCORE", of_slot(K, "s"), segment) or "0")
    if out[i] == 0 then redis.call("ZREM", of_slot(K, "s"), segment) end
  end
  return out
end

local function is_open(K, segment) return redis.call("ZSCORE", of_slot(K, "s"), segment) ~= false end

--[[ admit: which of these leased blocks shall be written to S3? Makes room for them in the cold tier if the
policy evicts; the others stay hot, clean and evictable, and are known as refused.  flags: allow-oom
ARGV: bytes admitted before for the same segment, ids
Returns an array: blocks and bytes evicted from the cold tier, then 1 (write it) or 0 of each id.
O(ids + evicted · log n). ]]
local function admit(K, A)
  local us, taken, out = now_us(), tonumber(A[1]), { 0, 0 }
  for i = 2, #A do
    local e = load(K, A[i])
    out[i + 1] = 1 -- also of what went meanwhile: whoever reads it finds out
    if has(e, DIRTY) then
      local fits, blocks, bytes = has_cold_room(K, us, taken + e.size, e.priority)
      out[1], out[2] = out[1] + blocks, out[2] + bytes
      if fits then
        taken = taken + e.size
      else
        e = load(K, A[i]) -- making room may have changed it
        if has(e, DIRTY) then
          clean(K, A[i], e, us)
          refuse_cold(K, e)
          save(K, A[i], e)
          count(K, "cold_refused_blocks", 1)
        end
        out[i + 1] = 0
      end
    end
  end
  return out
end

--[[ flushed: these blocks stand, verified, in a live segment.                  flags: allow-oom
ARGV: segment number, then id, offset of each block
Returns an array: FLUSHED, DEAD (gone meanwhile or cold elsewhere: dead bytes of the segment; all, if
the segment is not open),
COLD_FULL (the cold tier has no room and makes none; the block stays hot, clean and evictable, and is
known as refused). Repeating it is safe. ]]
local function flushed(K, A)
  local us, out = now_us(), {}
  local now_s, segment = math.floor(us / 1000000), tonumber(A[1])
  local open = is_open(K, segment)
  for i = 2, #A, 2 do
    local id, offset = A[i], tonumber(A[i + 1])
    local e, outcome = load(K, id), DEAD
    if has(e, COLD) then
      if e.segment == segment and e.offset == offset then outcome = FLUSHED end
    elseif open and alive(e, now_s) then
      local fits = has_cold_room(K, us, e.size, e.priority)
      e = load(K, id) -- making room may have changed it
      if alive(e, now_s) then
        clean(K, id, e, us)
        if fits then
          end_refusal(K, e)
          e.state, e.segment, e.offset = e.state + COLD, segment, offset
          charge(K, e, "cold", 1)
          charge_segment(K, e, segment, 1)
          rank_cold(K, id, e, us)
          outcome = FLUSHED
        else
          refuse_cold(K, e)
          count(K, "cold_refused_blocks", 1)
          outcome = COLD_FULL
        end
        save(K, id, e)
      end
    end
    out[#out + 1] = outcome
  end
  return out
end

--[[ relocate: these cold blocks stand, verified, in another live segment too.   flags: allow-oom
ARGV: new segment (0: none, the old copy is bad), then id, old segment, old offset, new offset
Returns an array: FLUSHED (the index names the new place, or no cold copy any more), DEAD (it does not
name the old one: dead bytes of the new segment). Compares and sets; repeating it is safe. ]]
local function relocate(K, A)
  local us, out, segment = now_us(), {}, tonumber(A[1])
  local open = segment == 0 or is_open(K, segment)
  for i = 2, #A, 4 do
    local id, offset = A[i], tonumber(A[i + 3])
    local e, outcome = load(K, id), DEAD
    if open and has(e, COLD) and e.segment == tonumber(A[i + 1]) and e.offset == tonumber(A[i + 2]) then
      if segment == 0 then
        drop(K, id, e, COLD, CORRUPT, us)
        count(K, "corrupt_blocks", 1)
      else
        charge_segment(K, e, e.segment, -1)
        charge_segment(K, e, segment, 1)
        e.segment, e.offset = segment, offset
        save(K, id, e)
      end
      outcome = FLUSHED
    elseif has(e, COLD) and e.segment == segment and e.offset == offset then
      outcome = FLUSHED
    end
    out[#out + 1] = outcome
  end
  return out
end

--[[ pin: keep these blocks at least until then, within a budget.                flags: allow-oom
ARGV: until_s, budget of all pins in bytes (-1: none), "all" (or none of them) or "fit" (the first ones
that fit), ids. Returns {blocks pinned, pinned bytes before, bytes asked for on top}; -1 blocks: refused.]]
local function pin(K, A)
  local us, until_s, budget = now_us(), tonumber(A[1]), tonumber(A[2])
  local now_s, asked, n, seen = math.floor(us / 1000000), 0, 0, {}
  while end_pins(K, us) == SWEEP_MOST do end
  local before = used(K, "pinned_bytes")
  each(K, A, 4, function(id, e)
    if alive(e, now_s) and e.pinned == 0 and not seen[id] then asked, seen[id] = asked + e.size, true end
    return false
  end)
  local over = budget >= 0 and asked > 0 and before + asked > budget
  if over and A[3] == "all" then return { -1, before, asked } end
  each(K, A, 4, function(id, e)
    local fits = e.pinned > 0 or budget < 0 or used(K, "pinned_bytes") + e.size <= budget
    if alive(e, now_s) and fits then
      set_pin(K, id, e, math.max(e.pinned, until_s))
      save(K, id, e)
      watch(K, id, e, now_s)
      n = n + 1
    end
    return false
  end)
  return { n, before, asked }
end

--[[ unpin: their pin ends then (0: now). ARGV: until_s, ids. Returns how many.  flags: allow-oom ]]
local function unpin(K, A)
  local us, until_s = now_us(), tonumber(A[1])
  local now_s = math.floor(us / 1000000)
  return each(K, A, 2, function(id, e)
    if has(e, GONE) or e.pinned == 0 then return false end
    set_pin(K, id, e, until_s > now_s and until_s or 0)
    save(K, id, e)
    if has(e, HOT) and not has(e, DIRTY) then rank(K, id, e, us) end
    rank_cold(K, id, e, us)
    watch(K, id, e, now_s)
    return true
  end)
end

--[[ retain: gives stored blocks other terms.                                    flags: allow-oom
ARGV: "set" or "join", held (1: a context's terms), ttl_s, max_age_s, until_s (prolonged to), idle_s,
priority, flush_after_s ("" leaves it, -1: never), ids. 0: no limit. "join" gives a block that contexts
hold already the more generous of both terms, and does nothing where that is no change. Returns how many it knows. A block that is past its end
now is a miss at once and removed by expire_due. ]]
local function retain(K, A)
  local us, flush_after = now_us(), tonumber(A[8])
  local now_s, join = math.floor(us / 1000000), A[1] == "join"
  local ttl, max_age, until_s, idle, priority =
    tonumber(A[3]), tonumber(A[4]), tonumber(A[5]), tonumber(A[6]), tonumber(A[7])
  local function longer(a, b) return (a == 0 or b == 0) and 0 or math.max(a, b) end
  return each(K, A, 9, function(id, e)
    if has(e, GONE) then return false end
    local used_us, on_probation
    local read = redis.call("ZSCORE", cold_ranks(K), id)
    if has(e, HOT) then used_us, on_probation = last_use(K, id) end
    local ends = end_of(e.stored, ttl, max_age, until_s)
    if join and e.held == HELD then
      local expires, idle_s = longer(e.expires, ends), longer(e.idle, idle)
      local is_higher = priority > e.priority
      if expires == e.expires and idle_s == e.idle and not is_higher then return true end
      e.expires, e.idle, e.priority = expires, idle_s, is_higher and priority or e.priority
    else
      e.expires, e.idle, e.priority, e.held = ends, idle, priority, tonumber(A[2])
    end
    if has(e, HOT) and not has(e, COLD) and flush_after then
      if flush_after < 0 then
        clean(K, id, e, us)
      elseif has(e, DIRTY) then
        redis.call("ZADD", K[3], "XX", "LT", e.stored + flush_after, id)
      else
        soil(K, id, e, e.stored + flush_after)
        used_us = nil
      end
    end
    save(K, id, e)
    if used_us then rank(K, id, e, used_us, on_probation) end
    if read then rank_cold(K, id, e, tonumber(read) % HALF * 10) end
    watch(K, id, e, now_s)
    return true
  end)
end

--[[ expire: remove these blocks from both tiers now. ARGV: "1" (also pinned ones) or "0", ids
Returns {removed, kept because pinned}.                                         flags: allow-oom ]]
local function expire(K, A)
  local us, kept = now_us(), 0
  local removed = each(K, A, 2, function(id, e)
    if has(e, GONE) then return false end
    if e.pinned > us / 1000000 and A[1] == "0" then
      kept = kept + 1
      return false
    end
    drop(K, id, e, HOT + COLD, EXPIRED, us)
    return true
  end)
  if removed > 0 then count(K, "expired_blocks", removed) end
  return { removed, kept }
end

-- After the clock was set back: leases that end too far ahead are void, and dirty blocks that were
-- stored "in the future" count as stored now, so that their flush comes when the policy says.
-- A policy may keep blocks dirty for long: of more than `most` it looks at some, others each time.
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

--[[ expire_due: remove blocks whose time has come, idle ones from the hot tier, and what a cold tier holds
over its quota since that was lowered.                                          flags: allow-oom
ARGV: most. Returns how many it looked at: at `most` there may be more. ]]
local function expire_due(K, A)
  local us, most = now_us(), tonumber(A[1])
  local ended = end_pins(K, us)
  end_future(K, us, most)
  local _, _, looks = drop_due(K, us, most, math.huge)
  local is_over = trim_cold(K, us)
  return (ended == SWEEP_MOST or is_over) and most or looks
end

--[[ evict: free hot bytes. ARGV: bytes. Returns {blocks, bytes} removed.       flags: allow-oom ]]
local function evict(K, A)
  local blocks, freed = make_room(K, now_us(), tonumber(A[1]))
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
ARGV: segment, space, then id, size, tokens, offset, stored_s, expires_s, idle_s, priority, held of each.
Returns how many it took.
What the index already knows as cold, or as gone, it keeps: recovery never brings removed data back.
What went before it was stored (last) is another matter: an index that came back from a snapshot. So is
what only the hot tier had no room for. Segments hold what the cold tier let go, too: of more than its quota
the longest unread leaves at once. Reads are forgotten: the time of storing counts, in whole seconds, and of
one second the later segment. ]]
local function restore(K, A)
  local us, n = now_us(), 0
  local now_s, segment, space = math.floor(us / 1000000), tonumber(A[1]), tonumber(A[2])
  for i = 3, #A, 9 do
    local id, e = A[i], load(K, A[i])
    local size, stored, expires = tonumber(A[i + 1]), tonumber(A[i + 4]), tonumber(A[i + 5])
    local had_no_room = has(e, GONE)
      and (e.reason == QUOTA or e.reason == EVICTED or e.reason == IDLE or e.reason == UNFLUSHED)
    if had_no_room
      or has(e, GONE) and math.floor(tonumber(redis.call("ZSCORE", K[6], id) or "0") / 1000000) <= stored then
      redis.call("ZREM", K[6], id)
      redis.call("HDEL", K[1], id)
      e = nil
    end
    if not e and not (expires > 0 and expires <= now_s) then
      e = { state = 0, reason = recount_number(K), touched = 0, space = space, size = size,
        tokens = tonumber(A[i + 2]), expires = expires, pinned = 0, segment = 0, offset = 0, stored = stored,
        idle = tonumber(A[i + 6]), priority = tonumber(A[i + 7]), held = tonumber(A[i + 8]) }
    end
    if alive(e, now_s) and not has(e, COLD) and e.size == size then
      clean(K, id, e, us)
      end_refusal(K, e)
      e.state, e.segment, e.offset = e.state + COLD, segment, tonumber(A[i + 3])
      save(K, id, e)
      rank_cold(K, id, e, has(e, HOT) and us or stored * 1000000 + segment % 100000 * 10)
      watch(K, id, e, now_s)
      charge(K, e, "cold", 1)
      charge_segment(K, e, segment, 1)
      n = n + 1
    end
  end
  trim_cold(K, us)
  return n
end

--[[ set_policy: writes the numbers of `:q` anew. Only the control plane's user may; a function and not
plain commands, so that it works on a full server too.                          flags: allow-oom
ARGV: name, value pairs: hot_bytes, cold_bytes, cold_evicts (1: a full cold tier evicts, 0: it refuses); flush_after_s (-1: never), ttl_s, idle_s (0: none),
priority (0 leaves first), each of which may stand again as `<name>:<space>` for one space; eviction
(a number of EVICTION), promote_window_s (0: never). ]]
local function set_policy(K, A)
  redis.call("UNLINK", K[5])
  for first = 1, #A, SLICE do
    redis.call("HSET", K[5], unpack(A, first, math.min(first + SLICE - 1, #A)))
  end
  return 0
end

--[[ usage: counters of `:u`, numbers of `:q` with the prefix "quota_", and "oldest_due_s" (the earliest
flush due, absent when nothing is dirty). Returns a flat array name, value.      flags: allow-oom ]]
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

--[[ taken: what calls of each tenant took of this server since it loaded the library. Takes no KEYS: ask
each primary. Returns a flat array: tenant, calls with more than ABUSE values, µs (COST_US).
                                                                                flags: no-writes ]]
local function taken()
  local out, tenants = {}, {}
  for tenant in pairs(abused) do tenants[tenant] = true end
  for tenant in pairs(spent_us) do tenants[tenant] = true end
  for tenant in pairs(tenants) do
    for _, value in ipairs({ tenant, abused[tenant] or 0, math.floor(spent_us[tenant] or 0) }) do out[#out + 1] = value end
  end
  return out
end
server.register_function { function_name = "neve_taken", callback = taken, flags = { "no-writes" } }

-- Written out: no loop is available while a library loads. Behind the flag: see `register`.
register("match", match, "allow-oom", 1, 1, CALL_MOST)
register("usage", usage, "allow-oom", 0, 0, 0)
register("commit", commit, "allow-oom", 1, 3, CALL_MOST, true)
register("touch", touch, "allow-oom", 0, 1, CALL_MOST)
register("promote", promote, "allow-oom", 0, 1, CALL_MOST)
register("lease_dirty", lease_dirty, "allow-oom", 3, 0, 0)
register("renew_leases", renew_leases, "allow-oom", 1, 1, CALL_MOST)
register("relocate", relocate, "allow-oom", 1, 4, CALL_MOST)
register("open_segment", open_segment, "allow-oom", 1, 0, 0)
register("close_segments", close_segments, "allow-oom", 0, 1, CALL_MOST)
register("flushed", flushed, "allow-oom", 1, 2, CALL_MOST)
register("admit", admit, "allow-oom", 1, 1, CALL_MOST)
register("set_policy", set_policy, "allow-oom", 0, 2, POLICY_MOST)
register("pin", pin, "allow-oom", 3, 1, PIN_MOST)
register("unpin", unpin, "allow-oom", 1, 1, CALL_MOST)
register("expire", expire, "allow-oom", 1, 1, CALL_MOST)
register("retain", retain, "allow-oom", 8, 1, CALL_MOST)
register("expire_due", expire_due, "allow-oom", 1, 0, 0)
register("evict", evict, "allow-oom", 1, 0, 0)
register("forget", forget, "allow-oom", 1, 1, CALL_MOST)
register("restore", restore, "allow-oom", 2, 9, CALL_MOST)
