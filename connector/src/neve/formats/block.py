"""The stored block: a 64-byte header and the payload. Specified in docs/formats/block.md.

Little-endian. A value in Valkey and a slice of a segment in S3 have the same bytes, so blocks of
both tiers are verified in the same way.
"""

import struct
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from neve.errors import Corrupt, Misuse

Buffer = Any  # anything with the buffer protocol; typing has a name for it from 3.12 on

MAGIC = b"NVB1"
VERSION = 1
XXH3_64 = 1
PREFIX = 0  # kind: KV of a whole prefix. 1 is reserved for pieces
PLAIN = 0  # codec: KV bytes as they are
SHUFFLE_ZSTD = 1  # codec: byte planes, then zstd; lossless. At rest only, never in Valkey
CODECS = (PLAIN, SHUFFLE_ZSTD)
HEADER_BYTES = 64
MAX_PAYLOAD_BYTES = 64 << 20
UNCOMMITTED_MS = 60_000  # a value in Valkey without a commit expires after this time

# Name and `struct` code of each field; src/core/layout.h has their offsets.
FIELDS = (
    ("magic", "4s"),
    ("version", "B"),
    ("kind", "B"),
    ("checksum_kind", "B"),
    ("codec", "B"),
    ("id", "16s"),
    ("parent", "16s"),
    ("tokens", "I"),
    ("payload_bytes", "I"),
    ("payload_checksum", "Q"),
    ("space_tag", "4s"),
    ("header_checksum", "I"),
)
_FIELDS = struct.Struct("<" + "".join(code for _, code in FIELDS[:-1]))  # checksummed
_CHECK = struct.Struct("<I")


@dataclass(frozen=True)
class BlockHeader:
    """`id`, `parent`: 16 bytes. `space_tag`: the first 4 bytes of the space's fingerprint.

    `payload_bytes`: length of the KV, before its codec. `payload_checksum`: of the payload as
    stored, after its codec.
    """

    id: bytes
    parent: bytes
    tokens: int
    payload_bytes: int
    payload_checksum: int
    space_tag: bytes
    codec: int = PLAIN


def checksum(payload: Buffer) -> int:
    """XXH3-64 of a contiguous buffer. Releases the GIL. Source: xxhash.com, XXH3 specification."""
    return xxhash.xxh3_64_intdigest(payload)


def encode_header(header: BlockHeader) -> bytes:
    """Returns the header's 64 bytes. Raises `Misuse` if the payload is empty or over 64 MiB."""
    if not 0 < header.payload_bytes <= MAX_PAYLOAD_BYTES:
        raise Misuse(f"need 1 … {MAX_PAYLOAD_BYTES}, got {header.payload_bytes}", field="payload")
    body = _FIELDS.pack(
        MAGIC,
        VERSION,
        PREFIX,
        XXH3_64,
        header.codec,
        header.id,
        header.parent,
        header.tokens,
        header.payload_bytes,
        header.payload_checksum,
        header.space_tag,
    )
    return body + _CHECK.pack(checksum(body) & 0xFFFFFFFF)


def decode_header(raw: Buffer) -> BlockHeader:
    """Reads the first 64 bytes of `raw`. Raises `Corrupt` with the wrong field."""
    view = memoryview(raw).cast("B")[:HEADER_BYTES]
    if len(view) < HEADER_BYTES:
        raise Corrupt(f"header has {len(view)} of {HEADER_BYTES} bytes")
    magic, version, kind, sums, codec, *rest = _FIELDS.unpack_from(view)
    id_, parent, tokens, size, payload_sum, tag = rest
    if magic != MAGIC:
        raise Corrupt(f"not a block: magic {magic!r}")
    if (version, kind, sums) != (VERSION, PREFIX, XXH3_64) or codec not in CODECS:
        raise Corrupt(f"unknown {version=}, {kind=}, checksum kind {sums} or {codec=}")
    (check,) = _CHECK.unpack_from(view, _FIELDS.size)
    if check != checksum(view[: _FIELDS.size]) & 0xFFFFFFFF:
        raise Corrupt("header checksum differs")
    if not 0 < size <= MAX_PAYLOAD_BYTES:
        raise Corrupt(f"payload of {size} bytes is out of bounds")
    return BlockHeader(id_, parent, tokens, size, payload_sum, tag, codec)


def verify(raw_header: Buffer, payload: Buffer, *, expect_id: bytes) -> BlockHeader:
    """Returns the header. Raises `Corrupt` if id, length or checksum of `payload` is wrong, or if
    it is encoded."""
    header = verify_stored(raw_header, payload, expect_id=expect_id)
    length = memoryview(payload).nbytes
    if header.codec != PLAIN:
        raise Corrupt(f"payload has codec {header.codec}, where a plain one was asked")
    if header.payload_bytes != length:
        raise Corrupt(f"payload has {length} bytes, its header says {header.payload_bytes}")
    return header


def verify_stored(raw_header: Buffer, payload: Buffer, *, expect_id: bytes) -> BlockHeader:
    """Returns the header, whatever the codec is. Raises `Corrupt` if id or checksum is wrong."""
    header = decode_header(raw_header)
    if header.id != expect_id:
        raise Corrupt(f"block {header.id.hex()} stands where {expect_id.hex()} was asked")
    if checksum(payload) != header.payload_checksum:
        raise Corrupt("payload checksum differs")
    return header


def as_plain(header: BlockHeader, payload: Buffer) -> BlockHeader:
    """The header of a block that was read encoded: with `payload`, the decoded KV."""
    return replace(header, payload_checksum=checksum(payload), codec=PLAIN)
