"""One pass of moves of a tenant. Many may run at once, and be killed at any line.

    arriving copy (row) → object copied and proven → flip ┐
                                  old place: leaving ──────┴ grace → deleting (row) → object → row

A copy that a killed worker left is removed when its lease has lapsed, and planned anew.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from base import log_events
from catalog.heat import heat_at
from catalog.models import MoveRule, Segment, SegmentCopy
from catalog.occupancy import occupancy
from catalog.stores import Stores, reference
from neve.errors import Corrupt, Unavailable
from tenants.models import Quota
from tenants.scope import tenant_scope
from tiering.compaction import claims
from tiering.compaction.room import Room
from tiering.compaction.sweep import GRACE
from tiering.elapsed import is_leased, is_past
from tiering.moving import places
from tiering.moving.copying import copy_segment, verify_object
from tiering.moving.pace import Pace
from tiering.moving.plan import Facts, Move, Rule, Stay, StorePrices, decide, keeps
from tiering.moving.reads import Reads, observed
from tiering.objects import is_missing

PASS_S = 60.0  # then the next pass goes on
PLAN_MOST = 200  # segments a pass
LEASE = timedelta(seconds=120)  # of a copy that is written; renewed with the segment's claim

Prices = Mapping[int | None, StorePrices]
_State = SegmentCopy.State
Some = TypeVar("Some")
_Troubles = (BotoCoreError, ClientError, Unavailable)


@dataclass
class MoveReport:
    """Segments and bytes of a pass. `returned`: to a place that still had them. `given_up`:
    changed meanwhile. `bad`: the source is damaged. `no_room`: the tenant's cold quota has none.
    `deleted`: old places after their grace."""

    moved: int = 0
    copied: int = 0
    bytes: int = 0
    returned: int = 0
    given_up: int = 0
    bad: int = 0
    no_room: int = 0
    failed: int = 0
    deleted: int = 0
    freed_bytes: int = 0


def rules_of(tenant_id: int, stores: Stores) -> list[Rule]:
    """Active rules of a tenant and of all tenants, in their order."""
    rows = MoveRule.objects.filter(Q(tenant=None) | Q(tenant=tenant_id), is_active=True)
    return [rule_of(row) for row in rows.select_related("source", "target")]


def rule_of(row: MoveRule) -> Rule:
    return Rule(
        name=row.name,
        target=reference(row.target),
        source=None if row.source is None else reference(row.source),
        from_any=row.source is None,
        is_copy=row.is_copy,
        least_age_s=row.least_age_s,
        least_idle_s=row.least_idle_s,
        least_heat=row.least_heat,
        payback_days=row.payback_days,
    )


def planned(rules: Sequence[Rule], prices: Prices) -> Iterator[Move]:
    """What moves now, oldest first. In the tenant's scope."""
    return (found for found in decided(rules, prices) if isinstance(found, Move))


def decided(rules: Sequence[Rule], prices: Prices) -> Iterator[Move | Stay]:
    """Of each segment that a rule may fit, oldest first. In the tenant's scope."""
    now = timezone.now()
    reads = observed(now) if rules else Reads()
    for row in _candidates(rules, now).iterator(chunk_size=500):
        copies = frozenset(
            copy.store_id for copy in row.copies.all() if copy.state != _State.LEAVING
        )
        yield decide(facts_of(row, now, copies, reads), rules, prices)


def facts_of(
    row: Segment, now: datetime, copies: frozenset[int | None], reads: Reads | None = None
) -> Facts:
    heat = heat_at(row, now)
    requests, read_bytes = (reads or Reads()).of(heat)

    def since_s(at: datetime) -> float:
        return (now - at).total_seconds()

    return Facts(
        number=row.pk,
        size_bytes=row.size_bytes,
        store=row.store_id,
        age_s=since_s(row.created_at),
        idle_s=since_s(row.read_at or row.created_at),
        heat=heat,
        stayed_s=float("inf") if row.moved_at is None else since_s(row.moved_at),
        copies=copies,
        reads_a_month=requests,
        read_bytes_a_month=read_bytes,
    )


def _candidates(rules: Sequence[Rule], now: datetime) -> QuerySet[Segment]:
    """Segments that a rule may fit: a bound that the database can count."""
    wanted = Q(pk__in=())
    for rule in rules:
        which = _in(rule.source) if not rule.from_any else ~_in(rule.target)
        if rule.least_age_s is not None:
            which &= Q(created_at__lte=now - timedelta(seconds=rule.least_age_s))
        if rule.least_idle_s is not None:
            since = now - timedelta(seconds=rule.least_idle_s)
            which &= Q(read_at__lte=since) | Q(read_at=None, created_at__lte=since)
        if rule.least_heat is not None:
            which &= Q(heat__gte=rule.least_heat)
        wanted |= which
    live = Segment.objects.filter(claims.is_free(), wanted, state=Segment.State.LIVE)
    # Its writer has put it into the index: until then a crash may leave dead bytes only.
    settled = live.filter(damaged_at=None, indexed_at__isnull=False)
    return settled.order_by("created_at", "pk").prefetch_related("copies")


