"""Settings of simulated tiers, checked when they are made."""

import math
from dataclasses import dataclass
from typing import Final

from neve.errors import Misuse
from neve.index.tier import MOST_WINDOW_S, PROMOTE_WINDOW_S
from neve.planner.simulate.hot import Promote
from neve.planner.simulate.policies import POLICIES

TIERS: Final = ("local", "hot", "cold")  # in the order in which a node prefers their copies
REFUSE: Final = "refuse"  # a cold tier's policy: when it is full, it refuses new blocks


@dataclass(frozen=True)
class TierSetting:
    """One tier. `capacity_bytes` None: unlimited.

    `policy`: a name of `policies.POLICIES`; of a cold tier also "refuse". The platform's cold tier
    is "lru": the longest unread block leaves. `idle_s`: a hot block that is unused for so long
    leaves the tier. `codec_ratio`: bytes before ÷ bytes after the tier's codec.

    Raises: Misuse with the field.
    """

    capacity_bytes: int | None = None
    policy: str = "2q"
    idle_s: int | None = None
    codec_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.capacity_bytes is not None:
            _at_least(0, "capacity_bytes", self.capacity_bytes)
        if self.idle_s is not None:
            _at_least(1, "idle_s", self.idle_s)
        if not 0 < self.codec_ratio < math.inf:
            raise Misuse(f"need a number above 0, got {self.codec_ratio}", field="codec_ratio")

    def block_bytes(self, plain: int) -> int:
        """Bytes in this tier of a block that has `plain` without the codec; at least 1."""
        return plain if self.codec_ratio == 1 else max(1, math.ceil(plain / self.codec_ratio))


@dataclass(frozen=True)
class Setting:
    """The tiers under test. Blocks have `block_bytes` before any codec, and `block_tokens`.

    `cold` None: blocks are never flushed. `local`: a node's own tier in front, of the blocks that
    the node read or wrote; a local copy counts only while the block is hot or cold, too. `ttl_s`: a
    block's life from its storing on; its end empties all tiers. `flush_after_s`: from the storing
    on; until then a block is dirty and does not leave the hot tier.

    Raises: Misuse with the field.
    """

    hot: TierSetting
    cold: TierSetting | None = None
    local: TierSetting | None = None
    block_bytes: int = 1
    block_tokens: int = 512
    promote: Promote = Promote.SECOND_READ
    promote_window_s: int = PROMOTE_WINDOW_S
    ttl_s: int | None = None
    flush_after_s: int = 0

    def __post_init__(self) -> None:
        _at_least(1, "block_bytes", self.block_bytes)
        _at_least(1, "block_tokens", self.block_tokens)
        _at_least(0, "flush_after_s", self.flush_after_s)
        if self.ttl_s is not None:
            _at_least(1, "ttl_s", self.ttl_s)
        if not 0 <= self.promote_window_s <= MOST_WINDOW_S:
            words = f"need 0 to {MOST_WINDOW_S} s, got {self.promote_window_s}"
            raise Misuse(words, field="promote_window_s")
        for name, tier in self.tiers.items():
            known = [*POLICIES, *([REFUSE] if name == "cold" else [])]
            if tier.policy not in known:
                words = f"unknown policy {tier.policy!r}; choose from {', '.join(known)}"
                raise Misuse(words, field=f"{name}.policy")
            if tier.idle_s is not None and name != "hot":
                raise Misuse("only the hot tier has an idle rule", field=f"{name}.idle_s")
        if self.hot.policy == "belady" and self.flush_after_s:
            words = "belady, a bound, needs flushes at once: set 0"
            raise Misuse(words, field="flush_after_s")

    @property
    def tiers(self) -> dict[str, TierSetting]:
        """The tiers that there are, by name, in the order of TIERS."""
        found = {"local": self.local, "hot": self.hot, "cold": self.cold}
        return {name: tier for name, tier in found.items() if tier is not None}


def _at_least(least: int, field: str, value: int) -> None:
    if value < least:
        raise Misuse(f"need at least {least}, got {value}", field=field)
