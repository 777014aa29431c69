"""`NeveStorage`: Neve under SGLang's host pool, as a `dynamic` HiCache storage backend.

SGLang's controller asks from a thread each for what is stored, for loads and for saves, and waits
for each answer. Pages move between the host pool itself and the network.

A boundary: an exception in a hook is logged once and becomes a miss. Only a wrong configuration
raises, while SGLang attaches the backend: a server that starts with it does not start.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolName
from sglang.srt.observability.metrics_collector import StorageMetrics
from sglang.srt.runtime_context import get_parallel
from sglang.version import __version__

from neve import log_events
from neve.datapath.client import Client
from neve.engine.guard import guarded, guarded_for, log_as
from neve.engine.link import BOOT_WAIT_S, Engine, Link
from neve.engine.options import Options
from neve.engine.page_store import PageStore
from neve.errors import Misuse
from neve.formats.space import MAX_CHUNK_TOKENS
from neve.sglang import changes
from neve.sglang.identity import identify, server_arguments
from neve.sglang.pages import PoolPages

CONFIG: Final = "--hicache-storage-backend-extra-config"
# Members of the extra config that SGLang reads itself and leaves there.
_SGLANGS: Final = ("backend_name", "module_path", "class_name", "interface_v1")
# Options of `Options` that mean something here.
OPTIONS: Final = (
    "endpoint",
    "api_key",
    "node",
    "space",
    "revision",
    "match_deadline_s",
    "load_deadline_s",
    "connections",
    "cold_connections",
    "local_dir",
    "local_bytes",
    "near_stores",
)
_METRICS_KEPT: Final = 1000  # samples, for a server that never takes them


def _none_of(keys: Sequence[str], *_: Any, **__: Any) -> list[bool]:
    return [False] * len(keys)


class NeveStorage(HiCacheStorage):  # type: ignore[misc]  # sglang is untyped here
    """Keys are SGLang's: SHA-256 in hex over all tokens up to a page's end, begun by the request's
    cache salt and extra key. Everything else that decides KV is in the space."""

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        """Raises `Misuse` for what can't be served."""
        log_as("sglang")
        self._config = storage_config
        extra = dict(storage_config.extra_config or {})
        if not extra.get("interface_v1"):
            raise Misuse(f"set it to 1 in {CONFIG}", field="interface_v1")
        self._options = self._read(extra)
        self._refuse_parallelism()
        self._starting = changes.is_starting()
        changes.watch(self, self._options.revision, starting=self._starting)
        self._link: Link | None = None
        self._pages: PoolPages | None = None
        self._store = PageStore(
            self._client,
            match_deadline_s=self._options.match_deadline_s,
            load_deadline_s=self._options.load_deadline_s,
        )
        self._metrics_lock = threading.Lock()
        self._metrics = StorageMetrics()

    def _read(self, extra: dict[str, Any]) -> Options:
        arguments = server_arguments()
        engine_id = None if arguments is None else f"{arguments.host}:{arguments.port}"
        options = {name: value for name, value in extra.items() if name not in _SGLANGS}
        return Options.from_config(options, engine_id=engine_id, place=CONFIG, known=OPTIONS)

    def _refuse_parallelism(self) -> None:
        config, arguments = self._config, server_arguments()
        if config.attn_cp_size > 1 or config.dcp_size > 1:
            name = "attn_cp_size" if config.attn_cp_size > 1 else "dcp_size"
            raise Misuse("> 1 splits pages between ranks in a way Neve doesn't know", field=name)
        if config.should_split_heads:
            raise Misuse("pages split by KV head are not served: leave it out", field="tp_lcm_size")
        if getattr(arguments, "hicache_host_memory_mode", "cache") != "cache":
            raise Misuse(
                "a host pool that only stages is not served: use 'cache'",
                field="hicache_host_memory_mode",
            )

    # ---- attaching

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Connects. Raises `Misuse` for a pool, a layout or weights that can't be served."""
        super().register_mem_pool_host(mem_pool_host)
        self._pages = PoolPages(mem_pool_host)
        identity = identify(
            self._config, mem_pool_host, self._pages, self._options, starting=self._starting
        )
        # A page is a block.
        options = replace(self._options, max_chunk_tokens=min(self._pages.tokens, MAX_CHUNK_TOKENS))
        engine = Engine("sglang", __version__)
        self._link = Link.acquire(options, identity, engine=engine, node=self._node())
        self._link.wait_first_attempt(BOOT_WAIT_S)

    def _node(self) -> str:
        """Each scheduler process is a node of its own: ranks may share a space."""
        config = self._config
        replica = config.dp_rank or (get_parallel().dp_rank if server_arguments() else 0) or 0
        node = self._options.of_replica(replica).node
        return f"{node}/tp{config.tp_rank}" if config.tp_rank else node

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Raises `Misuse` for any pool but the KV pool: none of its pages would be stored."""
        if host_pool_name == PoolName.KV and host_pool is self.mem_pool_host:
            return
        self.close()
        raise Misuse(
            f"the model keeps a pool {str(host_pool_name)!r} beside its KV "
            f"({type(host_pool).__name__}), which Neve does not serve yet",
            field="hicache_storage_backend",
        )

    # ---- SGLang's threads

    @guarded(int)
    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        return self._store.find(_bytes(keys))

    @guarded(bool)
    def exists(self, key: str) -> bool:
        return self._store.find(_bytes([key])) == 1

    @guarded_for(_none_of)
    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        pages, began = self._pages_at(host_indices, keys), time.monotonic()
        filled = self._store.load(_bytes(keys), pages)
        metrics = self._metrics
        self._note(metrics.prefetch_pgs, metrics.prefetch_bandwidth, sum(filled), began)
        return filled

    @guarded_for(_none_of)
    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """`extra_info.prefix_keys` are there with `hicache_storage_pass_prefix_keys` only. Without,
        a call's first page counts as the first of its chain when segments are compacted."""
        pages, began = self._pages_at(host_indices, keys), time.monotonic()
        before = _bytes((getattr(extra_info, "prefix_keys", None) or [])[-1:])
        tokens = len(host_indices) // len(keys)
        stored = self._store.store(
            _bytes(keys), pages, tokens, before=before[0] if before else None
        )
        metrics = self._metrics
        self._note(metrics.backup_pgs, metrics.backup_bandwidth, sum(stored), began)
        return stored

    def _pages_at(self, host_indices: torch.Tensor, keys: list[str]) -> list[Any]:
        assert self._pages is not None
        return self._pages.at(host_indices, len(keys))

    def _client(self) -> Client | None:
        link = self._link
        return None if link is None else link.client

    # ---- SGLang's metrics

    def _note(self, counts: list[int], speeds: list[float], pages: int, began: float) -> None:
        """Samples for SGLang's own metrics; speeds in GB/s."""
        if not self._config.enable_storage_metrics or self._pages is None or not pages:
            return
        took_s = max(time.monotonic() - began, 1e-9)
        with self._metrics_lock:
            if len(counts) < _METRICS_KEPT:
                counts.append(pages)
                speeds.append(pages * self._pages.page_bytes / took_s / 1e9)

    def get_stats(self) -> StorageMetrics:
        with self._metrics_lock:
            metrics, self._metrics = self._metrics, StorageMetrics()
        return metrics

    # ---- ends

    def on_weights_changed(self) -> None:
        self._store.stop()
        log_events.WEIGHTS_REPLACED.log()

    def clear(self) -> None:
        """Raises `Misuse`: pages are the tenant's, and other servers may use them."""
        raise Misuse(
            "stored pages are the tenant's: expire them, or delete the space, in Neve",
            field="clear",
        )

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.release()

    # ---- the copying interface, which `interface_v1` replaces

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> None:
        return None

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[None]:
        return [None] * len(keys)

    def set(
        self,
        key: str,
        value: Any = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return False

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return False


def _bytes(keys: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(key) for key in keys]
