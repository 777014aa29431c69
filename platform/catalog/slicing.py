"""Writes slices: counts of a tenant, its nodes, contexts and labels by buckets of time.

Heartbeats do nothing for it: their counts stand in `NodeSession.totals` and `.totals_by_name`,
those of contexts in `Context.prompt_tokens` and `.hit_tokens`. A run adds the differences since the
last one and notes, in the same transaction, up to where it came: a crash loses nothing and doubles
nothing. Of two runs at once the second finds nothing new.

Which bucket: that of a session's last heartbeat, so counts of the last EVERY_S before a boundary
may stand in the bucket behind it, and those of a time without workers in the first one after it.

Bounds: a tenant has at most 1 + MOST rows of each kind in a bucket (the largest ones of those that
came first, and the sum of the rest) and KEPT says how long buckets stay. That is at most
`MOST_ROWS` rows a tenant, however many nodes it has.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from catalog.models import (
    TIER_COUNTERS,
    Context,
    NodeSession,
    Slice,
    SlicedSession,
    SliceState,
    UsageRollup,
)
from catalog.nodes import host_of
from catalog.targets import Opener
from catalog.usage import BY_NAME, add, bounded, known, known_by_name
from neve.node.stats import COUNTERS
from tenants.models import Tenant
from tenants.scope import tenant_scope

EVERY_S: Final = 15.0
HOUR_S: Final = 3600
# Length of a bucket → how long it is kept: a range, and the one before or the same a day ago.
KEPT: Final = {
    60: timedelta(hours=3),
    600: timedelta(hours=31),
    1800: timedelta(hours=50),
    21600: timedelta(days=62),
}
# Rows of a kind, tenant and bucket; one more has the sum of the rest.
MOST: Final[dict[str, int]] = {Slice.Kind.PLACE: 100, Slice.Kind.CONTEXT: 40, Slice.Kind.LABEL: 40}
# +1: the bucket that runs. The tenant's own row has no rest.
MOST_ROWS: Final = (1 + sum(most + 1 for most in MOST.values())) * sum(
    int(kept.total_seconds()) // length_s + 1 for length_s, kept in KEPT.items()
)
MOST_CONTEXTS: Final = 5_000  # with new hits, in one run; others wait for the next
ENDED_LATE: Final = timedelta(minutes=10)  # clocks of two workers may differ by so much
BATCH: Final = 1000

# Column of a slice → the counters of heartbeats that it sums.
SUMS: Final = {
    "prompt_tokens": ("requested_tokens", "tail_tokens"),
    "hit_tokens": ("hit_hot_tokens", "hit_cold_tokens", "hit_local_tokens"),
    "hit_cold_tokens": ("hit_cold_tokens",),
    "requested_blocks": ("requested_blocks",),
    "hit_blocks": ("hit_hot_blocks", "hit_cold_blocks", "hit_local_blocks"),
    "hit_cold_blocks": ("hit_cold_blocks",),
    "hit_local_tokens": ("hit_local_tokens",),
    "hit_local_blocks": ("hit_local_blocks",),
    "local_read_bytes": ("local_read_bytes",),
    "hot_read_bytes": ("hot_read_bytes",),
    "cold_read_bytes": ("cold_read_bytes",),
    "hot_write_bytes": ("hot_write_bytes",),
    "put_refused": ("put_refused",),
    "dropped": ("dropped",),
}
OF_TIERS: Final = ("cold_refused_blocks", "lost_blocks")
GAUGES: Final = ("hot_used_bytes", "cold_used_bytes", "dirty_oldest_s")
COUNTED: Final = (*SUMS, *OF_TIERS)

Part = tuple[str, int, str]  # kind, number of the space, name
Bucket = tuple[int, int]  # resolution, first second
REST: Final = (0, "")  # space and name of the row that has the sum of the rest


@dataclass
class Tally:
    counts: Counter[str] = field(default_factory=Counter)
    by_name: dict[str, dict[str, int]] = field(default_factory=lambda: {n: {} for n in BY_NAME})

    def add(self, counts: Mapping[str, int], by_name: Mapping[str, Mapping[str, int]]) -> None:
        self.counts.update(counts)
        for name, more in by_name.items():
            self.by_name[name] = add(self.by_name[name], more)

    def __bool__(self) -> bool:
        return any(self.counts.values()) or any(any(c.values()) for c in self.by_name.values())


Tallies = defaultdict[tuple[int, Part], Tally]  # by the second at which it was counted


def work(job: Opener, tenant_id: int) -> None:
    """Add what nodes, contexts and labels counted to their slices. No Job row."""
    take(tenant_id, timezone.now())


@transaction.atomic
def take(tenant_id: int, now: datetime) -> int:
    """Returns how many rows were written."""
    with tenant_scope(tenant_id):
        if not Tenant.objects.filter(pk=tenant_id).exists():
            return 0
        SliceState.objects.bulk_create([SliceState(tenant_id=tenant_id)], ignore_conflicts=True)
        state = SliceState.objects.select_for_update().get()
        tallies: Tallies = defaultdict(Tally)
        _add_sessions(tallies, state)
        second = int(now.timestamp())
        _add_contexts(tallies, second)
        gauges = _add_tiers(tallies, state, second)
        written = _write(tenant_id, tallies, gauges, second)
        state.taken_at = now
        state.save(update_fields=["taken_at", "tier_totals"])
    return written


def _add_sessions(tallies: Tallies, state: SliceState) -> None:
    fresh = NodeSession.objects.filter(Q(sliced=None) | Q(sliced__seq__lt=F("last_seq")))
    if state.taken_at is not None:  # an ended session takes no heartbeat
        fresh = fresh.filter(Q(ended_at=None) | Q(ended_at__gte=state.taken_at - ENDED_LATE))
    columns = ("pk", "space_id", "node", "last_heartbeat_at", "last_seq", "totals")
    before = ("totals_by_name", "sliced__totals", "sliced__totals_by_name")
    taken = []
    for pk, space_id, node, at, seq, totals, named, had, had_named in (
        fresh.filter(last_seq__gt=0).order_by().values_list(*columns, *before)
    ):
        now_counts, now_named = known(totals, COUNTERS), known_by_name(named)
        counts = _more(now_counts, known(had, COUNTERS))
        known_before = known_by_name(had_named)
        by_name = {name: _more(now_named[name], known_before[name]) for name in BY_NAME}
        sums = {name: sum(counts.get(c, 0) for c in from_) for name, from_ in SUMS.items()}
        second = int(at.timestamp())
        for part in (
            (Slice.Kind.TENANT, *REST),
            (Slice.Kind.PLACE, space_id, host_of(node)),
        ):
            tallies[second, part].add(sums, by_name)
        taken.append(
            SlicedSession(
                session_id=pk,
                tenant_id=state.tenant_id,
                seq=seq,
                totals=now_counts,
                totals_by_name={name: each for name, each in now_named.items() if each},
            )
        )
    SlicedSession.objects.bulk_create(
        taken,
        update_conflicts=True,
        unique_fields=["session"],
        update_fields=["seq", "totals", "totals_by_name"],
        batch_size=BATCH,
    )


def _more(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: more for name, n in now.items() if (more := n - before.get(name, 0)) > 0}


def _add_contexts(tallies: Tallies, second: int) -> None:
    """Hits of contexts count for their labels as they are now; a context of several labels counts
    for each."""
    fresh = Context.objects.filter(prompt_tokens__gt=F("sliced_prompt_tokens"))
    columns = ("pk", "space_id", "name", "label", "labels", "prompt_tokens", "hit_tokens")
    # A report holds its context's row while it counts: the next run takes that one.
    rows = (
        fresh.order_by("pk")
        .select_for_update(skip_locked=True)
        .values_list(*columns, "sliced_prompt_tokens", "sliced_hit_tokens")[:MOST_CONTEXTS]
    )
    found = []
    for pk, space_id, name, label, labels, prompt, hit, had_prompt, had_hit in rows:
        found.append(pk)
        counts = {"prompt_tokens": prompt - had_prompt, "hit_tokens": max(0, hit - had_hit)}
        tallies[second, (Slice.Kind.CONTEXT, space_id, name)].add(counts, {})
        for each in labels_of(label, labels):
            tallies[second, (Slice.Kind.LABEL, space_id, each)].add(counts, {})
    for first in range(0, len(found), BATCH):
        Context.objects.filter(pk__in=found[first : first + BATCH]).update(
            sliced_prompt_tokens=F("prompt_tokens"), sliced_hit_tokens=F("hit_tokens")
        )


def labels_of(label: str, labels: object) -> list[str]:
    """The names under which a context's hits count: its label, and each of its labels as
    "name:text". [""] if it has none."""
    pairs = labels.items() if isinstance(labels, Mapping) else ()
    return [*([label] if label else ()), *(f"{name}:{text}" for name, text in pairs)] or [""]


def _add_tiers(tallies: Tallies, state: SliceState, second: int) -> Mapping[str, int | None]:
    """The tenant's gauges as last sampled; its counts of the tiers go into its tally."""
    samples = UsageRollup.objects.filter(bucket_ts__gte=second - 2 * HOUR_S)
    newest = (
        samples.filter(resolution_s=10, hot_used_bytes__isnull=False)
        .order_by("-bucket_ts")
        .values(*GAUGES)
        .first()
    )
    totals = (
        samples.filter(resolution_s=HOUR_S, tier_totals__isnull=False)
        .order_by("-bucket_ts")
        .values_list("tier_totals", flat=True)
        .first()
    )
    if totals is not None:
        now, before = known(totals, TIER_COUNTERS), known(state.tier_totals, TIER_COUNTERS)
        if state.tier_totals is not None:
            counts = {
                name: n if (n := now.get(name, 0)) < (had := before.get(name, 0)) else n - had
                for name in OF_TIERS
            }
            if any(counts.values()):
                tallies[second, (Slice.Kind.TENANT, *REST)].add(counts, {})
        state.tier_totals = now
    return newest or {}


