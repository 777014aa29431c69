-- Written by connector/generate_layout.py; change neve.index.entry instead.

-- Bits of an entry's state; the low four say where the block is.
local HOT, COLD, DIRTY, GONE, UNSTORED, LET_GO = 1, 2, 4, 8, 16, 32
local PLACE_BITS, PLACES = 15, { [1] = true, [2] = true, [3] = true, [5] = true, [8] = true }
-- Why an entry is GONE; 0 is never_stored.
local EVICTED, EXPIRED, QUOTA, CORRUPT, IDLE, EVICTED_COLD, UNFLUSHED = 1, 2, 3, 4, 5, 6, 7
-- Outcomes of commit, and of flushed and relocate.
local STORED, PRESENT, REFUSED, MISMATCH, VANISHED = 0, 1, 2, 3, 4
local FLUSHED, DEAD, COLD_FULL = 0, 1, 2
-- Ranks.
local BAND, HALF, RANK_US = 500000000000000, 250000000000000, 10
-- Ids of one call, and of one pin, whose budget decides on all of them at once.
local CALL_MOST, PIN_MOST = 1000, 10000
local ID_BYTES, UNCOMMITTED_MS = 16, 60000
-- KEYS 1 to 7 of every function, and the types of books that functions write.
local BOOKKEEPING = { "i", "l", "d", "u", "q", "x", "e" }
local BOOK_TYPES = { i = "hash", l = "zset", d = "zset", u = "hash", x = "zset", e = "zset",
  p = "zset", s = "zset", f = "zset", r = "zset", c = "zset" }

-- An entry, and one of version 1. In both `expires` begins at byte EXPIRES_AT, from 1.
local ENTRY, ENTRY_BYTES = "<BBHI4I4I4I4I4I4I4I4BBBBBI4I8", 53
local ENTRY_1, ENTRY_1_BYTES = "<BBHI4I4I4I4I4I4I4I4I4BB", 42
local EXPIRES_AT = 17
local EMPTY = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" ..
  "\0\0\0\0\0\0\0\0\0\0\0\0\0"

local function empty_entry()
  return { state = 0, reason = 0, touched = 0, space = 0, size = 0, tokens = 0, expires = 0,
    pinned = 0, segment = 0, stored = 0, idle = 0, priority = 0, held = 0, kind = 0, hot_codec = 0,
    cold_codec = 0, cold_size = 0, offset = 0 }
end

local function unpack_entry(raw)
  local state, reason, touched, space, size, tokens, expires, pinned, segment, stored, idle,
    priority, held, kind, hot_codec, cold_codec, cold_size, offset = struct.unpack(ENTRY, raw)
  return { state = state, reason = reason, touched = touched, space = space, size = size,
    tokens = tokens, expires = expires, pinned = pinned, segment = segment, stored = stored,
    idle = idle, priority = priority, held = held, kind = kind, hot_codec = hot_codec,
    cold_codec = cold_codec, cold_size = cold_size, offset = offset }
end

local function pack_entry(e)
  return struct.pack(ENTRY, e.state, e.reason, e.touched, e.space, e.size, e.tokens, e.expires,
    e.pinned, e.segment, e.stored, e.idle, e.priority, e.held, e.kind, e.hot_codec, e.cold_codec,
    e.cold_size, e.offset)
end

local function unpack_entry_1(raw)
  local state, reason, touched, space, size, tokens, expires, pinned, segment, offset, stored, idle,
    priority, held = struct.unpack(ENTRY_1, raw)
  return { state = state, reason = reason, touched = touched, space = space, size = size,
    tokens = tokens, expires = expires, pinned = pinned, segment = segment, stored = stored,
    idle = idle, priority = priority, held = held, kind = 0, hot_codec = 0, cold_codec = 0,
    cold_size = 0, offset = offset }
end

local function pack_entry_1(e)
  return struct.pack(ENTRY_1, e.state, e.reason, e.touched, e.space, e.size, e.tokens, e.expires,
    e.pinned, e.segment, e.offset, e.stored, e.idle, e.priority, e.held)
end
