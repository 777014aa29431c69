"""Writes a segment: row, object, proof that it is there. For flush and for compaction.

    row (uploading) → parts to S3 → footer read back → row (live)

A crash before the end leaves a row that never became live; reconcile removes it and what its upload
left in S3. The index does not know the segment yet: that is for the caller to say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from django.db import transaction

from catalog.models import Segment, Space
from neve.block import BlockHeader
from neve.errors import Corrupt
from neve.hot import HotTier
from neve.keys import segment_key
from neve.segment import SegmentHeader, SegmentRow, SegmentWriter
from workers.chains import count_runs
from workers.objects import footer_of
from workers.upload import MultipartUpload

# Large enough that S3 reads it well in ranges and few objects hold much; small enough to write in
# seconds. Only what is flushed by its age is smaller.
LEAST_BYTES, MOST_BYTES = 64 << 20, 256 << 20


@dataclass(frozen=True)
class StoredBlock:
    """A verified block as it is stored. `raw`: all its bytes, the header included."""

    header: BlockHeader
    raw: memoryview
    expires_s: int
    stored_s: int


def write_segment(
    space: Space, blocks: Iterable[StoredBlock], *, generation: int = 0
) -> tuple[Segment, Sequence[SegmentRow]] | None:
    """The live row, and the places of the blocks in it; None when there were no blocks.

    Takes a block's bytes before it asks for the next one. Raises what `blocks` and S3 raise, and
    `Corrupt` when S3 gives back another footer than was written.
    """
    uuid, fingerprint = uuid4(), bytes.fromhex(space.fingerprint)
    row: Segment = Segment.objects.create(
        space=space,
        uuid=uuid,
        object_key=segment_key(space.tenant_id, fingerprint, uuid),
        generation=generation,
    )
    writer = SegmentWriter(SegmentHeader(space.tenant_id, uuid, fingerprint))
    with MultipartUpload(row.object_key) as upload:
        upload.write(writer.header.encode())
        for block in blocks:
            writer.add(block.header, expires_s=block.expires_s, stored_s=block.stored_s)
            upload.write(block.raw)
        if not writer.rows:
            row.delete()
            return None
        upload.write(writer.footer())
        upload.complete()
    footer = footer_of(row.object_key)
    if footer.header != writer.header or list(footer.rows) != writer.rows:
        raise Corrupt(f"{row.object_key}: S3 gave back another footer than was written")
    row.state, row.blocks, row.size_bytes = Segment.State.LIVE, len(writer.rows), upload.size_bytes
    row.runs = count_runs(writer.rows)
    row.save(update_fields=["state", "blocks", "size_bytes", "runs"])
    return row, writer.rows


def count_live_bytes(tier: HotTier, segments: Sequence[int]) -> dict[int, int]:
    """Brings the rows' `live_bytes` up to date with the index. Returns them by segment."""
    with transaction.atomic():  # who counts later waits here, so that its number stays
        rows = list(Segment.objects.select_for_update().filter(pk__in=segments))
        counted = dict(
            zip((r.pk for r in rows), tier.live_bytes([r.pk for r in rows]), strict=True)
        )
        for row in rows:
            row.live_bytes = counted[row.pk]
        Segment.objects.bulk_update(rows, ["live_bytes"], batch_size=200)
    return counted
