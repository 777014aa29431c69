"""Copies a segment's object to another store, and proves that the copy is the same.

    ranges of the source, each block verified → parts, each proven by its MD5 → footer read back

A store whose ETags are no MD5 (SSE-KMS, say) proves nothing by them: the copy is read back whole.
Memory: `memory_bytes()`, whatever the segment's size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from catalog.models import Segment
from neve.errors import Corrupt
from neve.formats import block
from neve.formats.segment import SegmentFooter, SegmentRow
from storage.s3 import Object
from tiering import upload
from tiering.objects import footer_of_segment, tail_of
from tiering.overlap import overlapped

RANGE_BYTES: Final = 16 << 20
READS_AHEAD: Final = 3


@dataclass(frozen=True)
class _Range:
    """Bytes from `begin` to `end` (exclusive), and the blocks that lie whole in it."""

    begin: int
    end: int
    rows: Sequence[SegmentRow]


def copy_segment(
    row: Segment,
    source: Object,
    target: Object,
    *,
    take: Callable[[int], None] = lambda size_bytes: None,
    renew: Callable[[], None] = lambda: None,
) -> None:
    """`target` is there and proven when this returns. Calls `take` before it sends so many bytes,
    `renew` often.

    Raises Corrupt if the source is damaged, or the copy differs; botocore's errors.
    """
    footer = footer_of_segment(row, source)
    ranges = _ranges(footer, row.size_bytes)
    target.abort_uploads()  # of a killed worker
    with upload.MultipartUpload(target, with_md5=True) as parts:
        for span, data in overlapped(partial(_read, source), ranges, at_once=READS_AHEAD):
            take(span.end - span.begin)
            parts.write(data)
            renew()
        parts.complete()
    if not parts.is_proven:
        for _ in overlapped(partial(_read, target), ranges, at_once=READS_AHEAD):
            renew()
    tail = tail_of(target)
    if tail.size_bytes != row.size_bytes or tail.footer() != footer:
        raise Corrupt(f"{target.key}: its copy has another footer or size than the original")


def verify_object(row: Segment, there: Object, *, whole: bool) -> None:
    """Proves that this object is the segment; `whole`: each block of it, else the footer alone.

    Raises Corrupt if it is not; botocore's errors.
    """
    footer = footer_of_segment(row, there)
    if whole:
        for _ in overlapped(
            partial(_read, there), _ranges(footer, row.size_bytes), at_once=READS_AHEAD
        ):
            pass


def _ranges(footer: SegmentFooter, size_bytes: int) -> list[_Range]:
    """They cover the whole object, cut between blocks."""
    found, begin, rows = [], 0, list[SegmentRow]()
    for row in sorted(footer.rows, key=lambda row: row.offset):
        if rows and row.end - begin > RANGE_BYTES:
            found.append(_Range(begin, row.offset, rows))
            begin, rows = row.offset, []
        rows.append(row)
    return [*found, _Range(begin, size_bytes, rows)]


def _read(object_: Object, span: _Range) -> bytes:
    """Raises Corrupt if it is short, or a block in it is damaged."""
    data: bytes = object_.get(f"bytes={span.begin}-{span.end - 1}")["Body"].read()
    if len(data) != span.end - span.begin:
        raise Corrupt(f"{object_.key} ends before {span.end}")
    view = memoryview(data)
    for row in span.rows:
        raw = view[row.offset - span.begin : row.end - span.begin]
        check = block.verify if row.codec == block.PLAIN else block.verify_stored
        check(raw[: block.HEADER_BYTES], raw[block.HEADER_BYTES :], expect_id=row.id)
    return data


def memory_bytes() -> int:
    """The most that a copy takes on top of the process's own."""
    return upload.memory_bytes() + (READS_AHEAD + 1) * RANGE_BYTES
