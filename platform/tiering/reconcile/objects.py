"""Objects in the stores that no segment's row names, and uploads that were never ended.

A row is older than its object, so an object without a row was given up, or the database lost the
row. It is noted when first found, and decided when found again after GRACE: a segment of a known
space is adopted; an object that is no segment is deleted; a segment of an unknown tenant or space
waits UNCLAIMED_KEPT for the database to come back, or for a handshake that makes the space.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from django.db.models import Q
from django.utils import timezone

from base import log_events
from catalog.models import Round, Segment, Stray
from catalog.stores import Stores, named_in
from neve.errors import Unavailable
from neve.formats.keys import OBJECTS_PREFIX, is_of_samples
from storage.s3 import Bucket
from tiering import adoption
from tiering.adoption import Found, Kind
from tiering.overlap import overlapped
from tiering.rebuild import Restorer
from tiering.reconcile import rounds
from tiering.reconcile.report import Report

GRACE = timedelta(hours=1)
UNCLAIMED_KEPT = timedelta(days=7)
RUN_PAGES = 20  # of 1,000 objects
RUN_STRAYS = 1000
LOOKS_AT_ONCE = 8


def look_at_objects(report: Report, most_pages: int = RUN_PAGES) -> None:
    """A slice of the lists of all stores, one after the other. Raises the errors of the default S3;
    another store that does not answer is left out."""
    stores = Stores()
    with rounds.turn(Round.Side.OBJECTS) as turn:
        for _ in range(most_pages if turn else 0):
            assert turn is not None
            store_id, after = _resume(turn.place, stores)
            last = _look_at_page(stores, store_id, after, report)
            turn.place = _noted(store_id, last, stores)
            if turn.place is None or report.is_late:
                break
    judge_strays(report, stores)
    for store_id in stores.rows:
        with report.apart(f"uploads to {stores.name(store_id)}"):
            if stores.is_well(store_id):
                end_uploads(report, stores.bucket(store_id), store_id)


def _look_at_page(stores: Stores, store_id: int | None, after: str, report: Report) -> str | None:
    """The key of the page's end; None: the store's list is over."""
    begin: Any = {"StartAfter": after} if after else {}
    try:
        bucket = stores.bucket(store_id)
        page = bucket.client.list_objects_v2(**bucket.where, Prefix=OBJECTS_PREFIX, **begin)
    except (BotoCoreError, ClientError, Unavailable) as error:
        if store_id is None:
            raise
        log_events.STORE_FAILED.log(store=stores.name(store_id), error=error)
        return None
    listed = {item["Key"]: item["Size"] for item in page.get("Contents", ())}
    _note_strays(listed, store_id)
    report.looked_at["objects"] += len(listed)
    return list(listed)[-1] if page["IsTruncated"] and listed else None


def _resume(place: Any, stores: Stores) -> tuple[int | None, str]:
    """Store and key to go on after. A place that is text was noted when there was one store."""
    if isinstance(place, str):
        return None, place
    if place is None or place["store"] not in stores.rows:
        return None, ""
    return place["store"], place["after"]


def _noted(store_id: int | None, after: str | None, stores: Stores) -> Any:
    """The opposite of `_resume`: the next page, or the next store; None after the last one."""
    if after is not None:
        return {"store": store_id, "after": after}
    others = sorted(each for each in stores.rows if each is not None and each > (store_id or 0))
    return {"store": others[0], "after": ""} if others else None


def judge_strays(report: Report, stores: Stores | None = None) -> None:
    """Decides strays that are due."""
    stores = stores or Stores()
    now = timezone.now()
    # Found "in the future": the clock was set back since.
    is_due = Q(due_at__lte=now) | Q(found_at__gt=now + GRACE)
    due = list(Stray.objects.filter(is_due).order_by("due_at")[:RUN_STRAYS])
    for store_id in {stray.store_id for stray in due}:
        with report.apart(f"strays of {stores.name(store_id)}"):
            if stores.is_well(store_id):
                mine = [stray for stray in due if stray.store_id == store_id]
                _judge_all(mine, stores.bucket(store_id), report)


def _judge_all(due: Sequence[Stray], bucket: Bucket, report: Report) -> None:
    """Of one store. Raises S3's errors."""
    named = named_in(due[0].store_id, (stray.object_key for stray in due))
    strays = {bucket.object(stray.object_key): stray for stray in due}
    for stray in due:
        if stray.object_key in named:
            del strays[bucket.object(stray.object_key)]
            stray.delete()
    for object_, found in overlapped(adoption.look_at, strays, at_once=LOOKS_AT_ONCE):
        with report.apart(f"object {object_.key}"):
            _judge(strays[object_], found, report)


def end_uploads(report: Report, bucket: Bucket, store_id: int | None) -> None:
    """Aborts a page of multipart uploads without a row: S3 keeps their parts."""
    answer = bucket.client.list_multipart_uploads(**bucket.where, Prefix=OBJECTS_PREFIX)
    listed = answer.get("Uploads", ())
    old = [each for each in listed if each["Initiated"] < timezone.now() - GRACE]
    named = named_in(store_id, (each["Key"] for each in old))
    for each in old:
        if each["Key"] not in named:
            bucket.client.abort_multipart_upload(
                **bucket.where, Key=each["Key"], UploadId=each["UploadId"]
            )
            report.found("unfinished_uploads")


def _note_strays(listed: dict[str, int], store_id: int | None) -> None:
    without_row = {key for key in listed if not is_of_samples(key)} - named_in(store_id, listed)
    due_at = timezone.now() + GRACE
    new = [
        Stray(store_id=store_id, object_key=key, size_bytes=listed[key], due_at=due_at)
        for key in without_row
    ]
    Stray.objects.bulk_create(new, ignore_conflicts=True)


def _judge(stray: Stray, found: Found, report: Report) -> None:
    elsewhere = Segment.unscoped.filter(object_key=stray.object_key, damaged_at=None)
    if found.kind is Kind.SEGMENT and elsewhere.exists():  # a copy that a move gave up
        _delete(stray, found, report)
    elif found.kind is Kind.SEGMENT and (
        (row := adoption.adopt(found, stray.store_id)) is not None
    ):
        log_events.SEGMENT_ADOPTED.log(segment=row.pk, object=row.object_key)
        report.found("segments_without_row")
        assert found.footer is not None
        restored = Restorer(row.tenant_id).restore(row, found.footer.rows, within_quota=True)
        report.found("data_without_index", restored)
    elif found.kind in (Kind.SEGMENT, Kind.ELSEWHERE):
        now = timezone.now()
        if now < stray.found_at + UNCLAIMED_KEPT:
            stray.is_unclaimed, stray.due_at = True, now + GRACE
            stray.save(update_fields=["is_unclaimed", "due_at"])
            return
        _delete(stray, found, report)
    elif found.kind is Kind.RUBBISH:
        _delete(stray, found, report)
    stray.delete()


def _delete(stray: Stray, found: Found, report: Report) -> None:
    log_events.STRAY_DELETED.log(object=stray.object_key, bytes=stray.size_bytes)
    found.object.delete()
    report.found("stray_objects")
