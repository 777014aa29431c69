"""The kernel of `neve.engine.device.rows`, interpreted on the CPU, moves what plain torch moves."""

import importlib.util
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
if importlib.util.find_spec("triton") is None:
    sys.exit("no triton")

import torch

from neve.engine.device.devices import DeviceCopies, Rows, gather, scatter
from neve.engine.device.rows import RowMover

draw = torch.Generator().manual_seed(1)
for layers, words, each, chunks in (
    (3, 8, 2, 4),
    (1, 2049, 1, 3),
    (2, 1024, 3, 5),
    (4, 1500, 4, 2),
):
    wide = [torch.randint(-(2**62), 2**62, (20, words + 16), generator=draw) for _ in range(layers)]
    tensors = [rows[:, :words] for rows in wide]  # rows with a gap behind them
    index = torch.randperm(20, generator=draw)[: chunks * each].view(chunks, each)
    wanted = torch.zeros((chunks, layers * each * words * 8), dtype=torch.uint8)
    found = torch.ones_like(wanted)
    gather([Rows(tensor, None) for tensor in tensors], 1, index, wanted)
    RowMover(tensors).out_of(index, found)
    assert torch.equal(found, wanted)
    for skip in range(each + 1):
        payloads = torch.randint(0, 256, wanted.shape, dtype=torch.uint8, generator=draw)
        plain, moved = ([tensor.clone() for tensor in tensors] for _ in range(2))
        scatter([Rows(tensor, None) for tensor in plain], 1, index, skip, payloads)
        RowMover(moved).into(index, skip, payloads)
        assert all(map(torch.equal, plain, moved))

for odd in (torch.zeros(4, 8), torch.zeros((4, 8), dtype=torch.int64).T):
    try:
        RowMover([odd])
    except ValueError:
        continue
    raise AssertionError("took a tensor that it can't move")

# At the start of an engine: on trial, and what the blocks held stays.
kv = torch.randint(-(2**62), 2**62, (20, 64), generator=draw)
copies = DeviceCopies.__new__(DeviceCopies)
copies._rows, copies._heads, copies._device = [Rows(kv, None)], 1, torch.device("cpu")
held = kv.clone()
assert isinstance(copies._make_mover(), RowMover)
assert torch.equal(kv, held)
RowMover.into = lambda *_: None
assert copies._make_mover() is None
assert torch.equal(kv, held)
