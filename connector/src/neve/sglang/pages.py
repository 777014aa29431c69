"""Pages of SGLang's host pool as memory that the core reads and writes, without a copy."""

from collections.abc import Iterator
from typing import Any, Final

import torch

from neve import _core
from neve.errors import Misuse
from neve.formats.block import MAX_PAYLOAD_BYTES

# Host pools whose pages Neve knows, and their layouts that `get_page_buffer_meta` gives whole.
# page_first_kv_split needs an Ascend NPU, page_unified has no pointers of pages.
POOLS: Final = (
    "MHATokenToKVPoolHost",
    "AsymmetricMHATokenToKVPoolHost",
    "MLATokenToKVPoolHost",
)
LAYOUTS: Final = ("layer_first", "page_first", "page_first_direct", "page_head")


class PoolPages:
    """The pages of one host pool. For any thread.

    `run_bytes`: sizes of the runs of memory that one page lies in, in order.
    """

    def __init__(self, pool: Any) -> None:
        """Raises `Misuse` for a pool or a layout that is not served."""
        kind = type(pool).__name__
        if kind not in POOLS:
            raise Misuse(
                f"the model's host pool {kind} is not served (served: {', '.join(POOLS)})",
                field="hicache_storage_backend",
            )
        if pool.layout not in LAYOUTS:
            raise Misuse(
                f"the host layout {pool.layout!r} is not served: use one of {', '.join(LAYOUTS)}",
                field="hicache_mem_layout",
            )
        if pool.kv_buffer is None:
            raise Misuse(
                f"this {kind} only allocates and holds no KV", field="hicache_storage_backend"
            )
        self.tokens = int(pool.page_size)
        self._pool = pool
        # numpy arrays over all of it, which keep the tensors.
        self._memory = [_core.view(flat, True) for flat in _flat(pool.kv_buffer)]
        _, self.run_bytes = pool.get_page_buffer_meta(torch.arange(self.tokens))
        if self.page_bytes > MAX_PAYLOAD_BYTES:
            raise Misuse(
                f"a page of {self.tokens} tokens has {self.page_bytes} bytes, at most "
                f"{MAX_PAYLOAD_BYTES} are stored: set a smaller --page-size",
                field="page_size",
            )

    @property
    def page_bytes(self) -> int:
        return sum(self.run_bytes)

    def at(self, indices: torch.Tensor, count: int) -> list[_core.Scattered]:
        """`count` pages by the pool's indices of their tokens."""
        if len(indices) != count * self.tokens:
            raise Misuse(f"need {self.tokens} indices for each of {count} pages")
        addresses, sizes = self._pool.get_page_buffer_meta(indices)
        return _core.scatter(self._memory, addresses, sizes, count)


def _flat(buffer: Any) -> Iterator[torch.Tensor]:
    """The bytes of a pool's tensors; K and V of different sizes are a pair."""
    for tensor in buffer if isinstance(buffer, (tuple, list)) else (buffer,):
        # As bytes: not every KV dtype has a name in DLPack.
        yield tensor.view(-1).view(torch.uint8)
