"""What became of each request: noted as it happens, put into the node's ring at its end.

Costs a few stores into one object at a look-up and at a load's end, a comparison at the request's
end, and nothing in steps; only of a request that is kept, up to CELLS ids are copied.
Belongs to the scheduler's thread; chains in other spaces are computed by the heartbeat's.
"""

from typing import Final

from neve.engine.chains import Chain
from neve.engine.table import Answer, Lookup, Request, RequestTable
from neve.formats.ids import BlockHasher
from neve.node.requests import (
    MOST_NAME,
    MOST_TOKENS,
    SLOW_S,
    Cells,
    Kin,
    Outcome,
    RequestRecord,
    RequestRing,
)
from neve.planner.choice import Choice, Decision

# Longer prompts are not hashed for other spaces: about 2 ms of the heartbeat's thread.
_MOST_HASHED: Final = 1 << 17


def note_found(request: Request, lookup: Lookup, answer: Answer, chunk_tokens: int) -> None:
    """The request's first look-up was answered; later ones (after a preemption) change nothing."""
    seen = request.seen
    if seen.match_s is not None:
        return
    seen.match_s = answer.at - lookup.asked_at
    seen.first, seen.end = lookup.start, len(request.tokens) // chunk_tokens
    seen.local_tokens = request.local_tokens
    seen.found, seen.miss, seen.failed = len(answer.rows), answer.miss, answer.failed


def note_choice(request: Request, choice: Choice, *, first: int, found: int) -> None:
    """`found`: chunks behind `first` that a load could bring."""
    seen = request.seen
    if seen.outcome is not Outcome.NOTHING:
        return
    seen.found = max(0, first - seen.first) + found
    if found:
        # Of both, the rear was loaded: for whoever asks why, a part of the prefix.
        both = choice.decision is Decision.BOTH
        seen.outcome = Outcome.LOAD_PREFIX if both else Outcome(choice.decision.value)


def record(table: RequestTable, request: Request) -> None:
    """The request ended. Without a connection, nothing is kept."""
    client = table.links[0].client
    if client is None:
        return
    ring, seen = client.stats.requests, request.seen
    slow = seen.slower or (seen.match_s or 0.0) + (seen.load_s or 0.0) > SLOW_S
    asked = request.params is not None and request.params.explain
    kept = ring.why_kept(failed=seen.failed, slow=slow, asked=asked)
    if kept is None:
        return
    chain, size = request.chain, 0 if request.chain is None else request.chain.chunk_tokens
    ids = [] if chain is None else [row[0] for row in chain.ids[: seen.end]]
    missed = seen.first + seen.found if seen.first + seen.found < seen.end else None
    found = RequestRecord(
        name=_name(request.engine.request_id),
        kept=kept,
        at_s=ring.clock(),
        prompt_tokens=_bounded(request.engine.prompt_tokens),
        local_tokens=_bounded(request.local_tokens if seen.match_s is None else seen.local_tokens),
        asked_tokens=_bounded((seen.end - seen.first) * size),
        found_tokens=_bounded(seen.found * size),
        loaded_tokens=_bounded(seen.loaded_tokens),
        miss_chunk=missed,
        miss_id=ids[missed] if missed is not None and missed < len(ids) else b"",
        reason=seen.miss if missed is not None else None,
        outcome=seen.outcome,
        match_ms=None if seen.match_s is None else round(1e3 * max(0.0, seen.match_s), 3),
        load_ms=None if seen.load_s is None else round(1e3 * max(0.0, seen.load_s), 3),
        load_failed=seen.failed and seen.load_s is not None,
        chain=Cells.of(ids),
    )
    _add(ring, found, request)


def _add(ring: RequestRing, found: RequestRecord, request: Request) -> None:
    terms, seen = ring.terms, request.seen
    looks = terms is not None and terms.kin and found.miss_chunk is not None and not seen.failed
    tokens = request.engine.prompt_tokens
    if not looks or tokens > _MOST_HASHED:
        ring.add(found)
        return
    # The request ended, so the engine's own sequence grows no more: it is not copied.
    prompt, origin = request.tokens, request.origin

    def chain_of(kin: Kin) -> Cells:
        hasher = BlockHasher(kin.fingerprint, kin.chunk_tokens)
        # With 2 shards a chunk has its heads' ids; the first one's does not depend on the number.
        chain = Chain(prompt, [hasher], origin, shards=2 if kin.heads else 1)
        chain.extend(tokens // kin.chunk_tokens)
        return Cells.of([row[0] for row in chain.ids])

    ring.add(found, chain_of)


def _name(request_id: str) -> str:
    """As the platform takes it; whatever the engine's users sent as their id."""
    text = "".join(char if char.isprintable() else "?" for char in request_id[:MOST_NAME])
    return text or "?"


def _bounded(count: int) -> int:
    return max(0, min(count, MOST_TOKENS))
