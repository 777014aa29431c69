"""Runs LMCache's storage for tests, in the environment that has it (.venv-lmcache).

Reads commands as JSON lines (`{"do": NAME, ...}`), answers each with one JSON line. An object's
content follows from its key and `seed`, so that what comes back can be compared here.

open, close            one L2 adapter, made as LMCache makes it; status, usage, unlock, delete
store, find, load      one task each; `peek`: whether it had ended when its submission returned
start, stop            LMCache's storage manager, with its L1 and controllers, over L2 adapters
write, drop, fetch     objects through it: into L1 (and on into L2), out of L1, back into L1
"""

import hashlib
import json
import os
import random
import select
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

os.environ["LMCACHE_TRACK_USAGE"] = "false"

import torch
from lmcache.v1.distributed.api import (
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import parse_args
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.distributed.storage_manager import StorageManager
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

WAIT_S = 120.0

Keys = list[ObjectKey]


class Runner:
    """What one process holds: an L2 adapter, driven as LMCache's controllers drive it, or LMCache's
    storage manager."""

    def __init__(self) -> None:
        self.adapter: Any = None
        self.manager: Any = None
        self.kept: list[TensorMemoryObj] = []  # whatever a task may still read or write
        self.stores = self.under_way = 0  # of the manager, begun or ended; begun and not ended

    def open(self, config: dict[str, Any]) -> list[int]:
        given = type("Given", (), {"l2_adapter": [json.dumps(config)]})
        self.adapter = create_l2_adapter(parse_args_to_l2_adapters_config(given).adapters[0])
        return [
            self.adapter.get_store_event_fd(),
            self.adapter.get_lookup_and_lock_event_fd(),
            self.adapter.get_load_event_fd(),
        ]

    def close(self) -> None:
        self.adapter.close()
        self.kept.clear()

    def status(self) -> dict[str, Any]:
        return self.adapter.report_status()

    def usage(self) -> int:
        return self.adapter.get_usage().total_bytes_used

    def unlock(self, keys: Keys) -> None:
        self.adapter.submit_unlock(keys)

    def delete(self, keys: Keys) -> None:
        self.adapter.delete(keys)

    def store(
        self, keys: Keys, layout: MemoryLayoutDesc, seed: int = 0, size: int | None = None
    ) -> dict[str, Any]:
        """`size`: the used size of each object, where it is less than the layout's."""
        objects = [memory(layout, content(key, layout, seed)) for key in keys]
        self.kept += objects
        if size is not None:
            for each in objects:
                each.set_used_size(size)
        task = self.adapter.submit_store_task(keys, objects)
        ended = self.adapter.pop_completed_store_tasks()
        peek = task in ended
        while task not in ended:
            wait_for(self.adapter.get_store_event_fd())
            ended |= self.adapter.pop_completed_store_tasks()
        result = ended[task]
        answer = {"ok": result.is_successful(), "bytes": result.bytes_transferred()}
        return {"peek": peek, **answer}

    def find(self, keys: Keys, layout: MemoryLayoutDesc) -> dict[str, Any]:
        groups = {key.object_group_id for key in keys}
        submit, query = (
            self.adapter.submit_lookup_and_lock_task,
            self.adapter.query_lookup_and_lock_result,
        )
        task = submit(keys, dict.fromkeys(groups, layout))
        return self._bits(query, task, self.adapter.get_lookup_and_lock_event_fd(), len(keys))

    def load(self, keys: Keys, layout: MemoryLayoutDesc, seed: int = 0) -> dict[str, Any]:
        blank = bytes(size_of(layout))
        objects = [memory(layout, blank) for _ in keys]
        self.kept += objects
        task = self.adapter.submit_load_task(keys, objects)
        fd = self.adapter.get_load_event_fd()
        answer = self._bits(self.adapter.query_load_result, task, fd, len(keys))
        answer["equal"] = [
            bytes(each.byte_array) == content(key, layout, seed)
            for key, each in zip(keys, objects, strict=True)
        ]
        return answer

    def _bits(self, query: Any, task: int, fd: int, count: int) -> dict[str, Any]:
        bitmap = query(task)
        peek = bitmap is not None
        while bitmap is None:
            wait_for(fd)
            bitmap = query(task)
        assert query(task) is None, "a result is returned once"
        return {"peek": peek, "bits": [bitmap.test(n) for n in range(count)]}

    def start(self, configs: list[dict[str, Any]]) -> None:
        """A storage manager with an L1 of 256 MiB, and an L2 adapter of each configuration."""
        words = ["--l1-size-gb", "0.25", "--no-l1-use-lazy", "--eviction-policy", "LRU"]
        for config in configs:
            words += ["--l2-adapter", json.dumps(config)]
        self.manager = StorageManager(parse_args(words))
        for _, adapter in self.manager.l2_adapters():
            adapter.submit_store_task = self._counting(adapter.submit_store_task, lambda _: 1)
            adapter.pop_completed_store_tasks = self._counting(
                adapter.pop_completed_store_tasks, lambda ended: -len(ended)
            )

    def _counting(self, call: Callable[..., Any], change: Callable[[Any], int]) -> Any:
        """`call`, which also counts the stores under way."""

        def counted(*args: Any) -> Any:
            answer = call(*args)
            self.stores += abs(change(answer))
            self.under_way += change(answer)
            return answer

        return counted

    def stop(self) -> None:
        self.manager.close()

    def healthy(self) -> bool:
        return self.manager.report_status()["is_healthy"]

    def write(self, keys: Keys, layout: MemoryLayoutDesc, seed: int = 0) -> dict[str, Any]:
        """Into L1. Waits until L2 has said what became of them."""
        before = self.stores
        reserved = self.manager.reserve_write(keys, layout)
        for key, each in reserved.items():
            each.raw_tensor[: each.get_size()] = torch.frombuffer(
                bytearray(content(key, layout, seed)), dtype=torch.uint8
            )
        self.manager.finish_write(list(reserved))
        until(lambda: self.stores > before and not self.under_way)
        return {"written": len(reserved)}

    def drop(self, keys: Keys) -> None:
        """Out of L1, once nobody reads them."""
        until(lambda: self.manager.delete_l1_keys(keys)[1] == 0)

    def fetch(self, keys: Keys, layout: MemoryLayoutDesc, seed: int = 0) -> dict[str, Any]:
        """A prefetch of one rank's row, read, released and compared."""
        group = GroupedObjectKeys(keys, keys[0].object_group_id, layout)
        handle = self.manager.submit_prefetch_task(PrefetchTaskSpec([group]))
        assert self.manager.wait_prefetch_status(handle, WAIT_S)
        result = self.manager.query_prefetch_status(handle)
        hits = result.hit_cells[0].popcount()
        equal: list[bool] = []
        if hits:
            with self.manager.read_prefetched_results(keys[:hits]) as objects:
                equal = [
                    bytes(each.byte_array) == content(key, layout, seed)
                    for key, each in zip(keys, objects or [], strict=False)
                ]
            self.manager.finish_read_prefetched(keys[:hits])
        return {"hits": hits, "l2": result.l2_hit_count, "equal": equal}


def key_of(fields: dict[str, Any]) -> ObjectKey:
    return ObjectKey(**{**fields, "chunk_hash": bytes.fromhex(fields["chunk_hash"])})


def layout_of(described: list[list[Any]]) -> MemoryLayoutDesc:
    """[[shape, name of dtype], …]"""
    shapes = [torch.Size(shape) for shape, _ in described]
    return MemoryLayoutDesc(shapes, [getattr(torch, name) for _, name in described])


def size_of(layout: MemoryLayoutDesc) -> int:
    pairs = zip(layout.shapes, layout.dtypes, strict=True)
    return sum(shape.numel() * dtype.itemsize for shape, dtype in pairs)


def content(key: ObjectKey, layout: MemoryLayoutDesc, seed: int) -> bytes:
    mark = hashlib.blake2b(repr((key, seed)).encode(), digest_size=8).digest()
    return random.Random(mark).randbytes(size_of(layout))


def memory(layout: MemoryLayoutDesc, data: bytes) -> TensorMemoryObj:
    """As LMCache's allocator makes them, with a tail of padding."""
    size = len(data)
    raw = torch.zeros(size + -size % 4096 + 4096, dtype=torch.uint8)
    raw[:size] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if size else raw[:0]
    meta = MemoryObjMetadata(
        shape=layout.shapes[0], dtype=layout.dtypes[0], address=0, phy_size=raw.numel(),
        ref_count=1, fmt=MemoryFormat.KV_2LTD, shapes=layout.shapes, dtypes=layout.dtypes,
    )  # fmt: skip
    return TensorMemoryObj(raw, meta, None)


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError("not within the time")
        time.sleep(0.005)


def wait_for(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(WAIT_S * 1000):
        raise TimeoutError("no event")
    consume_fd(fd)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what LMCache prints goes to the log
    runner = Runner()
    for line in sys.stdin:
        command = json.loads(line)
        if "keys" in command:
            command["keys"] = [key_of(each) for each in command["keys"]]
        if "layout" in command:
            command["layout"] = layout_of(command["layout"])
        try:
            answer = getattr(runner, command.pop("do"))(**command)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