def _write(tenant_id: int, tallies: Tallies, gauges: Mapping[str, int | None], second: int) -> int:
    buckets: dict[Bucket, dict[Part, Tally]] = defaultdict(dict)
    for (at, part), tally in tallies.items():
        if tally:
            for length_s in KEPT:
                into = buckets[length_s, at - at % length_s].setdefault(part, Tally())
                into.add(tally.counts, tally.by_name)
    own: Part = (Slice.Kind.TENANT, *REST)
    if gauges:
        for length_s in KEPT:
            buckets[length_s, second - second % length_s].setdefault(own, Tally())
    rows = _rows_of(buckets)
    changed: dict[tuple[Bucket, Part], Slice] = {}
    for bucket, parts in buckets.items():
        there = rows.setdefault(bucket, {})
        for part, tally in _bounded(parts, there):
            row = there.get(part)
            if row is None:
                kind, space_number, name = part
                row = there[part] = Slice(
                    tenant_id=tenant_id,
                    kind=kind,
                    resolution_s=bucket[0],
                    bucket_ts=bucket[1],
                    space_number=space_number,
                    name=name,
                )
            _add_to(row, tally)
            changed[bucket, part] = row
        if gauges and bucket[1] == second - second % bucket[0]:
            _gauge(there[own], gauges)
    Slice.objects.bulk_create(
        changed.values(),
        update_conflicts=True,
        unique_fields=[
            *("kind", "resolution_s", "tenant", "bucket_ts", "space_number", "name"),
        ],
        update_fields=[*COUNTED, *BY_NAME, *GAUGES],
        batch_size=BATCH,
    )
    return len(changed)


