"""Reads blocks out of segments for a merge: ranged GETs in parallel, every block verified."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from neve.datapath.cold import ColdBlock, ColdReader, plan_ranges
from neve.errors import Corrupt, MissReason
from neve.formats import block
from neve.formats.segment import SegmentRow
from storage.s3 import PRESIGNED_S, Object
from tiering.read_ahead import read_ahead
from tiering.segments import StoredBlock

STREAMS = 6  # ranges read at a time
BATCHES_HELD = 4
READ_S = 60.0


@dataclass(frozen=True)
class ColdCopy:
    """A block and the segment that it is copied from: as it stands there, or decoded."""

    segment: int
    row: SegmentRow
    is_decoded: bool = False

    @property
    def id(self) -> bytes:
        return self.row.id

    @property
    def parent(self) -> bytes:
        return self.row.parent

    @property
    def size_bytes(self) -> int:
        return self.row.length if self.is_decoded else self.row.stored_length


class ColdSource:
    """Reads from the segments in `objects` (by number). Call `close` at the end."""

    def __init__(self, objects: Mapping[int, Object]) -> None:
        self.bad: list[ColdCopy] = []  # damaged in two reads
        self._objects = objects
        self._pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="ranges")
        self._reader = ColdReader(self._addresses)

    def read(self, copies: Sequence[ColdCopy]) -> Iterator[StoredBlock]:
        """Yields verified blocks in order (`tiering.read_ahead`). Damaged ones are added to `bad`.

        Raises `Unavailable` or `DeadlineExceeded` if S3 is in trouble, `Corrupt` if a segment is
        missing.
        """

        def start(batch: Sequence[ColdCopy], rooms: list[memoryview]) -> "_ColdReading":
            return _ColdReading(self, batch, rooms)

        return read_ahead(copies, start, at_once=BATCHES_HELD)

    def submit(self, group: Sequence[ColdBlock]) -> "Future[list[MissReason | None]]":
        return self._pool.submit(self.get, group)

    def get(self, group: Sequence[ColdBlock]) -> list[MissReason | None]:
        """One range. Raises S3's errors."""
        outcomes, trouble = self._reader.read(group, deadline=time.monotonic() + READ_S)
        if trouble is not None:
            raise trouble
        return outcomes

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _addresses(self, numbers: Sequence[int], timeout_s: float) -> tuple[dict[int, str], float]:
        return {n: self._objects[n].presign_get() for n in numbers}, PRESIGNED_S


class _ColdReading:
    """One batch that is being read from S3."""

    def __init__(
        self, source: ColdSource, copies: Sequence[ColdCopy], rooms: list[memoryview]
    ) -> None:
        self._source, self._copies, self._rooms = source, copies, rooms
        self._blocks = [
            ColdBlock(
                n,
                copy.id,
                copy.segment,
                copy.row.offset,
                room[block.HEADER_BYTES :],
                codec=copy.row.codec,
                encoded_bytes=_encoded_bytes(copy),
            )
            for n, (copy, room) in enumerate(zip(copies, rooms, strict=True))
        ]
        groups = plan_ranges(self._blocks, streams=2)
        self._parts = [(group, source.submit(group)) for group in groups]

    def blocks(self) -> Iterator[StoredBlock]:
        outcomes: dict[int, MissReason | None] = {}
        for group, future in self._parts:
            outcomes.update(zip((cold.index for cold in group), future.result(), strict=True))
        for n, cold in enumerate(self._blocks):
            outcome = outcomes[n]
            if outcome is MissReason.CORRUPT:  # in transit, or in S3? The second read decides
                (outcome,) = self._source.get([cold])
            if outcome is MissReason.CORRUPT:
                self._source.bad.append(self._copies[n])
            elif outcome is not None:
                raise Corrupt(f"segment {cold.segment} is not in S3")
            else:
                yield self._block(n)

    def cancel(self) -> None:
        futures = [future for _, future in self._parts if not future.cancel()]
        wait(futures)

    def _block(self, n: int) -> StoredBlock:
        header = block.decode_header(self._blocks[n].header)
        row = self._copies[n].row
        if self._blocks[n].encoded_bytes:
            header = block.as_plain(header, self._blocks[n].payload)
        self._rooms[n][: block.HEADER_BYTES] = block.encode_header(header)
        return StoredBlock(header, self._rooms[n], row.expires_s, row.stored_s)


def _encoded_bytes(copy: ColdCopy) -> int:
    """Of the payload, if it is encoded and shall be decoded; else 0."""
    is_encoded = copy.row.codec != block.PLAIN
    return copy.row.stored_length - block.HEADER_BYTES if is_encoded and copy.is_decoded else 0
