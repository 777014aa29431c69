"""Payloads of replayed blocks: incompressible bytes, computed from the block id alone.

    payload = id (16 bytes) ‖ (pool[offset : offset + n] xor key), 64-bit little-endian words

`key` and `offset` come from the halves of the id; `pool` is fixed random data. One XOR pass over
cached memory is faster than any network. No two ids share a payload, so shifted, truncated, mixed
and swapped blocks are detected.
"""

import numpy as np
import numpy.typing as npt

from neve.errors import Misuse
from neve.formats.ids import ID_BYTES

WORD_BYTES = 8
# Fits a shared L3 cache, and is larger than any block.
_POOL_BYTES = 8 << 20
_POOL_SEED = 0x6E657665

Buffer = npt.NDArray[np.uint8]


class Payloads:
    """Writes and checks payloads of `payload_bytes` bytes. Immutable, so threads may share it.

    Raises `Misuse` unless `payload_bytes` is a multiple of 8 and at least 32.
    """

    def __init__(self, payload_bytes: int) -> None:
        if payload_bytes < 2 * ID_BYTES or payload_bytes % WORD_BYTES:
            raise Misuse(
                f"a block's payload must be a multiple of {WORD_BYTES} bytes and at least "
                f"{2 * ID_BYTES}, got {payload_bytes}"
            )
        self.payload_bytes = payload_bytes
        self._body_words = (payload_bytes - ID_BYTES) // WORD_BYTES
        self._offsets = _POOL_BYTES // WORD_BYTES
        random = np.random.Generator(np.random.SFC64(_POOL_SEED))
        size = self._offsets + self._body_words
        self._pool = random.integers(0, 2**64, size=size, dtype=np.uint64)

    def write(self, block_id: bytes, buffer: Buffer) -> None:
        """Fills `buffer` (uint8[payload_bytes], contiguous) with the payload of `block_id`."""
        pool, key = self._source(block_id)
        buffer[:ID_BYTES] = np.frombuffer(block_id, dtype=np.uint8)
        np.bitwise_xor(pool, key, out=buffer[ID_BYTES:].view(np.uint64))

    def matches(self, block_id: bytes, buffer: Buffer) -> bool:
        """Whether `buffer` (uint8[payload_bytes], contiguous) is exactly `block_id`'s payload."""
        pool, key = self._source(block_id)
        if buffer[:ID_BYTES].tobytes() != block_id:
            return False
        return bool(np.array_equal(np.bitwise_xor(pool, key), buffer[ID_BYTES:].view(np.uint64)))

    def _source(self, block_id: bytes) -> tuple[npt.NDArray[np.uint64], np.uint64]:
        if len(block_id) != ID_BYTES:
            raise Misuse(f"need {ID_BYTES} bytes, got {len(block_id)}", field="block_id")
        key = int.from_bytes(block_id[:8], "little")
        offset = int.from_bytes(block_id[8:], "little") % self._offsets
        return self._pool[offset : offset + self._body_words], np.uint64(key)
