"""Objects of any size under their engine's own keys, for engines that hand over whole ones.

An object is stored as one block, or as several stripes of at most `STRIPE_BYTES`, which lie on all
primaries and pass through several connections at once. It is found, or loaded, if all its stripes
are. Bytes are read from and written to the engine's memory itself. Nothing waits: each call returns
at once, and `done` is called later, or before it returns, on any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, TypeVar, cast

from neve.datapath.client import BlockRef, Client, Location, Transfer
from neve.datapath.finding import Finding
from neve.errors import MissReason
from neve.formats.block import Buffer
from neve.formats.space import TARGET_BLOCK_BYTES

STRIPE_BYTES: Final = TARGET_BLOCK_BYTES
_ALIGNED_BYTES: Final = 64  # stripes begin at multiples of it, as copies and checksums like
MOST_OBJECT_BYTES: Final = 1 << 30
# How long what a look-up found stays known: longer than any load waits for its turn, shorter than
# the platform keeps an S3 segment that it replaced.
LEASE_S: Final = 60.0
MOST_LEASES: Final = 100_000

T = TypeVar("T")


class Found(NamedTuple):
    """An object that is stored: ids and places of its stripes."""

    ids: Sequence[bytes]
    places: Sequence[Location]


class ObjectRef(NamedTuple):
    """`key`: 32 bytes, equal only for objects that have equal bytes. `tokens`: that the object
    counts for; an object that has a share of a chunk counts for a share of its tokens."""

    key: bytes
    size_bytes: int
    tokens: int = 0

    def spans(self) -> list[tuple[int, int]]:
        """First byte and end of each stripe. Only the last one may be shorter."""
        if self.size_bytes <= STRIPE_BYTES:
            return [(0, self.size_bytes)]
        count = -(-self.size_bytes // STRIPE_BYTES)
        each = -(-self.size_bytes // count // _ALIGNED_BYTES) * _ALIGNED_BYTES
        firsts = range(0, self.size_bytes, each)
        return [(first, min(first + each, self.size_bytes)) for first in firsts]

    def ids(self, client: Client) -> list[bytes]:
        """Ids of its stripes in the client's space."""
        named = self.key + self.size_bytes.to_bytes(8, "little")
        of_key = client.hasher.of_key
        if self.size_bytes <= STRIPE_BYTES:
            return [of_key(named + bytes(4))]
        numbers = range(len(self.spans()))
        return [of_key(named + number.to_bytes(4, "little")) for number in numbers]

    def stripe_tokens(self) -> list[int]:
        """Its tokens, divided among its stripes."""
        if self.size_bytes <= STRIPE_BYTES:
            return [self.tokens]
        count = len(self.spans())
        return [b - a for a, b in pairwise(self.tokens * n // count for n in range(count + 1))]


def find_objects(
    client: Client,
    refs: Sequence[ObjectRef],
    done: Callable[[list[Found | MissReason]], object],
    *,
    deadline_s: float,
) -> None:
    """Where objects are: all stripes of each, or the first reason why not."""
    ids = [ref.ids(client) for ref in refs]

    def end(transfer: Transfer) -> None:
        finding = cast(Finding, transfer)
        places = cast(list[Sequence[Location]], _cut(finding.locations, ids))
        reasons = _first_reasons(transfer.wait(0.0), ids)
        done(
            [
                Found(of_object, places[n]) if reason is None else reason
                for n, (of_object, reason) in enumerate(zip(ids, reasons, strict=True))
            ]
        )

    finding = client.find_many(
        [id_ for of_object in ids for id_ in of_object],
        tokens=[tokens for ref in refs for tokens in ref.stripe_tokens()],
        deadline_s=deadline_s,
    )
    finding.add_done_callback(end)


def load_objects(
    client: Client,
    refs: Sequence[ObjectRef],
    buffers: Sequence[Buffer],
    found: Sequence[Found],
    done: Callable[[list[MissReason | None]], object],
    *,
    deadline_s: float,
) -> None:
    """Reads objects that `find_objects` found into `buffers`, each as long as its object.

    Buffers belong to the client until `done`; those whose outcome is not None may hold garbage.
    """
    ids = [each.ids for each in found]
    transfer = client.get_many(
        [id_ for of_object in ids for id_ in of_object],
        _stripes_of(refs, buffers),
        locations=[place for each in found for place in each.places],
        tokens=[tokens for ref in refs for tokens in ref.stripe_tokens()],
        deadline_s=deadline_s,
    )
    transfer.add_done_callback(lambda ended: done(_first_reasons(ended.wait(0.0), ids)))


def store_objects(
    client: Client,
    refs: Sequence[ObjectRef],
    buffers: Sequence[Buffer],
    before: Sequence[ObjectRef | None],
    done: Callable[[list[MissReason | None]], object],
    *,
    deadline_s: float,
) -> None:
    """Stores `buffers`, which must not change until `done`.

    `before`: the object that a reader loads right before this one, so that both lie side by side in
    S3; None: not known.
    """
    ids = [ref.ids(client) for ref in refs]
    root = client.hasher.root()
    blocks = []
    for ref, earlier, of_object in zip(refs, before, ids, strict=True):
        parent = root if earlier is None else earlier.ids(client)[-1]
        for id_, tokens in zip(of_object, ref.stripe_tokens(), strict=True):
            blocks.append(BlockRef(id_, parent, tokens))
            parent = id_
    transfer = client.put_many(blocks, _stripes_of(refs, buffers), deadline_s=deadline_s)
    transfer.add_done_callback(lambda ended: done(_first_reasons(ended.wait(0.0), ids)))


def _stripes_of(refs: Sequence[ObjectRef], buffers: Sequence[Buffer]) -> list[memoryview]:
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    stripes: list[memoryview] = []
    for ref, view in zip(refs, views, strict=True):
        if ref.size_bytes <= STRIPE_BYTES:
            stripes.append(view)
        else:
            stripes += [view[first:end] for first, end in ref.spans()]
    return stripes


def _cut(flat: Sequence[T], like: Sequence[Sequence[object]]) -> list[Sequence[T]]:
    """`flat` in pieces as long as those of `like`."""
    ends = accumulate(map(len, like), initial=0)
    return [flat[first:end] for first, end in pairwise(ends)]


def _first_reasons(
    outcomes: Sequence[MissReason | None], like: Sequence[Sequence[object]]
) -> list[MissReason | None]:
    return [next(filter(None, part), None) for part in _cut(outcomes, like)]


@dataclass(slots=True)
class _Lease:
    ref: ObjectRef
    found: Found
    holders: int
    until: float


class Leases:
    """What look-ups found, until those who asked give it back, `LEASE_S` at most. Thread-safe.

    A lease spares the second question and keeps nothing in storage: blocks that leave it before
    they are loaded are misses then.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._leases: OrderedDict[Hashable, _Lease] = OrderedDict()  # the first one ends first

    def __len__(self) -> int:
        """Leases that have not ended."""
        with self._lock:
            self._drop_ended()
            return len(self._leases)

    def take(self, taken: Iterable[tuple[Hashable, ObjectRef, Found]]) -> None:
        """One lease of each, by its name. Of more than `MOST_LEASES` the oldest end."""
        with self._lock:
            self._drop_ended()
            until = self._clock() + LEASE_S
            for name, ref, found in taken:
                held = self._leases.pop(name, None)
                holders = 1 if held is None else held.holders + 1
                self._leases[name] = _Lease(ref, found, holders, until)
            while len(self._leases) > MOST_LEASES:
                self._leases.popitem(last=False)

    def of(self, asked: Iterable[tuple[Hashable, ObjectRef]]) -> list[Found | None]:
        """None: nobody holds a lease of it, or one of another object under this name."""
        with self._lock:
            now = self._clock()
            leases = [(self._leases.get(name), ref) for name, ref in asked]
        return [
            lease.found if lease and lease.until > now and lease.ref == ref else None
            for lease, ref in leases
        ]

    def give_back(self, name: Hashable) -> None:
        """By one of those who took it. Also when it has ended: then nothing is left to do."""
        with self._lock:
            lease = self._leases.get(name)
            if lease is None:
                return
            lease.holders -= 1
            if not lease.holders:
                del self._leases[name]

    def _drop_ended(self) -> None:
        now = self._clock()
        while self._leases and next(iter(self._leases.values())).until <= now:
            self._leases.popitem(last=False)
