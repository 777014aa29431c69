"""Which node computed or loaded a prefix last, and names of shared prefixes, of one tenant.

Knows hashes only. What an engine evicted is not told to gateways, so a node counts as a holder for
`HOLDS_S` after its last request with the prefix: a wrong guess costs a load or a prefill, as any
other node would.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

# Of a tenant, the least recently used leave: about 40 MB, or 64 MiB of different prompts.
MOST_PREFIXES: Final = 1 << 16
HOLDS_S: Final = 600.0
_NAME_BYTES: Final = 6


@dataclass
class _Known:
    nodes: dict[str, float] = field(default_factory=dict)  # when each had it last
    name: str | None = None


class Holders:
    """Belongs to one thread. `clock`: seconds."""

    def __init__(
        self,
        *,
        most: int = MOST_PREFIXES,
        holds_s: float = HOLDS_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._most = most
        self._holds_s = holds_s
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def held_by(self, prefixes: Sequence[bytes]) -> dict[str, int]:
        """How many of the leading pieces each node holds; nodes without one are absent."""
        since = self._clock() - self._holds_s
        held: dict[str, int] = {}
        for n, prefix in enumerate(prefixes, start=1):
            known = self._known.get(prefix)
            if known is None:
                break
            for node, at in known.nodes.items():
                if at >= since and held.get(node, 0) == n - 1:
                    held[node] = n
        return held

    def note(self, prefixes: Sequence[bytes], node: str) -> None:
        """`node` has all of them from now on. Last piece first: the least recently used piece is
        the last one of a prompt, so what is left of it begins at its beginning."""
        now = self._clock()
        for prefix in reversed(prefixes):
            self._touched(prefix).nodes[node] = now
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def name_of(self, prefixes: Sequence[bytes]) -> str | None:
        """Name of the longest prefix that an earlier request had, as far as noted; None: nothing
        is shared. To be called before `note`, once a request.

        Names what it shares, and what follows in this prompt: the next turn of a conversation gets
        the same name, although it shares more.
        """
        shared = 0
        while shared < len(prefixes) and prefixes[shared] in self._known:
            shared += 1
        if not shared:
            return None
        last = self._known[prefixes[shared - 1]]
        if last.name is None:
            last.name = f"prefix-{prefixes[shared - 1][:_NAME_BYTES].hex()}"
        for prefix in reversed(prefixes[shared:]):
            self._touched(prefix).name = last.name
        return last.name

    def take_back(self, prefixes: Sequence[bytes], node: str) -> None:
        """`node` did not get them after all."""
        for prefix in prefixes:
            if (known := self._known.get(prefix)) is not None:
                known.nodes.pop(node, None)

    def forget(self, node: str) -> None:
        """Its cache is gone: it failed, or began anew."""
        for known in self._known.values():
            known.nodes.pop(node, None)

    def _touched(self, prefix: bytes) -> _Known:
        known = self._known.setdefault(prefix, _Known())
        self._known.move_to_end(prefix)
        return known
