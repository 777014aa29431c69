"""The metrics of GET /metrics, one row each: name, type, help, and the source of the number.

Tenants' counters sum the hourly roll-ups since 00:00 UTC: they restart at 0 each day, which
Prometheus reads as a counter reset. `neve_tenant_mended_entries_total` restarts with valkey-hot,
counters of web and workers (`base.counting`) with valkey-bus.
None means unknown and is left out. docs/metrics.md is generated from this table (`make reference`).

Labels hold slugs of tenants and stores, and names from this code; never text from nodes or
requests.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Any, Literal

from base import counting, log_events
from base.counting import BusFacts, Counted, Timed, Timing
from catalog.kinds import KINDS
from catalog.models import Job, NodeSession
from catalog.occupancy import Occupancy
from dashboard.pages.nodes.selector import NodeRow
from dashboard.probes import Answer
from dashboard.storage import HotServer, StorageUse
from neve.errors import MissReason
from neve.log_events import events_of
from neve.planner.choice import COUNTED
from tenants.models import Tenant

Number = float | None
Found = Number | Timing


@dataclass(frozen=True)
class TenantFacts:
    """`counted`: today's sums (catalog.usage.counted_since). `nodes`: open and recent sessions."""

    tenant: Tenant
    use: StorageUse
    counted: Mapping[str, Any]
    occupied: Occupancy
    nodes: list[NodeRow]

    def live(self) -> list[NodeRow]:
        return [row for row in self.nodes if row.state == "live"]


@dataclass(frozen=True)
class PlatformFacts:
    """`server`, `bus`: None while that Valkey does not answer. `jobs`: by (kind, state).
    `stores`: by name, whether each answers."""

    answers: Mapping[str, Answer]
    server: HotServer | None
    promised_bytes: int
    jobs: Counter[tuple[str, str]]
    stores: Mapping[str, bool | None]
    bus: BusFacts | None


@dataclass(frozen=True)
class Row:
    """`read` returns a number; with label names in `by`, numbers by label values.

    Histograms have a `Timing` in place of a number.
    """

    name: str
    type: Literal["gauge", "counter", "histogram"]
    help: str
    read: Callable[[Any], Found | Mapping[tuple[str, ...], Found]]
    by: tuple[str, ...] = ()

    def samples(self, facts: object) -> Iterator[tuple[dict[str, str], Found]]:
        """(labels, number) pairs of one tenant, or of the platform."""
        found = self.read(facts)
        numbers = found if isinstance(found, Mapping) else {(): found}
        for values, number in numbers.items():
            yield dict(zip(self.by, values, strict=True)), number


def _told(read: Callable[[StorageUse], Number]) -> Callable[[TenantFacts], Number]:
    """A number that Valkey reports now; None instead of an older sample."""
    return lambda facts: read(facts.use) if facts.use.is_current else None


def _counted(name: str) -> Callable[[TenantFacts], Number]:
    return lambda facts: facts.counted[name]


def _by_reason(name: str) -> Callable[[TenantFacts], Mapping[tuple[str, ...], Number]]:
    """Include reasons at 0: Prometheus sees no increase in the first value of a series."""
    return lambda facts: {(str(why),): facts.counted[name].get(why, 0) for why in MissReason}


def _segments(facts: TenantFacts) -> Mapping[tuple[str, ...], Number]:
    segments = facts.occupied
    return {
        ("live",): segments.live_bytes,
        ("dead",): segments.dead_bytes,
        ("waiting",): segments.waiting_bytes,
        ("copies",): segments.copy_bytes,
    }


def _hits(facts: TenantFacts) -> Mapping[tuple[str, ...], Number]:
    return {(tier,): facts.counted[f"hit_{tier}_tokens"] for tier in ("hot", "cold", "local")}


def _decisions(facts: TenantFacts) -> Mapping[tuple[str, ...], Number]:
    return {(str(decision),): facts.counted[name] for decision, name in COUNTED.items()}


def _gpu_s(name: str) -> Callable[[TenantFacts], Number]:
    return lambda facts: facts.counted[name] / 1e6


