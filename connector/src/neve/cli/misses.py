"""Why prompts were not found, by miss reason, and the lever that helps. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# reason → (what happened, what to do). Reasons: neve.errors.MissReason.
LEVERS: Mapping[str, tuple[str, str]] = {
    "never_stored": (
        "nobody had stored these blocks",
        "normal for new prompts. Else: begin prompts with what they share, warm what is known "
        "(`neve contexts warm`), and see whether nodes share a space (`neve spaces compare`)",
    ),
    "evicted": (
        "the hot tier was full, and the policy flushes no such block",
        "raise the hot quota, or `neve policy set flush_mode=now`",
    ),
    "evicted_cold": (
        "the cold tier was full",
        "raise the cold quota, or pin what matters (`neve contexts pin`)",
    ),
    "unflushed": (
        "the cold tier had refused the block before it left the hot one",
        "raise the cold quota, or unpin what is not needed",
    ),
    "idle": (
        "the idle rule removed the block, and no cold copy was there",
        "`neve policy set hot_idle_s=…` longer, or flush such blocks",
    ),
    "expired": (
        "its lifetime ended, or somebody expired it",
        "`neve contexts extend`, or `neve policy set max_age_s=…` longer",
    ),
    "quota": (
        "it found no room in the hot tier when it was stored",
        "raise the hot quota, unpin, or see whether flushes run (`neve jobs ls --kind flush`)",
    ),
    "fingerprint": (
        "the blocks belong to another model or layout",
        "`neve spaces compare` names the setting to change",
    ),
    "timeout": (
        "Valkey or S3 answered too late",
        "`neve ping` on the node; a nearer or faster network; longer load_deadline_s",
    ),
    "breaker": (
        "the node serves without Neve after failures",
        "`neve ping` on the node, and its log (`neve.hot.breaker_open`)",
    ),
    "corrupt": (
        "blocks failed verification and were dropped",
        "test the memory of Valkey's host and the disks of S3",
    ),
    "clock": ("the clocks of S3 and the platform differ", "set both by NTP"),
    "denied": (
        "S3 refuses what the platform signs",
        "operators: check NEVE_S3_ACCESS_KEY, NEVE_S3_SECRET_KEY and NEVE_S3_REGION",
    ),
    "unsupported": ("a newer version of Neve stored the blocks", "update neve on this node"),
}
# Nothing is wrong if these happen.
ORDINARY = frozenset(("never_stored", "expired"))


@dataclass(frozen=True)
class Miss:
    """`share`: of all missed blocks."""

    reason: str
    blocks: int
    share: float
    what: str
    lever: str


def ranked(misses: Mapping[str, int]) -> list[Miss]:
    """Reasons that happened, the most frequent first."""
    counted = {reason: blocks for reason, blocks in misses.items() if blocks > 0}
    total = sum(counted.values())
    return [
        Miss(reason, blocks, blocks / total, *LEVERS.get(reason, ("", "update neve here")))
        for reason, blocks in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    ]


def summed(points: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """Counters of all points added up; misses by reason."""
    total: dict[str, int] = {}
    for point in points:
        for name, value in point.items():
            if isinstance(value, int) and not isinstance(value, bool):
                total[name] = total.get(name, 0) + value
    return total


def misses_of(points: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """Missed blocks by reason, of all points."""
    total: dict[str, int] = {}
    for point in points:
        found = point.get("misses")
        if isinstance(found, Mapping):
            for reason, blocks in found.items():
                total[reason] = total.get(reason, 0) + int(blocks)
    return total
