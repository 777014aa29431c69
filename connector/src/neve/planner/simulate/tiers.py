"""Neve's tiers, simulated block by block: what a quota, policy, lifetime or further tier gives.

`Setting` says what the tiers are, `run` plays requests on them, `Result` holds hits, bytes moved
and bytes held. A request hits its contiguous prefix of blocks that are hot or cold; its other
blocks are computed and stored as hot. The tiers do what the index's functions do
(`neve.index`, tests/neve/test_simulate_tiers.py), with these simplifications: work that is due
(flush, expiry, idle rule) is done at once, and there are no pins.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from neve.errors import Misuse
from neve.index.tier import PROMOTE_WINDOW_S
from neve.planner.simulate.hot import Promote
from neve.planner.simulate.requests import BlockRequest

__all__ = ["Bucket", "Promote", "Result", "Setting", "TierResult", "TierSetting", "run"]

TIERS: Final = ("local", "hot", "cold")  # in the order in which a block is looked for
REFUSE: Final = "refuse"  # a cold tier's policy: a full tier refuses new blocks


@dataclass(frozen=True)
class TierSetting:
    """One tier. `capacity_bytes` None: unlimited.

    `policy`: a name of `policies.POLICIES`; of a cold tier also "refuse". The platform's cold tier
    is "lru": the longest unread block leaves. `idle_s`: a hot or local block that is unused for so
    long leaves its tier. `codec_ratio`: bytes before ÷ bytes after the tier's codec.

    Raises: Misuse with the field.
    """

    capacity_bytes: int | None = None
    policy: str = "2q"
    idle_s: int | None = None
    codec_ratio: float = 1.0


@dataclass(frozen=True)
class Setting:
    """The tiers under test. Blocks have `block_bytes` before any codec.

    `cold` None: blocks are never flushed. `local`: a node's own tier in front, with the blocks that
    the node read or wrote; a local block counts only while it is hot or cold, too. `ttl_s`: a
    block's life from its storing on; it ends in all tiers. `flush_after_s`: from the storing on.

    Raises: Misuse with the field.
    """

    hot: TierSetting
    cold: TierSetting | None = None
    local: TierSetting | None = None
    block_bytes: int = 1
    promote: Promote = Promote.SECOND_READ
    promote_window_s: int = PROMOTE_WINDOW_S
    ttl_s: int | None = None
    flush_after_s: int = 0


@dataclass(frozen=True)
class TierResult:
    """One tier's share of a run. Bytes are after the tier's codec.

    `hit_blocks`: of requests' prefixes, served by this tier. `written_blocks`: stored in it (hot:
    computed and promoted ones). `evicted_blocks` left a full tier, `expired_blocks` at the end of
    their life, `idle_blocks` by the idle rule; `refused_blocks` found no room.
    """

    hit_blocks: int = 0
    written_blocks: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    held_bytes: int = 0  # at the end
    peak_bytes: int = 0
    mean_bytes: float = 0.0
    gib_hours: float = 0.0
    evicted_blocks: int = 0
    expired_blocks: int = 0
    idle_blocks: int = 0
    refused_blocks: int = 0


@dataclass(frozen=True)
class Bucket:
    """Requests of one slice of time. `hit_blocks`, `held_bytes` (at its end): by tier."""

    start_s: float
    asked_blocks: int
    hit_blocks: dict[str, int]
    held_bytes: dict[str, int]


@dataclass(frozen=True)
class Result:
    """`tiers`: by name, only those of the setting. `span_s`: first to last request.

    `promoted_blocks`: cold blocks that became hot again. `lost_blocks` left the hot tier without a
    cold copy because the cold tier had refused them.
    """

    setting: Setting
    requests: int
    asked_blocks: int
    tiers: dict[str, TierResult]
    promoted_blocks: int = 0
    lost_blocks: int = 0
    span_s: float = 0.0
    buckets: tuple[Bucket, ...] = ()

    @property
    def hit_blocks(self) -> int:
        return sum(tier.hit_blocks for tier in self.tiers.values())

    @property
    def hit_rate(self) -> float | None:
        """Hits ÷ blocks asked for; None before the first block."""
        return self.hit_blocks / self.asked_blocks if self.asked_blocks else None


def run(
    setting: Setting,
    requests: Iterable[BlockRequest],
    *,
    bucket_s: float | None = None,
    count_from_s: float | None = None,
) -> Result:
    """Plays requests in the order of their time. `bucket_s`: seconds of a bucket; None: none.

    `count_from_s`: requests before this moment fill the tiers and count nowhere, neither as asked
    nor in bytes moved, and the mean of held bytes begins there; None: all count.

    Raises: Misuse for a setting without sense, or a request earlier than the one before it.
    """
    raise Misuse("not there yet")
