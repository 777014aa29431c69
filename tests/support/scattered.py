"""Blocks in memory as an engine's pool has it: the runs of a block lie apart."""

import numpy as np

from neve import _core
from neve.datapath.client import BlockRef, Client
from support.chains import CHUNK_TOKENS, PAYLOAD, Chain

RUNS, BLOCKS = 16, 6
RUN = PAYLOAD // RUNS


class Pool:
    """Blocks in memory that has all first runs of blocks side by side, then all second ones."""

    def __init__(self) -> None:
        self.memory = np.zeros((RUNS, BLOCKS, RUN), np.uint8)

    def payloads(self) -> list[_core.Scattered]:
        base = self.memory.ctypes.data
        addresses = [
            base + (run * BLOCKS + block) * RUN for block in range(BLOCKS) for run in range(RUNS)
        ]
        return _core.scatter([self.memory], addresses, [RUN] * len(addresses), BLOCKS)

    def holds(self, rows: np.ndarray) -> bool:
        whole = self.memory.transpose(1, 0, 2).reshape(BLOCKS, PAYLOAD)
        return bool((whole == rows).all())


def put_scattered(client: Client, seed: int, divide: int = 1) -> Chain:
    """`divide`: makes the bytes compressible."""
    chain = Chain(client, BLOCKS, seed=seed)
    chain.sent //= divide
    pool = Pool()
    for payload, row in zip(pool.payloads(), chain.sent, strict=True):
        payload.fill(row)
    parents = [client.hasher.root(), *chain.ids]
    refs = [
        BlockRef(id_, parent, CHUNK_TOKENS) for id_, parent in zip(chain.ids, parents, strict=False)
    ]
    assert client.put_many(refs, pool.payloads()).wait() == [None] * BLOCKS
    return chain


def read_scattered(client: Client, chain: Chain) -> Pool:
    pool, match = Pool(), client.match(chain.ids)
    transfer = client.get_many(chain.ids, pool.payloads(), locations=match.locations)
    assert transfer.wait() == [None] * BLOCKS
    return pool