def _nodes(facts: TenantFacts) -> Mapping[tuple[str, ...], Number]:
    states = Counter(row.state for row in facts.nodes)
    return {(state,): states[state] for state in ("live", "silent")}


def _open_breakers(facts: TenantFacts) -> Number:
    return sum(row.session.breaker != NodeSession.Breaker.CLOSED for row in facts.live())


def _up(facts: PlatformFacts) -> Mapping[tuple[str, ...], Number]:
    return {(name,): answer.is_well for name, answer in facts.answers.items()}


def _jobs(facts: PlatformFacts) -> Mapping[tuple[str, ...], Number]:
    states = (Job.State.QUEUED, Job.State.RUNNING, Job.State.FAILED)
    return {
        (kind, state.value): facts.jobs[kind, state.value] for kind in KINDS for state in states
    }


def _on_bus(
    counted: Counted | Timed, *, also: Iterable[str] = ()
) -> Callable[[PlatformFacts], Mapping[tuple[str, ...], Any]]:
    """Sums of all processes. `also`: label values to include at 0."""

    def read(facts: PlatformFacts) -> Mapping[tuple[str, ...], Any]:
        if facts.bus is None:
            return {}
        if isinstance(counted, Timed):
            return facts.bus.timed(counted)
        return {(value,): 0.0 for value in also} | facts.bus.counted(counted)

    return read


def _queues(facts: PlatformFacts) -> Mapping[tuple[str, ...], Number]:
    return {} if facts.bus is None else {(name,): n for name, n in facts.bus.queues.items()}


_WARNINGS = [event.name for event in events_of(vars(log_events)).values() if event.level >= WARNING]

