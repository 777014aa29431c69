"""Reads footers of segment objects in S3. Raises botocore's errors."""

from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from botocore.exceptions import ClientError

from catalog.models import Segment
from neve.errors import Corrupt
from neve.formats.segment import TAIL_BYTES, SegmentFooter, read_footer
from storage.s3 import Object


@dataclass(frozen=True)
class Tail:
    """The last TAIL_BYTES of an object, or all of a smaller one."""

    object: Object
    size_bytes: int
    stored_at: datetime
    data: bytes

    def footer(self) -> SegmentFooter:
        """Raises Corrupt if it is no segment. A footer of many blocks takes another read."""
        return read_footer(self._fetch, self.size_bytes)

    def _fetch(self, offset: int, length: int) -> bytes:
        begin = self.size_bytes - len(self.data)
        if offset >= begin:
            return self.data[offset - begin :][:length]
        answer = self.object.get(f"bytes={offset}-{offset + length - 1}")
        data: bytes = answer["Body"].read()
        return data


def tail_of(object_: Object) -> Tail:
    """One request. Raises Corrupt when the object is empty."""
    try:
        answer = object_.get(f"bytes=-{TAIL_BYTES}")
    except ClientError as error:
        if (
            error.response["ResponseMetadata"]["HTTPStatusCode"]
            == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        ):
            raise Corrupt(f"{object_.key} is empty") from error
        raise
    data = answer["Body"].read()
    # An object that S3 returns whole has no range.
    size = answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2]
    return Tail(object_, int(size), answer["LastModified"], data)


def footer_of(object_: Object) -> SegmentFooter:
    """Opens a segment by ranged reads of its end. Raises Corrupt when it is no segment."""
    return tail_of(object_).footer()


def footer_of_segment(row: Segment, object_: Object) -> SegmentFooter:
    """The footer of this segment. Raises Corrupt if another object stands in its place."""
    footer = footer_of(object_)
    if footer.header.uuid != row.uuid or footer.header.tenant_id != row.tenant_id:
        raise Corrupt(
            f"{row.object_key} is segment {footer.header.uuid} of tenant {footer.header.tenant_id}"
        )
    return footer


def is_missing(error: ClientError) -> bool:
    """The object is not there, as opposed to S3 being in trouble."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
