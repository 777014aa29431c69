"""Brings cold blocks back into the hot tier: those read for the second time, each by one node.

The index decides (`neve_promote`). The call runs while S3 sends the bytes: a load waits for
its answer only if the bytes come first, and then for `ANSWER_S` at most.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from neve import _core
from neve.datapath.cold import ColdBlock
from neve.datapath.hotpath import HotPath
from neve.datapath.transport import reply_of
from neve.errors import NeveError

ANSWER_S: Final = 0.05  # how long to wait for an answer once the bytes are there

Store = Callable[[Sequence[ColdBlock]], None]


class Promoter:
    """For any thread. `store` is given verified cold blocks that shall become hot."""

    def __init__(self, path: HotPath, store: Store) -> None:
        self._path = path
        self._store = store

    def ask(self, ids: Sequence[bytes]) -> "Claims":
        """Tells the index that these cold blocks are being read. Waits for nothing."""
        closed = not ids or self._path.closed_for is not None
        return Claims([] if closed else self._path.promote_calls(ids), self._store)


class Claims:
    """The answers of one `ask`. A claim that is not used lapses by itself."""

    def __init__(self, calls: Sequence[tuple[Sequence[bytes], _core.Batch]], store: Store) -> None:
        self._calls = calls
        self._store = store

    def promote(self, blocks: Sequence[ColdBlock]) -> None:
        """Stores the verified blocks as hot that the index gave to this node."""
        chosen = self._chosen() if blocks else set()
        wanted = [block for block in blocks if block.id in chosen]
        if wanted:
            self._store(wanted)

    def _chosen(self) -> set[bytes]:
        chosen: set[bytes] = set()
        until = time.monotonic() + ANSWER_S
        for ids, call in self._calls:
            try:
                answers = reply_of(call) if call.wait(until) else []
            except NeveError:  # the blocks stay cold
                continue
            if isinstance(answers, list):
                chosen.update(id_ for id_, answer in zip(ids, answers, strict=False) if answer)
        return chosen