TENANT = (
    Row(
        "neve_tenant_hot_used_bytes",
        "gauge",
        "Bytes of blocks in the hot tier.",
        _told(lambda use: use.hot_bytes),
    ),
    Row(
        "neve_tenant_hot_quota_bytes",
        "gauge",
        "Most bytes that the tenant may hold in the hot tier.",
        lambda facts: facts.use.hot_quota_bytes,
    ),
    Row(
        "neve_tenant_cold_used_bytes",
        "gauge",
        "Bytes of blocks in the cold tier.",
        _told(lambda use: use.cold_bytes),
    ),
    Row(
        "neve_tenant_cold_quota_bytes",
        "gauge",
        "Most bytes that the tenant may hold in the cold tier.",
        lambda facts: facts.use.cold_quota_bytes,
    ),
    Row(
        "neve_tenant_segment_bytes",
        "gauge",
        "Bytes of segments in S3: live blocks, dead ones, segments waiting for deletion, and "
        "copies in other stores.",
        _segments,
        by=("state",),
    ),
    Row(
        "neve_tenant_dirty_bytes",
        "gauge",
        "Bytes of hot blocks that are to be flushed to S3.",
        _told(lambda use: use.dirty_bytes),
    ),
    Row(
        "neve_tenant_dirty_blocks",
        "gauge",
        "Hot blocks that are to be flushed to S3.",
        _told(lambda use: use.dirty_blocks),
    ),
    Row(
        "neve_tenant_flush_late_seconds",
        "gauge",
        "For how long the oldest flush has been due; 0: none is.",
        _told(lambda use: use.dirty_oldest_s or 0),
    ),
    Row(
        "neve_tenant_unstored_blocks",
        "gauge",
        "Hot blocks that the cold tier refused: lost once they leave the hot tier.",
        _told(lambda use: use.unstored_blocks),
    ),
    Row(
        "neve_tenant_cold_refused_blocks",
        "counter",
        "Blocks that the full cold tier refused.",
        _counted("cold_refused_blocks"),
    ),
    Row(
        "neve_tenant_cold_evicted_blocks",
        "counter",
        "Blocks that left the full cold tier for others.",
        _counted("cold_evicted_blocks"),
    ),
    Row(
        "neve_tenant_lost_blocks",
        "counter",
        "Blocks that the cold tier refused and that left the hot tier later.",
        _counted("lost_blocks"),
    ),
    Row(
        "neve_tenant_put_refused_blocks",
        "counter",
        "Blocks that the hot quota refused.",
        _counted("put_refused"),
    ),
    Row(
        "neve_tenant_dropped_blocks",
        "counter",
        "Blocks that nodes did not store for another reason than a quota.",
        _by_reason("drops"),
        by=("reason",),
    ),
    Row(
        "neve_tenant_missed_blocks",
        "counter",
        "Blocks that nodes asked for and did not get.",
        _by_reason("misses"),
        by=("reason",),
    ),
    Row(
        "neve_tenant_requested_tokens",
        "counter",
        "Tokens of prompts in whole blocks.",
        _counted("requested_tokens"),
    ),
    Row(
        "neve_tenant_tail_tokens",
        "counter",
        "Tokens of prompts after their last whole block, which no block can hold.",
        _counted("tail_tokens"),
    ),
    Row(
        "neve_tenant_hit_tokens",
        "counter",
        "Tokens that nodes loaded instead of computing them.",
        _hits,
        by=("tier",),
    ),
    Row(
        "neve_tenant_family_hit_tokens",
        "counter",
        "Of the hits, tokens of families' blocks that other processes stored. By model: "
        "/api/v1/family-members.",
        _counted("family_hit_tokens"),
    ),
    Row(
        "neve_tenant_decisions",
        "counter",
        "Found prefixes by the nodes' decision: load all, load a prefix of it, recompute.",
        _decisions,
        by=("decision",),
    ),
    Row(
        "neve_tenant_spared_tokens",
        "counter",
        "Tokens of loads that ended sooner than computing them.",
        _counted("spared_tokens"),
    ),
    Row(
        "neve_tenant_spared_gpu_seconds",
        "counter",
        "Prefill that these loads spared: seconds × GPUs of the engine, by its measured speed.",
        _gpu_s("spared_gpu_us"),
    ),
    Row(
        "neve_tenant_load_gpu_seconds",
        "counter",
        "Wait for these loads: seconds × GPUs of the engine.",
        _gpu_s("load_gpu_us"),
    ),
    Row(
        "neve_tenant_slower_tokens",
        "counter",
        "Tokens of loads that took longer than computing them.",
        _counted("slower_tokens"),
    ),
    Row(
        "neve_tenant_slower_gpu_seconds",
        "counter",
        "Time that these loads and failed ones lost: seconds × GPUs of the engine.",
        _gpu_s("slower_gpu_us"),
    ),
    Row(
        "neve_tenant_unpriced_tokens",
        "counter",
        "Tokens loaded before the node had measured its prefill.",
        _counted("unpriced_tokens"),
    ),
    Row(
        "neve_tenant_cold_requests",
        "counter",
        "GETs of nodes to the object store, with tries that failed.",
        _counted("cold_requests"),
    ),
    Row(
        "neve_tenant_cold_fetched_bytes",
        "counter",
        "Bytes that these GETs asked for.",
        _counted("cold_fetched_bytes"),
    ),
    Row(
        "neve_tenant_local_read_bytes",
        "counter",
        "Bytes that nodes read from their local tiers.",
        _counted("local_read_bytes"),
    ),
    Row(
        "neve_tenant_local_write_bytes",
        "counter",
        "Bytes that nodes wrote into their local tiers.",
        _counted("local_write_bytes"),
    ),
    Row(
        "neve_tenant_local_evicted_blocks",
        "counter",
        "Blocks that nodes deleted from their local tiers to make room.",
        _counted("local_evicted_blocks"),
    ),
    Row(
        "neve_tenant_local_bad_blocks",
        "counter",
        "Files of local tiers that failed verification and were deleted.",
        _counted("local_bad_blocks"),
    ),
    Row(
        "neve_tenant_promoted_blocks",
        "counter",
        "Cold blocks that nodes brought back into the hot tier.",
        _counted("promoted_blocks"),
    ),
    Row(
        "neve_tenant_corrupt_blocks",
        "counter",
        "Blocks that failed verification on a node.",
        _counted("corrupt"),
    ),
    Row(
        "neve_tenant_mended_entries",
        "counter",
        "Damaged pieces of the index's bookkeeping that were removed.",
        _told(lambda use: use.mended),
    ),
    Row(
        "neve_tenant_nodes",
        "gauge",
        "Nodes with an open session, by whether they send heartbeats.",
        _nodes,
        by=("state",),
    ),
    Row(
        "neve_tenant_open_breakers",
        "gauge",
        "Live nodes whose breaker is not closed: they serve without Neve.",
        _open_breakers,
    ),
    Row(
        "neve_tenant_cut_off",
        "gauge",
        "1: the tenant's nodes harmed others and are kept out.",
        lambda facts: facts.tenant.cut_off_at is not None,
    ),
)

