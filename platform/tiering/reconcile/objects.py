"""Objects in the S3 bucket that no segment's row names, and uploads that were never ended.

A row is older than its object, so an object without a row was given up, or the database lost the
row. It is noted when first found, and decided when found again after GRACE: a segment of a known
space is adopted; an object that is no segment is deleted; a segment of an unknown tenant or space
waits UNCLAIMED_KEPT for the database to come back, or for a handshake that makes the space.
"""

from collections.abc import Iterable
from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from base import log_events
from catalog.models import Round, Segment, Stray
from neve.formats.keys import OBJECTS_PREFIX, is_of_samples
from storage import s3
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
    """A slice of the bucket's list. Raises S3's errors."""
    with rounds.turn(Round.Side.OBJECTS) as turn:
        for _ in range(most_pages if turn else 0):
            assert turn is not None
            begin = {"StartAfter": turn.place} if turn.place else {}
            page = s3.client().list_objects_v2(
                Bucket=settings.ENV.s3_bucket, Prefix=OBJECTS_PREFIX, **begin
            )
            listed = {item["Key"]: item["Size"] for item in page.get("Contents", ())}
            _note_strays(listed)
            report.looked_at["objects"] += len(listed)
            turn.place = list(listed)[-1] if page["IsTruncated"] and listed else None
            if turn.place is None or report.is_late:
                break
    judge_strays(report)
    end_uploads(report)


def judge_strays(report: Report) -> None:
    """Decides strays that are due. Raises S3's errors."""
    now = timezone.now()
    # Found "in the future": the clock was set back since.
    is_due = Q(due_at__lte=now) | Q(found_at__gt=now + GRACE)
    due = list(Stray.objects.filter(is_due).order_by("due_at")[:RUN_STRAYS])
    named = _named(stray.object_key for stray in due)
    Stray.objects.filter(pk__in=named).delete()
    rest = [stray for stray in due if stray.object_key not in named]
    keys = {stray.object_key: stray for stray in rest}
    for key, found in overlapped(adoption.look_at, keys, at_once=LOOKS_AT_ONCE):
        with report.apart(f"object {key}"):
            _judge(keys[key], found, report)


def end_uploads(report: Report) -> None:
    """Aborts a page of multipart uploads without a row: S3 keeps their parts."""
    bucket = settings.ENV.s3_bucket
    answer = s3.client().list_multipart_uploads(Bucket=bucket, Prefix=OBJECTS_PREFIX)
    listed = answer.get("Uploads", ())
    old = [each for each in listed if each["Initiated"] < timezone.now() - GRACE]
    named = _named(each["Key"] for each in old)
    for each in old:
        if each["Key"] not in named:
            s3.client().abort_multipart_upload(
                Bucket=bucket, Key=each["Key"], UploadId=each["UploadId"]
            )
            report.found("unfinished_uploads")


def _note_strays(listed: dict[str, int]) -> None:
    without_row = {key for key in listed if not is_of_samples(key)} - _named(listed)
    due_at = timezone.now() + GRACE
    new = [Stray(object_key=key, size_bytes=listed[key], due_at=due_at) for key in without_row]
    Stray.objects.bulk_create(new, ignore_conflicts=True)


def _named(keys: Iterable[str]) -> set[str]:
    rows = Segment.unscoped.filter(object_key__in=list(keys))
    return set(rows.values_list("object_key", flat=True))


def _judge(stray: Stray, found: Found, report: Report) -> None:
    if found.kind is Kind.SEGMENT and (row := adoption.adopt(found)) is not None:
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
        _delete(stray, report)
    elif found.kind is Kind.RUBBISH:
        _delete(stray, report)
    stray.delete()


def _delete(stray: Stray, report: Report) -> None:
    log_events.STRAY_DELETED.log(object=stray.object_key, bytes=stray.size_bytes)
    s3.client().delete_object(Bucket=settings.ENV.s3_bucket, Key=stray.object_key)
    report.found("stray_objects")
