"""One tier under the rules of the traces: prefix hits by capacity, and their upper bound.

A request hits the blocks of its longest held prefix. Then its blocks, first to last, are used if
they are held, else stored. The hit rate is hits ÷ all blocks asked for. With `lru`, this is the
ideal cache of the traces' README, which evicts after each request: the order makes no difference.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from neve.errors import Misuse
from neve.planner.simulate.policies import Future, Policy, make, next_uses

ATTENTION_TOKENS = 30_000
"""Attention to so many earlier tokens costs as much as the rest of a token's prefill. Source:
Llama-3-8B, 2 × 8.0e9 FLOPs a token ÷ (4 × 32 layers × 4,096) FLOPs for each earlier token."""

BytesOf = Callable[[int], int]


def one_byte(_: int) -> int:
    """Bytes of a block, when capacities are meant in blocks."""
    return 1


@dataclass(frozen=True)
class Hits:
    """All that was asked for, and the part of it in the requests' longest held prefixes. Costs are
    those of `recompute_cost`."""

    asked_blocks: int = 0
    asked_bytes: int = 0
    asked_cost: float = 0.0
    hit_blocks: int = 0
    hit_bytes: int = 0
    hit_cost: float = 0.0

    @property
    def rate(self) -> float | None:
        """Hit blocks ÷ asked blocks; None before the first."""
        return self.hit_blocks / self.asked_blocks if self.asked_blocks else None

    @property
    def byte_rate(self) -> float | None:
        """Hit bytes ÷ asked bytes; None before the first."""
        return self.hit_bytes / self.asked_bytes if self.asked_bytes else None

    @property
    def cost_rate(self) -> float | None:
        """Share of the prefill that the hits spare; None before the first block."""
        return self.hit_cost / self.asked_cost if self.asked_cost else None


def recompute_cost(position: int, *, block_tokens: int) -> float:
    """Cost of computing a whole block anew, by its position in the prompt, 0 for the first block;
    1 stands for its cost without attention to earlier tokens."""
    return 1.0 + (position + 0.5) * block_tokens / ATTENTION_TOKENS


class SingleTier:
    """A tier that stores all blocks that are asked for.

    `bytes_of` gives a block's bytes, `block_tokens` the scale of its cost (`recompute_cost`).
    `future`: that of a `belady` policy, which then must see exactly its requests.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        bytes_of: BytesOf = one_byte,
        block_tokens: int = 512,
        future: Future | None = None,
    ) -> None:
        self.policy = policy
        self._bytes_of = bytes_of
        self._block_tokens = block_tokens
        self._future = future
        self._costs: list[float] = []  # by position
        self._asked_blocks = self._asked_bytes = self._hit_blocks = self._hit_bytes = 0
        self._asked_cost = self._hit_cost = 0.0

    def ask(self, ids: Sequence[int]) -> int:
        """Asks for one request's blocks, first to last. Returns the number of hits."""
        if self._future:
            self._future.advance()
        policy, bytes_of = self.policy, self._bytes_of
        sizes = [bytes_of(id_) for id_ in ids]
        hits = next((n for n, id_ in enumerate(ids) if id_ not in policy), len(ids))
        costs = self._costs_of(len(ids))
        for id_, size, cost in zip(ids, sizes, costs, strict=False):
            if id_ in policy:
                policy.use(id_)
            else:
                policy.store(id_, size, cost=cost)
        self._asked_blocks += len(ids)
        self._asked_bytes += sum(sizes)
        self._asked_cost += sum(costs[: len(ids)])
        self._hit_blocks += hits
        self._hit_bytes += sum(sizes[:hits])
        self._hit_cost += sum(costs[:hits])
        return hits

    def _costs_of(self, blocks: int) -> list[float]:
        """Costs by position, of at least so many blocks."""
        for position in range(len(self._costs), blocks):
            self._costs.append(recompute_cost(position, block_tokens=self._block_tokens))
        return self._costs

    @property
    def hits(self) -> Hits:
        """All hits so far."""
        return Hits(
            self._asked_blocks, self._asked_bytes, self._asked_cost,
            self._hit_blocks, self._hit_bytes, self._hit_cost,
        )  # fmt: skip


def run(
    name: str,
    requests: Iterable[Sequence[int]],
    *,
    capacity_bytes: int | None,
    bytes_of: BytesOf = one_byte,
    block_tokens: int = 512,
) -> Hits:
    """Hits of the policy `name` of `policies.POLICIES`. Raises: Misuse as `policies.make`."""
    requests = list(requests)
    future = Future(requests) if name == "belady" else None
    policy = make(name, capacity_bytes=capacity_bytes, future=future)
    tier = SingleTier(policy, bytes_of=bytes_of, block_tokens=block_tokens, future=future)
    for ids in requests:
        tier.ask(ids)
    return tier.hits


def bound(
    requests: Sequence[Sequence[int]], *, capacity_bytes: int, bytes_of: BytesOf = one_byte
) -> float | None:
    """Returns an upper bound of every policy's `byte_rate`; None without any request.

    Belady's rule over single bytes: it keeps those whose next use is nearest, so it may keep a part
    of a block. With blocks of equal bytes that divide the capacity, `belady` attains it.
    Raises: Misuse for an id that one request has twice.
    """
    kept: dict[int, int] = {}  # id → bytes
    nexts: dict[int, int] = {}  # id → number of the next request for it
    used = asked = hit = 0
    furthest: list[tuple[int, int]] = []
    for number, (ids, upcoming) in enumerate(zip(requests, next_uses(requests), strict=True)):
        if len(set(ids)) < len(ids):
            raise Misuse(f"request {number}: expected each block once")
        for id_, following in zip(ids, upcoming, strict=True):
            size = bytes_of(id_)
            had = kept.pop(id_, 0)
            asked, hit = asked + size, hit + had
            used -= had
            if following < len(requests):
                kept[id_], nexts[id_] = size, following
                used += size
                heappush(furthest, (-following, id_))
        while used > capacity_bytes:
            following, id_ = furthest[0]
            if id_ not in kept or nexts[id_] != -following:
                heappop(furthest)
                continue
            cut = min(kept[id_], used - capacity_bytes)
            used -= cut
            kept[id_] -= cut
            if not kept[id_]:
                del kept[id_]
                heappop(furthest)
    return hit / asked if asked else None
