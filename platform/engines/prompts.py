"""The token ids and the salt of contexts that were made over REST, sealed in the database.

They are user data: warming needs them, since block ids do not lead back to tokens. A prompt goes
with its context's row. Blocks' bytes are nowhere here.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from django.db.models import Sum

from base import sealing
from base.problems import Problem
from catalog.models import Context
from engines.models import Prompt
from tenants.models import Quota

MOST_TOKENS = 1 << 20  # of one prompt
MOST_BYTES = 256 << 20  # of a tenant's prompts, as stored
MOST_SALT = 200  # characters
_PURPOSE = "prompt"


@dataclass(frozen=True)
class Tokens:
    """Token ids of a prompt, and the salt of its chain ("": none)."""

    ids: tuple[int, ...]
    salt: str = ""

    def __repr__(self) -> str:  # prompts stay out of logs
        return f"Tokens({len(self.ids)})"


def keep(context: Context, tokens: Tokens) -> None:
    """Inside the tenant's scope and a transaction, which locks the tenant's quota.

    Raises Problem (limit-reached): all prompts of the tenant together would be too large.
    """
    Quota.objects.select_for_update().get()
    sealed = _sealed(tokens)
    others = Prompt.objects.exclude(context=context).aggregate(all=Sum("size_bytes"))["all"] or 0
    if others + len(sealed) > MOST_BYTES:
        raise Problem(
            "limit-reached",
            f"prompts: the tenant's prompts would have {others + len(sealed)} bytes and the limit "
            f"is {MOST_BYTES}.",
            limit="prompts",
            most=MOST_BYTES,
        )
    Prompt.objects.update_or_create(
        context=context,
        defaults={"sealed": sealed, "tokens": len(tokens.ids), "size_bytes": len(sealed)},
    )


def of(context: Context) -> Tokens | None:
    """Inside the tenant's scope. None: the platform has no tokens of it, or cannot unseal them."""
    row = Prompt.objects.filter(context=context).first()
    if row is None:
        return None
    try:
        packed = zlib.decompress(sealing.unseal(bytes(row.sealed), purpose=_PURPOSE))
    except sealing.Unsealable:
        return None
    size = int.from_bytes(packed[:4], "little")
    salt = packed[4 : 4 + size].decode()
    return Tokens(tuple(np.frombuffer(packed[4 + size :], "<u4").tolist()), salt)


def packed_ids(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.uint32).astype("<u4").tobytes()


def _sealed(tokens: Tokens) -> bytes:
    salt = tokens.salt.encode()
    packed = len(salt).to_bytes(4, "little") + salt + packed_ids(tokens.ids)
    return sealing.seal(zlib.compress(packed, 6), purpose=_PURPOSE)
