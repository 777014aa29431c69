"""`NeveL2Adapter`: objects of LMCache in Neve. One session for each model that LMCache serves.

A boundary: nothing that goes wrong in Neve is an exception in LMCache. A look-up or load of what
Neve can't give is a miss, a store that it can't take has failed. No call waits for storage.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface
from lmcache.v1.memory_management import MemoryObj

from neve import log_events
from neve.datapath.client import Client
from neve.engine.guard import log_as
from neve.engine.link import Engine
from neve.engine.objects import (
    MOST_OBJECT_BYTES,
    Found,
    Leases,
    ObjectRef,
    find_objects,
    load_objects,
    store_objects,
)
from neve.engine.saver import PUT_DEADLINE_S
from neve.errors import MissReason, Misuse, NeveError
from neve.lmcache.keys import LEAST_HASH_BYTES, Layout, ref_of
from neve.lmcache.models import Models
from neve.lmcache.settings import read_options
from neve.lmcache.tasks import Tasks

MOST_REMEMBERED: Final = 65_536  # keys whose neighbour is known, and layouts
USAGE_S: Final = 10.0  # how old the figure of `get_usage` may be

K = TypeVar("K")
V = TypeVar("V")


class _Item(NamedTuple):
    """An object that Neve can take. `place`: of its key in the task. `memory`: uint8, its own."""

    place: int
    key: ObjectKey
    ref: ObjectRef
    memory: np.ndarray[Any, Any] | None = None


class _Work:
    """A task's keys, and what became of each. A key without an item is missed."""

    def __init__(self, keys: Sequence[ObjectKey], end: "Callable[[_Work], object]") -> None:
        self.keys = keys
        self.items: list[_Item] = []
        self.outcomes: list[MissReason | None] = [MissReason.BREAKER] * len(keys)
        self._end = end

    @property
    def good(self) -> list[int]:
        """Places of the keys that were found, loaded or stored."""
        return [n for n, outcome in enumerate(self.outcomes) if outcome is None]

    def settle(self, items: Sequence[_Item], outcomes: Sequence[object]) -> None:
        """An outcome that is no `MissReason` is a good one."""
        for item, outcome in zip(items, outcomes, strict=True):
            reason = outcome if isinstance(outcome, MissReason) else None
            self.outcomes[item.place] = reason

    def end(self) -> None:
        self._end(self)

    def finish(self, outcomes: Sequence[object]) -> None:
        """Of all items; the last word on this task."""
        self.settle(self.items, outcomes)
        self.end()

    @contextmanager
    def ended_if_broken(self) -> Iterator[None]:
        """LMCache waits for each task's end, whatever happens to it."""
        try:
            yield
        except Exception as error:
            if isinstance(error, NeveError):
                log_events.LMCACHE_UNTAKEN.log(objects=len(self.keys), detail=error)
            else:
                log_events.LMCACHE_BROKEN.log(objects=len(self.keys), exc_info=True)
            self.outcomes = [outcome or MissReason.BREAKER for outcome in self.outcomes]
            self.end()


