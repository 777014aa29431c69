"""Where the blocks of a context are: hot, cold, durable or lost, and where a request can go on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from catalog.models import Context
from contexts.chains import ids_per_chunk
from contexts.parts import Parts
from neve.errors import MissReason
from neve.formats.parts import PartKind, resume_at
from neve.index.tier import Location, Tier
from storage import hot

Answer = Location | MissReason
T = TypeVar("T")


@dataclass(frozen=True)
class BlockPlace:
    """`id`: hex. `tier` None: the block is not stored, for `reason`. `group`: number of its KV
    group, 0 in a space without. `is_needed`: a request behind the context's end needs it."""

    id: str
    tier: str | None
    reason: str | None
    is_durable: bool
    size_bytes: int
    group: int
    is_needed: bool


@dataclass(frozen=True)
class Run:
    """Neighbouring chunks that are in one place. `first_token` counts from 0. `bytes`: of their
    stored blocks. `tier`: hot (all needed blocks are), cold (one is only there), None (one is lost,
    for `reason`). `is_durable`: all needed blocks are in S3."""

    first_token: int
    tokens: int
    bytes: int
    tier: str | None
    is_durable: bool
    reason: str | None


@dataclass(frozen=True)
class Residency:
    """Where the blocks of a context are: totals, and each block in the order of the chain.

    Each block is hot (even if cold as well), cold (only), or neither; then it is lost if a request
    that goes on behind the context's end needs it. Of window parts and states amid the chain
    nothing need be stored. Durable blocks are in S3. Tokens count whole chunks: a chunk is lost if
    a needed block of it is, else cold if one is cold.

    `usable_tokens`: the longest prefix behind which a request can go on. `usable_hot_tokens`: the
    longest for which nothing is read from S3. `states`: lengths at which the states of linear
    attention are stored; None in a space without.
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
    usable_hot_tokens: int = 0
    states: int | None = None
    runs: tuple[Run, ...] = ()
    blocks: tuple[BlockPlace, ...] = ()


def residency_of(context: Context) -> Residency:
    """Costs one function call per 1,000 blocks. Raises Problem (hot-tier-unavailable)."""
    parts = Parts(context.space)
    chain = context.ids()
    ids = parts.of(chain)
    with hot.required():
        answers = hot.hot_tier(context.tenant_id).match(ids)
    needed = parts.is_needed(len(chain)) if parts.groups else [True] * len(ids)
    found = [answer for answer in answers if isinstance(answer, Location)]
    hot_ones = [answer for answer in found if answer.tier is Tier.HOT]
    cold_ones = [answer for answer in found if answer.tier is Tier.COLD]
    durable = [answer for answer in found if answer.is_cold]
    width = len(parts.groups) or ids_per_chunk(
        len(ids), tokens=context.tokens, chunk_tokens=parts.chunk_tokens
    )
    places = zip(ids, answers, needed, strict=True)
    rows = _rows(answers, width)
    return Residency(
        hot=len(hot_ones),
        cold=len(cold_ones),
        lost=sum(
            is_needed and isinstance(answer, MissReason)
            for answer, is_needed in zip(answers, needed, strict=True)
        ),
        durable=len(durable),
        hot_bytes=sum(each.size_bytes for each in hot_ones),
        cold_bytes=sum(each.size_bytes for each in cold_ones),
        durable_bytes=sum(each.size_bytes for each in durable),
        states=_states(parts, rows),
        runs=_runs(context, rows, _rows(needed, width)),
        **_tokens(context, parts, rows, _rows(needed, width)),
        blocks=tuple(
            _place(id_, answer, number % len(parts.groups) if parts.groups else 0, is_needed)
            for number, (id_, answer, is_needed) in enumerate(places)
        ),
    )


def _states(parts: Parts, chunks: Sequence[Sequence[Answer]]) -> int | None:
    """Chunks behind which the state of every state group is stored; None in a space without."""
    places = [n for n, group in enumerate(parts.groups) if group.kind is PartKind.STATE]
    if not places:
        return None
    return sum(not any(is_lost(row[n]) for n in places) for row in chunks)


def _rows(each: Sequence[T], width: int) -> list[Sequence[T]]:
    return [each[first : first + width] for first in range(0, len(each), width)]


def _runs(
    context: Context, chunks: Sequence[Sequence[Answer]], needed: Sequence[Sequence[bool]]
) -> tuple[Run, ...]:
    """`chunks`, `needed`: of each chunk its blocks, in one order."""
    each = context.tokens / max(1, len(chunks))
    runs: list[Run] = []
    for n, (row, which) in enumerate(zip(chunks, needed, strict=True)):
        # Of a chunk that needs nothing, what is there tells.
        answers = [answer for answer, is_needed in zip(row, which, strict=True) if is_needed] or row
        lost = next((answer for answer in answers if isinstance(answer, MissReason)), None)
        tier = None if lost else Tier.HOT if all(map(_is_hot, answers)) else Tier.COLD
        first = round(n * each)
        run = Run(
            first_token=first,
            tokens=round((n + 1) * each) - first,
            bytes=sum(answer.size_bytes for answer in row if isinstance(answer, Location)),
            tier=tier and tier.value,
            is_durable=all(map(_is_durable, answers)),
            reason=lost and lost.value,
        )
        if runs and _place_of(runs[-1]) == _place_of(run):
            last = runs.pop()
            run = replace(last, tokens=last.tokens + run.tokens, bytes=last.bytes + run.bytes)
        runs.append(run)
    return tuple(runs)


def _place_of(run: Run) -> tuple[str | None, bool, str | None]:
    return run.tier, run.is_durable, run.reason


def _tokens(
    context: Context,
    parts: Parts,
    chunks: Sequence[Sequence[Answer]],
    needed: Sequence[Sequence[bool]],
) -> dict[str, int]:
    """Tokens by residency. `chunks`, `needed`: of each chunk its blocks, in one order."""
    each = context.tokens / max(1, len(chunks))
    members = [
        [answer for answer, is_needed in zip(row, which, strict=True) if is_needed]
        for row, which in zip(chunks, needed, strict=True)
    ]
    at_end = [answer for row in members for answer in row]
    totals = dict.fromkeys(("hot", "cold", "lost", "durable"), 0)
    for row in members:
        # Without full attention nothing amid the chain is needed: such a chunk is where the end is.
        row = row or at_end
        has_lost = any(map(is_lost, row))
        totals["lost"] += has_lost
        totals["hot"] += all(map(_is_hot, row))
        totals["cold"] += not has_lost and not all(map(_is_hot, row))
        totals["durable"] += all(map(_is_durable, row))
    totals["usable"] = _usable(parts, chunks, lambda answer: not is_lost(answer))
    totals["usable_hot"] = _usable(parts, chunks, _is_hot)
    return {f"{name}_tokens": round(count * each) for name, count in totals.items()}


def usable_chunks(parts: Parts, answers: Sequence[Answer], width: int) -> int:
    """The first chunks behind which a request can go on. `width`: blocks of a chunk."""
    return _usable(parts, _rows(answers, width), lambda answer: not is_lost(answer))


def _usable(
    parts: Parts, chunks: Sequence[Sequence[Answer]], is_there: Callable[[Answer], bool]
) -> int:
    """The first chunks behind which a request can go on."""
    if parts.groups:
        stored = [[answer if is_there(answer) else None for answer in row] for row in chunks]
        found = resume_at(
            parts.groups, stored, first=0, chunk_tokens=parts.chunk_tokens, local_tokens=0
        )
        return found.chunks
    whole = [all(map(is_there, row)) for row in chunks]
    return whole.index(False) if False in whole else len(whole)


def is_lost(answer: Answer) -> bool:
    return isinstance(answer, MissReason)


def _is_hot(answer: Answer) -> bool:
    return isinstance(answer, Location) and answer.tier is Tier.HOT


def _is_durable(answer: Answer) -> bool:
    return isinstance(answer, Location) and answer.is_cold


def _place(id_: bytes, answer: Answer, group: int, is_needed: bool) -> BlockPlace:
    if isinstance(answer, MissReason):
        return BlockPlace(id_.hex(), None, answer.value, False, 0, group, is_needed)
    tier = answer.tier.value
    return BlockPlace(id_.hex(), tier, None, answer.is_cold, answer.size_bytes, group, is_needed)
