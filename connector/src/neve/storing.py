"""Stores blocks: SETs and their commit in one pipeline, within a budget of bytes in flight."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from neve.block import HEADER_BYTES, BlockHeader, checksum, decode_header, encode_header
from neve.cold import ColdBlock
from neve.errors import Closed, MissReason
from neve.hot import CommitOutcome
from neve.hotpath import HotPath, reason_of
from neve.loading import split_parts
from neve.stats import Stats
from neve.transfer import Job, JobPool, Transfer, Urgency
from neve.transport import Call, Get, Put

PROMOTE_BYTES: Final = 64 << 20  # copies of cold blocks that wait to become hot
PROMOTE_S: Final = 10.0


@dataclass(frozen=True)
class BlockRef:
    """A block to store: its id and its parent's (16 bytes each), and its tokens."""

    id: bytes
    parent: bytes
    tokens: int


class Storer:
    """For any thread. What exceeds `most_bytes` in flight is dropped and counted, never queued."""

    def __init__(
        self, path: HotPath, *, pool: JobPool, lanes: int, stats: Stats, most_bytes: int
    ) -> None:
        self._path = path
        self._pool = pool
        self._lanes = lanes
        self._stats = stats
        self._store_budget = _Budget(most_bytes)
        self._promote_budget = _Budget(min(PROMOTE_BYTES, most_bytes))

    def store(
        self,
        blocks: Sequence[BlockRef],
        payloads: Sequence[memoryview],
        *,
        deadline_s: float,
    ) -> Transfer:
        sizes = [HEADER_BYTES + len(payload) for payload in payloads]
        count = 0 if self._path.closed_for is not None else self._store_budget.take(sizes)
        transfer = Transfer(len(blocks), time.monotonic() + deadline_s)
        for i in range(count, len(blocks)):
            transfer.settle(i, self._path.closed_for or MissReason.BREAKER)
        taken = sum(sizes[:count])
        transfer.before_done(lambda _: self._store_budget.give_back(taken))
        self._submit(transfer, blocks[:count], payloads[:count], Urgency.STORE)
        return transfer

    def promote(self, blocks: Sequence[ColdBlock]) -> None:
        """Stores verified cold blocks as hot ones, in the background; drops what is too much.

        Copies the payloads: the caller's buffers are free again when this returns.
        """
        sizes = [HEADER_BYTES + len(block.payload) for block in blocks]
        count = 0 if self._path.closed_for is not None else self._promote_budget.take(sizes)
        if not count:
            return
        headers = [decode_header(block.header) for block in blocks[:count]]
        refs = [BlockRef(header.id, header.parent, header.tokens) for header in headers]
        copies = [memoryview(bytes(block.payload)) for block in blocks[:count]]
        taken = sum(sizes[:count])
        transfer = Transfer(count, time.monotonic() + PROMOTE_S)
        transfer.before_done(lambda _: self._promote_budget.give_back(taken))
        self._submit(transfer, refs, copies, Urgency.PROMOTE)

    def _submit(
        self,
        transfer: Transfer,
        blocks: Sequence[BlockRef],
        payloads: Sequence[memoryview],
        urgency: Urgency,
    ) -> None:
        """Ends the transfer's submission; its blocks beyond `blocks` are settled already."""
        transfer.before_done(self._count_lost)
        parts = split_parts([len(payload) for payload in payloads], self._lanes)
        jobs = [Job(self._job(transfer, blocks, payloads, part), transfer) for part in parts]
        with suppress(Closed):  # then the jobs were given up: dropped
            self._pool.submit(jobs, urgency)
        transfer.end_job()

    def _job(
        self,
        transfer: Transfer,
        blocks: Sequence[BlockRef],
        payloads: Sequence[memoryview],
        part: range,
    ) -> Callable[[], None]:
        return lambda: self._store(transfer, blocks, payloads, part)

    def _store(
        self,
        transfer: Transfer,
        blocks: Sequence[BlockRef],
        payloads: Sequence[memoryview],
        part: range,
    ) -> None:
        tag = self._path.session.fingerprint[:4]
        puts = []
        for i in part:
            ref, payload = blocks[i], payloads[i]
            header = BlockHeader(
                ref.id, ref.parent, ref.tokens, len(payload), checksum(payload), tag
            )
            puts.append(Put(self._path.block_key(ref.id), encode_header(header), payload))
        commits = self._path.commit_calls(
            [(blocks[i].id, HEADER_BYTES + len(payloads[i]), blocks[i].tokens) for i in part]
        )
        operations: list[Call | Get | Put] = [*puts, *(call for _, call in commits)]
        results = self._path.run(operations, deadline=transfer.deadline)
        committed = _by_id(commits, results[len(puts) :])
        stored = stored_bytes = 0
        for i, result in zip(part, results[: len(puts)], strict=True):
            said = committed[blocks[i].id]
            transfer.settle(i, _judge(result, said))
            if said == CommitOutcome.STORED:
                stored, stored_bytes = stored + 1, stored_bytes + HEADER_BYTES + len(payloads[i])
        self._stats.count(put_blocks=stored, hot_write_bytes=stored_bytes)

    def _count_lost(self, outcomes: Sequence[MissReason | None]) -> None:
        refused = outcomes.count(MissReason.QUOTA)
        lost = sum(outcome is not None for outcome in outcomes) - refused
        self._stats.count(put_refused=refused, dropped=lost)


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


def _by_id(
    commits: Sequence[tuple[list[bytes], object]], results: Sequence[object]
) -> dict[bytes, object]:
    """What commit said of each block: a number of `CommitOutcome`, or the error in its way."""
    said: dict[bytes, object] = {}
    for (ids, _), result in zip(commits, results, strict=True):
        if isinstance(result, list) and len(result) == len(ids):
            said.update(zip(ids, result, strict=True))
        else:
            said.update(dict.fromkeys(ids, result))
    return said


def _judge(put: object, commit: object) -> MissReason | None:
    if commit in (CommitOutcome.STORED, CommitOutcome.PRESENT):
        return None
    if commit == CommitOutcome.REFUSED:
        return MissReason.QUOTA
    if isinstance(put, Exception):
        return reason_of(put)  # what was not SET could not be committed
    return MissReason.CORRUPT if commit == CommitOutcome.MISMATCH else reason_of(commit)
