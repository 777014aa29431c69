"""Segments in S3 that have no row get one: after the loss of the database, or of a row.

The footer says whose the segment is; its space must be known. The caller restores the blocks that
the index never heard of. Adopting what a worker gave up is harmless: what nobody names in it is
dead, and compaction deletes a segment without live blocks.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from botocore.exceptions import ClientError
from django.conf import settings
from django.db import IntegrityError, transaction

from catalog.models import Segment, Space
from controlplane import s3
from neve.errors import Corrupt
from neve.keys import segment_key
from neve.segment import SegmentFooter
from tenants.scope import tenant_scope
from workers.chains import count_runs
from workers.objects import footer_of, is_missing


class Kind(StrEnum):
    """What an object without a row is."""

    SEGMENT = "segment"
    RUBBISH = "rubbish"  # no segment, or one that was damaged
    ELSEWHERE = "elsewhere"  # a segment under another key than its own
    GONE = "gone"


@dataclass(frozen=True)
class Found:
    """An object in the S3 bucket. `footer`: of a segment under its own key."""

    object_key: str
    kind: Kind
    size_bytes: int = 0
    stored_at: datetime | None = None
    footer: SegmentFooter | None = None


def look_at(object_key: str) -> Found:
    """Opens it by ranged reads of its end. Raises S3's errors."""
    try:
        head = s3.client().head_object(Bucket=settings.ENV.s3_bucket, Key=object_key)
        facts = (head["ContentLength"], head["LastModified"])
        footer = footer_of(object_key, head["ContentLength"])
    except Corrupt:
        return Found(object_key, Kind.RUBBISH, *facts)
    except ClientError as error:
        if is_missing(error):
            return Found(object_key, Kind.GONE)
        raise
    own = footer.header
    if object_key != segment_key(own.tenant_id, own.fingerprint, own.uuid):
        return Found(object_key, Kind.ELSEWHERE, *facts)
    return Found(object_key, Kind.SEGMENT, *facts, footer)


def adopt(found: Found) -> Segment | None:
    """The new row of a segment; None: its tenant or space is not known, or it has a row already."""
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
                    object_key=found.object_key,
                    state=Segment.State.LIVE,
                    blocks=len(found.footer.rows),
                    size_bytes=found.size_bytes,
                    runs=count_runs(found.footer.rows),
                )
        except IntegrityError:
            return None
        # It is as old as its object: what people did since then holds for its blocks.
        row.created_at = found.stored_at or row.created_at
        row.save(update_fields=["created_at"])
        return row
