"""What the workers decide, as pure functions."""

import pytest

from neve.hot import DirtyBlock, Usage
from workers.flush import GATHER_S, SEGMENT_BYTES, is_worth_a_segment, split_at_room

NOW = 1_000_000.0
LARGE = 1 << 40


@pytest.mark.parametrize(
    ("held", "worth"),
    [
        (Usage(quota_hot_bytes=LARGE), False),
        (Usage(dirty_bytes=1, quota_hot_bytes=LARGE, oldest_due_s=NOW + 1), False),
        (Usage(dirty_bytes=1, quota_hot_bytes=LARGE, oldest_due_s=NOW - 1), False),
        (Usage(dirty_bytes=1, quota_hot_bytes=LARGE, oldest_due_s=NOW - GATHER_S), True),
        (Usage(dirty_bytes=SEGMENT_BYTES, quota_hot_bytes=LARGE, oldest_due_s=NOW), True),
        (Usage(dirty_bytes=25, quota_hot_bytes=100, oldest_due_s=NOW), True),
    ],
)
def test_a_flush_waits_for_a_full_segment_but_not_for_long(held, worth):
    assert is_worth_a_segment(held, NOW) is worth


def test_a_flush_takes_what_the_cold_quota_has_room_for_in_order():
    leased = [DirtyBlock(bytes([n]), 1, 100, 16, 0, 0) for n in range(4)]
    assert split_at_room(leased, 250) == (leased[:2], leased[2:])
    assert split_at_room(leased, 400) == (leased, [])
    assert split_at_room(leased, 0) == ([], leased)
