"""Folds counts into the sums of spaces and days (`SpaceDay`), each count exactly once.

A run adds the differences since the last one and notes, in the same transaction, up to where it
came: a crash loses nothing and doubles nothing. Of two runs at once one finds that the other was
first, and leaves its own. Heartbeats do nothing for it: their counts stand in `NodeSession.totals`.

Which day: counts of a session belong to the day of its last heartbeat, so counts around midnight
UTC may be off by the time between two runs. Bytes held are integrated along straight lines between
samples and split at midnight.

Which space: cold bytes are of their segments' space. The hot tier knows its bytes by tenant alone:
spaces share them in proportion to the bytes that nodes stored for them in the last `SHARE_DAYS`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, Sum
from django.utils import timezone

from catalog.models import NodeSession, Segment, Space
from catalog.targets import Opener
from catalog.usage import bounded, known
from neve.node.stats import COUNTERS
from planning.models import FoldedSession, FoldState, SpaceDay
from storage import hot, s3_requests
from tenants.models import Tenant
from tenants.scope import tenant_scope

# Counters of heartbeats that `SpaceDay` has.
COUNTED: Final = tuple(name for name in COUNTERS if hasattr(SpaceDay, name))
SHARE_DAYS: Final = 7
MOST_SPACES: Final = 2_000  # rows of a tenant and day; further spaces are counted together
MOST_KIB_S: Final = 2**57  # sums over a month fit into 63 bits
GAP_S: Final = 600  # samples further apart are a gap
ENDED_LATE: Final = timedelta(minutes=10)  # clocks of two workers may differ by so much
SLICE: Final = 1000

Place = tuple[date, int]  # a UTC day and a space's number
Sums = defaultdict[Place, Counter[str]]


def work(job: Opener, tenant_id: int) -> None:
    """Add what each space used and saved to its sums of the day. No Job row."""
    fold(tenant_id)


def fold(tenant_id: int) -> bool:
    """Returns whether it added: False if another run was first, or the tenant is gone."""
    with tenant_scope(tenant_id):
        seen = FoldState.objects.values_list("folded_at", flat=True).first()
        held = _held(tenant_id)
        requests = s3_requests.totals(tenant_id)
        with transaction.atomic():
            if not Tenant.objects.filter(pk=tenant_id).exists():
                return False
            FoldState.objects.bulk_create([FoldState(tenant_id=tenant_id)], ignore_conflicts=True)
            state = FoldState.objects.select_for_update().get()
            now = timezone.now()
            if state.folded_at != seen or (seen is not None and now < seen):
                return False
            sums: Sums = defaultdict(Counter)
            _add_sessions(sums, state)
            _add_held(sums, state, held, now)
            _add_requests(sums, state, requests)
            _write(tenant_id, sums)
            if seen is None or seen.astimezone(UTC).date() != now.date():
                _prune(now.date())
            state.folded_at = now
            state.save()
    return True


def _held(tenant_id: int) -> dict[str, list[int]]:
    """By space, as text: KiB in the hot tier, KiB of segments."""
    cold = Segment.objects.order_by().values_list("space_id").annotate(size=Sum("size_bytes"))
    sizes = {str(space_id): [0, size // 1024] for space_id, size in cold if size}
    hot_kib = hot.hot_tier(tenant_id).usage().hot_bytes // 1024
    for space, share in _shared(hot_kib).items():
        sizes.setdefault(space, [0, 0])[0] = share
    return sizes


def _shared(hot_kib: int) -> dict[str, int]:
    """The parts add up to `hot_kib`: what rounding leaves goes to the largest one."""
    if hot_kib <= 0:
        return {}
    since = timezone.now().date() - timedelta(days=SHARE_DAYS)
    rows = SpaceDay.objects.filter(day__gte=since, hot_write_bytes__gt=0, space_number__gt=0)
    written = {
        str(number): total
        for number, total in rows.order_by()
        .values_list("space_number")
        .annotate(total=Sum(F("hot_write_bytes") / 1024))
        if total
    }
    if not written:
        written = dict.fromkeys(map(str, Space.objects.values_list("pk", flat=True)), 1)
    if not written:
        return {"0": hot_kib}
    whole = sum(written.values())
    parts = {space: hot_kib * amount // whole for space, amount in written.items()}
    parts[max(written, key=lambda space: written[space])] += hot_kib - sum(parts.values())
    return parts


def _add_sessions(sums: Sums, state: FoldState) -> None:
    fresh = NodeSession.objects.filter(Q(folded=None) | Q(folded__seq__lt=F("last_seq")))
    if state.folded_at is not None:  # an ended session takes no heartbeat
        fresh = fresh.filter(Q(ended_at=None) | Q(ended_at__gte=state.folded_at - ENDED_LATE))
    rows = (
        fresh.filter(last_seq__gt=0)
        .order_by()
        .values_list("pk", "space_id", "last_heartbeat_at", "last_seq", "totals", "folded__totals")
    )
    now_folded = []
    for pk, space_id, at, seq, totals, before in rows:
        total, had = known(totals, COUNTED), known(before, COUNTED)
        place = at.astimezone(UTC).date(), space_id
        for name, count in total.items():
            sums[place][name] += max(0, count - had.get(name, 0))
        now_folded.append(
            FoldedSession(session_id=pk, tenant_id=state.tenant_id, seq=seq, totals=total)
        )
    FoldedSession.objects.bulk_create(
        now_folded,
        update_conflicts=True,
        unique_fields=["session"],
        update_fields=["seq", "totals"],
        batch_size=SLICE,
    )


def _add_held(sums: Sums, state: FoldState, held: dict[str, list[int]], now: datetime) -> None:
    before = _known_held(state.held)
    if state.folded_at is not None:
        gap_s = (now - state.folded_at).total_seconds()
        for space in before.keys() | held.keys():
            first, last = before.get(space, [0, 0]), held.get(space, [0, 0])
            for day, seconds, middle in pieces(state.folded_at, now):
                place = day, int(space)
                for name, start, end in zip(("hot_kib_s", "cold_kib_s"), first, last, strict=True):
                    sums[place][name] += round((start + (end - start) * middle) * seconds)
                if gap_s > GAP_S:
                    sums[place]["gap_s"] += round(seconds)
    state.held = held


def pieces(start: datetime, end: datetime) -> Iterator[tuple[date, float, float]]:
    """The time between two moments by UTC day: the day, seconds in it, and where the middle of
    these seconds lies between `start` (0) and `end` (1)."""
    whole_s = (end - start).total_seconds()
    at = start.astimezone(UTC)
    while at < end:
        midnight = datetime.combine(at.date() + timedelta(days=1), datetime.min.time(), UTC)
        until = min(midnight, end)
        middle = (at - start + (until - at) / 2).total_seconds() / whole_s
        yield at.date(), (until - at).total_seconds(), middle
        at = until


def _known_held(stored: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {space: [int(kib) for kib in held] for space, held in stored.items()}


def _add_requests(sums: Sums, state: FoldState, requests: dict[str, int] | None) -> None:
    """`requests` count since the bus lost its memory: smaller ones than before began anew."""
    if requests is None:
        return
    numbers = {fingerprint[:16]: pk for pk, fingerprint in _fingerprints()}
    today = timezone.now().date()
    for field, total in requests.items():
        space, _, class_ = field.partition(":")
        before = state.requests.get(field, 0)
        if class_ in s3_requests.CLASSES:
            delta = total - before if total >= before else total
            sums[today, numbers.get(space, 0)][f"worker_{class_}"] += delta
    state.requests = requests


def _fingerprints() -> list[tuple[int, str]]:
    return list(Space.objects.order_by().values_list("pk", "fingerprint"))


def _write(tenant_id: int, sums: Sums) -> None:
    added = {place: counts for place, counts in sums.items() if any(counts.values())}
    days = {day for day, _ in added}
    rows = {
        (row.day, row.space_number): row
        for row in SpaceDay.objects.select_for_update().filter(day__in=days)
    }
    names = dict(Space.objects.values_list("pk", "name"))
    in_day = Counter(day for day, _ in rows)
    changed: dict[Place, SpaceDay] = {}
    for (day, number), counts in added.items():
        place = day, number
        if place not in rows and number and in_day[day] >= MOST_SPACES:
            place = day, 0
        row = rows.get(place)
        if row is None:
            row = rows[place] = SpaceDay(tenant_id=tenant_id, day=day, space_number=place[1])
            in_day[day] += 1
        row.space_name = names.get(place[1], row.space_name)
        for name, count in counts.items():
            most = MOST_KIB_S if name.endswith("_kib_s") else None
            total = getattr(row, name) + count
            setattr(row, name, min(total, most) if most else bounded(total))
        changed[place] = row
    new = [row for row in changed.values() if row.pk is None]
    SpaceDay.objects.bulk_create(new, batch_size=SLICE)
    SpaceDay.objects.bulk_update(
        [row for row in changed.values() if row not in new],
        ["space_name", *_SUMMED],
        batch_size=SLICE,
    )


_SUMMED: Final = tuple(
    each.name
    for each in SpaceDay._meta.concrete_fields
    if each.name not in ("id", "tenant", "day", "space_number", "space_name")
)


def _prune(today: date) -> None:
    SpaceDay.objects.filter(day__lt=today - timedelta(days=settings.ENV.keep_savings_days)).delete()
