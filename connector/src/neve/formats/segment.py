"""A segment: one S3 object with many blocks of one space. Specified in docs/formats/segment.md.

    header (64) ‖ blocks, as stored ‖ footer: header again (64) ‖ columns ‖ trailer (24)

Little-endian. One tail read fetches the footer, and the footer alone rebuilds the index. A segment
is written once; an object without a valid trailer is no segment.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np

from neve.errors import Corrupt, Misuse
from neve.formats.block import (
    CODECS,
    HEADER_BYTES,
    PLAIN,
    PREFIX,
    BlockHeader,
    Buffer,
    checksum,
)

MAGIC = b"NVSG"
END_MAGIC = b"NVSGFOOT"
VERSION = 2  # written where all blocks are plain, which nodes of release 0.2.0 read, too
ENCODED_VERSION = 3  # written where blocks may have a codec
MAX_SEGMENT_BYTES = (4 << 30) - 1  # nodes of release 0.2.0 read offsets of 32 bits
MAX_ROWS = 1 << 20
TAIL_BYTES = 64 << 10  # first guess of a tail read: about 1,000 blocks

_HEADER = struct.Struct("<4sHHII16s32s")
_TRAILER = struct.Struct("<IIQ8s")
_COLUMNS = (
    ("id", "V16"),
    ("parent", "V16"),
    ("offset", "<u8"),
    ("length", "<u4"),
    ("tokens", "<u4"),
    ("checksum", "<u8"),
    ("expires_s", "<u4"),
    ("stored_s", "<u4"),
    ("encoded_length", "<u4"),
    ("kind", "u1"),
    ("codec", "u1"),
)
_COLUMNS_OF = {1: _COLUMNS[:7], 2: _COLUMNS[:8], 3: _COLUMNS}
ROW_BYTES = {
    version: sum(np.dtype(dtype).itemsize for _, dtype in columns)
    for version, columns in _COLUMNS_OF.items()
}

Fetch = Callable[[int, int], bytes]  # fetch(offset, length): a ranged read of the object


@dataclass(frozen=True)
class SegmentHeader:
    """Owner and format `version` of a segment. `fingerprint`: 32 bytes, of its space."""

    tenant_id: int
    uuid: UUID
    fingerprint: bytes
    version: int = VERSION

    def encode(self) -> bytes:
        ids = (self.tenant_id, 0, self.uuid.bytes, self.fingerprint)
        return _HEADER.pack(MAGIC, self.version, 0, *ids)

    @classmethod
    def decode(cls, raw: Buffer) -> "SegmentHeader":
        """Raises `Corrupt` unless `raw` begins with a header of a known version."""
        if len(raw) < HEADER_BYTES:
            raise Corrupt(f"segment header has {len(raw)} of {HEADER_BYTES} bytes")
        magic, version, _, tenant_id, _, uuid, fingerprint = _HEADER.unpack_from(raw)
        if magic != MAGIC or version not in _COLUMNS_OF:
            raise Corrupt(f"no segment of a known version: magic {magic!r}, version {version}")
        return cls(tenant_id, UUID(bytes=uuid), fingerprint, version)


@dataclass(frozen=True)
class SegmentRow:
    """One block. `length` includes its header; `checksum` is the payload's.

    `stored_s`: commit time, seconds since 1970; lifetimes count from it, also after a rebuild.
    `expires_s`: expiry, seconds since 1970, as known when the segment was written; 0: none. `kind`,
    `codec`: as in its header. `encoded_length`: length in the segment if it has a codec, else 0.
    """

    id: bytes
    parent: bytes
    offset: int
    length: int
    tokens: int
    checksum: int
    expires_s: int = 0
    stored_s: int = 0
    encoded_length: int = 0
    kind: int = PREFIX
    codec: int = PLAIN

    @property
    def is_readable(self) -> bool:
        """Whether this version knows the block's kind and codec."""
        return self.kind == PREFIX and self.codec in CODECS

    @property
    def stored_length(self) -> int:
        """Bytes that the block takes in the segment, header included."""
        return self.encoded_length or self.length

    @property
    def end(self) -> int:
        """Offset of the first byte after the block."""
        return self.offset + self.stored_length


