"""Where the blocks of a context are: hot, cold, durable or lost."""

from collections.abc import Sequence
from dataclasses import dataclass

from catalog.models import Context
from neve.errors import MissReason
from neve.index.tier import Location, Tier
from storage import hot

Answer = Location | MissReason


@dataclass(frozen=True)
class BlockPlace:
    """`id`: hex. `tier` None: the block is lost, for `reason`."""

    id: str
    tier: str | None
    reason: str | None
    is_durable: bool
    size_bytes: int


@dataclass(frozen=True)
class Residency:
    """Where the blocks of a context are: totals, and each block in the order of the chain.

    Each block is hot (even if cold as well), cold (only), or lost. Durable blocks are in S3. Tokens
    count whole chunks: a chunk is lost if any of its blocks is, else cold if any is cold.
    `usable_tokens`: tokens before the first lost chunk.
    """

    hot: int = 0
    cold: int = 0
    lost: int = 0
    durable: int = 0
    hot_bytes: int = 0
    cold_bytes: int = 0
    durable_bytes: int = 0
    hot_tokens: int = 0
    cold_tokens: int = 0
    lost_tokens: int = 0
    durable_tokens: int = 0
    usable_tokens: int = 0
    blocks: tuple[BlockPlace, ...] = ()


def residency_of(context: Context) -> Residency:
    """Costs one function call per 1,000 blocks. Raises Problem (hot-tier-unavailable)."""
    ids = context.ids()
    with hot.required():
        answers = hot.hot_tier(context.tenant_id).match(ids)
    found = [answer for answer in answers if isinstance(answer, Location)]
    hot_ones = [answer for answer in found if answer.tier is Tier.HOT]
    cold_ones = [answer for answer in found if answer.tier is Tier.COLD]
    durable = [answer for answer in found if answer.is_cold]
    return Residency(
        hot=len(hot_ones),
        cold=len(cold_ones),
        lost=len(answers) - len(found),
        durable=len(durable),
        hot_bytes=sum(each.size_bytes for each in hot_ones),
        cold_bytes=sum(each.size_bytes for each in cold_ones),
        durable_bytes=sum(each.size_bytes for each in durable),
        **_tokens(context, answers),
        blocks=tuple(_place(id_, answer) for id_, answer in zip(ids, answers, strict=True)),
    )


def _tokens(context: Context, answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens by residency. A chunk is a run of blocks, one per shard of the space."""
    chunks = max(1, round(context.tokens / context.space.chunk_tokens))
    shards = len(answers) // chunks if len(answers) % chunks == 0 else 1
    each = context.tokens * shards / max(1, len(answers))  # tokens of a chunk
    totals = dict.fromkeys(("hot", "cold", "lost", "durable", "usable"), 0.0)
    is_whole = True
    for first in range(0, len(answers), max(1, shards)):
        chunk = answers[first : first + max(1, shards)]
        found = [answer for answer in chunk if isinstance(answer, Location)]
        if len(found) < len(chunk):
            totals["lost"], is_whole = totals["lost"] + each, False
            continue
        is_hot = all(answer.tier is Tier.HOT for answer in found)
        totals["hot" if is_hot else "cold"] += each
        totals["durable"] += each * all(answer.is_cold for answer in found)
        totals["usable"] += each * is_whole
    return {f"{name}_tokens": round(total) for name, total in totals.items()}


def _place(id_: bytes, answer: Answer) -> BlockPlace:
    if isinstance(answer, MissReason):
        return BlockPlace(id_.hex(), None, answer.value, False, 0)
    return BlockPlace(id_.hex(), answer.tier.value, None, answer.is_cold, answer.size_bytes)
