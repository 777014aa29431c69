"""What of a prompt is stored: the question of a router before it chooses a node.

Costs one function call of Valkey for 1,000 blocks and two SQL statements (in the canonical layout
one more), whatever is stored.
"""

from dataclasses import dataclass
from uuid import UUID

from django.db.models import BinaryField, F
from django.db.models.functions import Substr

from catalog.models import ID_BYTES, Context, Space
from contexts import making
from contexts.chains import shared_ids
from contexts.cost import Cost, cost_of
from engines.prompts import Tokens
from tenants.scope import tenant_scope

MOST_READ = 50  # contexts with the same first block whose chains are compared, last used first
MOST_SHOWN = 10
MOST_COMPARED = 32_768  # ids of a chain


@dataclass(frozen=True)
class Sharing:
    """A context that begins as the prompt does."""

    id: UUID
    name: str
    shared_tokens: int


@dataclass(frozen=True)
class Found:
    """`tokens`: of the prompt; those behind the last whole chunk (`tail_tokens`) can not be stored.
    Other members: as in `contexts.residency.Residency`."""

    tokens: int
    tail_tokens: int
    hot_tokens: int
    cold_tokens: int
    lost_tokens: int
    usable_tokens: int
    usable_hot_tokens: int
    contexts: tuple[Sharing, ...]
    cost: Cost


def look_up(space: Space, tokens: Tokens) -> Found:
    """Raises Problem: conflict (see `making.chain_of`), hot-tier-unavailable."""
    total, whole = len(tokens.ids), making.whole_tokens(space, tokens)
    if not whole:
        return Found(total, total, 0, 0, 0, 0, 0, (), Cost())
    ids = making.chain_of(space, tokens)
    found = making.residency_in(space, ids, whole)
    return Found(
        tokens=total,
        tail_tokens=total - whole,
        hot_tokens=found.hot_tokens,
        cold_tokens=found.cold_tokens,
        lost_tokens=found.lost_tokens,
        usable_tokens=found.usable_tokens,
        usable_hot_tokens=found.usable_hot_tokens,
        contexts=_sharing(space, b"".join(ids), len(ids) * space.chunk_tokens // whole),
        cost=cost_of(space, found, tokens=whole),
    )


def sharing(space: Space, root: bytes) -> tuple[Sharing, ...]:
    """Contexts that begin with the block `root`, the last used first, without comparing further:
    `shared_tokens` is a chunk."""
    with tenant_scope(space.tenant_id):
        rows = Context.objects.filter(space=space, root=root, expired_at=None)
        last = rows.order_by(F("last_used_at").desc(nulls_last=True), "pk")
        named = last.values_list("pk", "name")[:MOST_SHOWN]
        return tuple(Sharing(pk, name, space.chunk_tokens) for pk, name in named)


def _sharing(space: Space, chain: bytes, ids_per_chunk: int) -> tuple[Sharing, ...]:
    """Contexts with the longest common beginning first."""
    size = min(len(chain), MOST_COMPARED * ID_BYTES)
    with tenant_scope(space.tenant_id):
        rows = (
            Context.objects.filter(space=space, root=chain[:ID_BYTES], expired_at=None)
            .order_by(F("last_used_at").desc(nulls_last=True), "pk")
            .annotate(beginning=Substr("chain", 1, size, output_field=BinaryField()))
            .values_list("pk", "name", "beginning")[:MOST_READ]
        )
        found = [
            Sharing(
                pk,
                name,
                shared_ids(chain[:size], bytes(other)) // ids_per_chunk * space.chunk_tokens,
            )
            for pk, name, other in rows.iterator(chunk_size=10)
        ]
    found.sort(key=lambda each: (-each.shared_tokens, each.name))
    return tuple(each for each in found[:MOST_SHOWN] if each.shared_tokens)
