"""Writes a segment: row, object, proof that it is there. For flush and for compaction.

    row (uploading) → parts to S3 → footer read back → row (live)

A crash before the end leaves a row that never became live; reconcile removes it and the rest of its
upload. The caller then puts the segment into the index.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from django.db import transaction
from django.utils import timezone

from catalog.models import Segment, Space
from catalog.stores import Stores
from neve.errors import Corrupt
from neve.formats.block import HEADER_BYTES, PLAIN, BlockHeader
from neve.formats.keys import segment_key
from neve.formats.segment import (
    ENCODED_VERSION,
    VERSION,
    SegmentHeader,
    SegmentRow,
    SegmentWriter,
)
from neve.index.tier import EncodedPlace, HotTier, Location
from tiering.chains import count_runs
from tiering.objects import footer_of
from tiering.upload import MultipartUpload

# Large enough for fast ranged reads and few objects; small enough to write in seconds. Only blocks
# that are flushed for their age make smaller segments.
LEAST_BYTES, MOST_BYTES = 64 << 20, 256 << 20
QUOTA_SHARE, FLOOR_BYTES = 32, 8 << 20  # so that merges fit beside a full cold quota
LINKS_KEPT = 16  # of a segment, to the segments whose chains it continues most


def most_bytes(quota_bytes: int) -> int:
    """The largest segment of a tenant with this cold quota; a single block may exceed it."""
    return min(MOST_BYTES, max(quota_bytes // QUOTA_SHARE, FLOOR_BYTES))


def least_bytes(quota_bytes: int) -> int:
    """The smallest segment that is worth flushing at once, and not merged for its size."""
    return min(LEAST_BYTES, most_bytes(quota_bytes) // 4)


@dataclass(frozen=True)
class StoredBlock:
    """A verified block. `raw`: its bytes with the header, the payload as its codec has it."""

    header: BlockHeader
    raw: memoryview
    expires_s: int
    stored_s: int


def place_of(row: SegmentRow) -> int | EncodedPlace:
    """Where a footer says that its block is, as the index takes it."""
    if row.codec == PLAIN:
        return row.offset
    return EncodedPlace(row.offset, row.stored_length, row.codec)


def write_segment(
    tier: HotTier,
    space: Space,
    blocks: Iterable[StoredBlock],
    *,
    expected_bytes: int,
    generation: int = 0,
    store_id: int | None = None,
    encode: Callable[[StoredBlock], StoredBlock] | None = None,
    are_encoded: bool = False,
) -> tuple[Segment, Sequence[SegmentRow]] | None:
    """The live row, and the places of the blocks in it; None when there were no blocks.

    `encode` is called with each block; `are_encoded`: some of `blocks` have a codec already.

    Until it is live the row's size is `expected_bytes`, which reserves room. The segment is open in
    the index, so that `flushed` and `relocate` may name it. Copies a block's bytes before it takes
    the next block. Raises the errors of `blocks`, Valkey and S3, and `Corrupt` if S3 returns
    another footer than was written.
    """
    uuid, fingerprint = uuid4(), bytes.fromhex(space.fingerprint)
    row: Segment = Segment.objects.create(
        space=space,
        uuid=uuid,
        object_key=segment_key(space.tenant_id, fingerprint, uuid),
        size_bytes=expected_bytes,
        generation=generation,
        store_id=store_id,
    )
    object_ = Stores().object(row)
    tier.open_segment(row.pk)
    version = ENCODED_VERSION if encode or are_encoded else VERSION
    writer = SegmentWriter(SegmentHeader(space.tenant_id, uuid, fingerprint, version))
    with MultipartUpload(object_) as upload:
        upload.write(writer.header.encode())
        for block in blocks:
            stored = encode(block) if encode else block
            is_plain = stored.header.codec == PLAIN
            writer.add(
                stored.header,
                encoded_bytes=0 if is_plain else len(stored.raw) - HEADER_BYTES,
                expires_s=stored.expires_s,
                stored_s=stored.stored_s,
            )
            upload.write(stored.raw)
        if not writer.rows:
            tier.close_segments([row.pk])
            row.delete()
            return None
        upload.write(writer.footer())
        upload.complete()
    footer = footer_of(object_)
    if footer.header != writer.header or list(footer.rows) != writer.rows:
        raise Corrupt(f"{row.object_key}: S3 gave back another footer than was written")
    row.state, row.blocks, row.size_bytes = Segment.State.LIVE, len(writer.rows), upload.size_bytes
    row.runs = count_runs(writer.rows)
    row.save(update_fields=["state", "blocks", "size_bytes", "runs"])
    return row, writer.rows


def settle(row: Segment, refused: Sequence[bytes]) -> None:
    """Marks a segment whose blocks are all in the index or, as `refused`, dead bytes.

    A rebuild restores all blocks of settled segments; of others, whose writer died before this,
    only as many as the cold quota has room for.
    """
    Segment.objects.filter(pk=row.pk).update(
        indexed_at=timezone.now(), refused=[id_.hex() for id_ in refused]
    )


def count_live_bytes(tier: HotTier, segments: Sequence[int]) -> dict[int, int]:
    """Brings the rows' `live_bytes` up to date with the index. Returns them by segment."""
    with transaction.atomic():  # a later count waits here, so that its number stays
        locked = Segment.objects.select_for_update().only("live_bytes", "tenant_id")
        rows = list(locked.filter(pk__in=segments).order_by("pk"))
        counted = dict(zip(rows, tier.live_bytes([row.pk for row in rows]), strict=True))
        changed = [row for row, bytes_ in counted.items() if row.live_bytes != bytes_]
        for row in changed:
            row.live_bytes = counted[row]
        Segment.objects.bulk_update(changed, ["live_bytes"], batch_size=200)
        Segment.objects.filter(pk__in=[row.pk for row in rows]).update(counted_at=timezone.now())
    return {row.pk: bytes_ for row, bytes_ in counted.items()}


def find_links(tier: HotTier, row: Segment, places: Sequence[SegmentRow]) -> dict[int, int]:
    """Counts chains of other segments that go on in this one; stores the largest counts in the row.

    Call it after the blocks are in the index.
    """
    inside = {place.id for place in places}
    outside = sorted({place.parent for place in places} - inside)
    found = Counter(
        answer.segment
        for answer in tier.match(outside)
        if isinstance(answer, Location) and answer.is_cold and answer.segment != row.pk
    )
    links = dict(found.most_common(LINKS_KEPT))
    Segment.objects.filter(pk=row.pk).update(links=links)
    return links
