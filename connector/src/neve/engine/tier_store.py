"""Finds, reads and stores chunks of an engine's own DRAM tier, under the engine's keys.

The engine-independent part of `NeveTier`. Transfers read and write the tier's rows themselves, so
bytes are not copied. Nothing waits, except one call a step for `STEP_WAIT_S`.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field

from neve import log_events
from neve.datapath.client import BlockRef, Client, Transfer
from neve.engine.lookups import MOST_TURNS, STEP_WAIT_S
from neve.engine.saver import PUT_DEADLINE_S
from neve.errors import MissReason, NeveError
from neve.index.tier import Location


@dataclass(eq=False)
class _TierRequest:
    """One request's look-ups. `places`: answers; None is a miss.

    `stale`: begun before a reset, so it neither reads nor stores. `begun_at`: when the question
    under way was sent; None while it waits for a thread.
    """

    stale: bool = False
    places: dict[bytes, Location | None] = field(default_factory=dict)
    wanted: dict[bytes, None] = field(default_factory=dict)  # for the next question, in order
    asked: Sequence[bytes] = ()
    answer: Future[list[Location | MissReason]] | None = None
    asked_at: float = 0.0
    begun_at: float | None = None


@dataclass(frozen=True)
class TierJob:
    """A load or store that ended; `good`: the keys that were loaded or stored."""

    number: int
    keys: Sequence[bytes]
    good: Sequence[bytes]
    size_bytes: int
    took_s: float


class TierStore:
    """All methods belong to the engine's thread. While `client` returns None (not connected),
    nothing is found and every job fails at once.

    Keys are the engine's own. They must be cryptographic hashes of whole prefixes.
    """

    def __init__(
        self,
        client: Callable[[], Client | None],
        rows: memoryview,
        row_bytes: int,
        *,
        match_deadline_s: float,
        load_deadline_s: float,
    ) -> None:
        """`rows`: all of the DRAM tier, flat."""
        self._client = client
        self._rows = rows
        self._row_bytes = row_bytes
        self._match_deadline_s = match_deadline_s
        self._load_deadline_s = load_deadline_s
        self._requests: dict[str, _TierRequest] = {}
        self._asking: list[_TierRequest] = []  # those that want something
        self._loads: dict[int, str] = {}
        self._under_way: dict[int, Transfer] = {}
        self._idle = threading.Condition()
        self._ended: deque[TierJob] = deque()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="neve-tier")
        self._wait_left_s = STEP_WAIT_S
        self._epoch = b""

    # ---- look-up

    def begin(self, request_id: str) -> None:
        self._requests[request_id] = _TierRequest()

    def find(self, request_id: str, key: bytes) -> bool | None:
        """Whether the chunk is stored. None: ask again in the next step."""
        if self._client() is None:
            return False
        request = self._requests.setdefault(request_id, _TierRequest())
        if request.stale:
            return False
        if key not in request.places and request.answer is not None:
            self._settle(request)
        if key in request.places:
            return request.places[key] is not None
        if key not in request.asked:
            if not request.wanted:
                self._asking.append(request)
            request.wanted[key] = None
        return None

    def end_step(self) -> None:
        """Sends one question a request, with all its keys of this step."""
        self._wait_left_s = STEP_WAIT_S
        asking, self._asking = self._asking, []
        for request in asking:
            if request.answer is not None:
                self._asking.append(request)
                continue
            request.asked, request.wanted = tuple(request.wanted), {}
            request.asked_at, request.begun_at = time.monotonic(), None
            request.answer = self._threads.submit(self._locate, request, request.asked)

    def forget(self, request_id: str) -> None:
        """The request ended."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        if request.answer is not None:
            request.answer.cancel()
        if request in self._asking:
            self._asking.remove(request)

    def _settle(self, request: _TierRequest) -> None:
        """Takes the answer if it arrived or its deadline passed. Waits once a step: an engine in
        which only look-ups wait spins, and I/O threads need the GIL."""
        assert request.answer is not None
        wait_s, self._wait_left_s = self._wait_left_s, 0.0
        answers: list[Location | MissReason] = []
        try:
            answers = request.answer.result(timeout=wait_s)
        except FutureTimeout:
            waited_s = time.monotonic() - (request.begun_at or request.asked_at)
            turns = 1.0 if request.begun_at is not None else MOST_TURNS
            if waited_s < turns * self._match_deadline_s:
                return
            request.answer.cancel()
        except Exception as error:
            log_events.TIER_UNANSWERED.log(detail=error)
        request.places.update(dict.fromkeys(request.asked))
        for key, found in zip(request.asked, answers, strict=False):
            request.places[key] = found if isinstance(found, Location) else None
        request.asked, request.answer = (), None

    def _locate(self, request: _TierRequest, keys: Sequence[bytes]) -> list[Location | MissReason]:
        """On a look-up thread."""
        request.begun_at = time.monotonic()
        client = self._client()
        if client is None:
            return []
        ids = [self._id(client, key) for key in keys]
        return client.locate(ids, deadline_s=self._match_deadline_s)

    # ---- jobs

    def load(self, job: int, request_id: str, keys: Sequence[bytes], rows: Sequence[int]) -> None:
        """Reads chunks that `find` found into `rows`. A failed chunk is a miss from then on."""
        request = self._requests.get(request_id, _TierRequest())
        places = [place for key in keys if (place := request.places.get(key)) is not None]
        self._loads[job] = request_id

        def submit(client: Client) -> Transfer:
            return client.get_many(
                [self._id(client, key) for key in keys],
                [self._row(row) for row in rows],
                locations=places,
                deadline_s=self._load_deadline_s,
            )

        self._begin(job, keys, submit)

    def store(
        self, job: int, request_id: str, keys: Sequence[bytes], rows: Sequence[int], tokens: int
    ) -> None:
        """Stores `rows`, of `tokens` tokens each, which must not change until the job ended.

        A chunk's parent is the key that its request looked up before it: jobs' keys are unordered.
        """
        request = self._requests.get(request_id, _TierRequest())
        looked_up = list(request.places)
        before = dict(zip(looked_up[1:], looked_up, strict=False))

        def submit(client: Client) -> Transfer:
            if request.stale:
                raise NeveError("computed before the reset, in part")
            root = client.hasher.root()
            refs = [
                BlockRef(
                    self._id(client, key),
                    self._id(client, before[key]) if key in before else root,
                    tokens,
                )
                for key in keys
            ]
            buffers = [self._row(row) for row in rows]
            return client.put_many(refs, buffers, deadline_s=PUT_DEADLINE_S)

        self._begin(job, keys, submit)

    def finished(self) -> list[TierJob]:
        """Jobs that ended since the last call."""
        for transfer in tuple(self._under_way.values()):
            transfer.done()  # ends transfers whose deadline passed
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        for job in ended:
            request = self._requests.get(self._loads.pop(job.number, ""))
            if request is not None:
                request.places.update(dict.fromkeys(set(job.keys).difference(job.good)))
        return ended

    def drain(self) -> None:
        """Waits until no job reads or writes the rows, at most for the jobs' deadlines."""
        for transfer in tuple(self._under_way.values()):
            transfer.wait()
        with self._idle:
            self._idle.wait_for(lambda: not self._under_way, PUT_DEADLINE_S)

    def reset(self) -> None:
        """The engine's weights or state changed: from now on it shares no chunks with others."""
        self.drain()
        self._epoch = secrets.token_bytes(16)
        self._asking.clear()
        self._requests = {request_id: _TierRequest(stale=True) for request_id in self._requests}

    def close(self) -> None:
        """Waits for jobs under way, and releases the rows."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.drain()
        self._rows.release()

    def _begin(self, job: int, keys: Sequence[bytes], submit: Callable[[Client], Transfer]) -> None:
        started = time.monotonic()

        def end(outcomes: Sequence[MissReason | None]) -> None:
            good = [key for key, bad in zip(keys, outcomes, strict=False) if bad is None]
            took_s = time.monotonic() - started
            self._ended.append(TierJob(job, keys, good, len(good) * self._row_bytes, took_s))

        def done(transfer: Transfer) -> None:
            """On an I/O thread."""
            end(transfer.wait(0.0))
            with self._idle:
                del self._under_way[job]
                self._idle.notify_all()

        client = self._client()
        try:
            if client is None:
                raise NeveError("not connected")
            transfer = self._under_way[job] = submit(client)
        except Exception as error:
            # The engine waits for every job's end: report one that can't begin as ended.
            if isinstance(error, NeveError):
                log_events.TIER_REFUSED.log(chunks=len(keys), detail=error)
            else:
                log_events.TIER_BROKEN.log(chunks=len(keys), exc_info=True)
            end([MissReason.BREAKER] * len(keys))
            return
        transfer.add_done_callback(done)

    def _id(self, client: Client, key: bytes) -> bytes:
        return client.hasher.of_key(self._epoch + key)

    def _row(self, number: int) -> memoryview:
        start = int(number) * self._row_bytes
        return self._rows[start : start + self._row_bytes]
