"""Interface of a client under measurement, and the plan that all clients of one cell share.

Needs only numpy: peers run in an environment without neve.
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
    """Settings that all contestants of one cell share.

    `homes`, `tags`: number of the primary and hash tag of each bucket.
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
        """`count` random block ids; printable, for a client that takes only text keys."""
        numbers = random.Random(seed)
        letters = [bytes([0x30 + n]) for n in range(64)]
        return [b"".join(numbers.choices(letters, k=16)) for _ in range(count)]

    def bucket(self, block_id: bytes) -> int:
        """Same as neve.formats.keys.bucket_of; a test compares them."""
        return int.from_bytes(block_id[:4], "big") % len(self.homes)

    def key(self, block_id: bytes) -> bytes:
        """Same as neve.formats.keys.BucketKeys.block; a test compares them."""
        tag = self.tags[self.bucket(block_id)]
        return b"%b:b:%d:%b" % (tag.encode(), self.space_id, block_id)

    def data(self) -> np.ndarray:
        """Incompressible bytes, shape (blocks, block_bytes)."""
        shape = (self.blocks, self.block_bytes)
        return np.random.default_rng(self.block_bytes).integers(0, 256, shape, dtype=np.uint8)

    def buffers(self) -> np.ndarray:
        """Touched memory, shape (MOST_IN_FLIGHT, batch_blocks, block_bytes)."""
        shape = (MOST_IN_FLIGHT, self.batch_blocks, self.block_bytes)
        return np.full(shape, 1, dtype=np.uint8)


class Contestant:
    """A client under measurement. A synchronous client does the work in `start_*`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ids = plan.ids(plan.blocks)

    def batch(self, number: int) -> range:
        first = number % self.plan.batches * self.plan.batch_blocks
        return range(first, first + self.plan.batch_blocks)

    def start_get(self, number: int, slot: int) -> Any:
        """Start loading a batch into the buffers of a slot."""
        raise NotImplementedError

    def start_put(self, number: int) -> Any:
        raise NotImplementedError

    def finish(self, started: Any) -> None:
        """Wait for the batch; raises if a block is missing. Synchronous clients do nothing."""

    def loaded(self, slot: int) -> np.ndarray | None:
        """Payloads of the last load of a slot; None if the client keeps none."""
        return None

    def match(self, ids: list[bytes]) -> None:
        raise NotImplementedError

    def store_match_blocks(self, ids: list[bytes]) -> None:
        raise NotImplementedError
