"""The kinds of incidents and their default rules, each declared once. Pure."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class RuleKind:
    """`unit` of `threshold`: points, ms, s, percent, nodes, blocks, jobs or stores; `least`,
    `most`: its bounds. An incident opens once the rule held for `for_s`, and ends after `calm_s`
    without."""

    name: str
    label: str
    about: str
    unit: str
    threshold: float
    least: float
    most: float
    for_s: int
    calm_s: int = 60
    of_tenant: bool = True


HIT_RATE: Final = RuleKind(
    "hit_rate",
    "hit rate fell",
    "The hit rate of prompt tokens lies so many points below that of the 30 minutes before.",
    *("points", 15, 1, 100),
    for_s=10,
)
REFUSED: Final = RuleKind(
    "refused",
    "blocks refused",
    "So many percent of the blocks to store were refused by a full tier, over 5 minutes.",
    *("percent", 5, 0.1, 100),
    for_s=10,
)
DROPPED: Final = RuleKind(
    "dropped",
    "blocks dropped",
    "So many percent of the blocks to store were dropped by nodes, over 5 minutes.",
    *("percent", 20, 0.1, 100),
    for_s=60,
)
LOAD_P99: Final = RuleKind(
    "load_p99",
    "loads are slow",
    "The 99th percentile of loads is above so many milliseconds, over 5 minutes.",
    *("ms", 2000, 1, 5000),
    for_s=60,
)
DIRTY_AGE: Final = RuleKind(
    "dirty_age",
    "flushes are late",
    "The oldest block that is due to be flushed waits for so many seconds.",
    *("s", 60, 5, 86_400),
    for_s=30,
)
BREAKER: Final = RuleKind(
    "breaker",
    "breaker open",
    "So many live nodes serve without Neve, because its servers failed.",
    *("nodes", 1, 1, 100_000),
    for_s=30,
)
SILENT_NODE: Final = RuleKind(
    "silent_node",
    "nodes are silent",
    "So many nodes sent no heartbeat and did not end their sessions.",
    *("nodes", 1, 1, 100_000),
    for_s=30,
)
JOB_FAILURES: Final = RuleKind(
    "job_failures",
    "jobs fail",
    "So many jobs failed in the last 15 minutes.",
    *("jobs", 3, 1, 100_000),
    for_s=0,
)
CLOCK_SKEW: Final = RuleKind(
    "clock_skew",
    "clocks differ",
    "So many blocks were missed in 5 minutes because clocks of S3 and the platform differ.",
    *("blocks", 1, 1, 1_000_000_000),
    for_s=10,
)
MEMORY_PROMISE: Final = RuleKind(
    "memory_promise",
    "hot memory is nearly full",
    "Quotas promise more than the hot tier's memory, of which so many percent are used.",
    *("percent", 90, 10, 100),
    for_s=60,
    of_tenant=False,
)
STORE_AWAY: Final = RuleKind(
    "store_away",
    "S3 store away",
    "So many stores of `neve stores` do not answer. The default one is asked by the overview.",
    *("stores", 1, 1, 1000),
    for_s=20,
    of_tenant=False,
)

KINDS: Final = {
    kind.name: kind
    for kind in (
        *(HIT_RATE, REFUSED, DROPPED, LOAD_P99, DIRTY_AGE, BREAKER, SILENT_NODE),
        *(JOB_FAILURES, CLOCK_SKEW, MEMORY_PROMISE, STORE_AWAY),
    )
}
MOST_FOR_S: Final = 3600
