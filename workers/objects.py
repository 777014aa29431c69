"""Segment objects in S3, as the workers see them. Raises botocore's errors."""

from collections.abc import Callable

from botocore.exceptions import ClientError
from django.conf import settings

from catalog.models import Segment
from controlplane import s3
from neve.errors import Corrupt
from neve.segment import SegmentFooter, read_footer


def size_of(object_key: str) -> int:
    """Of the whole object, in bytes."""
    answer = s3.client().head_object(Bucket=settings.ENV.s3_bucket, Key=object_key)
    return int(answer["ContentLength"])


def footer_of(object_key: str, size_bytes: int | None = None) -> SegmentFooter:
    """Opens a segment by ranged reads of its end. Raises Corrupt when it is no segment."""
    return read_footer(
        _reader(object_key), size_of(object_key) if size_bytes is None else size_bytes
    )


def footer_of_segment(row: Segment) -> SegmentFooter:
    """The footer of this very segment. Raises Corrupt when another object stands in its place."""
    footer = footer_of(row.object_key)
    if footer.header.uuid != row.uuid or footer.header.tenant_id != row.tenant_id:
        raise Corrupt(
            f"{row.object_key} is segment {footer.header.uuid} of tenant {footer.header.tenant_id}"
        )
    return footer


def abort_uploads(object_key: str) -> int:
    """Ends unfinished multipart uploads of this object: S3 keeps their parts. Returns how many."""
    where = {"Bucket": settings.ENV.s3_bucket}
    listed = s3.client().list_multipart_uploads(**where, Prefix=object_key)
    uploads = [each for each in listed.get("Uploads", ()) if each["Key"] == object_key]
    for upload in uploads:
        s3.client().abort_multipart_upload(**where, Key=object_key, UploadId=upload["UploadId"])
    return len(uploads)


def is_missing(error: ClientError) -> bool:
    """The object is not there, as opposed to S3 being in trouble."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] == 404


def _reader(object_key: str) -> Callable[[int, int], bytes]:
    def fetch(offset: int, length: int) -> bytes:
        span = f"bytes={offset}-{offset + length - 1}"
        answer = s3.client().get_object(Bucket=settings.ENV.s3_bucket, Key=object_key, Range=span)
        return answer["Body"].read()

    return fetch