class NeveL2Adapter(L2AdapterInterface):  # type: ignore[misc]  # lmcache is untyped here
    """Refuses to start on a wrong configuration, and only then. For any thread."""

    def __init__(self, params: Mapping[str, Any], l1_memory_desc: object = None) -> None:
        """`params`: see `neve.lmcache.settings`. Raises `Misuse`."""
        super().__init__()
        log_as("lmcache")
        self._options = read_options(params)
        self._models = Models(self._options, Engine("lmcache", version("lmcache")))
        self._stores: Tasks[L2StoreResult] = Tasks()
        self._lookups: Tasks[Bitmap] = Tasks()
        self._loads: Tasks[Bitmap] = Tasks()
        self._leases = Leases()
        # Shared by LMCache's two controllers. Each use is one operation of a dict.
        self._layouts: dict[tuple[str, int, int, str], Layout] = {}  # as last stored or loaded
        self._before: dict[ObjectKey, ObjectKey] = {}
        self._refused: Counter[str] = Counter()  # objects, by why
        self._unconnected = 0  # objects that were missed or not stored without a connection
        self._usage_bytes = 0
        self._usage_at = float("-inf")
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="neve-lmcache")
        self._closed = False

    def get_store_event_fd(self) -> int:
        return self._stores.event_fd

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookups.event_fd

    def get_load_event_fd(self) -> int:
        return self._loads.event_fd

    # ---- store

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        number = self._stores.begin()
        work = _Work(keys, lambda work: self._end_store(number, work))
        self._begin(work, lambda: self._with_memory(keys, objects), self._store, _count_unstored)
        return number

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return self._stores.take_all()

    def _store(self, client: Client, work: _Work) -> None:
        store_objects(
            client,
            [item.ref for item in work.items],
            [item.memory for item in work.items],
            [self._ref_before(item) for item in work.items],
            work.finish,
            deadline_s=PUT_DEADLINE_S,
        )

    def _end_store(self, number: int, work: _Work) -> None:
        stored = [item for item in work.items if work.outcomes[item.place] is None]
        sizes = [item.ref.size_bytes for item in stored]
        result = L2StoreResult(len(stored) == len(work.keys), sum(sizes))
        if self._stores.end(number, result) and stored:
            self._notify_keys_stored([item.key for item in stored], sizes)

    # ---- look-up

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        number = self._lookups.begin()
        work = _Work(keys, lambda work: self._lookups.end(number, _bitmap(work)))
        self._begin(
            work, lambda: self._described(keys, group_layout_descs), self._find, _count_missed
        )
        return number

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        for key in keys:
            self._leases.give_back(key)

    def _find(self, client: Client, work: _Work) -> None:
        def done(found: Sequence[Found | MissReason]) -> None:
            with work.ended_if_broken():
                pairs = zip(work.items, found, strict=True)
                self._leases.take(
                    (item.key, item.ref, answer)
                    for item, answer in pairs
                    if isinstance(answer, Found)
                )
                work.finish(found)

        refs = [item.ref for item in work.items]
        find_objects(client, refs, done, deadline_s=self._options.match_deadline_s)

    # ---- load

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        number = self._loads.begin()
        work = _Work(keys, lambda work: self._end_load(number, work))
        self._begin(work, lambda: self._with_memory(keys, objects), self._load, _count_missed)
        return number

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._loads.take(task_id)

    def _load(self, client: Client, work: _Work) -> None:
        """Objects that nobody holds a lease of are looked up first."""
        found: list[Found | MissReason | None] = [
            *self._leases.of((item.key, item.ref) for item in work.items)
        ]
        unknown = [n for n, known in enumerate(found) if known is None]

        def done(answers: Sequence[Found | MissReason]) -> None:
            with work.ended_if_broken():
                for n, answer in zip(unknown, answers, strict=True):
                    found[n] = answer
                self._load_found(client, work, found)

        if unknown:
            refs = [work.items[n].ref for n in unknown]
            find_objects(client, refs, done, deadline_s=self._options.match_deadline_s)
        else:
            self._load_found(client, work, found)

    def _load_found(
        self, client: Client, work: _Work, answers: Sequence[Found | MissReason | None]
    ) -> None:
        pairs = []
        for item, answer in zip(work.items, answers, strict=True):
            if isinstance(answer, Found):
                pairs.append((item, answer))
            else:
                work.settle([item], [answer or MissReason.NEVER_STORED])
        items = [item for item, _ in pairs]

        def done(outcomes: Sequence[MissReason | None]) -> None:
            work.settle(items, outcomes)
            work.end()

        load_objects(
            client,
            [item.ref for item in items],
            [item.memory for item in items],
            [found for _, found in pairs],
            done,
            deadline_s=self._options.load_deadline_s,
        )

    def _end_load(self, number: int, work: _Work) -> None:
        loaded = [work.keys[n] for n in work.good]
        if self._loads.end(number, _bitmap(work)) and loaded:
            self._notify_keys_accessed(loaded)

    # ---- what LMCache may ask besides

    def delete(self, keys: list[ObjectKey]) -> None:
        """Deletes nothing: other LMCaches of the tenant read these objects, and Neve decides what
        leaves. Says so once."""
        if not self._refused["delete"]:
            log_events.LMCACHE_DELETE_REFUSED.log(objects=len(keys))
        self._refused["delete"] += len(keys)

    def get_usage(self) -> AdapterUsage:
        """The tenant's bytes in both tiers, whoever stored them, `USAGE_S` old. No capacity, and
        none by salt: LMCache evicts nothing here. Never waits: asks in the background."""
        now = time.monotonic()
        if now - self._usage_at > USAGE_S and not self._closed:
            self._usage_at = now
            self._asking.submit(self._ask_usage)
        return AdapterUsage(total_bytes_used=self._usage_bytes, total_capacity_bytes=0)

    def report_status(self) -> dict[str, Any]:
        """`is_healthy`: of the adapter. Without Neve it serves misses and is well all the same."""
        tasks = (self._stores, self._lookups, self._loads)
        return {
            "is_healthy": not self._closed,
            "type": "neve",
            "endpoint": self._options.endpoint,
            "models": {
                model: {"connected": False} if client is None else _described_client(client)
                for model, client in self._models.clients().items()
            },
            "leases": len(self._leases),
            "tasks_under_way": sum(each.under_way for each in tasks),
            "unconnected_objects": self._unconnected,
            "refused_objects": dict(self._refused),
        }

    def close(self) -> None:
        """Finishes what is under way, within its deadlines."""
        self._closed = True
        self._models.close()
        self._asking.shutdown(wait=False, cancel_futures=True)
        for tasks in (self._stores, self._lookups, self._loads):
            tasks.close()

    def _ask_usage(self) -> None:
        client = next(filter(None, self._models.clients().values()), None)
        if client is None:
            return
        try:
            usage = client.usage()
        except NeveError as error:
            log_events.LMCACHE_UNTAKEN.log(objects=0, detail=error)
            return
        self._usage_bytes = usage.hot_bytes + usage.cold_bytes

    # ---- what tasks have in common

    def _begin(
        self,
        work: _Work,
        prepare: Callable[[], list[_Item]],
        act: Callable[[Client, _Work], None],
        count: Callable[[Client, int], None],
    ) -> None:
        """`act` begins the task once there is a client; `count`: objects that Neve can't take."""

        def use(client: Client | None) -> None:
            with work.ended_if_broken():
                if client is None:
                    self._unconnected += len(work.keys)
                    work.end()
                    return
                if refused := len(work.keys) - len(work.items):
                    count(client, refused)
                act(client, work)

        with work.ended_if_broken():
            work.items = prepare()
            if not work.keys:
                work.end()
                return
            try:
                self._models.use(work.keys[0].model_name, use)
            except Misuse as error:
                self._refuse("model", detail=error)
                work.end()

    def _with_memory(self, keys: Sequence[ObjectKey], objects: Sequence[MemoryObj]) -> list[_Item]:
        """Items of the objects that Neve can store, or load into."""
        items = []
        described: tuple[object, object] | None = None
        layout: Layout | None = None
        noted: object = None
        for n, (key, given) in enumerate(zip(keys, objects, strict=True)):
            memory = _memory_of(given)
            if memory is None:
                self._refuse("memory", detail=type(given).__name__)
                continue
            meta = given.metadata
            as_given = meta.shapes or [meta.shape], meta.dtypes or [meta.dtype]
            if as_given != described:  # mostly all of a task are alike
                described, layout = as_given, Layout.of(*as_given)
            if layout is None or layout.size_bytes != memory.nbytes:
                self._refuse("size", detail=f"{memory.nbytes} bytes, the layout is {layout}")
            elif (ref := self._ref(key, keys[0], layout)) is not None:
                if (row := (_row(key), layout)) != noted:
                    _remember(self._layouts, *row)
                    noted = row
                items.append(_Item(n, key, ref, memory))
        return items

    def _described(
        self, keys: Sequence[ObjectKey], descriptions: Mapping[int, MemoryLayoutDesc]
    ) -> list[_Item]:
        """Items of keys whose objects are described. What a serializer makes of them isn't: then it
        is what this process stored or loaded last."""
        described = {
            group: Layout.of(given.shapes, given.dtypes) for group, given in descriptions.items()
        }
        items = []
        row_before = None
        for n, key in enumerate(keys):
            row = _row(key)
            if row == row_before:
                _remember(self._before, key, keys[n - 1])
            row_before = row
            layout, seen = described.get(key.object_group_id), self._layouts.get(row)
            if seen is not None and (layout is None or seen.is_raw):
                layout = seen
            if layout is None:
                self._refuse("layout", detail=f"group {key.object_group_id}")
            elif (ref := self._ref(key, keys[0], layout)) is not None:
                items.append(_Item(n, key, ref))
        return items

    def _ref(self, key: ObjectKey, first: ObjectKey, layout: Layout) -> ObjectRef | None:
        """`first`: of the task, whose keys have one model in LMCache; None: Neve can't take it."""
        if len(key.chunk_hash) < LEAST_HASH_BYTES:
            self._refuse("hash", detail=f"{len(key.chunk_hash)} bytes")
        elif not 0 < layout.size_bytes <= MOST_OBJECT_BYTES:
            self._refuse("size", detail=f"{layout.size_bytes} bytes")
        elif key.model_name != first.model_name:
            self._refuse("model", detail="one task has several")
        else:
            return ref_of(key, layout, self._options.max_chunk_tokens)
        return None

    def _ref_before(self, item: _Item) -> ObjectRef | None:
        """The object before this one in a prompt, if a look-up named both."""
        if (before := self._before.get(item.key)) is None:
            return None
        layout = self._layouts.get(_row(item.key))
        return None if layout is None else self._ref(before, item.key, layout)

    def _refuse(self, why: str, *, detail: object) -> None:
        """Notes one object that Neve can't take, and logs the first of each kind."""
        if not self._refused[why]:
            log_events.LMCACHE_REFUSED.log(why=why, detail=detail)
        self._refused[why] += 1


