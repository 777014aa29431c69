"""A process with SGLang's own HiCacheController and host pool, driven line by line: a JSON command
in, a JSON answer out. Run by the interpreter of SGLang. No model, no device: the host pool's pages
are filled with random bytes.

{"do": "start", "config": {extra config} | null, "backend"?: "dynamic" | "file", "layout"?, "kind"?:
    "mha" | "wide" (V wider than K) | "mla", "page"?, "pages"?, "layers"?, "dtype"?, "storage"?:
    {fields of the storage config to change}, "environment"?: {while it attaches}}
{"do": "write", "seed", "pages", "salt"?, "extra_key"?}   random pages, backed up; the tokens stored
{"do": "read", "seed", "pages", "salt"?, "extra_key"?}   prefetched into zeroed pages: the tokens
    hit and loaded, whether all loaded bytes are those of `write`, seconds
{"do": "read_in_threads", "seeds", "pages"}   each by a thread, straight from the backend
{"do": "wait_connected"}   until Neve answered
{"do": "register", "pool"}   another host pool, as a hybrid model's
{"do": "change_weights", "by"}   as an update from disk, or a weight check's reset does
{"do": "attach", "config"}   Neve, to the running controller, in place of its backend
{"do": "load_adapter", "name", "path"}   the id, part of page keys, that SGLang's tokenizer process
    gives a LoRA adapter that is loaded while it serves
{"do": "counters"}   Neve's, and SGLang's own metrics of the backend
{"do": "deciding", "arguments", "starting"?}   of a server's arguments, those that decide KV
{"do": "raw", "bytes"}   seconds in which so many bytes are copied in memory, and go through one
    connection of this host, both straight into memory that the pool could be
{"do": "stop"}   detach
"""

import asyncio
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

sys.path.append(str(Path(__file__).parents[1]))
from support.commands import answer_commands  # isort: skip: before anything prints

import on_cpu
import torch
import torch.distributed as dist
from sglang.srt import runtime_context
from sglang.srt.lora.lora_registry import LoRARegistry
from sglang.srt.managers import tokenizer_control_mixin as control
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.managers.io_struct import LoadLoRAAdapterReqInput, LoRAUpdateOutput
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import get_mha_host_pool_cls
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.weight_checker import WeightChecker

on_cpu.prepare()
PATIENCE_S = 120
PARALLEL = {
    f"{kind}_{what}": int(what == "size")
    for kind in ("attn_dcp", "tp", "pp", "attn_tp", "attn_cp", "attn_dp")
    for what in ("rank", "size")
}


class Pools:
    """A device pool that nobody fills, and its host pool."""

    def __init__(self, *, kind, layout, page, pages, layers, dtype):
        tokens = page * pages
        dtype = getattr(torch, dtype)
        common = {
            "size": tokens, "page_size": page, "dtype": dtype, "layer_num": layers,
            "device": "cpu", "enable_memory_saver": False,
        }  # fmt: skip
        host = {
            "host_to_device_ratio": 1.0, "host_size": 0, "page_size": page, "layout": layout,
            "pin_memory": False, "device": "cpu", "device_capacity_tokens": tokens,
            "start_layer": 0, "end_layer": layers,
        }  # fmt: skip
        if kind == "mla":
            self.device = MLATokenToKVPool(kv_lora_rank=48, qk_rope_head_dim=16, **common)
            info = self.device._mla_buffer_info()
            self.host = MLATokenToKVPoolHost(info, target_layer_num=layers, **host)
        else:
            wide = {"v_head_dim": 96} if kind == "wide" else {}
            self.device = MHATokenToKVPool(
                head_num=2, head_dim=64, enable_alt_stream=False, **common, **wide
            )
            info = self.device._mha_buffer_info()
            self.host = get_mha_host_pool_cls(info)(info, **host)

    def get_kvcache(self):
        return self.device

    def buffers(self):
        kv = self.host.kv_buffer
        return [
            each.view(-1).view(torch.uint8) for each in (kv if isinstance(kv, tuple) else (kv,))
        ]

    def pages_of(self, indices):
        """Bytes of each page, by the pool's own pointers."""
        addresses, sizes = self.host.get_page_buffer_meta(indices)
        count = len(indices) // self.host.page_size
        per = len(addresses) // count
        runs = [self.run(*run) for run in zip(addresses, sizes, strict=True)]
        return [torch.cat(runs[i * per : (i + 1) * per]) for i in range(count)]

    def run(self, address, size):
        for buffer in self.buffers():
            at = address - buffer.data_ptr()
            if 0 <= at <= buffer.numel() - size:
                return buffer[at : at + size]
        raise AssertionError("a run outside of the pool")


