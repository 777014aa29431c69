"""One pass of compaction over a tenant: count, plan, claim, merge. Many may run at once.

A pass looks at a bounded number of segments: it counts live bytes of the segments counted longest
ago, and plans with mostly dead, small and the latest ones.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from django.db.models import F, Q
from django.utils import timezone

from catalog.models import Segment, Space
from neve.formats.segment import block_bytes
from storage.hot import hot_tier
from tenants.scope import tenant_scope
from tiering import segments
from tiering.compaction import claims, sweep
from tiering.compaction.merge import CompactReport, carry_out
from tiering.compaction.plan import Facts, Merge, Policy, plan
from tiering.compaction.room import Room, room_of

COUNT_MOST = 2000  # segments a pass; 40,000 are counted within 20 passes
PLAN_MOST = 2000  # of the segments with little alive, and of the latest of each generation
PASS_S = 120.0  # then the next pass goes on


@dataclass(frozen=True)
class Claimed:
    """A merge that this worker may carry out."""

    space: Space
    merge: Merge


class Compactor:
    """For one tenant. Not for threads."""

    def __init__(self, tenant_id: int, policy: Policy | None = None) -> None:
        self.tenant_id = tenant_id
        self.report = CompactReport()
        self._tier = hot_tier(tenant_id)
        self._given = policy
        # Expired blocks count as live until `expire` removes them, but are not copied: their
        # segments would be merged again and again.
        self._merged: set[int] = set()

    def find(self) -> Claimed | None:
        """The first planned merge that no other worker has; None when there is none."""
        with tenant_scope(self.tenant_id):
            self.count()
            room = room_of(self._tier)
            for space, merge in self.plans(room):
                if room.has_room_to_merge(merge.live_bytes) and claims.claim(merge.segments):
                    return Claimed(space, merge)
        return None

    def run(
        self,
        claimed: Claimed | None = None,
        *,
        progress: Callable[[CompactReport], object] = lambda report: None,
    ) -> CompactReport:
        """Carries out `claimed`, then other planned merges, for about PASS_S.

        Raises the errors of S3, Valkey and the database. Segments of a failed merge stay claimed
        for a while, so that others are merged first.
        """
        end = time.monotonic() + PASS_S
        claimed = claimed or self.find()
        while claimed:
            merge = claimed.merge
            with tenant_scope(self.tenant_id):
                carry_out(
                    self._tier,
                    claimed.space,
                    merge,
                    self.report,
                    most_bytes=self._policy(room_of(self._tier)).most_bytes,
                    renew=claims.renewer(merge.segments),
                )
                claims.release(merge.segments)
                if room_of(self._tier).is_pressed:
                    sweep.close_empty(self._tier)
                    sweep.delete_closed(self._tier, is_pressed=True)
            self._merged.update(merge.segments)
            progress(self.report)
            claimed = self.find() if time.monotonic() < end else None
        return self.report

    def count(self) -> None:
        """Counts `live_bytes` of the segments counted longest ago."""
        live = Segment.objects.filter(state=Segment.State.LIVE)
        oldest = live.order_by(F("counted_at").asc(nulls_first=True))
        numbers = oldest.values_list("pk", flat=True)[:COUNT_MOST]
        segments.count_live_bytes(self._tier, list(numbers))

    def plans(self, room: Room | None = None) -> Iterator[tuple[Space, Merge]]:
        """The planned merges, most urgent first in each space and store. In the tenant's scope."""
        policy = self._policy(room or room_of(self._tier))
        candidates = (row for row in self._candidates(policy) if row.pk not in self._merged)
        rows = sorted(candidates, key=_place)
        for _, of_space in groupby(rows, key=_place):
            group = list(of_space)
            for merge in plan([facts(row) for row in group], policy):
                yield group[0].space, merge

    def _policy(self, room: Room) -> Policy:
        return self._given or room.policy()

    def _candidates(self, policy: Policy) -> set[Segment]:
        live = Segment.objects.filter(claims.is_free(), state=Segment.State.LIVE)
        live = live.filter(
            live_bytes__gt=0, damaged_at=None, store__failing_since=None
        ).select_related("space")
        is_dead = Q(live_bytes__lte=F("size_bytes") * (1 - policy.dead_share))
        found = set(live.filter(is_dead | Q(live_bytes__lt=policy.least_bytes))[:PLAN_MOST])
        for generation in range(policy.generations):
            found.update(live.filter(generation=generation)[:PLAN_MOST])
        return found


def _place(row: Segment) -> tuple[int, int]:
    """Segments of one space and one store are merged."""
    return row.space_id, row.store_id or 0


def facts(row: Segment) -> Facts:
    """A row as the plan sees it."""
    return Facts(
        number=row.pk,
        size_bytes=block_bytes(row.size_bytes, row.blocks),
        live_bytes=row.live_bytes,
        blocks=row.blocks,
        age_s=(timezone.now() - row.created_at).total_seconds(),
        generation=row.generation,
        links={int(number): chains for number, chains in row.links.items()},
    )
