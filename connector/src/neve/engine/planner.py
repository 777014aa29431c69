"""The scheduler side, without the engine: per request, what to look up, load, save and report.

All methods run on the scheduler's thread and stay cheap; the look-ups run on threads of their own.
Nothing here waits longer than the milliseconds it says, and only while there is nothing to compute.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from itertools import chain as chained

from neve.datapath.client import Client, Match
from neve.engine.canary import Canary, Verdict
from neve.engine.chains import Chain, Origin
from neve.engine.handover import ASK_AGAIN_S, HandoverOutcome, HandoverWait
from neve.engine.link import Link
from neve.engine.load_policy import LoadPolicy
from neve.engine.params import RequestParams
from neve.engine.step import BlockLoad, BlockSave, LoadPlan
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason, NeveError
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.planner.choice import Choice, Decision

# A found prefix that could not be scheduled for this long is asked for anew: it may be gone.
_FRESH_S = 5.0
# While only look-ups and loads wait, the engine spins: give I/O threads the GIL, once a step.
STEP_WAIT_S = 0.001
# Reasons for a miss that say nothing about what is stored.
_SILENCE = frozenset((MissReason.TIMEOUT, MissReason.BREAKER))
# A look-up whose turn has not come may wait for so many times the match deadline.
MOST_TURNS = 5.0
# Ids remembered as stored (or on their way), so that they are not saved twice: 16 MB at most.
_KNOWN_IDS = 1 << 17


@dataclass
class _Lookup:
    """One question to Neve: which of the chunks from `start` on are stored?

    `choice`: what is done with the answer while the engine has `chosen_for` tokens itself.
    The future's answer comes with the time when it was there; engines look for it between steps.
    `begun_at`: when it went out; None until its turn came. `trouble`: the answer says nothing about
    what is stored. `strange`: other engines' blocks are among the found, once they are `counted`.
    """

    start: int
    asked_at: float
    future: Future[tuple[list[Match], float]] | None = None
    begun_at: float | None = None
    trouble: bool = False
    found: list[tuple[Location, ...]] = field(default_factory=list)
    choice: Choice | None = None
    chosen_for: int = 0
    counted: bool = False
    strange: bool = False


@dataclass
class _Request:
    """One live request. `reused`: chunk → tier and tokens that were really loaded of it. A
    preempted request loads again what it had, which counts once. `compared`: found chunks that are
    still to be compared with what this engine computes (see `neve.engine.canary`); such a request
    `computes` everything. What is `doubted` is not continued in the store before the first verdict.
    """

    tokens: Sequence[int]
    origin: Origin
    wish: RequestParams | None
    wait: HandoverWait | None = None
    chain: Chain | None = None
    lookup: _Lookup | None = None
    local_tokens: int = 0
    loading: LoadPlan | None = None
    failed_chunk: int | None = None
    may_load: bool = True
    may_save: bool = True
    is_tail_counted: bool = False
    next_save: int = 0
    reused: dict[int, tuple[Tier, int]] = field(default_factory=dict)
    prompt_tokens: int = 0
    compared: dict[int, tuple[Location, ...]] = field(default_factory=dict)
    computes: bool = False
    doubted: bool = False


@dataclass(frozen=True)
class FinishedRequest:
    """What is left of a request that ended: what it reused, and its stored chain for a context."""

    wish: RequestParams
    hot_tokens: int
    cold_tokens: int
    ids: list[tuple[bytes, ...]]
    chunk_tokens: int


class Planner:
    """Knows the live requests. `links`: one entry a space, in rank order, of `shards` columns."""

    def __init__(
        self,
        links: Sequence[Link],
        *,
        engine_block_tokens: int,
        match_deadline_s: float,
        judge: LoadPolicy,
        telemetry: Telemetry,
        canary: Canary | None = None,
        handover_wait_s: float = 2.0,
        loads: bool = True,
        saves: bool = True,
        shards: int = 1,
    ) -> None:
        self._shards = shards
        self._judge = judge
        self._telemetry = telemetry
        self._canary = canary or Canary(0, 1, telemetry)
        self._links = links
        self._engine_block_tokens = engine_block_tokens
        self._match_deadline_s = match_deadline_s
        self._handover_wait_s = handover_wait_s
        self._loads = loads
        self._saves = saves
        self._requests: dict[str, _Request] = {}
        # Computed tokens from which on `plan_saves` has something to do; unknown: ask it.
        self.save_at: dict[str, int] = {}
        # First ids of chunks that are stored, as far as is known → whether this engine stored them.
        self._known: OrderedDict[bytes, bool] = OrderedDict()
        self._lost: list[bytes] = []
        self._hashers: tuple[BlockHasher, ...] = ()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="neve-match")
        self._wait_left_s = STEP_WAIT_S

    # ---- requests come and go

    def add(
        self,
        request_id: str,
        tokens: Sequence[int],
        origin: Origin,
        wish: RequestParams | None,
        *,
        prompt_tokens: int | None = None,
    ) -> None:
        """Begins a request; `tokens` is the engine's own sequence and grows with the output, from
        the `prompt_tokens` on (default: those of now)."""
        prefilled = wish.prefilled if wish is not None else None
        wait = HandoverWait(prefilled) if prefilled is not None else None
        prompt_tokens = len(tokens) if prompt_tokens is None else prompt_tokens
        self._requests[request_id] = _Request(
            tokens, origin, wish, wait, prompt_tokens=prompt_tokens
        )

    def knows(self, request_id: str) -> bool:
        return request_id in self._requests

    def end(self, request_id: str) -> FinishedRequest | None:
        """Ends a request; None when it has nothing to say to Neve."""
        request = self._requests.pop(request_id, None)
        self.save_at.pop(request_id, None)
        if request is None:
            return None
        if request.compared:
            self._canary.drop()
        if request.lookup is not None and request.lookup.future is not None:
            request.lookup.future.cancel()
        if request.wish is None:
            return None
        chain: list[tuple[bytes, ...]] = []
        for ids in request.chain.ids if request.chain else ():
            if ids[0] not in self._known:
                break
            chain.append(ids)
        return FinishedRequest(
            wish=request.wish,
            hot_tokens=sum(n for tier, n in request.reused.values() if tier is Tier.HOT),
            cold_tokens=sum(n for tier, n in request.reused.values() if tier is Tier.COLD),
            ids=chain,
            chunk_tokens=self._hashers[0].chunk_tokens if self._hashers else 0,
        )

    def note_preempted(self, request_ids: Iterable[str]) -> None:
        """These lost their engine blocks: what was found before they ran is out of date."""
        for request_id in request_ids:
            if request_id in self._requests:
                self._requests[request_id].lookup = None

    def reset(self) -> None:
        """Forgets what is stored; live requests neither load nor save any more."""
        self._known.clear()
        for request in self._requests.values():
            request.may_load = request.may_save = False
            if request.compared:
                request.compared.clear()
                self._canary.drop()

    def note_compared(self, verdicts: Iterable[tuple[bytes, Verdict]]) -> None:
        """What ranks said of blocks that were computed and fetched, by first id. When one differs,
        nothing is loaded or saved any more."""
        self._canary.note(verdicts)
        if self._canary.alone:
            self._loads = self._saves = False
            self.reset()

    def pause(self) -> None:
        """Gives other threads the GIL, at most once a step, and only while nothing is computed."""
        wait_s, self._wait_left_s = self._wait_left_s, 0.0
        time.sleep(wait_s)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- look-up

    def matched_tokens(self, request_id: str, local_tokens: int) -> int | None:
        """Tokens beyond `local_tokens` (engine-block aligned) that are to be loaded from Neve.

        None while the answer is outstanding (see `_answer_by`), and while blocks are awaited that a
        prefill node named; 0 is a miss. An engine that only saves asks as well, to
        send what is missing and nothing else.
        """
        request = self._requests.get(request_id)
        if request is None or not request.may_load or self._canary.alone:
            return 0
        chain = self._chain(request)
        if chain is None:
            return 0
        request.local_tokens = local_tokens
        start = local_tokens // chain.chunk_tokens
        # Others rely on what is handed over, so every block of it is asked for.
        hands_over = request.wish is not None and request.wish.hands_over
        first = 0 if hands_over or not self._loads else start
        lookup = request.lookup
        now = time.monotonic()
        count = len(request.tokens) // chain.chunk_tokens
        if lookup is None or first < lookup.start or now - lookup.asked_at > _FRESH_S:
            if first >= count:
                self._count_tail(request, chain)
                return 0
            lookup = request.lookup = _Lookup(first, now)
            self._ask(request, lookup, chain)
        if lookup.future is not None and not self._settle(request, lookup, chain, now):
            return None
        if not self._loads or start >= count:
            return 0
        if request.wait is not None:
            self._await(request, request.wait, lookup, chain, now)
            return None
        if self._computes(request, lookup, chain, start):
            return 0
        choice = self._choose(request, lookup, chain.chunk_tokens)
        end = (start + choice.blocks) * chain.chunk_tokens
        return max(0, end - local_tokens) if choice.blocks else 0

    def _computes(self, request: _Request, lookup: _Lookup, chain: Chain, start: int) -> bool:
        """Whether nothing of what was found is loaded: it is compared, or nothing was compared yet.
        What this engine stored itself proves nothing."""
        if request.computes:
            return True
        if not lookup.counted:
            lookup.counted = True
            numbers = range(start, lookup.start + len(lookup.found))
            others = [n for n in numbers if not self._known.get(chain.ids[n][0])]
            lookup.strange = bool(others)
            if others and self._canary.picks():
                request.computes = request.doubted = True
                request.compared = {
                    n: lookup.found[n - lookup.start] for n in (others[0], others[-1])
                }
                return True
        request.doubted = lookup.strange and self._canary.closed
        return request.doubted

    def _await(
        self, request: _Request, wait: HandoverWait, lookup: _Lookup, chain: Chain, now: float
    ) -> None:
        """Named blocks may still come: they are asked for until they do or the time is up. Then
        all is asked for a last time, and that answer counts."""
        patience_s = self._judge.patience_s(request.local_tokens, len(request.tokens))
        until = now + min(self._handover_wait_s, patience_s)
        chain.extend(len(request.tokens) // chain.chunk_tokens)
        wait.begin(chain.ids, chain.chunk_tokens, until=until)
        outcome = wait.outcome(lookup.start + len(lookup.found), now)
        if outcome is None and lookup.trouble:
            outcome = HandoverOutcome.LATE
        if outcome is not None:
            self._telemetry.count("handovers", 1, outcome)
            request.wait = None
        elif now < lookup.asked_at + ASK_AGAIN_S:
            self.pause()
            return
        lookup.asked_at = now
        self._ask(request, lookup, chain)

    def _choose(self, request: _Request, lookup: _Lookup, chunk_tokens: int) -> Choice:
        """How much of what was found is loaded: decided once for a look-up. That it is computed is
        counted here; a load once it is planned, since the engine may know a nearer place."""
        if lookup.choice is None or lookup.chosen_for != request.local_tokens:
            first = request.local_tokens // chunk_tokens
            choice = self._judge.weigh(
                lookup.found[first - lookup.start :],
                first_chunk=first,
                chunk_tokens=chunk_tokens,
                local_tokens=request.local_tokens,
                prompt_tokens=len(request.tokens),
            )
            recompute = choice.decision is Decision.RECOMPUTE
            if recompute and lookup.choice is None:
                self._judge.note_decision(choice)
            lookup.choice, lookup.chosen_for = choice, request.local_tokens
        return lookup.choice

    def _settle(self, request: _Request, lookup: _Lookup, chain: Chain, now: float) -> bool:
        """Takes the answer if it is there or the deadline has passed; waits a little, if it may."""
        assert lookup.future is not None
        wait_s, self._wait_left_s = self._wait_left_s, 0.0
        try:
            matches, answered_at = lookup.future.result(timeout=wait_s)
        except FutureTimeout:
            if now < self._answer_by(request, lookup):
                return False
            lookup.future.cancel()  # if it still waits for a thread, later ones need not
            matches, answered_at = [], now
        lookup.future = None
        misses = {match.miss for match in matches}
        lookup.trouble = not misses or not misses.isdisjoint(_SILENCE)
        if request.wait is None:
            self._telemetry.sample("match_seconds", answered_at - lookup.asked_at)
        # Chunks of which every column is there: the shortest prefix of all spaces.
        per_space = [_rows(match.locations, self._shards) for match in matches]
        rows = zip(*per_space, strict=False)
        lookup.found = [tuple(chained.from_iterable(parts)) for parts in rows]
        for number, ids in enumerate(chain.ids[lookup.start :]):
            if number < len(lookup.found):
                self._remember(ids[0])
            elif not lookup.trouble:
                self._forget(ids[0])
        return True

    def _answer_by(self, request: _Request, lookup: _Lookup) -> float:
        """When nobody waits for the answer any more. Of many that come at once, the last may wait
        for their turn as long as computing would take, within bounds."""
        if lookup.begun_at is not None:
            return lookup.begun_at + self._match_deadline_s
        patience_s = self._judge.patience_s(request.local_tokens, len(request.tokens))
        turns = min(MOST_TURNS, max(1.0, patience_s / self._match_deadline_s))
        return lookup.asked_at + turns * self._match_deadline_s

    def _ask(self, request: _Request, lookup: _Lookup, chain: Chain) -> None:
        """Asks for the whole chunks from the look-up's start on. Their ids are made on the look-up
        thread too: of many requests that come at once, the first are computed while others' are
        made."""
        counts, count = request.wait is None, len(request.tokens) // chain.chunk_tokens
        lookup.begun_at = None

        def ask() -> tuple[list[Match], float]:
            chain.extend(count)
            if counts:
                self._count_tail(request, chain)
            lookup.begun_at = time.monotonic()
            return self._match(chain.ids[lookup.start : count], counts=counts), time.monotonic()

        lookup.future = self._threads.submit(ask)

    def _count_tail(self, request: _Request, chain: Chain) -> None:
        """Once a request: tokens after the last whole chunk, for the hit rate of whole prompts."""
        tail_tokens = len(request.tokens) % chain.chunk_tokens
        if tail_tokens and not request.is_tail_counted:
            request.is_tail_counted = True
            for client in self._clients() or ():
                client.stats.count(tail_tokens=tail_tokens)

    def _match(self, ids: Sequence[tuple[bytes, ...]], *, counts: bool) -> list[Match]:
        """On a look-up thread: one match a space; none when the client is going away."""
        found = []
        try:
            for number, client in enumerate(self._clients() or ()):
                columns = slice(number * self._shards, (number + 1) * self._shards)
                asked = list(chained.from_iterable(every[columns] for every in ids))
                match = client.match if counts else client.match_again
                found.append(match(asked, deadline_s=self._match_deadline_s))
        except NeveError:
            return []
        return found

    # ---- loads

    def plan_load(
        self, request_id: str, external_tokens: int, engine_blocks: Sequence[int]
    ) -> LoadPlan:
        """The load of `external_tokens` after the local ones, into the request's engine blocks.

        Follows a `matched_tokens` that returned so many.
        """
        request = self._requests[request_id]
        lookup, request.lookup = request.lookup, None
        assert lookup is not None
        assert lookup.choice is not None
        assert request.chain is not None
        size = request.chain.chunk_tokens
        per_chunk = size // self._engine_block_tokens
        end_tokens = request.local_tokens + external_tokens
        first = request.local_tokens // size
        blocks = []
        for chunk in range(first, -(-end_tokens // size)):
            into = engine_blocks[chunk * per_chunk : (chunk + 1) * per_chunk]
            skip = max(0, request.local_tokens - chunk * size) // self._engine_block_tokens
            blocks.append(
                BlockLoad(
                    ids=request.chain.ids[chunk],
                    locations=lookup.found[chunk - lookup.start],
                    engine_blocks=tuple(into),
                    skip=skip,
                )
            )
        self._judge.note_decision(lookup.choice)
        deadline_s = self._judge.deadline_s(lookup.choice)
        request.loading = LoadPlan(request_id, first, tuple(blocks), deadline_s)
        request.failed_chunk = None
        self._judge.begin_load(request.loading)
        return request.loading

    def note_failures(self, engine_blocks: Iterable[int]) -> None:
        """Engine blocks that some rank could not fill, of loads under way."""
        failed = frozenset(engine_blocks)
        for request in self._requests.values() if failed else ():
            if request.loading is None:
                continue
            for number, block in enumerate(request.loading.blocks):
                if not failed.isdisjoint(block.written):
                    previous = request.failed_chunk
                    request.failed_chunk = number if previous is None else min(previous, number)
                    break

    def note_loaded(self, request_id: str) -> None:
        """All ranks ended this request's load (well or not)."""
        request = self._requests.get(request_id)
        if request is None or request.loading is None:
            self._judge.end_load(request_id, None)  # aborted meanwhile
            return
        plan, request.loading = request.loading, None
        good = len(plan.blocks) if request.failed_chunk is None else request.failed_chunk
        self._judge.end_load(request_id, good)
        size = self._hashers[0].chunk_tokens
        for chunk, block in enumerate(plan.blocks[:good], plan.first_chunk):
            tier = block.locations[0].tier
            tokens = len(block.written) * self._engine_block_tokens
            # After a preemption its own answer is loaded as well, which is no part of the prompt.
            answer = max(0, (chunk + 1) * size - request.prompt_tokens)
            request.reused[chunk] = tier, max(0, tokens - answer)
            self._telemetry.count("hit_tokens", tokens, tier)
        if good < len(plan.blocks):
            # Asking again would find the same blocks, and fail the same way, for ever.
            request.may_load = False
            for block in plan.blocks[good:]:
                self._forget(block.ids[0])

    # ---- saves

    def plan_saves(
        self, request_id: str, computed_tokens: int, engine_blocks: Sequence[int]
    ) -> list[BlockSave]:
        """Whole chunks among the first `computed_tokens` that nobody saved or found yet."""
        request = self._requests.get(request_id)
        if request is None:
            return []
        doubted = request.doubted and self._canary.closed
        saves_new = request.may_save and self._saves and not doubted
        if not (saves_new or request.compared):
            return []
        chain = self._chain(request)
        if chain is None:
            return []
        chunks = min(computed_tokens, len(request.tokens)) // chain.chunk_tokens
        chain.extend(chunks)
        per_chunk = chain.chunk_tokens // self._engine_block_tokens
        saves = []
        for chunk in range(request.next_save, chunks):
            ids = chain.ids[chunk]
            stored = request.compared.pop(chunk, ())
            saved = saves_new and ids[0] not in self._known
            if saved or stored:
                source = tuple(engine_blocks[chunk * per_chunk : (chunk + 1) * per_chunk])
                parents = chain.parents(chunk)
                saves.append(
                    BlockSave(
                        request_id, ids, parents, chain.chunk_tokens, source, chunk, tuple(stored)
                    )
                )
            if saves_new:
                self._remember(ids[0], own=saved and not stored)
        request.next_save = max(request.next_save, chunks)
        self.save_at[request_id] = (request.next_save + 1) * chain.chunk_tokens
        return saves

    def note_unsaved(self, first_rank_ids: Iterable[bytes]) -> None:
        """Saves that were dropped or refused: may be tried again by a later request."""
        for block_id in first_rank_ids:
            self._known.pop(block_id, None)

    def take_lost(self) -> list[bytes]:
        """First ids of chunks that were stored, and are not any more."""
        lost, self._lost = self._lost, []
        return lost

    def end_step(self, *, idle: bool = True) -> None:
        """Called once a step, when its plan is complete. `idle`: it computes nothing, so the next
        one may wait for look-ups."""
        self._wait_left_s = STEP_WAIT_S if idle else 0.0

    # ---- inside

    def _clients(self) -> list[Client] | None:
        clients = [link.client for link in self._links]
        present = [client for client in clients if client is not None]
        return present if present and len(present) == len(clients) else None

    def _chain(self, request: _Request) -> Chain | None:
        """The request's chain, or None until every rank is connected."""
        if request.chain is None:
            if not self._hashers:
                clients = self._clients()
                if clients is None:
                    return None
                self._hashers = tuple(client.hasher for client in clients)
            request.chain = Chain(
                request.tokens, self._hashers, request.origin, shards=self._shards
            )
        return request.chain

    def _forget(self, block_id: bytes) -> None:
        if block_id in self._known:
            del self._known[block_id]
            self._lost.append(block_id)

    def _remember(self, block_id: bytes, *, own: bool = False) -> None:
        self._known[block_id] = own or self._known.get(block_id, False)
        self._known.move_to_end(block_id)
        if len(self._known) > _KNOWN_IDS:
            self._known.popitem(last=False)


def _rows(locations: Sequence[Location], shards: int) -> list[tuple[Location, ...]]:
    """Locations in the order of the match, a row for each chunk that is there with all shards."""
    whole = len(locations) - len(locations) % shards
    return [tuple(locations[n : n + shards]) for n in range(0, whole, shards)]
