"""Bounds the bytes of a tenant's segments, live and dead, by MOST times its cold quota.

Below a quota of BASE_BYTES the bound is the quota and half of BASE_BYTES: a few segments would be
most of it. Above PRESSED times the quota, segments with fewer dead bytes are merged, and unnamed
segments are deleted after a shorter grace. A flush that would exceed the bound deletes unnamed
segments, or leaves its blocks dirty for a later pass. Segments are small beside the quota, so that
a merge of dead ones always fits.
"""

from dataclasses import dataclass

from catalog.occupancy import Occupancy, occupancy
from neve.index.tier import HotTier
from tiering import segments
from tiering.compaction import sweep
from tiering.compaction.plan import Policy

MOST, PRESSED = 1.5, 1.2
BASE_BYTES = 128 << 20
LEAST_DEAD_SHARE = 0.1  # a merge copies nine bytes to free one


@dataclass(frozen=True)
class Room:
    """`quota_bytes` bounds live bytes. `taken`: as counted last."""

    quota_bytes: int
    taken: Occupancy

    @property
    def most_bytes(self) -> int:
        return self._beyond(MOST)

    @property
    def is_pressed(self) -> bool:
        return self.taken.stored_bytes >= self._beyond(PRESSED)

    def has_room_to_flush(self, size_bytes: int) -> bool:
        """Whether a flush leaves room for one merge, which frees more than it takes."""
        merge_bytes = segments.most_bytes(self.quota_bytes)
        return self.taken.stored_bytes + size_bytes + merge_bytes <= self.most_bytes

    def has_room_to_merge(self, live_bytes: int) -> bool:
        return self.taken.stored_bytes + live_bytes <= self.most_bytes

    def _beyond(self, times: float) -> int:
        return self.quota_bytes + int((times - 1) * max(self.quota_bytes, BASE_BYTES))

    def policy(self) -> Policy:
        """Which segments to merge now."""
        most = segments.most_bytes(self.quota_bytes)
        least = segments.least_bytes(self.quota_bytes)
        merged = self.taken.live_bytes + self.taken.dead_bytes
        if merged < self._beyond(PRESSED):
            return Policy(least_bytes=least, most_bytes=most)
        # Some segment has at least the mean share; merging others would copy more than it frees.
        mean = self.taken.dead_bytes / merged if merged else 0.0
        dead_share = min(max(mean, LEAST_DEAD_SHARE), Policy().dead_share)
        return Policy(least_bytes=least, most_bytes=most, dead_share=dead_share)


def room_of(tier: HotTier) -> Room:
    """Raises the errors of Valkey and the database."""
    return Room(tier.usage().quota_cold_bytes, occupancy(tier.tenant_id))


def make_room_to_flush(tier: HotTier, size_bytes: int) -> bool:
    """Whether so many bytes may be written now. Deletes unnamed segments if it must.

    In the tenant's scope. Raises the errors of S3, Valkey and the database.
    """
    room = room_of(tier)
    if not room.has_room_to_flush(size_bytes):
        sweep.close_empty(tier)
        sweep.delete_closed(tier, is_pressed=True)
        room = room_of(tier)
    return room.has_room_to_flush(size_bytes)
