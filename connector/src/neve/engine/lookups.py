"""Look-ups: which chunks of a waiting request are stored, and how many of them are worth loading.

All methods belong to the scheduler's thread; the questions run on threads of their own. While only
look-ups and loads wait, one call a step may wait `STEP_WAIT_S`; otherwise nothing here waits.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import chain as chained
from typing import Final

from neve.datapath.client import Match
from neve.engine.canary import Canary
from neve.engine.chains import Chain
from neve.engine.handover import ASK_AGAIN_S, HandoverOutcome, HandoverWait
from neve.engine.load_policy import LoadPolicy
from neve.engine.table import Lookup, Request, RequestTable
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason, NeveError
from neve.index.tier import Location
from neve.planner.choice import Choice, Decision

# A found prefix that could not be scheduled for this long is looked up again: it may be gone.
_FRESH_S: Final = 5.0
# While only look-ups and loads wait, the engine spins: give I/O threads the GIL, once a step.
STEP_WAIT_S: Final = 0.001
# Miss reasons that say nothing about what is stored.
_UNKNOWN: Final = frozenset((MissReason.TIMEOUT, MissReason.BREAKER))
# A look-up may wait for a thread up to this many times the match deadline.
MOST_TURNS: Final = 5.0


class Lookups:
    """Answers `matched_tokens`. Engines that don't load ask too: they save only missing chunks."""

    def __init__(
        self,
        table: RequestTable,
        policy: LoadPolicy,
        canary: Canary,
        telemetry: Telemetry,
        *,
        match_deadline_s: float,
        handover_wait_s: float,
        loads: bool,
    ) -> None:
        self._table = table
        self._policy = policy
        self._canary = canary
        self._telemetry = telemetry
        self._match_deadline_s = match_deadline_s
        self._handover_wait_s = handover_wait_s
        self._loads = loads
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="neve-match")
        self._wait_left_s = STEP_WAIT_S

    def matched_tokens(self, request_id: str, local_tokens: int) -> int | None:
        """Tokens beyond `local_tokens` (whole engine blocks) to load from Neve; 0 is a miss.

        None while the answer is outstanding, for `_answer_by` at most, or while the request waits
        for blocks that a prefill node named.
        """
        request = self._table.requests.get(request_id)
        if request is None or not request.may_load or self._canary.alone:
            return 0
        chain = self._table.chain_of(request)
        if chain is None:
            return 0
        request.local_tokens = local_tokens
        start = local_tokens // chain.chunk_tokens
        # A prefill node looks up the whole prompt: what it has locally may be missing in Neve.
        hands_over = request.params is not None and request.params.hands_over
        first = 0 if hands_over or not self._loads else start
        lookup = request.lookup
        now = time.monotonic()
        chunks = len(request.tokens) // chain.chunk_tokens
        if lookup is None or first < lookup.start or now - lookup.asked_at > _FRESH_S:
            if first >= chunks:
                self._count_tail(request, chain)
                return 0
            lookup = request.lookup = Lookup(first, now)
            self._ask(request, lookup, chain)
        if lookup.future is not None and not self._settle(request, lookup, chain, now):
            return None
        if not self._loads or start >= chunks:
            return 0
        if request.handover is not None:
            self._await_handover(request, request.handover, lookup, chain, now)
            return None
        if self._computes_all(request, lookup, chain, start):
            return 0
        choice = self._choose(request, lookup, chain.chunk_tokens)
        end = (start + choice.blocks) * chain.chunk_tokens
        return max(0, end - local_tokens) if choice.blocks else 0

    def pause(self) -> None:
        """Gives other threads the GIL, at most once a step, and only while nothing is computed."""
        wait_s, self._wait_left_s = self._wait_left_s, 0.0
        time.sleep(wait_s)

    def end_step(self, *, idle: bool) -> None:
        """The step's plan is complete. `idle`: it computes nothing, so the next may wait once."""
        self._wait_left_s = STEP_WAIT_S if idle else 0.0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- the question

    def _ask(self, request: Request, lookup: Lookup, chain: Chain) -> None:
        """Asks for all whole chunks from the look-up's start on.

        The thread also hashes the ids, so that of many requests that come at once the first are
        computed while others are still hashed.
        """
        counts, chunks = request.handover is None, len(request.tokens) // chain.chunk_tokens
        lookup.begun_at = None

        def ask() -> tuple[list[Match], float]:
            chain.extend(chunks)
            if counts:
                self._count_tail(request, chain)
            lookup.begun_at = time.monotonic()
            return self._match(chain.ids[lookup.start : chunks], counts=counts), time.monotonic()

        lookup.future = self._threads.submit(ask)

    def _match(self, ids: Sequence[tuple[bytes, ...]], *, counts: bool) -> list[Match]:
        """On a look-up thread: one match a space; none when the client is being closed."""
        shards, found = self._table.shards, []
        try:
            for number, client in enumerate(self._table.clients() or ()):
                columns = slice(number * shards, (number + 1) * shards)
                asked = list(chained.from_iterable(every[columns] for every in ids))
                match = client.match if counts else client.match_again
                found.append(match(asked, deadline_s=self._match_deadline_s))
        except NeveError:
            return []
        return found

    def _count_tail(self, request: Request, chain: Chain) -> None:
        """Once a request: tokens after the last whole chunk, for the hit rate of whole prompts."""
        tail_tokens = len(request.tokens) % chain.chunk_tokens
        if tail_tokens and not request.is_tail_counted:
            request.is_tail_counted = True
            for client in self._table.clients() or ():
                client.stats.count(tail_tokens=tail_tokens)

    # ---- the answer

    def _settle(self, request: Request, lookup: Lookup, chain: Chain, now: float) -> bool:
        """Takes the answer if it arrived or its deadline passed; False: ask again next step."""
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
        lookup.failed = not misses or not misses.isdisjoint(_UNKNOWN)
        if request.handover is None:
            self._telemetry.sample("match_seconds", answered_at - lookup.asked_at)
        # A chunk is found when all its columns are: the shortest prefix of all spaces counts.
        per_space = [_rows(match.locations, self._table.shards) for match in matches]
        rows = zip(*per_space, strict=False)
        lookup.found = [tuple(chained.from_iterable(parts)) for parts in rows]
        for number, ids in enumerate(chain.ids[lookup.start :]):
            if number < len(lookup.found):
                self._table.stored.add(ids[0])
            elif not lookup.failed:
                self._table.stored.lose(ids[0])
        return True

    def _answer_by(self, request: Request, lookup: Lookup) -> float:
        """When the request stops waiting. Of many that come at once, the last may wait for a
        thread as long as computing would take, between one and `MOST_TURNS` match deadlines."""
        if lookup.begun_at is not None:
            return lookup.begun_at + self._match_deadline_s
        patience_s = self._policy.patience_s(request.local_tokens, len(request.tokens))
        turns = min(MOST_TURNS, max(1.0, patience_s / self._match_deadline_s))
        return lookup.asked_at + turns * self._match_deadline_s

    def _await_handover(
        self, request: Request, wait: HandoverWait, lookup: Lookup, chain: Chain, now: float
    ) -> None:
        """Looks up again until the named blocks are stored or the wait ends; then once more, and
        that answer is used."""
        patience_s = self._policy.patience_s(request.local_tokens, len(request.tokens))
        until = now + min(self._handover_wait_s, patience_s)
        chain.extend(len(request.tokens) // chain.chunk_tokens)
        wait.begin(chain.ids, chain.chunk_tokens, until=until)
        outcome = wait.outcome(lookup.start + len(lookup.found), now)
        if outcome is None and lookup.failed:
            outcome = HandoverOutcome.LATE
        if outcome is not None:
            self._telemetry.count("handovers", 1, outcome)
            request.handover = None
        elif now < lookup.asked_at + ASK_AGAIN_S:
            self.pause()
            return
        lookup.asked_at = now
        self._ask(request, lookup, chain)

    # ---- what to do with the found chunks

    def _computes_all(self, request: Request, lookup: Lookup, chain: Chain, start: int) -> bool:
        """Whether the canary computes this request although chunks were found. Chunks that this
        engine stored itself prove nothing, so only other engines' chunks are compared."""
        if request.computes_all:
            return True
        if lookup.has_foreign is None:
            numbers = range(start, lookup.start + len(lookup.found))
            foreign = [n for n in numbers if not self._table.stored.is_own(chain.ids[n][0])]
            lookup.has_foreign = bool(foreign)
            if foreign and self._canary.picks():
                request.computes_all = request.unproven = True
                request.to_compare = {
                    n: lookup.found[n - lookup.start] for n in (foreign[0], foreign[-1])
                }
                return True
        request.unproven = lookup.has_foreign and self._canary.closed
        return request.unproven

    def _choose(self, request: Request, lookup: Lookup, chunk_tokens: int) -> Choice:
        """Decides once per look-up and local hit how many found chunks to load.

        A decision to recompute is counted here; a decision to load is counted in `Loads.plan`,
        because the engine may still serve it from a nearer tier.
        """
        if lookup.choice is None or lookup.chosen_for != request.local_tokens:
            first = request.local_tokens // chunk_tokens
            choice = self._policy.choose(
                lookup.found[first - lookup.start :],
                first_chunk=first,
                chunk_tokens=chunk_tokens,
                local_tokens=request.local_tokens,
                prompt_tokens=len(request.tokens),
            )
            if choice.decision is Decision.RECOMPUTE and lookup.choice is None:
                self._policy.note_decision(choice)
            lookup.choice, lookup.chosen_for = choice, request.local_tokens
        return lookup.choice


def _rows(locations: Sequence[Location], shards: int) -> list[tuple[Location, ...]]:
    """One row of `shards` locations for each chunk that has all of them, in chain order."""
    whole = len(locations) - len(locations) % shards
    return [tuple(locations[n : n + shards]) for n in range(0, whole, shards)]
