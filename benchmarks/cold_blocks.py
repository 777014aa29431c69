"""Valid blocks for benchmarks of cold reads, and the node's way to read them."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from neve.datapath.cold import ColdBlock, ColdReader, plan_ranges
from neve.datapath.transfer import JobPool, PoolJob, Transfer, Urgency
from neve.formats.block import HEADER_BYTES, BlockHeader, checksum, encode_header

BLOCK_BYTES = 2 << 20  # including the header
DEADLINE_S = 60.0


def block_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def make_blocks(size: int) -> np.ndarray:
    """Valid blocks of incompressible bytes, concatenated as in a segment."""
    data = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    for number, at in enumerate(range(0, size, BLOCK_BYTES)):
        payload = data[at + HEADER_BYTES : at + BLOCK_BYTES]
        id_, sum_ = block_id(number), checksum(payload)
        header = BlockHeader(id_, bytes(16), 256, len(payload), sum_, bytes(4))
        data[at : at + HEADER_BYTES] = np.frombuffer(encode_header(header), np.uint8)
    return data


def read_blocks(reader: ColdReader, pool: JobPool, target: memoryview, *, streams: int) -> None:
    """Plans the ranges of segment 1, scatters the payloads into `target`, verifies each block."""
    blocks = [
        ColdBlock(i, block_id(i), 1, at, target[at + HEADER_BYTES : at + BLOCK_BYTES])
        for i, at in enumerate(range(0, len(target), BLOCK_BYTES))
    ]
    transfer = Transfer(len(blocks), time.monotonic() + DEADLINE_S)
    groups = plan_ranges(blocks, streams=streams)
    jobs = [PoolJob(partial(_read, reader, group, transfer), transfer) for group in groups]
    pool.submit(jobs, Urgency.LOAD)
    transfer.end_job()
    if any(transfer.wait()):
        raise RuntimeError("neve missed a block")
    for block in blocks:
        target[block.offset : block.offset + HEADER_BYTES] = block.header


def _read(reader: ColdReader, group: Sequence[ColdBlock], transfer: Transfer) -> None:
    outcomes, trouble = reader.read(group, deadline=transfer.deadline)
    if trouble is not None:
        raise trouble
    for block, outcome in zip(group, outcomes, strict=True):
        transfer.settle(block.index, outcome)
