"""Worker side of saving: begins to copy blocks in the step, stores them behind it."""

import threading
from collections import Counter, deque
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic

from neve import log_events
from neve.datapath.client import BlockRef, Client, Transfer
from neve.engine.canary import Verdict
from neve.engine.comparing import Comparer
from neve.engine.contract import Kv, S, Ticket
from neve.engine.staging import StagingPool, payloads
from neve.engine.step import BlockSave, Place
from neve.errors import NeveError

# Longer than any healthy put, shorter than the time that service managers give a stopping process.
PUT_DEADLINE_S = 10.0


class BlockSaver(Generic[S]):
    """Saves one rank's `columns`. `save` and the `take_` methods belong to the worker's thread.

    Blocks that find no staging are dropped and counted: the engine never waits. If copies are
    deferred, a thread waits for each copy and then stores it; until then `copying` tells whose
    engine blocks are still being read. `counts_states`: the blocks are states.
    """

    def __init__(
        self,
        client: Client,
        kv: Kv[S],
        pool: StagingPool[S],
        columns: Sequence[int],
        *,
        counts_states: bool = False,
    ) -> None:
        self._client = client
        self._kv = kv
        self._pool = pool
        self._columns = columns
        self._counts_states = counts_states
        self._comparer = Comparer(client, kv, pool, columns)
        self._unsaved: deque[bytes] = deque()
        self._stored: deque[bytes] = deque()
        self._open = 0
        self._states = (0, 0)
        self._copying: Counter[str] = Counter()
        self._reading: Counter[int] = Counter()
        self._idle = threading.Condition()
        self._copies = ThreadPoolExecutor(1, "neve-save") if kv.defers else None

    def save(self, saves: Sequence[BlockSave]) -> None:
        """Begins to copy as many blocks as fit into staging; they are stored as one batch."""
        if not saves:
            return
        pieces = self._pool.take(len(saves))
        taken = list(saves[: len(pieces)])
        self._drop(saves[len(pieces) :])
        if not taken:
            return
        try:
            ticket = self._kv.move_out([save.engine_blocks for save in taken], pieces)
        except Exception:  # e.g. the device has no memory left: only these blocks are lost
            self._pool.give_back(pieces)
            self._drop(taken)
            raise
        with self._idle:
            self._open += 1
        if self._copies is None:
            self._store(taken, pieces)
            return
        with self._idle:
            self._copying.update(save.request_id for save in taken)
            self._reading.update(block for save in taken for block in save.engine_blocks)
        self._copies.submit(self._store_copied, ticket, taken, pieces)

    def copying(self, request_id: str) -> bool:
        """Whether engine blocks of this request are still being read."""
        with self._idle:
            return self._copying[request_id] > 0

    def reads(self, engine_blocks: Collection[int]) -> bool:
        """Whether one of these is still being read."""
        with self._idle:
            return not self._reading.keys().isdisjoint(engine_blocks)

    def end_copies(self, timeout_s: float) -> bool:
        """Waits until no engine block is read; False when some still are after `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._copying, timeout_s)

    def _store_copied(self, ticket: Ticket, saves: list[BlockSave], pieces: list[S]) -> None:
        """On the thread that waits for copies."""
        try:
            ticket.wait()
        finally:
            with self._idle:
                self._copying.subtract(save.request_id for save in saves)
                self._copying = +self._copying
                self._reading.subtract(block for save in saves for block in save.engine_blocks)
                self._reading = +self._reading
                self._idle.notify_all()
        self._store(saves, pieces)

    def _store(self, saves: list[BlockSave], pieces: list[S]) -> None:
        if any(save.stored for save in saves):
            for save, piece in zip(saves, pieces, strict=True):
                if save.stored:
                    self._comparer.compare(save, piece)
            rest = [n for n, save in enumerate(saves) if not save.stored]
            saves, pieces = [saves[n] for n in rest], [pieces[n] for n in rest]
            if not saves:
                self._close_one()
                return
        refs = [
            BlockRef(save.ids[column], save.parents[column], save.tokens)
            for save in saves
            for column in self._columns
        ]
        try:
            transfer = self._client.put_many(
                refs, payloads(pieces, len(self._columns)), deadline_s=PUT_DEADLINE_S
            )
        except NeveError as error:
            log_events.SAVE_REFUSED.log(blocks=len(saves), detail=error)
            self._pool.give_back(pieces)
            self._unsaved.extend(save.ids[0] for save in saves)
            self._close_one()
            return
        transfer.add_done_callback(lambda done: self._end(done, saves, pieces))

    def take_unsaved(self) -> list[bytes]:
        """First ids of chunks that were not stored since the last call."""
        return _drain(self._unsaved)

    def take_stored(self) -> list[bytes]:
        """First ids of chunks that were stored since the last call."""
        return _drain(self._stored)

    def take_compared(self) -> list[tuple[bytes, Verdict]]:
        """See `Comparer.take`."""
        return self._comparer.take()

    def take_states(self) -> tuple[int, int]:
        """States that were stored since the last call, and their bytes."""
        with self._idle:
            states, self._states = self._states, (0, 0)
        return states

    def take_differences(self) -> dict[bytes, Place]:
        """See `Comparer.take_differences`."""
        return self._comparer.take_differences()

    @property
    def in_flight(self) -> int:
        """Batches that were begun and are not yet stored."""
        return self._open

    def drain(self, timeout_s: float) -> bool:
        """Waits until no save is under way; False when some still are after `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._open, timeout_s)

    def _drop(self, saves: Sequence[BlockSave]) -> None:
        lost = [save.ids[0] for save in saves if not save.stored]
        if lost:
            self._client.stats.count(dropped=len(lost))
            self._unsaved.extend(lost)
        for save in saves:
            if save.stored:
                self._comparer.skip(save)

    def _end(self, transfer: Transfer, saves: list[BlockSave], pieces: list[S]) -> None:
        """On an I/O thread: the transfer no longer uses the staging."""
        self._pool.give_back(pieces)
        size = len(self._columns)
        outcomes = transfer.wait(0.0)
        if self._counts_states:
            good = [len(piece.memory) // size for piece in pieces for _ in range(size)]
            good = [held for held, outcome in zip(good, outcomes, strict=True) if outcome is None]
            self._client.stats.count(put_states=len(good))
            with self._idle:
                self._states = self._states[0] + len(good), self._states[1] + sum(good)
        for number, save in enumerate(saves):
            is_stored = outcomes[number * size : (number + 1) * size] == [None] * size
            (self._stored if is_stored else self._unsaved).append(save.ids[0])
        self._close_one()

    def _close_one(self) -> None:
        with self._idle:
            self._open -= 1
            self._idle.notify_all()


def _drain(ids: deque[bytes]) -> list[bytes]:
    return [ids.popleft() for _ in range(len(ids))]
