"""What a client under measurement has to offer, and the plan that all clients of one cell share.

Needs only numpy: peers run with it in an environment without neve.
"""

import json
import random
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

MATCH_PAYLOAD_BYTES: Final = 1024
MOST_IN_FLIGHT: Final = 4


@dataclass(frozen=True)
class Plan:
    """What all contestants of one cell have in common.

    `homes` and `tags`: of each bucket the number of its primary and its hash tag.
    """

    block_bytes: int
    batch_blocks: int
    batches: int
    ports: list[int]
    homes: list[int]
    tags: list[str]
    connections: int  # to each primary
    endpoint_url: str
    tenant_id: int
    space_id: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def blocks(self) -> int:
        return self.batch_blocks * self.batches

    def ids(self, count: int, seed: int = 1) -> list[bytes]:
        """As evenly spread as hashes are; printable, for a client that takes only text keys."""
        numbers = random.Random(seed)
        letters = [bytes([0x30 + n]) for n in range(64)]
        return [b"".join(numbers.choices(letters, k=16)) for _ in range(count)]

    def bucket(self, block_id: bytes) -> int:
        """As neve.formats.keys.bucket_of; a test compares them."""
        return int.from_bytes(block_id[:4], "big") % len(self.homes)

    def key(self, block_id: bytes) -> bytes:
        """As neve.formats.keys.BucketKeys.block; a test compares them."""
        tag = self.tags[self.bucket(block_id)]
        return b"%b:b:%d:%b" % (tag.encode(), self.space_id, block_id)

    def data(self) -> np.ndarray:
        """Incompressible; (blocks, block_bytes)."""
        shape = (self.blocks, self.block_bytes)
        return np.random.default_rng(self.block_bytes).integers(0, 256, shape, dtype=np.uint8)

    def buffers(self) -> np.ndarray:
        """Touched memory for each batch in flight: (MOST_IN_FLIGHT, batch_blocks, block_bytes)."""
        shape = (MOST_IN_FLIGHT, self.batch_blocks, self.block_bytes)
        return np.full(shape, 1, dtype=np.uint8)


class Contestant:
    """What a client has to offer. A synchronous one does the work in `start_*`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ids = plan.ids(plan.blocks)

    def batch(self, number: int) -> range:
        first = number % self.plan.batches * self.plan.batch_blocks
        return range(first, first + self.plan.batch_blocks)

    def start_get(self, number: int, slot: int) -> Any:
        """Begins to load a batch into the buffers of a slot."""
        raise NotImplementedError

    def start_put(self, number: int) -> Any:
        raise NotImplementedError

    def finish(self, started: Any) -> None:
        """Waits; raises when a block is not there. A synchronous client has nothing to do."""

    def loaded(self, slot: int) -> np.ndarray | None:
        """Payloads that the last load of a slot brought; None when the client keeps none."""
        return None

    def match(self, ids: list[bytes]) -> None:
        raise NotImplementedError

    def store_match_blocks(self, ids: list[bytes]) -> None:
        raise NotImplementedError
