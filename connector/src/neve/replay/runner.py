"""Sends requests through clients as engines would: match, load, check, compute, store.

Each client is an engine; several take turns, request by request. The calling thread hashes prompts
and hands them out in order; up to `concurrency` requests are in flight, each in a lane with buffers
of its own. Every loaded block is compared with the payload computed from its id; one wrong byte
ends the replay with `WrongBlock`.
"""

import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from neve.datapath.client import BlockRef, Client, Transfer
from neve.datapath.status import BreakerState
from neve.errors import DeadlineExceeded, MissReason, NeveError, Unavailable
from neve.index.tier import Tier
from neve.node.requests import SLOW_S, Cells, Outcome, RequestRecord
from neve.planner.simulate.single import SingleTier
from neve.replay.payload import Buffer, Payloads
from neve.replay.report import Progress
from neve.replay.tally import RequestOutcome, Tally
from neve.replay.trace import Request, tokens_of

# Bytes that one lane loads or stores at a time.
LANE_BYTES = 16 << 20
# A conversation's context is reported with its first request, then every CONTEXT_EVERY requests.
CONTEXT_EVERY = 5
# Look-up deadline. Longer than an engine's: a slow look-up on a busy laptop delays no engine.
MATCH_S = 2.0
MOST_BEHIND_S = 5.0
_POLL_S = 0.2
_GRACE_S = 2.0
# Miss reasons that mean trouble with the session or the storage.
_AWAY = (MissReason.BREAKER, MissReason.FINGERPRINT)
_FAILED = (*_AWAY, MissReason.TIMEOUT, MissReason.CORRUPT)
NAME = "replay"  # of requests in the node's ring, before their number
_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 5.0)


class WrongBlock(Exception):
    """The client served a block whose bytes differ from the bytes stored under its id."""


@dataclass(frozen=True)
class Pace:
    """Start times of requests. `rate_per_s` overrides the trace's times, which `speed` divides.

    If both are None, a request starts as soon as a lane is free.
    """

    rate_per_s: float | None = None
    speed: float | None = None

    def starts_s(self, requests: Iterable[Request]) -> Iterator[tuple[float, Request]]:
        """Yields (start in seconds since the replay began, request)."""
        for i, request in enumerate(requests):
            if self.rate_per_s is not None:
                yield i / self.rate_per_s, request
            elif self.speed is not None:
                yield request.timestamp_ms / 1e3 / self.speed, request
            else:
                yield 0.0, request


@dataclass(frozen=True)
class Settings:
    """How to replay. `give_up_s`: longest outage to wait out; None waits without limit."""

    concurrency: int = 4
    pace: Pace = Pace()
    salt: bytes = b""
    prefill_tokens_per_s: float | None = None
    deadline_s: float = 10.0
    give_up_s: float | None = 30.0


