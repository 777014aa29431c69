"""Block ids: 16-byte keyed hashes, chained so that an equal id means an equal whole prefix.

    root  = H(fingerprint, "root",  u32 len(salt) ‖ salt ‖ u32 len(lora) ‖ lora)
    id[i] = H(fingerprint, "block", id[i-1] ‖ u32 count ‖ tokens as u32 … ‖ extra)
    head  = H(fingerprint, "head",  id[i] ‖ u32 KV head)   where a chunk has a block for each head
    group = H(fingerprint, "group", id[i] ‖ u32 group)    where a chunk has a block for each of
                                                 several KV cache groups; group 0 keeps id[i]
    id    = H(fingerprint, "key",   key)      where an engine has its own hashes of blocks

H is BLAKE2b with a 16-byte digest, keyed by the space's fingerprint and separated by `person`.
Integers are little-endian. Nothing depends on Python's `hash`, so ids are equal in every process.

Source: RFC 7693 (BLAKE2); chained as vLLM's own block hashes are (vllm/v1/core/kv_cache_utils.py).
"""

import sys
from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np

from neve.errors import Misuse

ID_BYTES = 16
_IS_U32: Final = array("I").itemsize == 4 and sys.byteorder == "little"


class BlockHasher:
    """Computes block ids of one space. Immutable, so threads may share it."""

    def __init__(self, fingerprint: bytes, chunk_tokens: int) -> None:
        if len(fingerprint) != 32:
            raise Misuse(f"need 32 bytes, got {len(fingerprint)}", field="fingerprint")
        if chunk_tokens < 1:
            raise Misuse(f"need at least 1, got {chunk_tokens}", field="chunk_tokens")
        self.fingerprint = fingerprint
        self.chunk_tokens = chunk_tokens

    def root(self, *, salt: bytes = b"", lora: bytes = b"") -> bytes:
        """Parent id of a chain's first block. Other salts and LoRA adapters never share ids."""
        framed = b"".join(len(part).to_bytes(4, "little") + part for part in (salt, lora))
        return self._digest(b"neve.root", framed)

    def chain(
        self, tokens: Sequence[int], *, parent: bytes, extras: Mapping[int, bytes] | None = None
    ) -> list[bytes]:
        """Ids of the whole chunks of `tokens` after `parent`; a partial tail gets no id.

        `extras`: chunk's index in `tokens` → further bytes that its KV depends on (multimodal ids
        with their offsets). Raises `Misuse` unless each token is an integer in 0 … 2³²-1.
        """
        extras = extras or {}
        count = len(tokens) // self.chunk_tokens
        packed = _packed(tokens[: count * self.chunk_tokens])
        width = 4 * self.chunk_tokens
        length = self.chunk_tokens.to_bytes(4, "little")
        keyed = blake2b(digest_size=ID_BYTES, key=self.fingerprint, person=b"neve.block")
        ids = []
        for i in range(count):
            digest = keyed.copy()  # half the time of a new one: a long prompt has thousands
            digest.update(parent + length + packed[i * width : (i + 1) * width])
            if i in extras:
                digest.update(extras[i])
            parent = digest.digest()
            ids.append(parent)
        return ids

    def of_key(self, key: bytes) -> bytes:
        """Id of a block from its engine's `key`, a cryptographic hash of the whole prefix."""
        return self._digest(b"neve.key", key)

    def of_heads(self, id_: bytes, heads: int) -> list[bytes]:
        """Ids of a chunk's blocks, one per KV head. For a root: parents of the first blocks."""
        return [
            self._digest(b"neve.head", id_ + head.to_bytes(4, "little")) for head in range(heads)
        ]

    def of_groups(self, id_: bytes, groups: int) -> list[bytes]:
        """Ids of a chunk's blocks, one per KV cache group. For a root: parents of the first
        blocks."""
        return [
            id_,
            *(self._digest(b"neve.group", id_ + n.to_bytes(4, "little")) for n in range(1, groups)),
        ]

    def _digest(self, person: bytes, data: bytes) -> bytes:
        return blake2b(data, digest_size=ID_BYTES, key=self.fingerprint, person=person).digest()


def _packed(tokens: Sequence[int]) -> bytes:
    """Packs tokens as u32. numpy alone would accept 1.5, True and "1" as token 1."""
    if not isinstance(tokens, np.ndarray):
        kinds = set(map(type, tokens))
        if kinds == {int} and _IS_U32:
            try:
                return array("I", tokens).tobytes()
            except OverflowError:
                raise Misuse("token ids must be within 0 … 2³²-1", field="tokens") from None
        for kind in kinds:
            if kind is not int and not issubclass(kind, np.integer):
                raise Misuse(f"token ids must be integers, got a {kind.__name__}", field="tokens")
    elif tokens.size and tokens.dtype.kind not in "iu":
        raise Misuse(f"token ids must be integers, got {tokens.dtype}", field="tokens")
    try:
        whole = np.asarray(tokens, dtype=np.int64)
    except OverflowError:
        raise Misuse("token ids must be within 0 … 2³²-1", field="tokens") from None
    if whole.size and (whole.min() < 0 or whole.max() > 0xFFFFFFFF):
        raise Misuse("token ids must be within 0 … 2³²-1", field="tokens")
    return whole.astype("<u4").tobytes()
