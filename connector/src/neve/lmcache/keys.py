"""What an object of LMCache is bound to. Pure: any object with the right attributes will do.

LMCache's `ObjectKey` names the tokens, the model, the rank and the salt, but not what the bytes
mean: two engines of one model with other KV types have equal keys. So the layout is bound as well.
It tells types of other widths apart, not all types: vLLM holds fp8 of both kinds as uint8, and
serialized objects are bytes. Those are told apart by the option `revision` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Protocol, Self

from neve.engine.objects import ObjectRef

# Shorter hashes are not collision resistant: equal keys would not prove equal tokens.
LEAST_HASH_BYTES: Final = 16


class Key(Protocol):
    """LMCache's `ObjectKey`. Source: lmcache/v1/distributed/api.py, 0.5.6."""

    chunk_hash: bytes
    model_name: str
    kv_rank: int
    object_group_id: int
    cache_salt: str


@dataclass(frozen=True)
class Layout:
    """Shapes and dtypes of an object's tensors, one behind the other."""

    text: str
    size_bytes: int
    is_raw: bool  # one row of bytes: serialized, so that a look-up can't describe it

    @classmethod
    def of(cls, shapes: Sequence[Any] | None, dtypes: Sequence[Any] | None) -> Self | None:
        """`shapes`: torch.Size each; `dtypes`: torch.dtype each. None: they say nothing."""
        if not shapes or not dtypes:
            return None
        pairs = list(zip(shapes, dtypes, strict=True))
        text = " ".join(f"{dtype}{list(shape)}" for shape, dtype in pairs)
        size = sum(shape.numel() * dtype.itemsize for shape, dtype in pairs)
        is_raw = len(pairs) == 1 and len(shapes[0]) == 1 and dtypes[0].itemsize == 1
        return cls(text, size, is_raw)


def ref_of(key: Key, layout: Layout, chunk_tokens: int) -> ObjectRef:
    """The object of this key that is laid out so. Other keys or layouts give other ones."""
    numbers = b"%d:%d:" % (key.kv_rank, key.object_group_id)
    data = numbers + _framed(key.model_name, key.cache_salt, layout.text) + key.chunk_hash
    digest = blake2b(data, digest_size=32, person=b"neve.lmcache").digest()
    return ObjectRef(digest, layout.size_bytes, chunk_tokens // _ranks(key))


@lru_cache(maxsize=1024)
def _framed(*texts: str) -> bytes:
    """`texts`, each behind its length; mostly all keys of a task have the same."""
    return "".join(f"{len(text)}:{text}" for text in texts).encode(errors="surrogatepass")


def _ranks(key: Key) -> int:
    """Ranks that share a chunk. Source: `ObjectKey.WorldSizeFromKVRank`."""
    return max(1, key.kv_rank >> 24 & 0xFF)
