--[[
Neve's hot tier: every change of the block index, by functions that each run atomically on one
bucket. The parts in this folder make one library (neve.index.library): they share their local
names, in the order of order.txt. docs/formats/hot-tier.md specifies what they keep.

KEYS of every function (neve/formats/keys.py builds them, all in one hash slot) name a bucket's
books, which stand under other names (BOOKS) that nodes do not know:
  1 :i  HASH id -> packed entry          5 :q  HASH quotas and retention numbers (set_policy)
  2 :l  ZSET id -> rank                  6 :x  ZSET id -> when it went, µs (tombstones)
  3 :d  ZSET id -> flush due, s          7 :e  ZSET id -> when to look at it again, s
  4 :u  HASH usage counters              8…    block keys (commit, end_strays)
Books that functions derive from the tag (of_slot), and the block keys of what leaves:
    :p  ZSET id -> end of its pin, s
    :s  ZSET segment -> its live bytes: those that the index names as blocks' cold copies
    :c  ZSET id -> rank in the cold tier: what may be evicted from it
    :f  ZSET id -> end of its lease, s (for workers that flush)
    :r  ZSET sums of a recount in progress (recount.lua); "number" says which it is
A function gets its books as K and its values as A.

Ids are 16 raw bytes. Times are the server's own (TIME), whatever the nodes' clocks say.
`:l` holds what may be evicted: hot blocks that are neither dirty (`:d`) nor pinned (`:p`).
`:c` holds cold blocks that are not pinned. In both, lower priorities leave first, then those that
EVICTION says, then the least recently used; a use of the hot copy counts as a read of the cold one
(docs/decisions/013-cold-eviction.md).
`:e`: a block is looked at again when its life ends, or when it may have been idle for too long.

Invariants (tests/hot/test_state_machine.py): u.hot_bytes = Σ size of hot entries; u.cold_bytes = Σ
size of cold ones = Σ of `:s`; u.dirty_bytes of dirty ones, u.pinned_bytes of those in `:p`,
u.unstored_bytes of UNSTORED ones. No commit raises hot_bytes above q.hot_bytes, no flush cold_bytes
above q.cold_bytes, no pin pinned_bytes above its budget.
]]

-- What stands before the letter of a book in its key. Functions run with their caller's rights, so
-- a node has the right to write the books; it must not be able to name them. Filled in by
-- neve.index.library.functions_source.
local BOOKS = ""
local SLICE = 500 -- arguments of one redis.call: Lua's stack is bounded

local function now_us()
  local t = redis.call("TIME")
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function of_slot(K, name) return K.tag .. BOOKS .. name end

local function cold_ranks(K) return of_slot(K, "c") end

local function block_key(K, e, id) return K.tag .. "b:" .. e.space .. ":" .. id end

-- As UNLINK does (lazyfree-lazy-expire), but a node that may do it to one key may not to a million.
local function remove_block(key) redis.call("PEXPIRE", key, 0) end

local function count(K, name, by) redis.call("HINCRBY", K[4], name, by) end

local function used(K, name) return tonumber(redis.call("HGET", K[4], name) or "0") end

local function numbers(K, ...) return redis.call("HMGET", K[5], ...) end

local function quota(K, name) return tonumber(numbers(K, name)[1] or "0") end

-- Terms of a new block of this space: the space's own numbers, else the tenant's.
local function terms_of(K, space)
  local s = ":" .. space
  local q = numbers(K, "flush_after_s" .. s, "flush_after_s", "ttl_s" .. s, "ttl_s",
    "idle_s" .. s, "idle_s", "priority" .. s, "priority")
  local function pick(i) return tonumber(q[i] or q[i + 1] or "0") end
  return { flush_after = pick(1), ttl = pick(3), idle = pick(5), priority = pick(7) }
end

-- The number of the recount in progress; 0: none. New entries carry it, so that it counts them.
local function recount_number(K)
  return tonumber(redis.call("ZSCORE", of_slot(K, "r"), "number") or "0")
end
