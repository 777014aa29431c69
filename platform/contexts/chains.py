"""Blocks that chains share. Ids are chained, so two chains share a beginning and nothing else."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from catalog.models import ID_BYTES

_ID = np.dtype(f"S{ID_BYTES}")  # compares as bytes; both sides are padded alike


class Chain:
    """Distinct block ids, sorted for comparison with many other chains."""

    def __init__(self, ids: Sequence[bytes]) -> None:
        """`ids`: 16 bytes each, at least one."""
        table = np.frombuffer(b"".join(ids), _ID)
        self._order = np.argsort(table, kind="stable")
        self._table = table[self._order]

    def shared_with(self, other: bytes | memoryview) -> npt.NDArray[np.intp]:
        """Positions of own ids that are in `other`, in the order of `other`. O(other · log own).

        `other`: concatenated ids, as in `Context.chain`.
        """
        ids = np.frombuffer(other, _ID)
        places = np.minimum(np.searchsorted(self._table, ids), len(self._table) - 1)
        found: npt.NDArray[np.intp] = self._order[places[self._table[places] == ids]]
        return found


def shared_ids(one: bytes, other: bytes) -> int:
    """Ids at the beginning of both chains, which are concatenated ids. O(the shorter one)."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length // ID_BYTES
    left, right = (np.frombuffer(chain, np.uint8, length) for chain in (one, other))
    return int(np.argmax(left != right)) // ID_BYTES


def ids_per_chunk(ids: int, *, tokens: int, chunk_tokens: int) -> int:
    """Ids of a chain that stand for one chunk: 1, or one for each shard of a tensor-parallel
    engine. `ids`, `tokens`: of the whole chain."""
    chunks = max(1, round(tokens / chunk_tokens))
    return max(1, ids // chunks) if ids % chunks == 0 else 1
