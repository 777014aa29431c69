"""Worker side of saving: copy blocks out of the engine within the step, send them behind it."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic

from neve.client import BlockRef, Client, Transfer
from neve.errors import NeveError
from neve.vllm.plan import BlockSave
from neve.vllm.staging import Kv, S, StagingPool

logger = logging.getLogger(__name__)

# Longer than any healthy put, shorter than what `kill` grants a process.
_PUT_DEADLINE_S = 10.0


class Saver(Generic[S]):
    """Saves one rank's blocks. `save` and `take_unsaved` belong to the engine's thread.

    Source blocks are read only inside `save`, so the engine may free or reuse them right after.
    When the staging budget is in use, blocks are dropped and counted: the engine never waits.
    """

    def __init__(self, client: Client, kv: Kv[S], pool: StagingPool[S], *, rank: int) -> None:
        self._client = client
        self._kv = kv
        self._pool = pool
        self._rank = rank
        self._unsaved: deque[bytes] = deque()
        self._open: set[Transfer] = set()
        self._idle = threading.Condition()

    def save(self, saves: Sequence[BlockSave]) -> None:
        """Copies what fits into staging and submits it as one batch."""
        taken: list[BlockSave] = []
        pieces: list[S] = []
        for save in saves:
            piece = self._pool.take()
            if piece is None:
                self._drop(save)
                continue
            self._kv.gather(save.engine_blocks, piece)
            taken.append(save)
            pieces.append(piece)
        if not taken:
            return
        refs = [BlockRef(s.ids[self._rank], s.parents[self._rank], s.tokens) for s in taken]
        try:
            transfer = self._client.put_many(
                refs, [piece.memory for piece in pieces], deadline_s=_PUT_DEADLINE_S
            )
        except NeveError as error:
            logger.debug("neve.save.refused blocks=%d detail=%s", len(taken), error)
            self._pool.give_back(pieces)
            for save in taken:
                self._unsaved.append(save.ids[0])
            return
        with self._idle:
            self._open.add(transfer)
        transfer.add_done_callback(lambda done: self._end(done, taken, pieces))

    def take_unsaved(self) -> list[bytes]:
        """First-rank ids of blocks that were not stored since the last call."""
        ids = []
        while self._unsaved:
            ids.append(self._unsaved.popleft())
        return ids

    @property
    def in_flight(self) -> int:
        """Batches that were submitted and are not stored yet."""
        return len(self._open)

    def drain(self, timeout_s: float) -> bool:
        """Waits until no save is under way; False when some still are after `timeout_s`."""
        end = time.monotonic() + timeout_s
        with self._idle:
            return self._idle.wait_for(lambda: not self._open, max(0.0, end - time.monotonic()))

    def _drop(self, save: BlockSave) -> None:
        self._client.stats.count(dropped=1)
        self._unsaved.append(save.ids[0])

    def _end(self, transfer: Transfer, saves: list[BlockSave], pieces: list[S]) -> None:
        """On an I/O thread: the buffers are ours again."""
        self._pool.give_back(pieces)
        for save, reason in zip(saves, transfer.wait(0.0), strict=True):
            if reason is not None:
                self._unsaved.append(save.ids[0])
        with self._idle:
            self._open.discard(transfer)
            self._idle.notify_all()