class Lane:
    """Buffers for one request at a time: `LANE_BYTES`, or one block if that is larger."""

    def __init__(self, payloads: Payloads) -> None:
        self.blocks = max(1, LANE_BYTES // payloads.payload_bytes)
        self._payload_bytes = payloads.payload_bytes
        self.buffers = self._new_buffers()

    def abandon_buffers(self) -> None:
        """Allocates new buffers: a transfer past its deadline still owns the old ones."""
        self.buffers = self._new_buffers()

    def _new_buffers(self) -> list[Buffer]:
        return list(np.empty((self.blocks, self._payload_bytes), dtype=np.uint8))


class Runner:
    """Replays through connected clients, whose blocks have one size.

    Any thread or signal handler may set `stop`.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        settings: Settings,
        progress: Progress,
        *,
        ideal: SingleTier | None,
        unbounded: SingleTier | None,
        stop: threading.Event,
    ) -> None:
        session = clients[0].session
        self._clients = clients
        self._settings = settings
        self._progress = progress
        self._models = [model for model in (ideal, unbounded) if model]
        self._stop = stop
        self._chunk_tokens = session.chunk_tokens
        self._payloads = Payloads(session.chunk_tokens * session.identity.bytes_per_token)
        self._roots = [client.hasher.root(salt=settings.salt) for client in clients]
        self._lanes: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for _ in range(settings.concurrency):
            self._lanes.put(Lane(self._payloads))
        self._failure: BaseException | None = None
        self._away = _Away(settings.give_up_s, progress.say, stop)
        self._numbers = itertools.count(1)  # of the records that the node's ring keeps
        self._named: Counter[tuple[str, str]] = Counter()
        # Prompt tokens and hits of a context's requests since it was last reported.
        self._unreported: dict[tuple[str, str], tuple[int, int]] = {}
        self.tally = Tally(
            chunk_tokens=session.chunk_tokens, payload_bytes=self._payloads.payload_bytes
        )

    def run(self, requests: Iterable[Request]) -> None:
        """Replays until the requests end or `stop` is set; requests in flight are finished.

        Raises `WrongBlock`, or `Unavailable` if an outage lasts longer than `give_up_s`.
        """
        started = time.monotonic()
        with ThreadPoolExecutor(self._settings.concurrency, "replay") as pool:
            turns = itertools.cycle(range(len(self._clients)))
            for start_s, request in self._settings.pace.starts_s(requests):
                lane = self._wait_for_lane(started + start_s)
                if lane is None:
                    break
                # After an outage, shift the schedule: do not catch up in a burst.
                behind_s = time.monotonic() - started - start_s
                if behind_s > MOST_BEHIND_S:
                    started += behind_s
                turn = next(turns)
                tokens = tokens_of(request).tolist()
                ids = self._clients[turn].hasher.chain(tokens, parent=self._roots[turn])
                for model in self._models:
                    model.ask([int.from_bytes(id_) for id_ in ids])
                served = pool.submit(self._serve, lane, turn, request, ids)
                served.add_done_callback(self._on_done)
        self._progress.update(self.tally)
        if self._failure is not None:
            raise self._failure

    def _wait_for_lane(self, start: float) -> Lane | None:
        """Waits until `start` (monotonic seconds), then for a free lane; None: stop the replay."""
        while not self._stop.is_set():
            self._progress.update(self.tally)
            left = start - time.monotonic()
            if left > 0:
                self._stop.wait(min(left, _POLL_S))
                continue
            try:
                return self._lanes.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    def _on_done(self, future: "Future[None]") -> None:
        error = future.exception()
        if error is not None:
            self._failure = self._failure or error
            self._stop.set()

    def _serve(self, lane: Lane, turn: int, request: Request, ids: list[bytes]) -> None:
        client = self._clients[turn]
        try:
            outcome = self._load(client, lane, ids, request)
            compute_s = self._compute(request.input_tokens - outcome.hits * self._chunk_tokens)
            put = self._store(client, lane, [self._roots[turn], *ids], outcome.hits)
            self.tally.add(outcome, put, compute_s=compute_s)
            self._name_context(client, request, ids, outcome)
            self._remember(client, request, ids, outcome)
            is_open = client.breaker is not BreakerState.CLOSED
            self._away.note(is_open or outcome.missed in _AWAY)
        finally:
            self._lanes.put(lane)

    def _load(
        self, client: Client, lane: Lane, ids: list[bytes], request: Request
    ) -> RequestOutcome:
        """Loads and checks the longest stored prefix. Raises `WrongBlock`."""
        started = time.perf_counter()
        tail_tokens = request.input_tokens - len(ids) * self._chunk_tokens
        client.stats.sampling.add(b"".join(ids))
        match = client.match(ids, tail_tokens=tail_tokens, deadline_s=MATCH_S)
        load_s = match_s = time.perf_counter() - started
        missed = match.miss
        hits: Counter[Tier] = Counter()
        verified = 0
        for first in range(0, len(match.locations), lane.blocks):
            locations = match.locations[first : first + lane.blocks]
            part = ids[first : first + len(locations)]
            buffers = lane.buffers[: len(part)]
            started = time.perf_counter()
            transfer = client.get_many(
                part, buffers, locations=locations, deadline_s=self._settings.deadline_s
            )
            outcomes = self._wait(lane, transfer, len(part))
            load_s += time.perf_counter() - started
            verified += self._check(part, buffers, outcomes)
            loaded = next((i for i, reason in enumerate(outcomes) if reason), len(part))
            hits.update(location.nearest for location in locations[:loaded])
            if loaded < len(part):
                missed = outcomes[loaded]
                break
        return RequestOutcome(
            input_tokens=request.input_tokens,
            asked_blocks=len(ids),
            hit_blocks=dict(hits),
            verified_blocks=verified,
            missed=missed,
            load_s=load_s,
            match_s=match_s,
        )

    def _remember(
        self, client: Client, request: Request, ids: list[bytes], outcome: RequestOutcome
    ) -> None:
        """Puts the request into the node's ring, as an engine does at its end."""
        ring = client.stats.requests
        kept = ring.why_kept(
            failed=outcome.missed in _FAILED, slow=outcome.load_s > SLOW_S, asked=False
        )
        if kept is None:
            return
        hit_tokens = outcome.hits * self._chunk_tokens
        missed = outcome.hits if outcome.hits < len(ids) else None
        loaded_s = outcome.load_s - outcome.match_s
        ring.add(
            RequestRecord(
                name=f"{NAME}-{next(self._numbers)}",
                kept=kept,
                at_s=ring.clock(),
                prompt_tokens=request.input_tokens,
                asked_tokens=len(ids) * self._chunk_tokens,
                found_tokens=hit_tokens,
                loaded_tokens=hit_tokens,
                miss_chunk=missed,
                miss_id=b"" if missed is None else ids[missed],
                reason=None if missed is None else outcome.missed,
                outcome=Outcome.LOAD_ALL if outcome.hits else Outcome.NOTHING,
                match_ms=round(1e3 * outcome.match_s, 3),
                load_ms=round(1e3 * loaded_s, 3) if outcome.hits else None,
                chain=Cells.of(ids),
            )
        )

    def _wait(self, lane: Lane, transfer: Transfer, count: int) -> Sequence[MissReason | None]:
        """Returns a miss reason per block, None if served. Waits past the client's deadline, so
        that the client reports its own timeouts."""
        try:
            return transfer.wait(self._settings.deadline_s + _GRACE_S)
        except DeadlineExceeded:
            lane.abandon_buffers()
            return [MissReason.TIMEOUT] * count

    def _check(
        self,
        ids: Sequence[bytes],
        buffers: Sequence[Buffer],
        outcomes: Sequence[MissReason | None],
    ) -> int:
        """Compares all served blocks with their payloads. Returns their number.

        Raises `WrongBlock`.
        """
        verified = 0
        for block_id, buffer, reason in zip(ids, buffers, outcomes, strict=True):
            if reason is None:
                if not self._payloads.matches(block_id, buffer):
                    self.tally.add_wrong()
                    raise WrongBlock(
                        f"block {block_id.hex()} was served with other bytes than were stored "
                        f"(it begins {buffer[:16].tobytes().hex()})"
                    )
                verified += 1
        return verified

    def _compute(self, tokens: int) -> float | None:
        """Waits as long as an engine would take to compute `tokens` tokens, and returns the
        seconds; None without a rate."""
        if not self._settings.prefill_tokens_per_s:
            return None
        compute_s = tokens / self._settings.prefill_tokens_per_s
        self._stop.wait(compute_s)
        return compute_s

    def _store(
        self, client: Client, lane: Lane, chain: list[bytes], first: int
    ) -> Counter[MissReason | None]:
        """Stores the blocks after the loaded prefix of `first` blocks; stops after a failed batch.
        `chain`: the root, then the blocks' ids.

        A look-up would never reach blocks behind one that is not stored.
        """
        put: Counter[MissReason | None] = Counter()
        for start in range(first, len(chain) - 1, lane.blocks):
            parents = chain[start : start + lane.blocks]
            part = chain[start + 1 : start + 1 + lane.blocks]
            buffers = lane.buffers[: len(part)]
            for block_id, buffer in zip(part, buffers, strict=True):
                self._payloads.write(block_id, buffer)
            blocks = [
                BlockRef(block_id, parent, self._chunk_tokens)
                for block_id, parent in zip(part, parents, strict=False)
            ]
            transfer = client.put_many(blocks, buffers, deadline_s=self._settings.deadline_s)
            put.update(self._wait(lane, transfer, len(part)))
            if put.total() > put[None]:
                break
        return put

    def _name_context(
        self, client: Client, request: Request, ids: list[bytes], outcome: RequestOutcome
    ) -> None:
        """Reports a conversation's blocks as a context of the client's space, once in CONTEXT_EVERY
        requests there, with the tokens that its requests since then asked for and found."""
        name = request.conversation
        if name is None or not ids:
            return
        here = client.session.space_name, name
        asked, found = self._unreported.pop(here, (0, 0))
        asked += request.input_tokens
        found += outcome.hits * self._chunk_tokens
        self._named[here] += 1
        if self._named[here] % CONTEXT_EVERY != 1:
            self._unreported[here] = asked, found
            return
        try:
            client.report_context(
                name,
                ids,
                tokens=len(ids) * self._chunk_tokens,
                label=request.label,
                prompt_tokens=asked,
                hit_tokens=found,
            )
        except NeveError as error:
            self._progress.say(f"replay: context {name} was not recorded: {error}")


class _Away:
    """Waits while the client's breaker is open; reports begin and end of an outage once each.

    All lanes share one object; each waits in its own `note`, which raises `Unavailable` after
    `give_up_s`.
    """

    def __init__(
        self, give_up_s: float | None, say: Callable[[str], None], stop: threading.Event
    ) -> None:
        self._give_up_s = give_up_s
        self._say = say
        self._stop = stop
        self._lock = threading.Lock()
        self._since: float | None = None
        self._tries = 0

    def note(self, is_away: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if not is_away:
                if self._since is not None:
                    self._say(f"replay: Neve is back after {now - self._since:.1f} s")
                self._since, self._tries = None, 0
                return
            if self._since is None:
                self._since = now
                self._say("replay: Neve is away (the client's breaker is open); trying again")
            away_s = now - self._since
            wait_s = _BACKOFF_S[min(self._tries, len(_BACKOFF_S) - 1)]
            self._tries += 1
        if self._give_up_s is not None and away_s > self._give_up_s:
            raise Unavailable(f"Neve was away for {away_s:.0f} s (breaker open); run `neve ping`")
        self._stop.wait(wait_s)
