"""What the workers decide, as pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.index.tier import DirtyBlock, Usage
from tiering.batches import cut_batches, cut_evenly
from tiering.flush import GATHER_S, is_worth_a_segment
from tiering.segments import LEAST_BYTES

NOW = 1_000_000.0
LARGE = 1 << 40


@pytest.mark.parametrize(
    ("held", "worth"),
    [
        (Usage(quota_hot_bytes=LARGE), False),
        (Usage(dirty_bytes=1, quota_hot_bytes=LARGE, oldest_due_s=NOW + 1), False),
        (Usage(dirty_bytes=1, quota_hot_bytes=LARGE, oldest_due_s=NOW - 1), False),
        (Usage(dirty_bytes=1, quota_hot_bytes=LARGE, oldest_due_s=NOW - GATHER_S), True),
        (Usage(dirty_bytes=LEAST_BYTES, quota_hot_bytes=LARGE, oldest_due_s=NOW), True),
        (Usage(dirty_bytes=25, quota_hot_bytes=100, oldest_due_s=NOW), True),
    ],
)
def test_a_flush_waits_for_a_full_segment_but_not_for_long(held, worth):
    assert is_worth_a_segment(held, NOW) is worth


def dirty(sizes):
    return [DirtyBlock(n.to_bytes(16, "big"), 1, size, 16, 0, 0) for n, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 100)), st.integers(1, 150))
def test_cutting_keeps_every_item_in_order(sizes, most):
    blocks = dirty(sizes)
    for pieces in (cut_batches(blocks, most), cut_evenly(blocks, most)):
        assert [block for piece in pieces for block in piece] == blocks
        assert all(pieces)
    for piece in cut_batches(blocks, most):
        assert len(piece) == 1 or sum(block.size_bytes for block in piece) <= most


@given(st.lists(st.integers(1, 10), min_size=30), st.integers(100, 150))
def test_segments_of_one_backlog_are_about_as_large_as_each_other(sizes, most):
    pieces = [sum(b.size_bytes for b in piece) for piece in cut_evenly(dirty(sizes), most)]
    assert len(pieces) == -(-sum(sizes) // most)
    assert max(pieces) < most + 10
    assert max(pieces) - min(pieces) <= 20
