"""Checks the index against values in Valkey, rows of segments, and counters.

One round goes through a tenant's index bucket by bucket, and is an exact recount of each
(`neve.index.recount`). A place is valid in one run of the Valkey: after a restart a scan begins
anew.
"""

from collections import deque
from typing import Any

from django.conf import settings
from valkey.exceptions import ResponseError

from base import log_events
from catalog.models import Round, Segment
from neve.formats.keys import BucketKeys
from neve.index.recount import BucketAudit, Drift, Superseded
from neve.index.scan import BEGINNING, IndexEntry, Place
from neve.index.tier import FlushOutcome, HotTier, MovedBlock
from storage import hot
from storage.hot import scan_tenant
from tenants.scope import tenant_scope
from tiering import recovery
from tiering.reconcile import rounds
from tiering.reconcile.report import Report
from tiering.reconcile.rounds import Turn

RUN_BLOCKS = 500_000  # of all tenants; benchmarks/recovery.py
TURN_BLOCKS = 50_000  # of one tenant; then comes the next one


def look_at_blocks(tenants: list[int], report: Report) -> None:
    """Slices of the tenants' indexes by turns, longest wait first.

    One tenant's trouble is noted in the report.
    """
    waiting = deque(rounds.longest_ago(Round.Side.BLOCKS, tenants))
    while waiting and report.looked_at["blocks"] < RUN_BLOCKS and not report.is_late:
        tenant_id = waiting.popleft()
        with (
            report.apart(f"blocks of tenant {tenant_id}"),
            rounds.turn(Round.Side.BLOCKS, tenant_id) as turn,
        ):
            if turn is not None:
                look_at_slice(tenant_id, turn, report)
                if turn.place is not None:
                    waiting.append(tenant_id)


def look_at_slice(tenant_id: int, turn: Turn, report: Report, most: int = TURN_BLOCKS) -> None:
    """Goes on from the turn's place through about `most` blocks, and moves the place.

    A bucket that fails though it was mended is skipped until the next round.
    """
    tier, run = hot.hot_tier(tenant_id), recovery.run_id().decode()
    place, number = _resume(turn.place, run)
    looked = 0
    try:
        while looked < most and not report.is_late:
            audit = BucketAudit(hot.execute, tenant_id, place.bucket)
            if place.cursor == 0:
                mended = hot.mend(BucketKeys(tenant_id, place.bucket))
                report.found("damaged_keys", mended.keys)
                report.found("damaged_counters", mended.values)
                number = audit.begin()
            damaged: list[bytes] = []
            page = next(scan_tenant(tenant_id, place, damaged=damaged.append))
            report.found("damaged_entries", audit.discard(damaged))
            checked = audit.recount(number, [entry.id for entry in page.entries])
            report.found("hot_without_data", checked.hot_without_data)
            report.found("unfiled_blocks", checked.unfiled)
            _check_places(tenant_id, tier, audit, page.entries, report)
            looked += max(1, len(page.entries))
            report.looked_at["blocks"] += len(page.entries)
            if page.next is None or page.next.bucket != place.bucket:
                if recovery.run_id().decode() != run:
                    raise Superseded
                _note(tenant_id, audit.settle(number), report)
            if page.next is None:
                turn.end_round()
                return
            place = page.next
            turn.place = _noted(place, number, run)
    except Superseded:  # this bucket again
        turn.place = _noted(Place(place.bucket, 0), 0, run)
    except ResponseError:
        if place.bucket + 1 < settings.ENV.hot_buckets:
            turn.place = _noted(Place(place.bucket + 1, 0), 0, run)
        else:
            turn.end_round()
        raise


def _check_places(
    tenant_id: int, tier: HotTier, audit: BucketAudit, entries: list[IndexEntry], report: Report
) -> None:
    """Cold blocks must lie within the bytes of a row. Blocks that moved meanwhile are left."""
    cold = [entry for entry in entries if entry.is_cold]
    with tenant_scope(tenant_id):
        rows = Segment.objects.filter(pk__in={entry.segment for entry in cold})
        readable = dict(rows.values_list("pk", "readable_bytes"))
    unknown = [entry for entry in cold if entry.segment not in readable]
    report.found("cold_without_segment", audit.unplace(unknown))
    gone = [entry for entry in cold if _is_beyond(entry, readable.get(entry.segment))]
    outcomes = tier.relocate(0, [MovedBlock(e.id, e.segment, e.offset, 0) for e in gone])
    report.found("cold_without_data", outcomes.count(FlushOutcome.FLUSHED))


def _is_beyond(entry: IndexEntry, readable_bytes: int | None) -> bool:
    return readable_bytes is not None and entry.offset + entry.cold_size_bytes > readable_bytes


def _note(tenant_id: int, drifts: list[Drift], report: Report) -> None:
    for drift in drifts:
        log_events.DRIFT.log(
            tenant_id=tenant_id, name=drift.name, counted=drift.counted, found=drift.found
        )
        unit = "drift_blocks" if drift.name.endswith("_blocks") else "drift_bytes"
        unit = "segment_drift_bytes" if drift.name.isdigit() else unit
        report.found(unit, abs(drift.counted - drift.found))


def _noted(place: Place, number: int, run: str) -> dict[str, Any]:
    # The cursor as text: it may need all of 64 bits, more than a JSON number is safe for.
    return {"run": run, "bucket": place.bucket, "cursor": str(place.cursor), "number": number}


def _resume(noted: dict[str, Any] | None, run: str) -> tuple[Place, int]:
    if noted is None or noted["run"] != run:
        return BEGINNING, 0
    return Place(noted["bucket"], int(noted["cursor"])), noted["number"]
