"""A space is one KV layout; only engines with its fingerprint read its blocks.

The node declares a `SpaceIdentity`; the control plane adds tenant and chunk size. Both compute the
fingerprint, and the node compares the two.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any, Self

from neve.errors import Misuse

MAX_CHUNK_TOKENS = 256
# Valkey before 9.0 slows sharply from values of 4 MB up; 1-2 MiB fills the wire.
TARGET_BLOCK_BYTES = 2 << 20
EXACT = "none"  # codec of a space whose blocks hold the KV bytes that engines computed


@dataclass(frozen=True)
class SpaceIdentity:
    """Everything, besides tenant and chunk size, that must be equal for KV bytes to be equal.

    `codec`: how payloads are encoded with loss (`neve.engine.device.lossy`), or `none`.

    `layout` describes the KV tensors by shape and stride. `bytes_per_token` counts all layers of
    this one rank. `revision` names the weights, not a path.
    """

    model: str
    revision: str
    dtype: str
    kv_dtype: str
    layout: str
    layout_version: int
    engine_block_tokens: int
    bytes_per_token: int
    tp_size: int = 1
    tp_rank: int = 0
    pp_size: int = 1
    pp_rank: int = 0
    codec: str = EXACT

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # Not isinstance, which accepts a bool as an int.
            if type(value) is not field.type:
                raise Misuse(
                    f"need {getattr(field.type, '__name__', field.type)}, got {value!r:.60}",
                    field=field.name,
                )
            if isinstance(value, str) and not 0 < len(value) <= 1024:
                raise Misuse(f"need 1 to 1024 characters, got {len(value)}", field=field.name)
            if isinstance(value, str) and not is_plain(value):
                raise Misuse(f"has NUL or half a surrogate pair: {value!a:.60}", field=field.name)
            least = self.least(field.name)
            if isinstance(value, int) and not least <= value < 2**31:
                raise Misuse(f"need {least} … 2³¹-1, got {value}", field=field.name)
        for kind in ("tp", "pp"):
            rank, size = getattr(self, f"{kind}_rank"), getattr(self, f"{kind}_size")
            if rank >= size:
                raise Misuse(f"must be below {kind}_size={size}, got {rank}", field=f"{kind}_rank")

    @staticmethod
    def least(name: str) -> int:
        """The least valid value of an integer field."""
        return 0 if name in ("tp_rank", "pp_rank", "layout_version") else 1

    @classmethod
    def from_dict(cls, raw: object) -> Self:
        """Inverse of `as_dict`. Raises `Misuse` with the missing, unknown or invalid field."""
        if not isinstance(raw, Mapping):
            raise Misuse("need an object", field="identity")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise Misuse("unknown field, remove it", field=str(unknown[0])[:60])
        optional = {"tp_size", "tp_rank", "pp_size", "pp_rank", "codec"}
        missing = sorted(known - optional - set(raw))
        if missing:
            raise Misuse("is required", field=missing[0])
        return cls(**raw)

    @property
    def is_exact(self) -> bool:
        return self.codec == EXACT

    def as_dict(self) -> dict[str, Any]:
        """Without `codec` where there is none: older platforms and fingerprints know no codecs."""
        values = asdict(self)
        if self.is_exact:
            del values["codec"]
        return values

    def differing_fields(self, other: Self) -> list[str]:
        """Names of the fields in which two identities differ, in declaration order."""
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]

    def fingerprint(self, *, tenant_id: int, chunk_tokens: int) -> bytes:
        """32 bytes, equal only if tenant, identity and chunk size are equal."""
        everything = {**self.as_dict(), "tenant_id": tenant_id, "chunk_tokens": chunk_tokens}
        canonical = json.dumps(everything, sort_keys=True, separators=(",", ":")).encode()
        return blake2b(canonical, digest_size=32, person=b"neve.space").digest()


def is_plain(text: str) -> bool:
    """Whether databases, logs and UTF-8 accept `text`: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def choose_chunk_tokens(
    engine_block_tokens: int, bytes_per_token: int, *, max_chunk_tokens: int = MAX_CHUNK_TOKENS
) -> int:
    """Tokens of one block: the most engine blocks that stay within 2 MiB and `max_chunk_tokens`.

    `bytes_per_token`: of the block, not of all groups if a chunk has one for each. Never less than
    one engine block, so a large one may exceed both bounds.
    """
    most = min(TARGET_BLOCK_BYTES // bytes_per_token, max_chunk_tokens)
    return engine_block_tokens * max(1, most // engine_block_tokens)
