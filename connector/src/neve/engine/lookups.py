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

from neve.datapath.client import Client
from neve.engine.canary import Canary
from neve.engine.chains import Chain
from neve.engine.handover import ASK_AGAIN_S, HandoverOutcome, HandoverWait
from neve.engine.load_policy import LoadPolicy
from neve.engine.rears import Rears
from neve.engine.recording import note_choice, note_found
from neve.engine.table import Answer, Lookup, Request, RequestTable, Row, wanted
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason, NeveError
from neve.formats.parts import PartKind
from neve.index.tier import CALL_IDS, Location
from neve.node.requests import Outcome
from neve.planner.choice import Choice, Decision, counted_as

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
        rears: Rears | None = None,
    ) -> None:
        self._table = table
        self._rears = rears
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
        if request is None:
            return 0
        request.local_tokens = local_tokens
        if not request.may_load or self._canary.alone:
            return 0
        chain = self._table.chain_of(request)
        if chain is None or not self._table.may_share(request):
            return 0
        start = local_tokens // chain.chunk_tokens
        # A prefill node looks up the whole prompt: what it has locally may be missing in Neve.
        hands_over = request.params is not None and request.params.hands_over
        first = 0 if hands_over or not self._loads else start
        lookup = request.lookup
        now = time.monotonic()
        if not request.asked_tokens:
            request.asked_tokens = len(request.tokens) - first * chain.chunk_tokens
        chunks = len(request.tokens) // chain.chunk_tokens
        if lookup is None or first < lookup.start or now - lookup.asked_at > _FRESH_S:
            if first >= chunks:
                self._count_tail(request, chain)
                return 0
            lookup = request.lookup = Lookup(first, now)
            self._ask(request, lookup, chain)
        if lookup.future is not None and not self._settle(request, lookup, chain, now):
            return None
        if request.probes:
            if self._probes(request, lookup, chain, start):
                return 0
            self._table.leave_family(request)
            return None
        if not self._loads or start >= chunks:
            return 0
        if request.handover is not None:
            self._await_handover(request, request.handover, lookup, chain, now)
            return None
        if self._computes_all(request, lookup, chain, start):
            request.seen.outcome = Outcome.COMPARED
            return 0
        if self._table.is_split and local_tokens % self._table.engine_block_tokens:
            return 0  # vLLM's hit inside a block: that block may be another request's too
        if self._rears is not None:  # asked again: its engine blocks are lost, if it had any
            self._rears.drop(request_id)
        choice = self._choose(request, lookup, chain.chunk_tokens, start)
        if choice.decision is Decision.BOTH:
            self._begin_rear(request, lookup, choice, start)
            return 0
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
        counts = request.handover is None and not request.probes
        chunks = len(request.tokens) // chain.chunk_tokens
        lookup.begun_at = None

        def ask() -> Answer:
            chain.extend(chunks)
            if counts:
                self._count_tail(request, chain)
                self._sample(chain.ids[lookup.start : chunks])
            lookup.begun_at = time.monotonic()
            find = self._find_groups if self._table.is_split else self._find
            return find(request, lookup.start, chain.ids[lookup.start : chunks], counts=counts)

        lookup.future = self._threads.submit(ask)

    def _find(
        self, _: Request, start: int, ids: Sequence[tuple[bytes, ...]], *, counts: bool
    ) -> Answer:
        """On a look-up thread: the chunks of which every column is there, up to the first miss."""
        shards, matches = self._table.shards, []
        try:
            for number, client in enumerate(self._table.clients() or ()):
                columns = slice(number * shards, (number + 1) * shards)
                asked = list(chained.from_iterable([every[columns] for every in ids]))
                match = client.match if counts else client.match_again
                matches.append(match(asked, deadline_s=self._match_deadline_s))
        except NeveError:  # the client is being closed
            matches = []
        misses = {match.miss for match in matches}
        per_space = [_rows(match.locations, shards) for match in matches]
        rows: list[Row] = (
            list(per_space[0])
            if len(per_space) == 1
            else [tuple(chained.from_iterable(row)) for row in zip(*per_space, strict=False)]
        )
        failed = not misses or not misses.isdisjoint(_UNKNOWN)
        shortest = min(matches, key=lambda each: len(each.locations), default=None)
        miss = MissReason.TIMEOUT if shortest is None else shortest.miss
        return Answer(rows, failed, time.monotonic(), miss)

    def _find_groups(
        self, request: Request, start: int, ids: Sequence[tuple[bytes, ...]], *, counts: bool
    ) -> Answer:
        """On a look-up thread: full attention as a prefix, then windows and states of its last
        chunks.

        Asks for at most CALL_IDS of the latter. If the request can resume after none of these
        chunks, the look-up is a miss.
        """
        groups = len(self._table.groups)
        spaces = []
        miss: MissReason | None = None
        for number, client in enumerate(self._table.clients() or ()):
            columns = [every[number * groups : (number + 1) * groups] for every in ids]
            try:
                rows, reason = self._find_in(client, columns)
            except NeveError:  # the second question's time is over, or the client is being closed
                rows, reason = [], MissReason.TIMEOUT
            miss = reason if reason in _UNKNOWN or miss is None else miss
            spaces.append(rows)
        rows = [tuple(chained.from_iterable(row)) for row in zip(*spaces, strict=False)]
        if counts:
            assert request.chain is not None
            tokens = len(ids) * request.chain.chunk_tokens
            asked = sum(self._table.resume(request, ids, first=start).needed)
            found = sum(self._table.resume(request, rows, first=start).needed)
            for client in self._table.clients() or ():
                client.stats.count(requested_blocks=asked, requested_tokens=tokens)
                if found < asked:
                    client.stats.miss(miss or MissReason.NEVER_STORED, asked - found)
        return Answer(rows, not spaces or miss in _UNKNOWN, time.monotonic(), miss)

    def _find_in(
        self, client: Client, ids: Sequence[Sequence[bytes]]
    ) -> tuple[list[Row], MissReason | None]:
        """Rows of one space, and why the first missing block is missing."""
        groups = self._table.groups
        full = [number for number, group in enumerate(groups) if group.kind is PartKind.FULL]
        others = [number for number, group in enumerate(groups) if group.kind is not PartKind.FULL]
        begun = time.monotonic()
        miss = None
        rows: list[list[Location | None]] = [[None] * len(groups) for _ in ids]
        if full:
            asked = [every[number] for every in ids for number in full]
            match = client.match_again(asked, deadline_s=self._match_deadline_s)
            found, miss = _rows(match.locations, len(full)), match.miss
            del rows[len(found) :]
            for row, locations in zip(rows, found, strict=True):
                for number, location in zip(full, locations, strict=True):
                    row[number] = location
        last = self._others_from(len(rows))
        if last < len(rows):
            left_s = begun + self._match_deadline_s - time.monotonic()
            answers = client.locate_again(
                [ids[chunk][number] for chunk in range(last, len(rows)) for number in others],
                deadline_s=max(0.0, left_s),
            )
            places = ((chunk, number) for chunk in range(last, len(rows)) for number in others)
            for (chunk, number), answer in zip(places, answers, strict=True):
                if isinstance(answer, MissReason):
                    miss = answer if miss is None or answer in _UNKNOWN else miss
                else:
                    rows[chunk][number] = answer
        return [tuple(row) for row in rows], miss

    def _others_from(self, rows: int) -> int:
        """The first of `rows` chunks of which other parts than full attention's are looked up:
        CALL_IDS parts at most."""
        others = sum(group.kind is not PartKind.FULL for group in self._table.groups)
        return max(0, rows - CALL_IDS // others) if others else rows

    def _sample(self, ids: Sequence[tuple[bytes, ...]]) -> None:
        """Once a look-up and engine: of each chunk, the id of its first block stands for it."""
        clients = self._table.clients()
        if clients and clients[0].stats.sampling.is_on:
            clients[0].stats.sampling.add(b"".join([row[0] for row in ids]))

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
            answer = lookup.future.result(timeout=wait_s)
        except FutureTimeout:
            if now < self._answer_by(request, lookup):
                return False
            lookup.future.cancel()  # if it still waits for a thread, later ones need not
            answer = Answer([], True, now, MissReason.TIMEOUT)
        lookup.future = None
        lookup.found, lookup.failed = answer.rows, answer.failed
        if request.handover is None:
            self._telemetry.sample("match_seconds", answer.at - lookup.asked_at)
            note_found(request, lookup, answer, chain.chunk_tokens)
        self._note_stored(lookup, chain)
        return True

    def _note_stored(self, lookup: Lookup, chain: Chain) -> None:
        stored, asked_from = self._table.stored, self._others_from(len(lookup.found))
        begin = lookup.start
        if not self._table.is_split:  # thousands of chunks, all of them found
            begin += len(lookup.found)
            stored.add_others([ids[0] for ids in chain.ids[lookup.start : begin]])
        for number, ids in enumerate(chain.ids[begin:], begin - lookup.start):
            row = lookup.found[number] if number < len(lookup.found) else None
            for place, group in enumerate(self._table.groups):
                (first, *_) = self._table.of_group(ids, place)
                if row is not None and None not in self._table.of_group(row, place):
                    stored.add(first)
                elif not (
                    lookup.failed or (group.kind is not PartKind.FULL and number < asked_from)
                ):
                    stored.lose(first)

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
        most = self._table.most_chunks(request)
        wait.begin(chain.ids, chain.chunk_tokens, most=most, until=until)
        found = self._table.resume(request, lookup.found, first=lookup.start).chunks
        outcome = wait.outcome(lookup.start + found, now)
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
            rows = lookup.found[start - lookup.start :]
            chunks = self._table.resume(request, rows, first=start).chunks
            numbers = range(start, start + chunks)
            if self._table.is_split:
                foreign = [
                    n
                    for n in numbers
                    if self._is_foreign(chain.ids[n], lookup.found[n - lookup.start])
                ]
            else:
                is_own = self._table.stored.is_own
                foreign = [n for n in numbers if not is_own(chain.ids[n][0])]
            lookup.has_foreign = bool(foreign)
            if foreign and self._canary.picks():
                request.computes_all = request.unproven = True
                request.to_compare = {
                    n: lookup.found[n - lookup.start] for n in (foreign[0], foreign[-1])
                }
                return True
        request.unproven = lookup.has_foreign and self._canary.closed
        return request.unproven

    def _probes(self, request: Request, lookup: Lookup, chain: Chain, start: int) -> bool:
        """Whether the request is computed and compared with the family's blocks; False if none were
        found that would prove more."""
        if request.computes_all:
            return True
        assert self._table.attestation is not None
        rows = lookup.found[start - lookup.start :]
        chunks = self._table.resume(request, rows, first=start).chunks
        found = {
            chunk: [
                self._table.of_group(chain.ids[chunk], group)[0]
                for group in range(len(self._table.groups))
                if None not in self._table.of_group(rows[chunk - start], group)
            ]
            for chunk in range(start, start + chunks)
        }
        compared = self._table.attestation.proof.chunks(found)
        request.to_compare = {chunk: rows[chunk - start] for chunk in compared}
        request.computes_all = bool(compared)
        return request.computes_all

    def _is_foreign(self, ids: Sequence[bytes], row: Row) -> bool:
        """Whether the chunk has a found block that this engine did not store itself."""
        return any(
            None not in self._table.of_group(row, group)
            and not self._table.stored.is_own(self._table.of_group(ids, group)[0])
            for group in range(len(self._table.groups))
        )

    def _choose(self, request: Request, lookup: Lookup, chunk_tokens: int, first: int) -> Choice:
        """Decides once per look-up and local hit how many found chunks to load.

        A decision to recompute is counted here; a decision to load is counted in `Loads.plan`,
        because the engine may still serve it from a nearer tier.
        """
        if lookup.choice is None or lookup.chosen_for != request.local_tokens:
            rows = lookup.found[first - lookup.start :]
            resume = self._table.resume(request, rows, first=first)
            both = (
                self._rears is not None
                and request.local_tokens % chunk_tokens == 0
                and self._rears.may_begin(request)
            )
            choice = self._policy.choose(
                wanted(self._table, rows, resume),
                first_chunk=first,
                chunk_tokens=chunk_tokens,
                local_tokens=request.local_tokens,
                prompt_tokens=len(request.tokens),
                whole=self._table.is_split,
                both=both,
            )
            if choice.decision is Decision.RECOMPUTE and lookup.choice is None:
                self._policy.note_decision(choice)
                self._table.count({counted_as(choice.decision): 1})
            lookup.choice, lookup.chosen_for = choice, request.local_tokens
            note_choice(request, choice, first=first, found=resume.chunks)
        return lookup.choice

    def _begin_rear(self, request: Request, lookup: Lookup, choice: Choice, start: int) -> None:
        assert self._rears is not None
        if not request.has_rear:
            self._policy.note_decision(choice)
            self._table.count({counted_as(choice.decision): 1})
        rows = lookup.found[start - lookup.start :][: choice.blocks]
        self._rears.begin(request, start, rows)


def _rows(locations: Sequence[Location], shards: int) -> list[tuple[Location, ...]]:
    """One row of `shards` locations for each chunk that has all of them, in chain order."""
    if shards == 1:
        return [(location,) for location in locations]
    whole = len(locations) - len(locations) % shards
    return [tuple(locations[n : n + shards]) for n in range(0, whole, shards)]
