"""Sizes by the table of groups: against a count of parts, and the figures of real engines."""

from hypothesis import given
from hypothesis import strategies as st

from neve.formats.parts import PartGroup, PartKind, needed_parts
from neve.planner.parts import PrefixBytes, loaded_bytes, stored_bytes

FULL = PartGroup(PartKind.FULL, None, 32, 512)
WINDOW = PartGroup(PartKind.WINDOW, 96, 32, 512)
STATE = PartGroup(PartKind.STATE, None, 160, state_bytes=536_576)


def test_gemma_loads_little_more_than_its_full_layers():
    """Three groups with a window of 96 and one of full attention, each of 512 bytes a token."""
    groups = [FULL, WINDOW, WINDOW, WINDOW]
    assert loaded_bytes(groups, 64) == PrefixBytes(512, 3 * 2 * 64 * 512)
    assert stored_bytes(groups, 64) == PrefixBytes(4 * 512, 0)
    assert stored_bytes(groups, 256) == PrefixBytes(512 + 3 * 512 * 96 / 256, 0)


def test_a_state_weighs_the_same_for_every_length():
    full = PartGroup(PartKind.FULL, None, 160, 4096)
    assert loaded_bytes([full, STATE], 160) == PrefixBytes(4096, 536_576)
    assert loaded_bytes([full, STATE], 160).of(960) == 960 * 4096 + 536_576
    assert stored_bytes([full, STATE, STATE], 160).fixed == 2 * 536_576


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from(["full", "window", "state"]), min_size=1, max_size=4))
    return [
        PartGroup(
            PartKind(kind),
            draw(st.integers(1, 200)) if kind == "window" else None,
            8,
            0 if kind == "state" else draw(st.integers(1, 9)),
            draw(st.integers(1, 999)) if kind == "state" else 0,
        )
        for kind in kinds
    ]


@given(tables(), st.integers(1, 8))
def test_a_long_prefix_loads_the_parts_that_a_request_needs(groups, blocks):
    size, chunks = 8 * blocks, 60
    counts = needed_parts(groups, chunks, size)
    each = [group.part_bytes(size) for group in groups]
    loaded = sum(count * part for count, part in zip(counts, each, strict=True))
    assert loaded_bytes(groups, size).of(chunks * size) == loaded
