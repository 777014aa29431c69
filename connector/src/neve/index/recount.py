"""Checks one bucket's index: typed calls of functions/recount.lua and repair.lua.

For workers, as administrator; nodes may not call them. A recount is exact beside live traffic, and
may take hours in slices.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from neve.formats.keys import BucketKeys
from neve.index.library import call
from neve.index.scan import IndexEntry
from neve.index.tier import Execute

CALL_BLOCKS = 200  # of one recount, which costs the server about 6 µs each
CALL_KEYS = 500
_SUPERSEDED = -1


class Superseded(Exception):
    """Another recount of this bucket began, or Valkey was emptied: begin anew."""


class Drift(NamedTuple):
    """A counter that was corrected. `name`: its name, or a segment's number for its live bytes."""

    name: str
    counted: int
    found: int


class Checked(NamedTuple):
    """Blocks that were hot without a value of their length, and blocks in wrong sets."""

    hot_without_data: int
    unfiled: int


class Mended(NamedTuple):
    """Numbers of removed keys and values. `index_lost`: the index was among them; restore it."""

    index_lost: bool
    keys: int
    values: int


class BucketAudit:
    """Raises what `execute` raises."""

    def __init__(self, execute: Execute, tenant_id: int, bucket: int) -> None:
        self._execute = execute
        self._keys = BucketKeys(tenant_id, bucket)

    def mend(self) -> Mended:
        """Removes damaged books, which make functions fail. Afterwards the other calls work."""
        lost, keys, values = self._call("mend")
        return Mended(bool(lost), int(keys), int(values))

    def discard(self, fields: Iterable[bytes]) -> int:
        """Removes fields of the index that hold no entry (`scan` finds them). Returns how many."""
        return sum(self._call("discard", *part) for part in _slices(fields, CALL_BLOCKS))

    def begin(self) -> int:
        """Begins a recount, and ends one in progress. Returns its number."""
        return int(self._call("recount_begin"))

    def recount(self, number: int, ids: Sequence[bytes]) -> Checked:
        """Checks and counts blocks; each may come several times. Raises `Superseded`."""
        lost = unfiled = 0
        for part in _slices(ids, CALL_BLOCKS):
            reply = self._call("recount", number, *part)
            if reply[0] == _SUPERSEDED:
                raise Superseded
            lost, unfiled = lost + reply[0], unfiled + reply[1]
        return Checked(lost, unfiled)

    def settle(self, number: int) -> list[Drift]:
        """After all blocks were counted: corrects segments and counters. Raises `Superseded`."""
        found: list[Drift] = []
        for zset in (self._keys.live_bytes, self._keys.recounted):
            for page in self._members(zset):
                for segments in _slices(page, CALL_KEYS):
                    found += _drifts(self._call("recount_segments", number, *segments))
        return found + _drifts(self._call("recount_end", number))

    def unplace(self, blocks: Iterable[IndexEntry]) -> int:
        """Forgets cold copies in segments that nobody knows. Returns how many the index named."""
        return sum(
            self._call("unplace", *(v for e in part for v in (e.id, e.segment, e.offset)))
            for part in _slices(blocks, CALL_BLOCKS)
        )

    def end_strays(self, block_keys: Iterable[bytes]) -> int:
        """Gives block keys without an entry and an end an end. Returns how many."""
        return sum(
            self._execute(*call("end_strays", self._keys, blocks=tuple(part)))
            for part in _slices(block_keys, CALL_KEYS)
        )

    def _members(self, zset: bytes) -> Iterator[list[bytes]]:
        """Segments in slices: members that are numbers."""
        cursor = -1
        while cursor:
            cursor, items = self._execute("ZSCAN", zset, max(0, cursor), "COUNT", CALL_KEYS)
            cursor = int(cursor)
            names = [item[0] if isinstance(item, tuple) else item for item in items]
            if names and not isinstance(items[0], tuple):
                names = names[::2]
            if segments := [name for name in names if name.isdigit()]:
                yield segments

    def _call(self, name: str, *args: Any) -> Any:
        return self._execute(*call(name, self._keys, *args))


def _drifts(reply: list[Any]) -> list[Drift]:
    if reply and reply[0] == _SUPERSEDED:
        raise Superseded
    values = iter(reply)
    return [Drift(_text(n), int(s), int(i)) for n, s, i in zip(*[values] * 3, strict=True)]


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _slices(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part
