"""Encodes blocks for S3 without loss, where that makes reads of the space's cold blocks faster.

Each encoded block is decoded and compared before it is written: a wrong one would be a wrong
answer, since the checksum at rest covers the encoded bytes. Not for threads.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from catalog.models import Space
from catalog.sessions import live_sessions
from neve import _core
from neve.formats.block import HEADER_BYTES, PLAIN, SHUFFLE_ZSTD, checksum, encode_header
from neve.index.tier import Tier
from neve.planner.codecs import Costs, is_worthwhile
from neve.planner.speeds import mean_bytes_per_s
from retention.models import ColdCodec
from retention.rulebook import rulebook_of
from tiering.segments import StoredBlock

# Of zstd: higher ones gain less than a hundredth on KV and take longer (benchmarks/codec.py).
LEVEL = 1
MOST_NODES = 64  # the mean of so many tells enough
# Of S3 reads where no node has measured it: one object store behind 10 Gbit/s.
READ_BYTES_PER_S = 1.25e9
# Blocks of a segment that are encoded in vain before the rest is left as it is.
TRIES = 8
_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "half": 2}


class Encoder:
    """Of one segment's blocks. `always`: whenever it saves bytes, however slowly they are read."""

    def __init__(self, *, width: int, read_bytes_per_s: float, always: bool = False) -> None:
        self._width = width
        self._read_bytes_per_s = read_bytes_per_s
        self._always = always
        self._out = bytearray()
        self._back = bytearray()
        self._decode_s = self._decoded_bytes = 0.0
        self._vain = 0

    def encode(self, block: StoredBlock) -> StoredBlock:
        """The encoded block, or the same one where that is better. Valid until the next call."""
        if block.header.codec != PLAIN or self._vain >= TRIES:
            return block
        payload = block.raw[HEADER_BYTES:]
        if len(self._out) < len(block.raw):
            self._out, self._back = bytearray(len(block.raw)), bytearray(len(block.raw))
        room = memoryview(self._out)
        # One byte less than the payload: what does not save anything does not fit.
        size = _core.shuffle_zstd_encode(
            payload, self._width, LEVEL, room[HEADER_BYTES : len(block.raw) - 1]
        )
        encoded = room[: HEADER_BYTES + size]
        if not size or not self._is_right(block, encoded[HEADER_BYTES:], size):
            self._vain += 1
            return block
        self._vain = 0
        header = replace(
            block.header, codec=SHUFFLE_ZSTD, payload_checksum=checksum(encoded[HEADER_BYTES:])
        )
        encoded[:HEADER_BYTES] = encode_header(header)
        return replace(block, header=header, raw=encoded)

    def _is_right(self, block: StoredBlock, encoded: memoryview, size: int) -> bool:
        """Whether it decodes to the same bytes, and is worth it."""
        back = memoryview(self._back)[: block.header.payload_bytes]
        begun = time.perf_counter()
        decoded = _core.shuffle_zstd_decode(encoded, back)
        self._decode_s += time.perf_counter() - begun
        self._decoded_bytes += len(back)
        if not decoded or checksum(back) != block.header.payload_checksum:
            return False
        costs = Costs(self._read_bytes_per_s, self._decoded_bytes / max(self._decode_s, 1e-9))
        return self._always or is_worthwhile(len(back), size, costs)


def encoder_of(space: Space) -> Encoder | None:
    """By the policy of the space, and by the links over which its nodes read S3; None: its blocks
    are stored as they are. Costs few queries, in the tenant's scope."""
    choice = ColdCodec(rulebook_of(space.tenant_id).of_space(space.pk).cold_codec)
    if choice is ColdCodec.NONE:
        return None
    rows = live_sessions().filter(space=space).exclude(speeds={})
    speeds = list(rows.values_list("speeds", flat=True)[:MOST_NODES])
    return Encoder(
        width=width_of([space.identity.get("kv_dtype", ""), space.identity.get("dtype", "")]),
        read_bytes_per_s=mean_bytes_per_s(speeds, Tier.COLD) or READ_BYTES_PER_S,
        always=choice is ColdCodec.ALWAYS,
    )


def width_of(dtypes: Sequence[str]) -> int:
    """Bytes of a number of the KV, by the dtypes of a space's identity; 1 if none says it.

    A wrong width costs bytes only. `kv_dtype` is such as `auto:torch.bfloat16`.
    """
    for text in dtypes:
        for part in text.replace(":", ",").split(","):
            name = part.strip().removeprefix("torch.")
            if "fp8" in name or "float8" in name or name in ("int8", "uint8"):
                return 1
            if name in _WIDTHS:
                return _WIDTHS[name]
    return 1
