"""Causes of misses and the levers that help: the one table for commands, pages and incidents. Pure.

A cause is a miss reason (`neve.errors.MissReason`), told apart by the tenant's policy where one
reason has two remedies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from neve.errors import MissReason


@dataclass(frozen=True)
class Lever:
    """One thing to turn. `setting`: a key of SETTINGS. `change`: members of
    `neve.planner.changes.Change` to try in What-if; empty where a simulation tells nothing."""

    setting: str
    change: Mapping[str, str] = field(default_factory=dict)


# Setting → its name on pages.
SETTINGS: Final[Mapping[str, str]] = {
    "hot_quota": "hot quota",
    "cold_quota": "cold quota",
    "hot_idle": "hot idle time",
    "cold_lifetime": "cold lifetime",
    "flush_mode": "flush mode",
    "cold_full": "policy of a full cold tier",
    "spaces": "spaces",
    "nodes": "nodes",
    "clocks": "clocks",
    "s3_access": "access to S3",
    "stores": "stores",
    "versions": "versions",
    "": "",
}


@dataclass(frozen=True)
class Cause:
    """`label`: on pages. `what` happened; `remedy`: what to do on pages, `command`: in a shell.

    `reason`: None where no block is missed. `group`: its colour on pages. `is_ordinary`: nothing is
    wrong if it happens.
    """

    name: str
    reason: MissReason | None
    label: str
    what: str
    remedy: str
    command: str
    group: str
    levers: tuple[Lever, ...] = ()
    is_ordinary: bool = False


def _lever(setting: str, **change: str) -> Lever:
    return Lever(setting, change)


_TABLE: Final = (
    Cause(
        "never_stored",
        MissReason.NEVER_STORED,
        "never stored",
        "nobody had stored these blocks",
        "first time seen: nothing to fix",
        "normal for new prompts. Else: begin prompts with what they share, warm what is known "
        "(`neve contexts warm`), and see whether nodes share a space (`neve spaces compare`)",
        "never",
        is_ordinary=True,
    ),
    Cause(
        "evicted",
        MissReason.EVICTED,
        "hot pressure",
        "the hot tier was full, and the policy flushes no such block",
        "raise the hot quota, or flush such blocks",
        "raise the hot quota, or `neve policy set flush_mode=now`",
        "pressure",
        (_lever("hot_quota", hot="x2"), _lever("flush_mode")),
    ),
    Cause(
        "not_flushed",
        MissReason.EVICTED,
        "never flushed",
        "blocks left a full hot tier without a cold copy, because the policy never flushes",
        "let the policy flush, or raise the hot quota",
        "`neve policy set flush_mode=now`, or raise the hot quota",
        "pressure",
        (_lever("flush_mode"), _lever("hot_quota", hot="x2")),
    ),
    Cause(
        "unflushed",
        MissReason.UNFLUSHED,
        "refused by cold quota",
        "the cold tier had refused the block before it left the hot one",
        "raise the cold quota, keep cold blocks shorter, or end pins",
        "raise the cold quota, or unpin what is not needed",
        "refused",
        (
            _lever("cold_quota", cold="x2"),
            _lever("cold_lifetime", cold_lifetime="14d"),
            _lever("cold_full"),
        ),
    ),
    Cause(
        "evicted_cold",
        MissReason.EVICTED_COLD,
        "cold pressure",
        "the cold tier was full",
        "raise the cold quota",
        "raise the cold quota, or pin what matters (`neve contexts pin`)",
        "cold",
        (_lever("cold_quota", cold="x2"),),
    ),
    Cause(
        "quota",
        MissReason.QUOTA,
        "refused by hot quota",
        "it found no room in the hot tier when it was stored",
        "raise the hot quota; see whether flushes run",
        "raise the hot quota, unpin, or see whether flushes run (`neve jobs ls --kind flush`)",
        "pressure",
        (_lever("hot_quota", hot="x2"),),
    ),
    Cause(
        "idle",
        MissReason.IDLE,
        "idle rule",
        "the idle rule removed the block, and no cold copy was there",
        "keep idle blocks longer, or flush them",
        "`neve policy set hot_idle_s=…` longer, or flush such blocks",
        "idle",
        (_lever("hot_idle", hot_idle="unlimited"),),
    ),
    Cause(
        "expired",
        MissReason.EXPIRED,
        "expired",
        "its lifetime ended, or somebody expired it",
        "ended by a rule or a person",
        "`neve contexts extend`, or `neve policy set max_age_s=…` longer",
        "expired",
        (_lever("cold_lifetime", cold_lifetime="unlimited"),),
        is_ordinary=True,
    ),
    Cause(
        "fingerprint",
        MissReason.FINGERPRINT,
        "fingerprint",
        "the blocks belong to another model or layout",
        "compare the spaces: the differing setting is named",
        "`neve spaces compare` names the setting to change",
        "fingerprint",
        (_lever("spaces"),),
    ),
    Cause(
        "timeout",
        MissReason.TIMEOUT,
        "too late",
        "Valkey or S3 answered too late",
        "see the slow nodes: a nearer or faster network, or a longer load_deadline_s",
        "`neve ping` on the node; a nearer or faster network; longer load_deadline_s",
        "slow",
        (_lever("nodes"),),
    ),
    Cause(
        "breaker",
        MissReason.BREAKER,
        "breaker open",
        "the node serves without Neve after failures",
        "run neve ping on those hosts",
        "`neve ping` on the node, and its log (`neve.hot.breaker_open`)",
        "slow",
        (_lever("nodes"),),
    ),
    Cause(
        "silent",
        None,
        "no heartbeat",
        "these nodes crashed, were killed, or cannot reach the platform",
        "start them again under the same name, or look at their network; stop vLLM with "
        "--shutdown-timeout 10, so that it ends its sessions",
        "the node's log, and `neve ping` there; start vLLM with `--shutdown-timeout 10`, so that a "
        "stop ends its sessions",
        "broken",
        (_lever("nodes"),),
    ),
    Cause(
        "corrupt",
        MissReason.CORRUPT,
        "corrupt",
        "blocks failed verification and were dropped",
        "nodes compute them again; if it goes on, test memory and disks",
        "test the memory of Valkey's host and the disks of S3",
        "broken",
        (_lever("nodes"),),
    ),
    Cause(
        "clock",
        MissReason.CLOCK,
        "clock",
        "the clocks of S3 and the platform differ",
        "set both clocks by NTP",
        "set both by NTP",
        "broken",
        (_lever("clocks"),),
    ),
    Cause(
        "denied",
        MissReason.DENIED,
        "denied",
        "S3 refuses what the platform signs",
        "check S3's key, secret and region",
        "operators: check NEVE_S3_ACCESS_KEY, NEVE_S3_SECRET_KEY and NEVE_S3_REGION",
        "broken",
        (_lever("s3_access"),),
    ),
    Cause(
        "store_away",
        MissReason.STORE_AWAY,
        "store away",
        "the store that holds the blocks does not answer, and no other has a copy",
        "see the store's error on the page Tiers; keep copies in a second store by a rule",
        "operators: `neve stores` shows the error; a rule with is_copy keeps copies elsewhere",
        "broken",
        (_lever("stores"),),
    ),
    Cause(
        "unsupported",
        MissReason.UNSUPPORTED,
        "unsupported",
        "a newer version of Neve stored the blocks",
        "update neve on these nodes",
        "update neve on this node",
        "broken",
        (_lever("versions"),),
    ),
)
CAUSES: Final[Mapping[str, Cause]] = MappingProxyType({each.name: each for each in _TABLE})
# Reasons under which nothing is wrong.
ORDINARY: Final = frozenset(each.reason for each in _TABLE if each.reason and each.is_ordinary)


def cause_of(reason: str, *, never_flushes: bool = False) -> Cause | None:
    """None: a newer version of Neve counted this reason. `never_flushes`: the tenant's policy."""
    if reason == MissReason.EVICTED and never_flushes:
        return CAUSES["not_flushed"]
    return CAUSES.get(reason)


@dataclass(frozen=True)
class Miss:
    """`share`: of all missed blocks."""

    reason: str
    blocks: int
    share: float
    what: str
    lever: str


def ranked(misses: Mapping[str, int]) -> list[Miss]:
    """Reasons that happened, the most frequent first, with what to do in a shell."""
    counted = {reason: blocks for reason, blocks in misses.items() if blocks > 0}
    total = sum(counted.values())
    found = []
    for reason, blocks in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        cause = cause_of(reason)
        words = (cause.what, cause.command) if cause else ("", "update neve here")
        found.append(Miss(reason, blocks, blocks / total, *words))
    return found


def summed(points: Iterable[Mapping[str, object]]) -> dict[str, int]:
    """Counters of all points added up; without misses by reason."""
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
