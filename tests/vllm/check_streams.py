"""Copies on streams, with stand-ins for CUDA's. Run by an interpreter with torch; asserts.

Every operation is put into the queue of its stream and carried out late: the engine's first or the
copies' first, as far as waits between streams allow. What is not ordered by a wait gives wrong
bytes. Whoever waits for the whole device fails.
"""

from contextlib import contextmanager
from itertools import product

import torch

from neve.engine.device import devices
from neve.engine.device.devices import DeviceCopies
from neve.engine.device.tensors import KvTensors


class Stream:
    """A queue of (operation, stream and length it waits for)."""

    every = []

    def __init__(self, device=None):
        self.queue, self.done = [], 0
        Stream.every.insert(0, self)  # queues made later run first: those of the copies

    def put(self, operation):
        self.queue.append((operation, None))

    def wait_stream(self, other):
        self.queue.append((None, (other, len(other.queue))))

    def step(self):
        """Carries out the next operation, if nothing has to come first."""
        if self.done == len(self.queue):
            return False
        operation, after = self.queue[self.done]
        if after is not None and after[0].done < after[1]:
            return False
        if operation is not None:
            operation()
        self.done += 1
        return True


class Event:
    def record(self, stream):
        self.stream, self.place = stream, len(stream.queue)

    def query(self):
        return self.stream.done >= self.place

    def synchronize(self):
        while not self.query():
            assert any(stream.step() for stream in Stream.every), "a stream waits for ever"


engine = Stream()
current = engine


@contextmanager
def stream(inner):
    global current
    before, current = current, inner
    yield
    current = before


def refuse(*_):
    raise AssertionError("waits for the whole device")


def later(function):
    return lambda *args: current.put(lambda: function(*args))


class Piece(torch.Tensor):
    """Staging, or neighbours of it: copies to and from the device are queued as well."""

    def copy_(self, rows, non_blocking):
        assert non_blocking
        memory = self.as_subclass(torch.Tensor)
        current.put(lambda: memory.copy_(rows))


class Buffer(torch.Tensor):
    """Rows of the device's buffer: copying into them is queued."""

    def copy_(self, pieces, non_blocking=False):
        if not isinstance(pieces, Piece):
            return super().copy_(pieces)
        assert non_blocking
        rows, memory = self.as_subclass(torch.Tensor), pieces.as_subclass(torch.Tensor)
        current.put(lambda: rows.copy_(memory))
        return self


torch.cuda.Stream, torch.cuda.Event, torch.cuda.stream = Stream, Event, stream
torch.cuda.current_stream = lambda device: current
torch.cuda.synchronize = torch.accelerator.synchronize = Stream.synchronize = refuse  # type: ignore[attr-defined]
torch.cuda.mem_get_info = lambda device: (1 << 30, 1 << 30)
devices.gather, devices.scatter = later(devices.gather), later(devices.scatter)
DeviceCopies._index = lambda self, blocks: torch.tensor(blocks)
make = DeviceCopies._buffer
DeviceCopies._buffer = lambda self, **asked: make(self, **asked).as_subclass(Buffer)

caches = {f"l{n}": torch.zeros(16, 64) for n in range(3)}
kv = KvTensors(caches, num_blocks=16, block_tokens=8)
copies = DeviceCopies(kv._layers, torch.device("cpu"), 1)


def fill(block, value):
    """What the engine computes in a step."""
    for tensor in caches.values():
        engine.put(lambda tensor=tensor: tensor[block].fill_(value))


def staging(order):
    slab = torch.full((3, 2 * kv.block_bytes), 255, dtype=torch.uint8).as_subclass(Piece)
    return [slab[number] for number in order]


def floats(piece):
    return set(piece.as_subclass(torch.Tensor).view(torch.float32).tolist())


# A save holds what the step computed, although its copy was launched before the step ran. Blocks
# may change hands after a fence, not before. Tried in one batch and in parts, into neighbouring and
# other staging, with either queue first.
orders = ((0, 1), (1, 0), (0, 2))
for devices._BUFFER_BYTES, order, engine_first in product((1 << 20, 1), orders, (True, False)):
    others = Stream()  # of another connector, whose stream waits for no other
    for block in range(4):
        fill(block, 1.0)
    out = staging(order)
    ticket = copies.move_out([[0, 1], [2, 3]], out)
    assert not ticket.done()
    copies.fence()
    others.put(lambda: [tensor.fill_(9.0) for tensor in caches.values()])
    for block in range(4):
        fill(block, 2.0)
    while engine_first and engine.step():
        pass
    while others.step():
        pass
    ticket.wait()
    assert ticket.done()
    assert [floats(piece) for piece in out] == [{1.0}, {1.0}]

    # A load lands after the engine's computation that still uses these blocks for another request.
    for block in range(4):
        fill(block, 3.0)
    ticket = copies.move_in([[0, 1], [2, 3]], 1, out)
    ticket.wait()
    assert [set(caches["l0"][block].tolist()) for block in range(4)] == [{3.0}, {1.0}, {1.0}, {1.0}]
    copies._buffers.clear()

# KV cache groups share the room for buffers.
devices._BUFFER_BYTES, rows = 1 << 20, []
for sharers in (1, 4):
    group = DeviceCopies(kv._layers, torch.device("cpu"), 1, sharers=sharers)
    rows.append(len(group._buffer(inwards=True, payload_bytes=1 << 10)))
assert rows == [1 << 10, 1 << 8]

# Neighbours are one copy.
slab = torch.arange(24, dtype=torch.uint8).view(6, 4)
other = slab.clone()
found = list(devices.runs([slab[0], slab[1], slab[2], slab[4], slab[3], other[4], other[5]]))
assert [(at, run.tolist()) for at, run in found] == [
    (0, slab[:3].tolist()),
    (3, slab[4:5].tolist()),
    (4, slab[3:4].tolist()),
    (5, slab[4:].tolist()),
]