@dataclass
class SegmentWriter:
    """Lays out a segment. The caller writes `header.encode()`, each block, then `footer()`.

    For one thread. `size_bytes`: offset of the next block.
    """

    header: SegmentHeader
    rows: list[SegmentRow] = field(default_factory=list)
    size_bytes: int = HEADER_BYTES

    def add(
        self, block: BlockHeader, *, encoded_bytes: int = 0, expires_s: int = 0, stored_s: int = 0
    ) -> SegmentRow:
        """Places the next block. `encoded_bytes`: of its payload, if it has a codec.

        Raises `Misuse` if its space differs, the segment is full, or of a version without codecs.
        """
        if (block.codec != PLAIN) != (encoded_bytes > 0):
            raise Misuse(f"of codec {block.codec} needs their number", field="encoded_bytes")
        if block.codec != PLAIN and self.header.version < ENCODED_VERSION:
            raise Misuse(f"has a codec, which needs version {ENCODED_VERSION}", field="block")
        if block.space_tag != self.header.fingerprint[:4]:
            raise Misuse("is of another space", field="block")
        length = HEADER_BYTES + block.payload_bytes
        encoded_length = HEADER_BYTES + encoded_bytes if encoded_bytes else 0
        end = self.size_bytes + (encoded_length or length)
        full = len(self.rows) >= MAX_ROWS or end > MAX_SEGMENT_BYTES
        if full:
            raise Misuse(f"segment is full with {len(self.rows)} blocks", field="block")
        row = SegmentRow(
            block.id,
            block.parent,
            self.size_bytes,
            length,
            block.tokens,
            block.payload_checksum,
            expires_s,
            stored_s,
            encoded_length,
            codec=block.codec,
        )
        self.rows.append(row)
        self.size_bytes = row.end
        return row

    def footer(self) -> bytes:
        """The bytes after the last block."""
        columns = b"".join(
            np.array([getattr(row, name) for row in self.rows], dtype=dtype).tobytes()
            for name, dtype in _COLUMNS_OF[self.header.version]
        )
        body = self.header.encode() + columns
        return body + _TRAILER.pack(len(self.rows), len(body), checksum(body), END_MAGIC)


@dataclass(frozen=True)
class SegmentFooter:
    header: SegmentHeader
    rows: Sequence[SegmentRow]


def block_bytes(size_bytes: Any, blocks: Any) -> Any:
    """How many bytes of an object are its blocks'; the others are header and footer.

    Of numbers, or of columns of a database. Up to 6 bytes a block too many for other versions.
    """
    return size_bytes - (2 * HEADER_BYTES + _TRAILER.size) - blocks * ROW_BYTES[VERSION]


def read_footer(fetch: Fetch, size_bytes: int) -> SegmentFooter:
    """Reads the footer of an object of `size_bytes` with one tail read, two if it is large.

    Raises `Corrupt` if the object is truncated, damaged or no segment; passes on `fetch`'s errors.
    """
    least = 2 * HEADER_BYTES + _TRAILER.size
    if size_bytes < least:
        raise Corrupt(f"object of {size_bytes} bytes is shorter than an empty segment ({least})")
    length = min(TAIL_BYTES, size_bytes)
    tail = fetch(size_bytes - length, length)
    rows, body_bytes, body_sum, magic = _TRAILER.unpack(tail[-_TRAILER.size :])
    if magic != END_MAGIC:
        raise Corrupt("no footer at the end: the object is cut or no segment")
    footer_bytes = body_bytes + _TRAILER.size
    if rows > MAX_ROWS or body_bytes > HEADER_BYTES + rows * max(ROW_BYTES.values()):
        raise Corrupt(f"footer of {body_bytes} bytes cannot hold {rows} rows")
    if HEADER_BYTES + footer_bytes > size_bytes:
        raise Corrupt(f"footer of {footer_bytes} bytes is larger than the object")
    if footer_bytes > length:
        tail = fetch(size_bytes - footer_bytes, footer_bytes)
    body = tail[-footer_bytes : -_TRAILER.size]
    if len(body) != body_bytes or checksum(body) != body_sum:
        raise Corrupt("footer checksum differs")
    header = SegmentHeader.decode(body)
    if body_bytes != HEADER_BYTES + rows * ROW_BYTES[header.version]:
        raise Corrupt(f"footer of {body_bytes} bytes does not hold {rows} rows")
    return SegmentFooter(
        header, _decode_rows(body[HEADER_BYTES:], rows, size_bytes, _COLUMNS_OF[header.version])
    )


def _decode_rows(
    raw: bytes, count: int, size_bytes: int, layout: Sequence[tuple[str, str]]
) -> list[SegmentRow]:
    columns, at = [], 0
    for _, dtype in layout:
        column = np.frombuffer(raw, dtype=dtype, count=count, offset=at)
        at += column.nbytes
        columns.append([item.tobytes() for item in column] if dtype == "V16" else column.tolist())
    rows = [SegmentRow(*values) for values in zip(*columns, strict=True)]
    if any(row.offset < HEADER_BYTES or row.end > size_bytes for row in rows):
        raise Corrupt("a row points outside of the object")
    return rows
