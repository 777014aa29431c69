"""Stores blocks: one native submission a batch, within a budget of bytes in flight."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from neve.datapath.cold import ColdBlock
from neve.datapath.hotpath import BlockRef, HotPath
from neve.datapath.payload import Payload, copy_of
from neve.datapath.status import Status
from neve.datapath.transfer import Transfer, Urgency
from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES, decode_header
from neve.node.stats import Stats

PROMOTE_BYTES: Final = 64 << 20  # copies of cold blocks that wait to become hot
PROMOTE_S: Final = 10.0


class Storer:
    """For any thread. Payloads beyond `most_bytes` in flight are dropped and counted."""

    def __init__(self, path: HotPath, *, stats: Stats, most_bytes: int) -> None:
        self._path = path
        self._stats = stats
        self._store_budget = _Budget(most_bytes)
        self._promote_budget = _Budget(min(PROMOTE_BYTES, most_bytes))

    def store(
        self,
        blocks: Sequence[BlockRef],
        payloads: Sequence[Payload],
        *,
        deadline_s: float,
    ) -> Transfer:
        sizes = [len(payload) for payload in payloads]
        count = 0 if self._path.closed_for is not None else self._store_budget.take(sizes)
        transfer = Transfer(len(blocks), time.monotonic() + deadline_s)
        for i in range(count, len(blocks)):
            transfer.settle(i, self._path.closed_for or MissReason.BREAKER)
        taken = sum(sizes[:count])
        transfer.before_done(lambda _: self._store_budget.give_back(taken))
        transfer.before_done(self._count_lost)
        self._submit(transfer, blocks[:count], payloads[:count], Urgency.STORE)
        return transfer

    def promote(self, blocks: Sequence[ColdBlock]) -> None:
        """Stores verified cold blocks as hot ones, in the background, within a budget.

        Copies the payloads: the caller's buffers are free again when this returns.
        """
        sizes = [len(block.payload) for block in blocks]
        count = 0 if self._path.closed_for is not None else self._promote_budget.take(sizes)
        if not count:
            return
        headers = [decode_header(block.header) for block in blocks[:count]]
        refs = [BlockRef(header.id, header.parent, header.tokens) for header in headers]
        copies = [copy_of(block.payload) for block in blocks[:count]]
        taken = sum(sizes[:count])
        transfer = Transfer(count, time.monotonic() + PROMOTE_S)
        transfer.before_done(lambda _: self._promote_budget.give_back(taken))
        self._submit(transfer, refs, copies, Urgency.PROMOTE)

    def _submit(
        self,
        transfer: Transfer,
        blocks: Sequence[BlockRef],
        payloads: Sequence[Payload],
        urgency: Urgency,
    ) -> None:
        """Ends the transfer's submission; its blocks beyond `blocks` are settled already."""
        if blocks:
            self._put(transfer, dict(enumerate(zip(blocks, payloads, strict=True))), urgency)
        transfer.end_job()

    def _put(
        self,
        transfer: Transfer,
        items: Mapping[int, tuple[BlockRef, Payload]],
        urgency: Urgency,
        *,
        again: bool = False,
    ) -> None:
        """A native part for the blocks and payloads at these places of the transfer."""
        self._path.put(
            transfer,
            [block for block, _ in items.values()],
            [payload for _, payload in items.values()],
            lambda statuses: self._end(transfer, items, urgency, again, statuses),
            urgency=urgency,
        )

    def _end(
        self,
        transfer: Transfer,
        items: Mapping[int, tuple[BlockRef, Payload]],
        urgency: Urgency,
        was_again: bool,
        statuses: Sequence[Status],
    ) -> None:
        """Settles blocks. Those gone between SET and commit (evicted, or refused to another
        writer) are stored once more."""
        stored = stored_bytes = 0
        vanished = {}
        for (i, item), status in zip(items.items(), statuses, strict=True):
            transfer.settle(i, status.miss)
            if status is Status.OK:
                stored, stored_bytes = stored + 1, stored_bytes + HEADER_BYTES + len(item[1])
            elif status is Status.EVICTED:
                vanished[i] = item
        if urgency is Urgency.PROMOTE:
            self._stats.count(promoted_blocks=stored, promoted_bytes=stored_bytes)
        else:
            self._stats.count(put_blocks=stored)
        self._stats.count(hot_write_bytes=stored_bytes)
        if vanished and not was_again:
            self._put(transfer, vanished, urgency, again=True)

    def _count_lost(self, outcomes: Sequence[MissReason | None]) -> None:
        lost = Counter(outcome for outcome in outcomes if outcome is not None)
        refused = lost.pop(MissReason.QUOTA, 0)
        self._stats.count(put_refused=refused, dropped=lost.total())
        for reason, blocks in lost.items():
            self._stats.drop(reason, blocks)


class _Budget:
    """Bytes that may be held at a time."""

    def __init__(self, most_bytes: int) -> None:
        self._free = most_bytes
        self._lock = threading.Lock()

    def take(self, sizes: Sequence[int]) -> int:
        """Takes as many of `sizes`, from the first on, as fit. Returns how many."""
        count = 0
        with self._lock:
            for size in sizes:
                if size > self._free:
                    break
                self._free -= size
                count += 1
        return count

    def give_back(self, size: int) -> None:
        with self._lock:
            self._free += size
