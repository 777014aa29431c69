"""Reads batches of blocks ahead of the consumer, into a few buffers that are reused."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from tiering.batches import Sized, cut_batches
from tiering.segments import StoredBlock

BATCH_BYTES = 8 << 20  # a single larger block is a batch of its own


class Reading(Protocol):
    """A batch under way."""

    def blocks(self) -> Iterator[StoredBlock]:
        """Waits for the batch; yields its blocks, without damaged ones."""

    def cancel(self) -> None:
        """Returns once no one writes into the buffer any more."""


Item = TypeVar("Item", bound=Sized)
Start = Callable[[Sequence[Item], list[memoryview]], Reading]


def read_ahead(items: Sequence[Item], start: Start[Item], *, at_once: int) -> Iterator[StoredBlock]:
    """Yields what `start(batch, room for each block)` reads, in order; `at_once` batches at a time.

    The bytes of a block are valid until the next block is taken.
    """
    batches = cut_batches(items, BATCH_BYTES)
    largest = max((sum(item.size_bytes for item in batch) for batch in batches), default=0)
    buffers = [memoryview(bytearray(largest)) for _ in range(min(at_once, len(batches)))]
    ahead: deque[Reading] = deque()
    try:
        for n, batch in enumerate(batches):
            if len(ahead) == at_once:
                yield from ahead[0].blocks()
                ahead.popleft()
            ahead.append(start(batch, _rooms(batch, buffers[n % at_once])))
        while ahead:
            yield from ahead[0].blocks()
            ahead.popleft()
    finally:
        for late in ahead:
            late.cancel()


def _rooms(batch: Sequence[Sized], buffer: memoryview) -> list[memoryview]:
    rooms, at = [], 0
    for item in batch:
        rooms.append(buffer[at : at + item.size_bytes])
        at += item.size_bytes
    return rooms