class Controller:
    def __init__(self):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        known = runtime_context._parallel_fields()
        fields = {name: value for name, value in PARALLEL.items() if name in known}
        self.parallel = runtime_context.get_parallel().override(**fields)
        self.parallel.__enter__()
        self.controller = None
        self.wanted = {}

    def start(
        self,
        config,
        backend="dynamic",
        layout="page_first",
        kind="mha",
        page=16,
        pages=80,
        layers=4,
        dtype="bfloat16",
        storage=None,
        environment=None,
    ):
        if self.controller is not None:
            self.stop()
        self.page = page
        self.pools = Pools(
            kind=kind, layout=layout, page=page, pages=pages, layers=layers, dtype=dtype
        )
        os.environ.update(environment or {})
        made = HiCacheController._generate_storage_config

        def changed(controller, *args, **kwargs):
            config = made(controller, *args, **kwargs)
            for name, value in (storage or {}).items():
                setattr(config, name, value)
            return config

        HiCacheController._generate_storage_config = changed
        try:
            self.controller = HiCacheController(
                self.pools, self.pools.host, page, dist.group.WORLD, threading.Event(),
                write_policy="write_through", io_backend="direct", storage_backend=backend,
                prefetch_threshold=page, model_name="some/model",
                storage_backend_extra_config=config, enable_storage_metrics=True,
            )  # fmt: skip
        finally:
            HiCacheController._generate_storage_config = made
            for name in environment or {}:
                del os.environ[name]

    def key_of(self, seed, pages, salt, extra_key):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 1000, (pages * self.page,), generator=generator).tolist()
        return RadixKey(tokens, extra_key, cache_salt=salt)

    def write(self, seed, pages, salt=None, extra_key=None):
        key = self.key_of(seed, pages, salt, extra_key)
        host = self.pools.host
        indices = host.alloc(pages * self.page)
        generator = torch.Generator().manual_seed(seed + 1)
        addresses, sizes = host.get_page_buffer_meta(indices)
        for address, size in zip(addresses, sizes, strict=True):
            fresh = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
            self.pools.run(address, size).copy_(fresh)
        self.wanted[seed] = [page.clone() for page in self.pools.pages_of(indices)]
        hashes = get_storage_hash_str(key, None, page_size=self.page)
        began = time.monotonic()
        self.controller.write_storage(indices, key, hash_value=hashes, prefix_keys=[])
        ended = self.controller.ack_backup_queue.get(timeout=PATIENCE_S)
        took_s = time.monotonic() - began
        host.free(indices)
        return {"stored": ended.completed_tokens, "took_s": took_s}

    def read(self, seed, pages, salt=None, extra_key=None):
        key = self.key_of(seed, pages, salt, extra_key)
        for buffer in self.pools.buffers():
            buffer.zero_()
        controller, host = self.controller, self.pools.host
        began = time.monotonic()
        controller.prefetch(f"r{seed}", key, None, [])
        operation = controller.prefetch_hit_queue.get(timeout=PATIENCE_S)
        hit = operation.storage_hit_count
        if not hit:
            return {"hit": 0, "loaded": 0, "equal": True, "took_s": time.monotonic() - began}
        operation.host_indices = host.alloc(hit)
        controller.prefetch_buffer.put(operation)
        loaded = 0
        while True:
            ack = controller.ack_prefetch_queue.get(timeout=PATIENCE_S)
            loaded = max(loaded, ack.completed_tokens or 0)
            if ack.completed_req:
                break
        took_s = time.monotonic() - began
        got = self.pools.pages_of(operation.host_indices)[: loaded // self.page]
        wanted = self.wanted.get(seed, [])
        equal = all(torch.equal(a, b) for a, b in zip(got, wanted, strict=False))
        host.free(operation.host_indices)
        return {"hit": hit, "loaded": loaded, "equal": equal, "took_s": took_s}

    def read_in_threads(self, seeds, pages):
        backend, host = self.controller.storage_backend, self.pools.host
        results = {}

        def work(seed):
            key = self.key_of(seed, pages, None, None)
            hashes = get_storage_hash_str(key, None, page_size=self.page)
            indices = host.alloc(pages * self.page)
            found = backend.batch_exists(hashes, HiCacheStorageExtraInfo())
            good = backend.batch_get_v1(hashes, indices, HiCacheStorageExtraInfo())
            got = self.pools.pages_of(indices)
            equal = all(torch.equal(a, b) for a, b in zip(got, self.wanted[seed], strict=True))
            results[seed] = [found, sum(good), equal]
            host.free(indices)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[seed] for seed in seeds]

    def backend(self):
        backend = self.controller.storage_backend
        return getattr(backend, "_backend", backend)

    def wait_connected(self):
        end = time.monotonic() + PATIENCE_S
        while self.backend()._client() is None:
            if time.monotonic() > end:
                raise TimeoutError("Neve did not answer")
            time.sleep(0.05)

    def register(self, pool):
        self.backend().register_mem_host_pool_v2(object(), pool)

    def change_weights(self, by):
        change = {
            "update": lambda: WeightUpdater.update_weights_from_disk(object(), "else", "auto"),
            "reset": lambda: WeightChecker._reset_tensors(object()),
        }[by]
        try:
            change()
        except AttributeError as error:  # of an object without weights
            return repr(error)

    def attach(self, config):
        self.controller.detach_storage_backend()
        self.controller.attach_storage_backend(
            "dynamic", self.page, "some/model", storage_backend_extra_config=config
        )

    def load_adapter(self, name, path):
        control.get_lora = lambda: SimpleNamespace(enable_lora=True, max_loaded_loras=None)
        control.get_parallel = lambda: SimpleNamespace(dp_size=1)
        loaded = LoRAUpdateOutput(success=True, error_message="", loaded_adapters={name: path})
        tokenizer = SimpleNamespace(
            auto_create_handle_loop=lambda: None,
            lora_update_lock=asyncio.Lock(),
            pending_lora_unloads={},
            update_lora_adapter_communicator=AsyncMock(return_value=[loaded]),
            lora_registry=LoRARegistry(),
            lora_ref_cache={},
        )
        request = LoadLoRAAdapterReqInput(lora_name=name, lora_path=path)
        done = asyncio.run(control.TokenizerControlMixin.load_lora_adapter(tokenizer, request))
        assert done.success, done.error_message
        return request.lora_id

    def counters(self):
        stats = self.controller.storage_backend.get_stats()
        client = self.backend()._client()
        totals = client.stats.totals()
        return {
            "counters": {name: count for name, count in totals.counters.items() if count},
            "misses": dict(totals.misses),
            "pages": [sum(stats.prefetch_pgs), sum(stats.backup_pgs)],
            "breaker": client.breaker.value,
        }

    def deciding(self, arguments, starting=True):
        from neve.sglang.settings import deciding_arguments

        given = ServerArgs(model_path="some/model", **arguments)
        return deciding_arguments(given, starting=starting)

    def raw(self, bytes):
        source, target = torch.ones(bytes, dtype=torch.uint8), torch.zeros(bytes, dtype=torch.uint8)
        began = time.monotonic()
        target.copy_(source)
        copied = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as server:
            with (
                socket.create_connection(server.getsockname()) as ours,
                server.accept()[0] as other,
            ):
                sender = threading.Thread(target=other.sendall, args=(source.numpy().data,))
                into = target.numpy().data
                started = time.monotonic()
                sender.start()
                at = 0
                while at < bytes:
                    at += ours.recv_into(into[at:])
                ended = time.monotonic()
                sender.join()
        return {"copy_s": copied - began, "socket_s": ended - started}

    def stop(self):
        controller, self.controller = self.controller, None
        controller.detach_storage_backend()


if __name__ == "__main__":
    controller = Controller()
    answer_commands(controller)
    if controller.controller is not None:
        controller.stop()
