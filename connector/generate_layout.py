"""Writes what functions in Valkey and the C++ core must know as Python does:

    python connector/generate_layout.py

src/neve/index/functions/layout.lua and src/core/layout.h, from neve.index.entry, neve.index.tier,
neve.formats.keys and neve.formats.block. tests/neve/test_layout.py fails when they are not up to
date.
"""

import struct
import textwrap
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from pathlib import Path

from neve.formats import block, ids
from neve.formats.keys import BOOKS, KEY_BOOKS
from neve.index import entry
from neve.index.tier import CALL_IDS, PIN_IDS, CommitOutcome, FlushOutcome

SRC = Path(__file__).resolve().parent / "src"
LUA, CPP = SRC / "neve/index/functions/layout.lua", SRC / "core/layout.h"
_WRITTEN = "Written by connector/generate_layout.py; change neve.index.entry instead."


def lua() -> str:
    """Constants, and functions that unpack and pack an entry."""
    books = ", ".join(f'{name} = "{kind}"' for name, kind in BOOKS.items() if name != "q")
    places = ", ".join(f"[{int(place)}] = true" for place in sorted(entry.PLACES))
    lines = [
        f"-- {_WRITTEN}",
        "",
        "-- Bits of an entry's state; the low four say where the block is.",
        *_locals(entry.State),
        f"local PLACE_BITS, PLACES = {entry.PLACE_BITS}, {{ {places} }}",
        "-- Why an entry is GONE; 0 is never_stored.",
        *_assign({r.name: n for n, r in enumerate(entry.REASONS) if n}),
        "-- Outcomes of commit, and of flushed and relocate.",
        *_locals(CommitOutcome),
        *_locals(FlushOutcome),
        "-- Ranks.",
        f"local BAND, HALF, RANK_US = {entry.BAND}, {entry.HALF}, {entry.RANK_US}",
        "-- Ids of one call, and of one pin, whose budget decides on all of them at once.",
        f"local CALL_MOST, PIN_MOST = {CALL_IDS}, {PIN_IDS}",
        f"local ID_BYTES, UNCOMMITTED_MS = {ids.ID_BYTES}, {block.UNCOMMITTED_MS}",
        "-- KEYS 1 to 7 of every function, and the types of books that functions write.",
        "local BOOKKEEPING = { " + ", ".join(f'"{name}"' for name in KEY_BOOKS) + " }",
        *_wrapped("local BOOK_TYPES = { " + books + " }"),
        "",
        "-- An entry, and one of version 1. In both `expires` begins at byte EXPIRES_AT, from 1.",
        f'local ENTRY, ENTRY_BYTES = "{_lua_format(entry.ENTRY)}", {entry.ENTRY.size}',
        f'local ENTRY_1, ENTRY_1_BYTES = "{_lua_format(entry.ENTRY_1)}", {entry.ENTRY_1.size}',
        f"local EXPIRES_AT = {_offset('expires') + 1}",
        *_empty(),
        "",
        "local function empty_entry()",
        *_wrapped(f"  return {{ {', '.join(f'{f.name} = 0' for f in entry.FIELDS)} }}"),
        "end",
        "",
        *_unpacking("unpack_entry", "ENTRY", entry.FIELDS),
        *_packing("pack_entry", "ENTRY", entry.FIELDS),
        *_unpacking("unpack_entry_1", "ENTRY_1", entry.FIELDS_1),
        *_packing("pack_entry_1", "ENTRY_1", entry.FIELDS_1),
    ]
    return "\n".join(lines)


def cpp() -> str:
    """Constants."""
    at, offsets = 0, []
    for name, code in block.FIELDS:
        offsets.append(f"inline constexpr std::size_t {_k(name)}At = {at};")
        at += struct.calcsize(f"<{code}")
    outcomes = [
        f"inline constexpr std::int64_t {_k(outcome.name)} = {outcome.value};"
        for outcome in CommitOutcome
    ]
    lines = [
        f"// {_WRITTEN}",
        "#pragma once",
        "",
        "#include <cstddef>",
        "#include <cstdint>",
        "#include <string_view>",
        "",
        "namespace neve {",
        "",
        "// The header of a block: where its fields are.",
        f"inline constexpr std::size_t kHeaderBytes = {block.HEADER_BYTES};",
        f"inline constexpr std::size_t kMaxPayloadBytes = {block.MAX_PAYLOAD_BYTES};",
        *offsets,
        "",
        "// An entry of the index, whose first byte is its state: 0 is a miss.",
        f"inline constexpr std::size_t kEntryBytes = {entry.ENTRY.size};",
        "",
        "// Calls of the functions: KEYS before those of blocks, and the most ids.",
        f"inline constexpr std::size_t kBookkeepingKeys = {len(KEY_BOOKS)};",
        f"inline constexpr std::size_t kCallIds = {CALL_IDS};",
        "",
        "// What neve_commit answers for each block.",
        *outcomes,
        "",
        "// A value whose commit never comes expires after so many milliseconds.",
        f'inline constexpr std::string_view kUncommittedMs = "{block.UNCOMMITTED_MS}";',
        "",
        "}  // namespace neve",
        "",
    ]
    return "\n".join(lines)


def _locals(numbers: type[IntEnum] | type[IntFlag]) -> list[str]:
    return _assign({member.name: member.value for member in numbers})


def _assign(values: dict[str, int]) -> list[str]:
    return _wrapped(f"local {', '.join(values)} = {', '.join(map(str, values.values()))}")


def _wrapped(line: str) -> list[str]:
    """At most 100 columns, broken after commas; `name = value` stays together."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    whole = line.replace(" = ", "\xa0=\xa0").replace("{ ", "{\xa0").replace(" }", "\xa0}")
    return [
        part.replace("\xa0", " ") for part in textwrap.wrap(whole, 100, subsequent_indent=indent)
    ]


def _unpacking(function: str, packed: str, fields: Sequence[entry.Field]) -> list[str]:
    names = [field.name for field in fields]
    values = {field.name: field.name if field.name in names else "0" for field in entry.FIELDS}
    return [
        f"local function {function}(raw)",
        *_wrapped(f"  local {', '.join(names)} = struct.unpack({packed}, raw)"),
        *_wrapped(f"  return {{ {', '.join(f'{k} = {v}' for k, v in values.items())} }}"),
        "end",
        "",
    ]


def _packing(function: str, packed: str, fields: Sequence[entry.Field]) -> list[str]:
    return [
        f"local function {function}(e)",
        *_wrapped(f"  return struct.pack({packed}, {', '.join(f'e.{f.name}' for f in fields)})"),
        "end",
        "",
    ]


def _offset(name: str) -> int:
    before = entry.FIELDS[: [f.name for f in entry.FIELDS].index(name)]
    return sum(field.bytes for field in before)


def _lua_format(packed: struct.Struct) -> str:
    """Valkey's `struct` gives the widths of integers in bytes."""
    return packed.format.replace("I", "I4").replace("Q", "I8")


def _empty() -> list[str]:
    """A literal: no library of Lua is there while this one loads."""
    sizes = [min(40, entry.ENTRY.size - at) for at in range(0, entry.ENTRY.size, 40)]
    return _wrapped("local EMPTY = " + " .. ".join('"' + "\\0" * size + '"' for size in sizes))


def _k(name: str) -> str:
    return "k" + "".join(word.capitalize() for word in name.lower().split("_"))


if __name__ == "__main__":
    LUA.write_text(lua())
    CPP.write_text(cpp())