PLATFORM = (
    Row(
        "neve_up",
        "gauge",
        "1: valkey-hot, S3 or a worker answered when it was asked last.",
        _up,
        by=("server",),
    ),
    Row(
        "neve_store_up",
        "gauge",
        "1: this S3 store, of `neve stores`, answered when it was asked last.",
        lambda facts: {(name,): is_well for name, is_well in facts.stores.items()},
        by=("store",),
    ),
    Row(
        "neve_hot_memory_used_bytes",
        "gauge",
        "Memory that valkey-hot uses, all primaries.",
        lambda facts: facts.server and facts.server.used_bytes,
    ),
    Row(
        "neve_hot_memory_max_bytes",
        "gauge",
        "Limit of that memory (maxmemory); absent without one.",
        lambda facts: (facts.server and facts.server.max_bytes) or None,
    ),
    Row(
        "neve_hot_promised_bytes",
        "gauge",
        "Sum of active tenants' hot quotas.",
        lambda facts: facts.promised_bytes,
    ),
    Row(
        "neve_jobs",
        "gauge",
        "Jobs that are queued, that run, and that failed in the last hour.",
        _jobs,
        by=("kind", "state"),
    ),
    Row(
        "neve_queue_messages",
        "gauge",
        "Messages that wait for a worker.",
        _queues,
        by=("queue",),
    ),
    Row(
        "neve_task_seconds",
        "histogram",
        "How long runs of background work took, ticks and jobs.",
        _on_bus(counting.TASK_SECONDS),
        by=counting.TASK_SECONDS.by,
    ),
    Row(
        "neve_task_failures",
        "counter",
        "Background work that failed, for one tenant or for the platform.",
        _on_bus(counting.TASK_FAILURES, also=KINDS),
        by=counting.TASK_FAILURES.by,
    ),
    Row(
        "neve_samples_dropped",
        "counter",
        "Batches of samples in heartbeats that were not kept: the tenant has switched them off, "
        "they were malformed or too many, or valkey-bus was away or half full.",
        _on_bus(counting.SAMPLES_DROPPED, also=("off", "malformed", "too_many", "bus")),
        by=counting.SAMPLES_DROPPED.by,
    ),
    Row(
        "neve_requests_dropped",
        "counter",
        "Batches of recent requests in heartbeats that were not kept: the tenant has switched "
        "samples off, or they were malformed.",
        _on_bus(counting.REQUESTS_DROPPED, also=("off", "malformed")),
        by=counting.REQUESTS_DROPPED.by,
    ),
    Row(
        "neve_web_requests",
        "counter",
        "HTTP requests that were answered.",
        _on_bus(counting.WEB_REQUESTS),
        by=counting.WEB_REQUESTS.by,
    ),
    Row(
        "neve_web_request_seconds",
        "histogram",
        "How long HTTP requests took, to the first byte of the answer.",
        _on_bus(counting.WEB_SECONDS),
        by=counting.WEB_SECONDS.by,
    ),
    Row(
        "neve_web_sockets",
        "gauge",
        "Open WebSockets of all web processes.",
        lambda facts: facts.bus and facts.bus.sockets,
    ),
    Row(
        "neve_log_events",
        "counter",
        "Warnings and errors logged by web and workers; `other`: those of libraries.",
        _on_bus(counting.LOG_EVENTS, also=[*_WARNINGS, counting.OTHER]),
        by=counting.LOG_EVENTS.by,
    ),
)