def _memory_of(given: MemoryObj) -> np.ndarray[Any, Any] | None:
    """The object's bytes in the host's memory, not copied; None: it has none there."""
    tensor = given.raw_tensor
    if tensor is None or tensor.device.type != "cpu":
        return None
    return np.frombuffer(given.byte_array, dtype=np.uint8)


def _row(key: ObjectKey) -> tuple[str, int, int, str]:
    """What the chunks of one prompt have in common on one rank and in one group."""
    return key.model_name, key.kv_rank, key.object_group_id, key.cache_salt


def _remember(known: dict[K, V], name: K, value: V) -> None:
    known[name] = value
    if len(known) > MOST_REMEMBERED:
        known.pop(next(iter(known)), None)


def _bitmap(work: _Work) -> Bitmap:
    bitmap = Bitmap(len(work.keys))
    for n in work.good:
        bitmap.set(n)
    return bitmap


def _described_client(client: Client) -> dict[str, Any]:
    return {
        "connected": True,
        "tenant": client.session.tenant_slug,
        "space": client.session.space_name,
        "breaker": client.breaker.value,
        **client.stats.totals().as_dict(),
    }


def _count_unstored(client: Client, objects: int) -> None:
    client.stats.count(dropped=objects)
    client.stats.drop(MissReason.UNSUPPORTED, objects)


def _count_missed(client: Client, objects: int) -> None:
    client.stats.count(requested_blocks=objects)
    client.stats.miss(MissReason.UNSUPPORTED, objects)
