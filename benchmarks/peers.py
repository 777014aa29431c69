"""Other clients of Valkey in their usual form; they read and write the same keys.

Each needs only numpy and the client itself. On a cluster the valkey-py contestants know each key's
primary, so that neither redirects nor a cluster client slow them down.
"""

import importlib.machinery
import importlib.util
import select
from pathlib import Path
from typing import Any

import numpy as np
from contestant import Contestant, Plan

HEADER_BYTES = 64
RESP_WORKERS = 8  # Source: lmcache, RESPL2AdapterConfig, num_workers


class ValkeyPy(Contestant):
    """valkey-py, one command at a time."""

    parser = "_RESP2Parser"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        import valkey
        from valkey import _parsers

        def connect(port: int) -> valkey.Valkey:
            kind = getattr(_parsers, self.parser)
            pool = valkey.ConnectionPool(host="127.0.0.1", port=port, parser_class=kind)
            return valkey.Valkey(connection_pool=pool)

        clients = [connect(port) for port in plan.ports]
        self.where = [clients[plan.homes[plan.bucket(id_)]] for id_ in self.ids]
        self.keys = [plan.key(id_) for id_ in self.ids]
        self.values = [bytes(row) for row in plan.data()]

    def start_get(self, number: int, slot: int) -> None:
        for i in self.batch(number):
            if self.where[i].get(self.keys[i]) is None:
                raise RuntimeError("a block is not there")

    def start_put(self, number: int) -> None:
        for i in self.batch(number):
            self.where[i].set(self.keys[i], self.values[i])


class Libvalkey(ValkeyPy):
    """valkey-py with the parser written in C."""

    parser = "_LibvalkeyParser"


class GlideSync(Contestant):
    """valkey-glide-sync, a batch in one pipeline."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        import glide_sync as glide

        addresses = [glide.NodeAddress("127.0.0.1", port) for port in plan.ports]
        if len(plan.ports) > 1:
            configuration = glide.GlideClusterClientConfiguration(addresses, request_timeout=60_000)
            self.client: Any = glide.GlideClusterClient.create(configuration)
            self.pipeline = glide.ClusterBatch
        else:
            configuration = glide.GlideClientConfiguration(addresses, request_timeout=60_000)
            self.client = glide.GlideClient.create(configuration)
            self.pipeline = glide.Batch
        self.keys = [plan.key(id_) for id_ in self.ids]
        self.values = [bytes(row) for row in plan.data()]

    def start_get(self, number: int, slot: int) -> None:
        pipeline = self.pipeline(is_atomic=False)
        for i in self.batch(number):
            pipeline.get(self.keys[i])
        if None in self.client.exec(pipeline, raise_on_error=True):
            raise RuntimeError("a block is not there")

    def start_put(self, number: int) -> None:
        pipeline = self.pipeline(is_atomic=False)
        for i in self.batch(number):
            pipeline.set(self.keys[i], self.values[i])
        self.client.exec(pipeline, raise_on_error=True)


class GlideSyncSingle(GlideSync):
    """valkey-glide-sync, one command at a time."""

    def start_get(self, number: int, slot: int) -> None:
        for i in self.batch(number):
            if self.client.get(self.keys[i]) is None:
                raise RuntimeError("a block is not there")

    def start_put(self, number: int) -> None:
        for i in self.batch(number):
            self.client.set(self.keys[i], self.values[i])


class LMCacheResp(Contestant):
    """LMCache's C++ `resp` client, as its L2 adapter drives it: batches, an eventfd, memoryviews.

    It supports one server: on a cluster all its batches use the first primary. It reads values of a
    fixed length, so its buffers include room for the header.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        ids = self.ids
        if len(plan.ports) > 1:  # the first primary has few of neve's blocks: store own ones
            strangers = plan.ids(20 * plan.blocks, seed=3)
            ids = [id_ for id_ in strangers if plan.homes[plan.bucket(id_)] == 0][: plan.blocks]
        self.keys = [plan.key(id_).decode() for id_ in ids]
        streams = plan.connections * len(plan.ports)
        self.client = _lmcache_redis().LMCacheRedisClient(
            "127.0.0.1", plan.ports[0], max(RESP_WORKERS, streams), "", ""
        )
        self.poll = select.poll()
        self.poll.register(self.client.event_fd(), select.POLLIN)
        value_bytes = HEADER_BYTES + plan.block_bytes
        self.slots = np.full((4, plan.batch_blocks, value_bytes), 1, dtype=np.uint8)
        self.values = np.zeros((plan.blocks, value_bytes), dtype=np.uint8)
        self.values[:, HEADER_BYTES:] = plan.data()
        self.done: dict[int, tuple[bool, str]] = {}

    def start_get(self, number: int, slot: int) -> int:
        keys = [self.keys[i] for i in self.batch(number)]
        return int(
            self.client.submit_batch_get(keys, [memoryview(row) for row in self.slots[slot]])
        )

    def start_put(self, number: int) -> int:
        rows = self.batch(number)
        values = [memoryview(self.values[i]) for i in rows]
        return int(self.client.submit_batch_set([self.keys[i] for i in rows], values))

    def finish(self, started: int) -> None:
        while started not in self.done:
            self.poll.poll(30_000)
            for future, good, error, _ in self.client.drain_completions():
                self.done[int(future)] = (bool(good), str(error))
        good, error = self.done.pop(started)
        if not good:
            raise RuntimeError(error)

    def loaded(self, slot: int) -> np.ndarray:
        return self.slots[slot][:, HEADER_BYTES:]


def _lmcache_redis() -> Any:
    """Import only the extension: its package imports modules that need an engine."""
    import torch  # noqa: F401  the extension is linked against it

    package = importlib.util.find_spec("lmcache")
    if package is None or not package.submodule_search_locations:
        raise ImportError("no lmcache here")
    for folder in package.submodule_search_locations:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / f"lmcache_redis{suffix}"
            if path.exists():
                loader = importlib.machinery.ExtensionFileLoader("lmcache_redis", str(path))
                spec = importlib.util.spec_from_loader("lmcache_redis", loader)
                assert spec is not None
                module = importlib.util.module_from_spec(spec)
                loader.exec_module(module)
                return module
    raise ImportError("lmcache has no extension for this Python")


CONTESTANTS: dict[str, type[Contestant]] = {
    "naive": ValkeyPy,
    "libvalkey": Libvalkey,
    "glide": GlideSync,
    "glide-single": GlideSyncSingle,
    "lmcache-resp": LMCacheResp,
}