def _rows_of(buckets: Iterable[Bucket]) -> dict[Bucket, dict[Part, Slice]]:
    """Rows of these buckets, which may be many after a time without workers."""
    wanted: dict[int, list[int]] = defaultdict(list)
    for length_s, first in buckets:
        wanted[length_s].append(first)
    query = Q()
    for length_s, firsts in wanted.items():
        query |= Q(resolution_s=length_s, bucket_ts__in=firsts)
    found: dict[Bucket, dict[Part, Slice]] = defaultdict(dict)
    if wanted:
        for row in Slice.objects.filter(query).order_by():
            part = (row.kind, row.space_number, row.name)
            found[row.resolution_s, row.bucket_ts][part] = row
    return found


def _bounded(parts: dict[Part, Tally], there: Mapping[Part, object]) -> list[tuple[Part, Tally]]:
    """Parts that have a row, then the largest others as far as there is room, then the rest."""
    room = dict(MOST)
    for kind, space_number, _ in there:
        if space_number and kind in room:
            room[kind] -= 1
    chosen: list[tuple[Part, Tally]] = []
    rest: dict[str, Tally] = {}
    for part, tally in sorted(
        parts.items(), key=lambda item: (-item[1].counts["prompt_tokens"], item[0])
    ):
        kind = part[0]
        if part in there or kind not in MOST:
            chosen.append((part, tally))
        elif room[kind] > 0:
            room[kind] -= 1
            chosen.append((part, tally))
        else:
            rest.setdefault(kind, Tally()).add(tally.counts, tally.by_name)
    chosen += [((kind, *REST), tally) for kind, tally in rest.items()]
    return chosen


def _add_to(row: Slice, tally: Tally) -> None:
    for name in COUNTED:
        setattr(row, name, bounded(getattr(row, name) + tally.counts[name]))
    for name, names in BY_NAME.items():
        setattr(row, name, add(known(getattr(row, name), names), tally.by_name[name]))


def _gauge(row: Slice, gauges: Mapping[str, int | None]) -> None:
    row.hot_used_bytes, row.cold_used_bytes = gauges["hot_used_bytes"], gauges["cold_used_bytes"]
    oldest_s = gauges["dirty_oldest_s"]
    if oldest_s is not None:
        row.dirty_oldest_s = max(row.dirty_oldest_s or 0, oldest_s)


def prune(now: datetime | None = None) -> int:
    """Deletes buckets that are past their time. Returns how many rows."""
    at = now or timezone.now()
    return sum(
        Slice.unscoped.filter(
            resolution_s=length_s, bucket_ts__lt=int((at - kept).timestamp()) - length_s
        ).delete()[0]
        for length_s, kept in KEPT.items()
    )
