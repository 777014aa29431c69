"""Makes rows for segments in S3 that have none, after the loss of the database or of a row.

A segment's footer names its tenant and space, which must be known. The caller restores blocks that
the index does not know. Adopting an object that a worker gave up is harmless: its blocks are dead,
and compaction deletes segments without live blocks.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from botocore.exceptions import ClientError
from django.db import IntegrityError, transaction

from catalog.models import Segment, Space
from catalog.stores import Stores
from neve.errors import Corrupt
from neve.formats.keys import segment_key, tenant_prefix
from neve.formats.segment import SegmentFooter
from neve.index.recount import BucketAudit
from storage import hot
from storage.hot import scan_tenant
from storage.s3 import Bucket, Object
from tenants.scope import tenant_scope
from tiering.chains import count_runs
from tiering.objects import is_missing, tail_of
from tiering.overlap import overlapped

LOOKS_AT_ONCE = 16
PAGE_ROWS = 1000


class Kind(StrEnum):
    """Kinds of objects without a row."""

    SEGMENT = "segment"
    RUBBISH = "rubbish"  # no segment, or one that was damaged
    ELSEWHERE = "elsewhere"  # a segment under another key than its own
    GONE = "gone"


@dataclass(frozen=True)
class Found:
    """An object in a store. The fields after `kind` are set for a SEGMENT only."""

    object: Object
    kind: Kind
    size_bytes: int = 0
    stored_at: datetime | None = None
    footer: SegmentFooter | None = None


def look_at(object_: Object) -> Found:
    """Opens an object by ranged reads of its end. Raises S3's errors."""
    try:
        tail = tail_of(object_)
        footer = tail.footer()
    except Corrupt:
        return Found(object_, Kind.RUBBISH)
    except ClientError as error:
        if is_missing(error):
            return Found(object_, Kind.GONE)
        raise
    own = footer.header
    if object_.key != segment_key(own.tenant_id, own.fingerprint, own.uuid):
        return Found(object_, Kind.ELSEWHERE)
    return Found(object_, Kind.SEGMENT, tail.size_bytes, tail.stored_at, footer)


def adopt(found: Found, store_id: int | None = None) -> Segment | None:
    """The new row of a segment in this store; None: its tenant or space is not known, or it has a
    row already."""
    assert found.footer is not None
    own = found.footer.header
    with tenant_scope(own.tenant_id):
        space = Space.objects.filter(
            fingerprint=own.fingerprint.hex(), is_leaving=False, tenant__is_leaving=False
        ).first()
        if space is None:
            return None
        try:
            with transaction.atomic():
                row: Segment = Segment.objects.create(
                    space=space,
                    uuid=own.uuid,
                    object_key=found.object.key,
                    store_id=store_id,
                    state=Segment.State.LIVE,
                    blocks=len(found.footer.rows),
                    size_bytes=found.size_bytes,
                    runs=count_runs(found.footer.rows),
                )
        except IntegrityError:
            return None
        # The row is as old as its object: decisions since then apply to its blocks.
        row.created_at = found.stored_at or row.created_at
        row.save(update_fields=["created_at"])
        return row


@dataclass
class AdoptReport:
    """Of one tenant. `forgotten`: places in the index that named segments without rows.

    `unclaimed`: segments of unknown spaces. `rubbish`: objects that are no segments.
    """

    forgotten: int = 0
    known: int = 0
    to_look_at: int = 0
    looked_at: int = 0
    adopted: int = 0
    blocks: int = 0
    bytes: int = 0
    unclaimed: int = 0
    rubbish: int = 0


def adopt_tenant(
    tenant_id: int, *, progress: Callable[[AdoptReport], object] = lambda report: None
) -> AdoptReport:
    """Makes rows for all segments below the tenant's prefix in every store; reads their footers in
    parallel.

    Objects with rows are skipped, so a repeated call goes on. The index must be marked as not
    whole: places of segments without rows are removed first, since new rows may get their numbers.
    Raises the errors of S3, Valkey and the database.
    """
    report = AdoptReport()
    forget_unknown_places(tenant_id, report)
    stores = Stores()
    objects: dict[Object, int | None] = {}  # of a segment in several stores, the first one's
    seen: set[str] = set()
    for store_id in stores.order(stores.rows):
        new = list(_without_row(tenant_id, stores.bucket(store_id), seen, report))
        objects |= dict.fromkeys(new, store_id)
        seen |= {each.key for each in new}
    report.to_look_at = len(objects)
    for object_, found in overlapped(look_at, objects, at_once=LOOKS_AT_ONCE):
        report.looked_at += 1
        if found.kind is Kind.SEGMENT:
            row = adopt(found, objects[object_])
            report.adopted += row is not None
            report.blocks += 0 if row is None else row.blocks
            report.bytes += 0 if row is None else row.size_bytes
            report.unclaimed += row is None
        elif found.kind is not Kind.GONE:
            report.rubbish += 1
        progress(report)
    return report


def forget_unknown_places(tenant_id: int, report: AdoptReport) -> None:
    """Removes places of segments without rows from the index, all of which is read."""
    with tenant_scope(tenant_id):
        known = set(Segment.objects.values_list("pk", flat=True))
    bucket = 0
    for page in scan_tenant(tenant_id):
        audit = BucketAudit(hot.execute, tenant_id, bucket)
        unknown = (e for e in page.entries if e.is_cold and e.segment not in known)
        report.forgotten += audit.unplace(unknown)
        bucket = page.next.bucket if page.next else bucket


def _without_row(
    tenant_id: int, bucket: Bucket, seen: Container[str], report: AdoptReport
) -> Iterator[Object]:
    pages = bucket.client.get_paginator("list_objects_v2")
    for page in pages.paginate(
        Bucket=bucket.name,
        Prefix=tenant_prefix(tenant_id),
        PaginationConfig={"PageSize": PAGE_ROWS},
    ):
        listed = [item["Key"] for item in page.get("Contents", ())]
        with tenant_scope(tenant_id):
            rows = Segment.objects.filter(object_key__in=listed)
            named = set(rows.values_list("object_key", flat=True))
        report.known += len(named)
        yield from (bucket.object(key) for key in listed if key not in named and key not in seen)
