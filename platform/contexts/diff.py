"""Compares two contexts: the beginning that they share, and where they part."""

from dataclasses import dataclass

from django.db.models import BinaryField
from django.db.models.functions import Substr

from catalog.models import ID_BYTES, Context
from contexts.chains import ids_per_chunk, shared_ids
from tenants.scope import tenant_scope


@dataclass(frozen=True)
class Extent:
    """Tokens, and their blocks: of all shards and KV groups."""

    tokens: int
    blocks: int


@dataclass(frozen=True)
class Diff:
    """`shared`: the common beginning, in whole chunks. `only_this`, `only_other`: what follows.

    `parts_at_token`: the first token of the chunk in which they differ. None if one context is the
    beginning of the other, or if they are of different spaces, whose blocks are never shared.
    """

    same_space: bool
    shared: Extent
    parts_at_token: int | None
    only_this: Extent
    only_other: Extent


def diff(this: Context, other: Context) -> Diff:
    """Reads no more of either chain than the shorter one has. No call of Valkey."""
    if this.space_id != other.space_id:
        return Diff(False, Extent(0, 0), None, _behind(this, 0), _behind(other, 0))
    groups = max(1, len(this.space.groups))
    length = min(this.blocks, other.blocks) // groups
    ids = shared_ids(_beginning(this, length), _beginning(other, length))
    chunk_tokens = this.space.chunk_tokens
    a_chunk = ids_per_chunk(this.blocks // groups, tokens=this.tokens, chunk_tokens=chunk_tokens)
    chunks = ids // a_chunk
    shared = Extent(
        min(chunks * chunk_tokens, this.tokens, other.tokens), chunks * a_chunk * groups
    )
    is_beginning = ids == length
    return Diff(
        same_space=True,
        shared=shared,
        parts_at_token=None if is_beginning else shared.tokens,
        only_this=_behind(this, shared.tokens, shared.blocks),
        only_other=_behind(other, shared.tokens, shared.blocks),
    )


def _behind(context: Context, tokens: int, blocks: int = 0) -> Extent:
    return Extent(context.tokens - tokens, context.blocks - blocks)


def _beginning(context: Context, ids: int) -> bytes:
    """The first `ids` of the chain, concatenated."""
    beginning = Substr("chain", 1, ids * ID_BYTES, output_field=BinaryField())
    with tenant_scope(context.tenant_id):
        found = Context.objects.filter(pk=context.pk).values_list(beginning, flat=True).first()
    return bytes(found or b"")
