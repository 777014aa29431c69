"""The loads and saves of one rank, over all its KV cache groups.

Each group has a loader, a saver and staging of its own, because its engine blocks have another
size. A load ends when it ended in every group.
"""

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic

from neve import log_events
from neve.datapath.client import Client
from neve.engine.canary import Verdict
from neve.engine.contract import Kv, S
from neve.engine.groups import KvGroup
from neve.engine.loader import BlockLoader, LoadResults
from neve.engine.rear_loader import RearLoader
from neve.engine.saver import BlockSaver
from neve.engine.staging import StagingPool
from neve.engine.step import BlockSave, LoadPlan, Place
from neve.formats.parts import PartKind


@dataclass
class _OpenLoad:
    """`groups_left`: where it is under way. `is_whole`: it fails as a whole if one block does."""

    groups_left: int
    is_whole: bool
    failed: bool = False


class GroupTransfers(Generic[S]):
    """`start`, `poll`, `save` and the `take_…` belong to the engine's thread.

    `kvs` has one entry for each of `groups`. `load_bytes`, `save_bytes`: staging of all groups.
    """

    def __init__(
        self,
        client: Client,
        kvs: Sequence[Kv[S]],
        groups: Sequence[KvGroup],
        columns: Sequence[int],
        *,
        load_bytes: int,
        save_bytes: int,
    ) -> None:
        sizes = [group.stored_blocks(client.session.chunk_tokens) for group in groups]
        chunk_bytes = sum(size * kv.block_bytes for size, kv in zip(sizes, kvs, strict=True))
        loading: list[StagingPool[Any]] = []
        saving: list[StagingPool[Any]] = []
        for size, kv in zip(sizes, kvs, strict=True):
            allocate = partial(kv.allocate, size)
            loading.append(StagingPool(allocate, load_bytes // chunk_bytes))
            saving.append(StagingPool(allocate, save_bytes // chunk_bytes))
        self._loaders = [
            BlockLoader(client, kv, pool, columns) for kv, pool in zip(kvs, loading, strict=True)
        ]
        self._savers = [
            BlockSaver(client, kv, pool, columns, counts_states=group.kind is PartKind.STATE)
            for kv, pool, group in zip(kvs, saving, groups, strict=True)
        ]
        self._open: dict[str, _OpenLoad] = {}
        # Made when the first rear comes: another `load_bytes` at most.
        rears = StagingPool(partial(kvs[0].allocate, sizes[0]), load_bytes // chunk_bytes)
        self.rears: RearLoader[Any] = RearLoader(client, kvs[0], rears, columns)
        if kvs[0].defers:
            threading.Thread(
                target=_fill, args=([*loading, *saving],), name="neve-pin", daemon=True
            ).start()

    def start(self, plan: LoadPlan) -> None:
        """Begins a load; `poll` reports its end, once. If this raises, nothing was begun."""
        numbers = sorted({block.group for block in plan.blocks})
        self._open[plan.request_id] = _OpenLoad(len(numbers), plan.whole)
        for begun, number in enumerate(numbers):
            blocks = tuple(block for block in plan.blocks if block.group == number)
            try:
                self._loaders[number].start(replace(plan, blocks=blocks))
            except Exception:
                if not begun:
                    del self._open[plan.request_id]
                    raise
                # The groups that were begun still write into the engine: the load ends with them.
                log_events.LOAD_BROKEN.log(exc_info=True)
                load = self._open[plan.request_id]
                load.groups_left, load.failed = begun, True
                return

    def poll(self, wait_s: float) -> LoadResults:
        """Moves every load on and reports those that ended. Waits for one group at most."""
        results = LoadResults()
        for loader in self._loaders:
            waits = loader.is_loading
            found = loader.poll(wait_s)
            wait_s = 0.0 if waits else wait_s
            for request_id in found.request_ids:
                load = self._open[request_id]
                load.groups_left -= 1
                load.failed = load.failed or request_id in found.failed_requests
                if load.groups_left:
                    continue
                del self._open[request_id]
                results.request_ids.add(request_id)
                if load.failed and load.is_whole:
                    results.failed_requests.add(request_id)
            results.failed_engine_blocks |= found.failed_engine_blocks
        return results

    def stop_loads(self) -> LoadResults:
        """Fails all loads, whatever has landed; afterwards no engine block is written."""
        results = LoadResults(set(self._open))
        results.failed_requests = {name for name, load in self._open.items() if load.is_whole}
        self._open.clear()
        self.rears.stop()
        for loader in self._loaders:
            results.failed_engine_blocks |= loader.stop().failed_engine_blocks
        return results

    def end_copies(self, timeout_s: float) -> bool:
        """Waits until no engine block is read; False when some still are after `timeout_s`."""
        end = time.monotonic() + timeout_s
        return all(saver.end_copies(max(0.0, end - time.monotonic())) for saver in self._savers)

    def save(self, saves: Sequence[BlockSave]) -> None:
        """Begins to copy blocks out of the engine; returns before they are stored. If one group
        can't, the others do, and then this raises."""
        trouble: Exception | None = None
        for number, saver in enumerate(self._savers):
            try:
                saver.save([save for save in saves if save.group == number])
            except Exception as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def copying(self, request_id: str) -> bool:
        """Whether engine blocks of this request are still being read."""
        return any(saver.copying(request_id) for saver in self._savers)

    def reads(self, engine_blocks: Collection[int]) -> bool:
        """Whether one of these engine blocks is still being read."""
        return any(saver.reads(engine_blocks) for saver in self._savers)

    @property
    def in_flight(self) -> int:
        """Batches that were begun and are not stored yet."""
        return sum(saver.in_flight for saver in self._savers)

    def take_unsaved(self) -> list[bytes]:
        """First ids of blocks that were not stored since the last call."""
        return [id_ for saver in self._savers for id_ in saver.take_unsaved()]

    def take_stored(self) -> list[bytes]:
        """First ids of blocks that were stored since the last call."""
        return [id_ for saver in self._savers for id_ in saver.take_stored()]

    def take_states(self) -> tuple[int, int]:
        """States that were stored since the last call, and their bytes."""
        counts, sizes = zip(*(saver.take_states() for saver in self._savers), strict=True)
        return sum(counts), sum(sizes)

    def take_compared(self) -> list[tuple[bytes, Verdict]]:
        """See `Comparer.take`."""
        return [found for saver in self._savers for found in saver.take_compared()]

    def take_differences(self) -> dict[bytes, Place]:
        """See `Comparer.take_differences`."""
        return {
            block_id: place
            for saver in self._savers
            for block_id, place in saver.take_differences().items()
        }

    def drain(self, timeout_s: float) -> bool:
        """Waits until no save is under way; False when some still are after `timeout_s`."""
        end = time.monotonic() + timeout_s
        return all(saver.drain(max(0.0, end - time.monotonic())) for saver in self._savers)


def _fill(pools: Sequence[StagingPool[Any]]) -> None:
    """Pins all staging ahead of its use: that takes too long for a step."""
    try:
        for pool in pools:
            pool.fill()
    except Exception:
        log_events.STAGING_SHORT.log(exc_info=True)
