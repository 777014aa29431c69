"""The layout stands in one place; its copies for Lua, C++ and people are up to date."""

import re
import runpy
from importlib.resources import files
from pathlib import Path

import pytest

from neve.formats import block
from neve.formats.keys import BOOKS
from neve.index import entry
from neve.index.library import functions_source
from neve.index.scan import IndexEntry, decode_entry
from neve.index.tier import Location, Tier, decode_match

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "connector/generate_layout.py"
HOT_TIER = ROOT / "docs/formats/hot-tier.md"
PARTS = sorted(Path(str(files("neve.index"))).joinpath("functions").glob("*.lua"))
HEADER = ["KEYS", "ARGV", "Returns", "Flags", "Worst"]


def test_generating_the_layout_again_changes_nothing():
    generated = runpy.run_path(str(GENERATOR))
    assert generated["LUA"].read_text() == generated["lua"](), f"run {GENERATOR}"
    assert generated["CPP"].read_text() == generated["cpp"](), f"run {GENERATOR}"


def test_every_part_is_in_the_library_once():
    order = (PARTS[0].parent / "order.txt").read_text().split()
    assert sorted(order) == [part.stem for part in PARTS]


def test_the_fields_of_a_header_fill_it():
    (last, _) = block.FIELDS[-1]
    assert last == "header_checksum"
    assert block._FIELDS.size + 4 == block.HEADER_BYTES


def rows(heading: str, columns: int) -> list[list[str]]:
    """The first table after a line that begins with `heading`, without its head."""
    text = HOT_TIER.read_text().split(f"\n{heading}", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert table
    found = [line.strip("|\n ").split(" | ") for line in table[0].splitlines()[2:]]
    assert all(len(row) == columns for row in found)
    return found


def test_the_document_has_the_fields_of_an_entry():
    at, expected = 0, []
    for field in entry.FIELDS:
        expected.append([str(at), str(field.bytes), f"`{field.name}`", field.meaning])
        at += field.bytes
    assert rows("**Entry**", 4) == expected
    assert f"entry of {at} bytes" in HOT_TIER.read_text()


def test_the_documents_entries_are_what_the_scan_reads():
    example = HOT_TIER.read_text().split("**Entry**")[1].split("```")[1]
    dirty, cold = (
        bytes.fromhex("".join(line[4:] for line in part.splitlines()))
        for part in example.strip().split("\n\n")
    )
    common = {"space_id": 3, "size_bytes": 1_000_064, "expires_s": 0, "pinned_s": 0, "idle_s": 0}
    common |= {"stored_s": 1_800_000_000, "priority": 0, "held": False}
    id_ = bytes(16)
    assert decode_entry(id_, dirty) == IndexEntry(
        id_, is_hot=True, is_cold=False, is_dirty=True, segment=0, **common
    )
    assert decode_entry(id_, cold) == IndexEntry(
        id_, is_hot=False, is_cold=True, is_dirty=False, segment=9, offset=64, **common
    )
    assert decode_match(dirty + cold) == [
        Location(Tier.HOT, 1_000_064),
        Location(Tier.COLD, 1_000_064, 9, 64),
    ]


def test_the_document_has_states_and_reasons():
    states = [[str(int(bit)), bit.name.lower().replace("_", " ")] for bit in entry.State]
    assert [row[:2] for row in rows("**States**", 3)] == states
    sentence = HOT_TIER.read_text().split("**Reasons** of a tombstone: ")[1].split("(")[0]
    reasons = [(str(n), reason.value) for n, reason in enumerate(entry.REASONS) if n]
    assert re.findall(r"(\d+) `(\w+)`", sentence) == reasons


def test_the_document_has_every_book():
    named = re.findall(r"^\| `(?:\{t7\.00\.n\}|…):(\w)`", HOT_TIER.read_text(), re.M)
    assert sorted(named) == sorted(BOOKS)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_lines_and_functions_of_lua_are_short(part):
    lines = part.read_text().splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > 100] == []
    begins = 0
    for n, line in enumerate(lines, 1):
        if line.startswith("local function"):
            begins = n
        if line == "end":
            assert n - begins + 1 < 40, f"{part.name}:{begins}"


def test_every_function_has_a_header_and_a_line_in_the_document():
    source = functions_source()
    names = [*re.findall(r'^register\("(\w+)"', source, re.M), "taken"]
    described = dict(rows("**Functions**", 2))
    assert list(described) == [f"`{name}`" for name in names]
    for name in names:
        header = re.search(rf"--\[\[ {name}: (.*?)\]\]\nlocal function {name}\(", source, re.S)
        assert header, f"{name} has no header right above it"
        assert re.findall(r"^([A-Z]\w+) {2,}", header[1], re.M) == HEADER, name
