-- Commit: from a value that a writer SET to a block that others find.

-- As `neve` writes numbers, and as an entry holds them: "05", "1e3" and "nan" would make an entry
-- whose block key is another one, or end a function halfway.
local function is_number(text)
  return #text <= 10 and string.find(text, "^%d+$") ~= nil and tostring(tonumber(text)) == text
    and tonumber(text) < 2 ^ 32
end

-- Why a commit is refused as a whole; nil: it is not.
local function badness(K, A)
  local prefix = K.tag .. "b:" .. A[1] .. ":"
  if not is_number(A[1]) then return "the space is no number" end
  for n = 1, #K - #BOOKKEEPING do
    local id, size, tokens = A[3 * n - 1], A[3 * n], A[3 * n + 1]
    if #id ~= ID_BYTES or K[#BOOKKEEPING + n] ~= prefix .. id then
      return "KEYS[" .. #BOOKKEEPING + n .. "] is not the key of its id"
    end
    if not is_number(size) or not is_number(tokens) then
      return "sizes and tokens are numbers of 32 bits"
    end
  end
end

-- A use of a block that is hot already, with this very value.
local function use_present(K, c, b, e)
  redis.call("PERSIST", b.key)
  use(K, b.id, e, c.us)
  if is_expired(e, c.now_s) then -- stored anew: its life begins again
    e.stored, e.expires = c.now_s, end_of(c.now_s, c.terms.ttl, 0, 0)
    save(K, b.id, e)
    schedule(K, b.id, e, c.now_s)
  end
  return PRESENT
end

-- How many bytes the hot tier lacks for a block after making room; whether entries may have
-- changed.
local function lacking(K, c, size)
  local over = used(K, "hot_bytes") + size - c.hot_quota
  -- A block larger than the quota never fits: refuse it without emptying the tier.
  if over <= 0 or size > c.hot_quota then return over, false end
  local _, freed = make_room(K, c.us, over)
  return over - freed, true
end

local function refuse_block(K, c, b, e)
  remove_block(b.key)
  count(K, "refused_blocks", 1)
  count(K, "refused_bytes", b.size)
  if not has(e, COLD) then
    local entry = { space = c.space, size = b.size, tokens = b.tokens, pinned = 0 }
    make_tombstone(K, b.id, entry, QUOTA, c.us)
  end
  return REFUSED
end

-- The entry of a block that is in neither tier. A chain's blocks are due in its order, so that they
-- lie so in the segment.
local function enter(K, c, b)
  local e = new_entry(K, c.space, b.size, b.tokens)
  redis.call("ZREM", K[6], b.id)
  e.stored, e.expires = c.now_s, end_of(c.now_s, c.terms.ttl, 0, 0)
  e.idle, e.priority = c.terms.idle, c.terms.priority
  if c.terms.flush_after >= 0 then
    e.state = HOT + DIRTY
    redis.call("ZADD", K[3], (c.us + b.n) / 1000000 + c.terms.flush_after, b.id)
    charge(K, e, "dirty", 1)
  else
    e.state = HOT
    rank(K, b.id, e, c.us, policy(K).probation)
  end
  return e
end

local function store_block(K, c, b, e)
  if has(e, COLD) then
    e.state, e.touched = HOT + COLD, 0
    rank(K, b.id, e, c.us)
    rank_cold(K, b.id, e, c.us)
  else
    e = enter(K, c, b)
  end
  save(K, b.id, e)
  schedule(K, b.id, e, c.now_s)
  redis.call("PERSIST", b.key)
  charge(K, e, "hot", 1)
  return STORED
end

-- The outcome of a block that was not present when the call began.
local function commit_block(K, c, b)
  local e = load(K, b.id)
  if e and is_there(e) and is_expired(e, c.now_s) and not has(e, HOT) then
    drop(K, b.id, e, COLD, EXPIRED, c.us)
  end
  local length = redis.call("STRLEN", b.key)
  if length == 0 or length ~= b.size or (has(e, HOT) and e.size ~= b.size) then
    if not has(e, HOT) then remove_block(b.key) end
    return length == 0 and VANISHED or MISMATCH
  end
  if has(e, HOT) then return use_present(K, c, b, e) end -- the same id twice in one call
  local over, is_stale = lacking(K, c, b.size)
  if is_stale then e = load(K, b.id) end
  return over > 0 and refuse_block(K, c, b, e) or store_block(K, c, b, e)
end

--[[ commit: makes visible the blocks that were SET just before, or refuses and deletes them.
KEYS     the books, then the key of each block
ARGV     space, then id, size (of the whole value) and tokens of each block
Returns  array: STORED, PRESENT (already there), REFUSED (quota), MISMATCH (another value), VANISHED
         (no value: it was evicted, or refused to another writer, between SET and commit: store it
         again). Error BADKEYS, before anything is done, when a block key is not that of its id:
         such a value would be in nobody's books
Flags    allow-oom
Worst    O(blocks + evicted · log n); evicts at most EVICT_MOST blocks
]]
local function commit(K, A)
  local bad = badness(K, A)
  if bad then return redis.error_reply("BADKEYS neve_commit: " .. bad) end
  local us, out, rest = now_us(), {}, {}
  local c = {
    us = us, now_s = math.floor(us / 1000000), hot_quota = quota(K, "hot_bytes"),
    space = tonumber(A[1]), terms = terms_of(K, A[1]),
  }
  -- Blocks that are present are used before the others make room, so that they are not evicted.
  for n = 1, #K - #BOOKKEEPING do
    local size, tokens = tonumber(A[3 * n]), tonumber(A[3 * n + 1])
    local b = { n = n, key = K[#BOOKKEEPING + n], id = A[3 * n - 1], size = size, tokens = tokens }
    local e = load(K, b.id)
    if has(e, HOT) and e.size == size and redis.call("STRLEN", b.key) == size then
      out[n] = use_present(K, c, b, e)
    else
      rest[#rest + 1] = b
    end
  end
  for _, b in ipairs(rest) do out[b.n] = commit_block(K, c, b) end
  return out
end
register("commit", commit, { before = 1, each = 3, most = CALL_MOST, block_keys = true })
