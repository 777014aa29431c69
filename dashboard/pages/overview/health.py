"""Is the platform healthy, and what needs a person? Pure: no server or database is asked here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from catalog.models import NodeSession, Store
from dashboard.formats import (
    bytes_quantity,
    clock_text,
    count_quantity,
    duration_quantity,
    percent_quantity,
)
from dashboard.pages.nodes.selector import NodeRow
from dashboard.probes import Answer
from dashboard.storage import StorageUse
from dashboard.usage import Totals
from neve.planner.causes import CAUSES
from retention.models import ColdFull
from tenants.models import Tenant

# A due flush begins within seconds and takes half a minute at most (tiering.flush: PASS_S).
FLUSH_LATE_S = 45
COLD_FULL = 0.9  # where the policy refuses: nothing leaves by itself to make room
MOST_SHOWN = 80  # characters of values in a line
MOST_STORES = 3  # named
HOT_FULL = 0.95  # only where quotas promise more than the memory: then puts fail


@dataclass(frozen=True)
class Attention:
    """One thing that needs a person; `page` is where to look, `remedy` what to do."""

    words: str
    page: str
    remedy: str
    kind: str = ""  # of incidents that say the same, with more


@dataclass(frozen=True)
class Fact:
    """One thing that was checked. `is_well` None is unknown."""

    words: str
    is_well: bool | None


@dataclass(frozen=True)
class Health:
    facts: list[Fact]
    attention: list[Attention]

    @property
    def is_known(self) -> bool:
        """Whether each server was heard; not so in the first seconds of a web process."""
        return all(fact.is_well is not None for fact in self.facts)

    @property
    def is_well(self) -> bool:
        return not self.attention


def assess(
    *,
    nodes: list[NodeRow],
    hot: Answer,
    cold: Answer,
    workers: Answer,
    storage: dict[int, StorageUse],
    all_storage: StorageUse,
    tenants: tuple[Tenant, ...],
    totals: Totals,
    failed_jobs: int,
    now: datetime,
    refused: Sequence[Mapping[str, str]] = (),
    away: Sequence[Store] = (),
) -> Health:
    """What was checked, and what needs a person, the most urgent first. `away`: stores besides the
    default that do not answer."""
    attention = [
        *_servers(hot, cold, workers),
        *_stores(away),
        *_nodes(nodes, now),
        *map(_refused, refused),
        *_tenants(tenants, storage),
    ]
    if all_storage.is_short and (all_storage.hot_ratio or 0) >= HOT_FULL:
        held, promised = all_storage.hot_limit_bytes, all_storage.hot_quota_bytes
        words = (
            f"hot memory is full at {bytes_quantity(held)} of {bytes_quantity(promised)} promised"
        )
        remedy = "lower hot quotas, or raise the hot tier's maxmemory"
        attention.append(Attention(words, "tiers", remedy, "memory_promise"))
    oldest_s = all_storage.dirty_oldest_s
    if oldest_s is not None and oldest_s > FLUSH_LATE_S:
        words = f"no flush for {duration_quantity(oldest_s)} although blocks are due"
        remedy = "do flusher and beat run? Jobs has the last error"
        attention.append(Attention(words, "jobs", remedy, "dirty_age"))
    if missed := totals.misses.get("denied"):
        cause = CAUSES["denied"]
        words = f"{count_quantity(missed)} blocks missed: {cause.what}"
        attention.append(Attention(words, "nodes", cause.remedy))
    if totals.corrupt:
        words = f"{count_quantity(totals.corrupt)} blocks failed verification"
        remedy = "nodes compute them again; if it goes on, look at the logs of the nodes"
        attention.append(Attention(words, "nodes", remedy))
    if failed_jobs:
        words = f"{failed_jobs} job{'s' if failed_jobs > 1 else ''} failed"
        remedy = "the error stands in the job's row"
        attention.append(Attention(words, "jobs", remedy, "job_failures"))
    return Health(_facts(nodes, hot, cold, workers, all_storage, away), attention)


def without(health: Health, kinds: Collection[str]) -> Health:
    """Without what incidents of these kinds say better."""
    covered = set(kinds) | ({"refused"} if "hit_rate" in kinds else set())
    kept = [each for each in health.attention if each.kind not in covered]
    return Health(health.facts, kept)


def _facts(
    nodes: list[NodeRow],
    hot: Answer,
    cold: Answer,
    workers: Answer,
    storage: StorageUse,
    away: Sequence[Store],
) -> list[Fact]:
    open_nodes = [row for row in nodes if row.state != "ended"]
    live = sum(row.state == "live" for row in open_nodes)
    worker_words = {None: "workers —", False: "no worker"}.get(
        workers.is_well, f"{workers.words} worker{'' if workers.words == '1' else 's'}"
    )
    facts = [
        Fact(
            f"{live}/{len(open_nodes)} nodes live" if open_nodes else "no node connected",
            live == len(open_nodes),
        ),
        Fact(f"hot tier {_words(hot)}", hot.is_well),
        *_s3(cold, away),
        Fact(worker_words, workers.is_well),
    ]
    if storage.dirty_blocks == 0:
        facts.append(Fact("nothing unflushed", True))
    elif storage.dirty_oldest_s is not None:
        oldest = duration_quantity(storage.dirty_oldest_s)
        facts.append(Fact(f"oldest dirty {oldest}", storage.dirty_oldest_s <= FLUSH_LATE_S))
    return facts


def _s3(cold: Answer, away: Sequence[Store]) -> list[Fact]:
    """ "S3 ok" only while each store answers; else those that do not, by name."""
    others = [Fact(f"S3 {row.name} away", is_well=False) for row in away[:MOST_STORES]]
    if others and cold.is_well:
        return others
    return [Fact(f"S3 {_words(cold)}", cold.is_well), *others]


def _stores(away: Sequence[Store]) -> list[Attention]:
    remedy = "see its error; until it answers its blocks are misses and moves wait"
    return [
        Attention(
            f"S3 store {row.name} away since {clock_text(row.failing_since)} UTC",
            "tiers",
            remedy,
            "store_away",
        )
        for row in away[:MOST_STORES]
    ]


def _words(answer: Answer) -> str:
    return {None: "—", True: "ok", False: "down"}[answer.is_well]


def _servers(hot: Answer, cold: Answer, workers: Answer) -> list[Attention]:
    return [
        Attention(f"{what} since {clock_text(answer.since)} UTC", page, remedy)
        for what, answer, page, remedy in (
            (
                "hot tier does not answer",
                hot,
                "tiers",
                "start valkey-hot; until then nodes compute",
            ),
            ("S3 does not answer", cold, "tiers", "start it; until then cold blocks are misses"),
            ("no worker answers", workers, "jobs", "start one; until then nothing is flushed"),
        )
        if answer.is_well is False
    ]


def _nodes(nodes: list[NodeRow], now: datetime) -> list[Attention]:
    found = []
    for row in nodes:
        if row.is_alone and row.state != "ended":
            words = f"{row.session.node} serves alone: stored KV is not what it computes"
            remedy = "neve.canary.differs in its log names what to look at"
            found.append(Attention(words, "nodes", remedy))
        silent_s = (now - row.session.last_heartbeat_at).total_seconds()
        if row.state == "silent":
            words = f"{row.session.node} silent for {duration_quantity(silent_s)}"
            remedy = "does it run, and reach this platform?"
            found.append(Attention(words, "nodes", remedy, "silent_node"))
        elif row.state == "live" and row.session.breaker != NodeSession.Breaker.CLOSED:
            words = f"{row.session.node} breaker {row.breaker_words}"
            found.append(Attention(words, "nodes", "run neve ping on that host", "breaker"))
    return found


def _refused(told: Mapping[str, str]) -> Attention:
    """`told`: as `catalog.sessions.note_refusal` leaves it in the audit trail."""
    node, field = told.get("node", ""), told.get("field", "")
    words = f"{node} was refused: {field or told.get('kind', '').replace('-', ' ')}"
    if "expected" in told and "got" in told and len(told["expected"] + told["got"]) <= MOST_SHOWN:
        words += f" is {told['got']}, allowed is {told['expected']}"
    remedy = "it serves without Neve; the audit trail and its log name the fix"
    if field == "codec":
        remedy = "allow it by lossy_codecs of the tenant's policy, or take the node's codec out"
    return Attention(words, "audit", remedy)


def _tenants(tenants: tuple[Tenant, ...], storage: dict[int, StorageUse]) -> list[Attention]:
    found = []
    for tenant in tenants:
        if tenant.cut_off_at is not None:
            since = clock_text(tenant.cut_off_at)
            words = f"{tenant.slug} cut off since {since} UTC: {tenant.cut_off_reason}"
            found.append(
                Attention(
                    words, "tenants", "once you know why, let it in again on the page Tenants"
                )
            )
    for tenant in tenants:
        use = storage[tenant.pk]
        ratio = use.cold_ratio
        if use.cold_full == ColdFull.REFUSE and ratio is not None and ratio >= COLD_FULL:
            words = f"{tenant.slug} at {percent_quantity(ratio)} of cold"
            remedy = "raise its cold quota, or let its policy evict (cold full)"
            found.append(Attention(words, "tenants", remedy, "refused"))
    return found
