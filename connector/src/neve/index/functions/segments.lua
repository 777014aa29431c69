-- Segments: which may get blocks, and blocks that move from one to another.

--[[ open_segment: blocks may be in this segment from now on.
KEYS     the books
ARGV     segment
Returns  0
Flags    allow-oom
Worst    O(log n)
]]
local function open_segment(K, A)
  redis.call("ZADD", of_slot(K, "s"), "NX", 0, A[1])
  return 0
end
register("open_segment", open_segment, { before = 1, each = 0, most = 0 })

--[[ close_segments: segments without live bytes get no blocks any more, so that they can be
deleted: a worker that slept for hours calls `flushed` in vain.
KEYS     the books
ARGV     segments
Returns  array: the live bytes of each; 0: it is closed
Flags    allow-oom
Worst    O(segments · log n)
]]
local function close_segments(K, A)
  local out = {}
  for i, segment in ipairs(A) do
    out[i] = tonumber(redis.call("ZSCORE", of_slot(K, "s"), segment) or "0")
    if out[i] == 0 then redis.call("ZREM", of_slot(K, "s"), segment) end
  end
  return out
end
register("close_segments", close_segments, { before = 0, each = 1, most = CALL_MOST })

-- Moves a cold block to an open segment; 0: forgets its copy, which is bad.
local function move_block(K, us, id, e, segment, place)
  if segment == 0 then
    drop(K, id, e, COLD, CORRUPT, us)
    count(K, "corrupt_blocks", 1)
  else
    charge_segment(K, e, e.segment, -1)
    charge(K, e, "cold", -1)
    put_place(e, segment, place)
    charge(K, e, "cold", 1)
    charge_segment(K, e, segment, 1)
    save(K, id, e)
  end
end

--[[ relocate: these cold blocks are, verified, in another live segment too. Compares and sets; may
be repeated.
KEYS     the books
ARGV     new segment (0: none, the old copy is bad), then id, old segment, old offset and new place
         (read_place) of each block
Returns  array: FLUSHED (the index names the new place, or no cold copy any more), DEAD (it does not
         name the old one: dead bytes of the new segment)
Flags    allow-oom
Worst    O(blocks · log n)
]]
local function relocate(K, A)
  local us, out, segment = now_us(), {}, tonumber(A[1])
  local open = segment == 0 or is_open(K, segment)
  for i = 2, #A, 4 do
    local id, place = A[i], read_place(A[i + 3])
    local e, outcome = load(K, id), DEAD
    if open and is_placed(e, tonumber(A[i + 1]), tonumber(A[i + 2])) then
      move_block(K, us, id, e, segment, place)
      outcome = FLUSHED
    elseif is_placed(e, segment, place.offset) then
      outcome = FLUSHED
    end
    out[#out + 1] = outcome
  end
  return out
end
register("relocate", relocate, { before = 1, each = 4, most = CALL_MOST })

-- Whether a tombstone tells only that the hot tier had no room: segments may still hold the block.
local function had_no_room(e)
  local why = e.reason
  return why == QUOTA or why == EVICTED or why == IDLE or why == UNFLUSHED
end

-- Whether a tombstone stands against restoring a block stored at that second. It does not if the
-- block left before (the index came back from a snapshot), or only the hot tier had no room for it.
local function stands(K, id, e, stored)
  local left_us = tonumber(redis.call("ZSCORE", K[6], id) or "0")
  return not had_no_room(e) and math.floor(left_us / 1000000) > stored
end

-- The entry of a block to restore, from 9 values at A[i]; nil: it is past its end.
local function restored_entry(K, A, i, now_s)
  local e = new_entry(K, tonumber(A[2]), tonumber(A[i + 1]), tonumber(A[i + 2]))
  e.stored, e.expires, e.idle = tonumber(A[i + 4]), tonumber(A[i + 5]), tonumber(A[i + 6])
  e.priority, e.held = tonumber(A[i + 7]), tonumber(A[i + 8])
  if not is_expired(e, now_s) then return e end
end

--[[ restore: indexes blocks of a segment, after the index was lost. Keeps entries that are cold,
and tombstones: recovery never brings removed data back. Segments hold blocks that the cold tier
evicted, too: above its quota the longest unread leaves at once. Reads are forgotten: the time of
storing counts, in whole seconds, and of one second the later segment.
KEYS     the books
ARGV     segment, space, then id, size, tokens, place (read_place), stored_s, expires_s, idle_s,
         priority and held of each block
Returns  how many it took
Flags    allow-oom
Worst    O(blocks · log n); evicts at most SWEEP_MOST blocks
]]
local function restore(K, A)
  local us, n = now_us(), 0
  local now_s, segment = math.floor(us / 1000000), tonumber(A[1])
  for i = 3, #A, 9 do
    local id, e = A[i], load(K, A[i])
    local size, stored = tonumber(A[i + 1]), tonumber(A[i + 4])
    -- A block past its end is not restored: its tombstone stays, which tells routers that it left.
    if not e or has(e, GONE) and not stands(K, id, e, stored) then
      e = restored_entry(K, A, i, now_s)
      if e then redis.call("ZREM", K[6], id) end
    end
    if is_alive(e, now_s) and not has(e, COLD) and e.size == size then
      mark_clean(K, id, e, us)
      mark_cold(K, e, segment, read_place(A[i + 3]))
      save(K, id, e)
      rank_cold(K, id, e, has(e, HOT) and us or stored * 1000000 + segment % 100000 * 10)
      schedule(K, id, e, now_s)
      n = n + 1
    end
  end
  trim_cold(K, us)
  return n
end
register("restore", restore, { before = 2, each = 9, most = CALL_MOST })