def _in(store_id: int | None) -> Q:
    return Q(store=None) if store_id is None else Q(store=store_id)


class Mover:
    """For one tenant. Not for threads."""

    def __init__(self, tenant_id: int, prices: Prices) -> None:
        self.tenant_id = tenant_id
        self.report = MoveReport()
        self._prices = prices
        self._stores = Stores()
        self._rules = rules_of(tenant_id, self._stores)

    def has_work(self) -> bool:
        with tenant_scope(self.tenant_id):
            return (
                _ended().exists()
                or _abandoned().exists()
                or next(self._cooled(), None) is not None
                or next(self._possible(), None) is not None
            )

    def run(self, progress: Callable[[MoveReport], object] = lambda report: None) -> MoveReport:
        """Ends copies that are over, then moves for about PASS_S.

        A store in trouble stops its own moves only. Raises the errors of the database and the bus.
        """
        end, self.report = time.monotonic() + PASS_S, MoveReport()  # `has_work` planned, too
        with tenant_scope(self.tenant_id):
            self._cool()
            self._delete(_ended(), _State.LEAVING)
            self._delete(_abandoned(), _State.ARRIVING)
            for move in list(self._upto(self._possible())):
                if time.monotonic() >= end:
                    break
                self._carry_out(move)
                progress(self.report)
        return self.report

    def _possible(self) -> Iterator[Move]:
        """Planned moves between stores that answer, as far as the cold quota has room."""
        if not self._rules:
            return
        room = self._room()
        taken_bytes = room.taken.stored_bytes
        for move in planned(self._rules, self._prices):
            if not (self._stores.is_well(move.source) and self._stores.is_well(move.target)):
                continue
            # Both places count until the old one is deleted; copies stay, so they come last.
            bound_bytes = room.quota_bytes if move.is_copy else room.most_bytes
            if taken_bytes + move.size_bytes > bound_bytes:
                self.report.no_room += 1
                continue
            taken_bytes += move.size_bytes
            yield move

    def _room(self) -> Room:
        return Room(Quota.objects.get().cold_bytes, occupancy(self.tenant_id))

    @staticmethod
    def _upto(some: Iterable[Some]) -> Iterator[Some]:
        return islice(some, PLAN_MOST)

    def _carry_out(self, move: Move) -> None:
        if not claims.claim([move.number]):
            return
        try:
            row = Segment.objects.filter(pk=move.number, state=Segment.State.LIVE).first()
            if row is not None and row.store_id == move.source:
                self._move(row, move)
        except Corrupt as error:
            log_events.SEGMENT_LOST.log(object=row.object_key if row else "", reason=error)
            self.report.bad += 1
            Segment.objects.filter(pk=move.number, damaged_at=None).update(
                damaged_at=timezone.now()
            )
        except _Troubles as error:
            log_events.STORE_FAILED.log(store=self._stores.name(move.target), error=error)
            self.report.failed += 1
        finally:
            claims.release([move.number])

    def _move(self, row: Segment, move: Move) -> None:
        there = SegmentCopy.objects.filter(segment=row, store=move.target).first()
        if there is not None:
            self._return(row, there, move)
            return
        try:
            with transaction.atomic():
                copy: SegmentCopy = SegmentCopy.objects.create(
                    segment=row,
                    store_id=move.target,
                    size_bytes=row.size_bytes,
                    reason=move.reason,
                    leased_until=timezone.now() + LEASE,
                )
        except IntegrityError:  # another worker's
            return
        target = self._stores.bucket(move.target).object(row.object_key)
        pace = Pace(move.target, self._stores.rows[move.target].move_bytes_per_s)
        try:
            copy_segment(
                row, self._stores.object(row), target, take=pace.take, renew=_renewer(row, copy)
            )
        except Corrupt:
            self._remove(copy, _State.ARRIVING)
            raise
        except _Troubles:
            SegmentCopy.objects.filter(pk=copy.pk).update(leased_until=None)
            raise
        if move.is_copy:
            kept = SegmentCopy.objects.filter(pk=copy.pk, state=_State.ARRIVING)
            self.report.copied += kept.update(
                state=_State.KEPT, since=timezone.now(), leased_until=None
            )
        elif places.flip(row, copy):
            self.report.moved += 1
        else:
            SegmentCopy.objects.filter(pk=copy.pk).update(leased_until=None)
            self.report.given_up += 1
        self.report.bytes += row.size_bytes

    def _return(self, row: Segment, there: SegmentCopy, move: Move) -> None:
        """To a place that still has it: nothing is copied. A bad copy is removed instead."""
        if there.state not in SegmentCopy.READABLE:
            return
        found = self._stores.bucket(there.store_id).object(row.object_key)
        try:
            # An old place was proven minutes ago; a kept copy may have aged.
            verify_object(row, found, whole=there.state == _State.KEPT)
        except (Corrupt, ClientError) as error:
            if isinstance(error, ClientError) and not is_missing(error):
                raise
            log_events.SEGMENT_LOST.log(object=row.object_key, reason=error)
            self.report.bad += 1
            self._remove(there, _State(there.state))
            return
        if move.is_copy:
            mine = SegmentCopy.objects.filter(pk=there.pk, state=there.state)
            self.report.returned += mine.update(
                state=_State.KEPT, reason=move.reason, since=timezone.now()
            )
        else:
            self.report.returned += places.flip(row, there)

    def _cool(self) -> None:
        """Kept copies that no rule keeps, or that the quota has no room for, begin to leave."""
        for copy in list(self._upto(self._cooled())):
            SegmentCopy.objects.filter(pk=copy.pk, state=_State.KEPT).update(
                state=_State.LEAVING, since=timezone.now()
            )

    def _cooled(self) -> Iterator[SegmentCopy]:
        now, kept = timezone.now(), SegmentCopy.objects.filter(state=_State.KEPT)
        if not kept.exists():
            return
        room = self._room()
        surplus = room.taken.kept_bytes - room.quota_bytes if room.is_pressed else 0
        coldest_first = kept.select_related("segment").order_by("segment__read_at", "pk")
        for copy in coldest_first.iterator(chunk_size=500):
            facts = facts_of(copy.segment, now, frozenset([copy.store_id]))
            if surplus > 0 or not keeps(facts, self._rules, copy.store_id):
                surplus -= copy.size_bytes
                yield copy

    def _delete(self, copies: QuerySet[SegmentCopy], state: SegmentCopy.State) -> None:
        """Objects, then rows. A store in trouble keeps its rows."""
        for copy in copies.select_related("segment")[:PLAN_MOST]:
            # A leaving copy is the last one while the segment's place does not answer.
            if not (
                self._stores.is_well(copy.store_id) and self._stores.is_well(copy.segment.store_id)
            ):
                continue
            if self._remove(copy, state) and state is _State.LEAVING:
                self.report.deleted += 1
                self.report.freed_bytes += copy.size_bytes

    def _remove(self, copy: SegmentCopy, state: SegmentCopy.State) -> bool:
        """Removes a copy in this state, or one whose removal was killed. False: it is not gone.

        The lease keeps others from removing it as well: a removal that ends late would hit an
        object that was moved there again meanwhile.
        """
        rows = SegmentCopy.objects.filter(pk=copy.pk, store=copy.store_id)
        mine = rows.filter(state=state) | rows.filter(_is_half_removed())
        if not mine.update(state=_State.DELETING, leased_until=timezone.now() + LEASE):
            return False  # it became the segment's place again, or another worker removes it
        removing = rows.filter(state=_State.DELETING)
        try:
            found = self._stores.bucket(copy.store_id).object(copy.segment.object_key)
            found.abort_uploads()
            found.delete()
        except _Troubles as error:
            log_events.STORE_FAILED.log(store=self._stores.name(copy.store_id), error=error)
            self.report.failed += 1
            removing.update(leased_until=None)
            return False
        removing.delete()
        return True


def _ended() -> QuerySet[SegmentCopy]:
    """Old places whose readers' addresses have expired, and those whose deletion was killed."""
    is_over = Q(state=_State.LEAVING) & is_past("since", GRACE)
    return SegmentCopy.objects.filter(is_over | _is_half_removed())


def _is_half_removed() -> Q:
    return Q(state=_State.DELETING) & ~is_leased("leased_until", LEASE)


def _abandoned() -> QuerySet[SegmentCopy]:
    arriving = SegmentCopy.objects.filter(state=_State.ARRIVING)
    return arriving.exclude(is_leased("leased_until", LEASE))


def _renewer(row: Segment, copy: SegmentCopy) -> Callable[[], None]:
    renew_claim, renewed = claims.renewer([row.pk]), time.monotonic()

    def renew() -> None:
        nonlocal renewed
        renew_claim()
        if time.monotonic() - renewed > LEASE.total_seconds() / 3:
            renewed = time.monotonic()
            rows = SegmentCopy.objects.filter(pk=copy.pk, state=_State.ARRIVING)
            rows.update(leased_until=timezone.now() + LEASE)

    return renew
