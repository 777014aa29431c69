"""Neve's tiers, simulated block by block: what a quota, policy, lifetime or further tier gives.

`Setting` says what the tiers are, `run` plays requests on them, `Result` holds hits, bytes moved
and bytes held. A request hits its contiguous prefix of blocks that are hot or cold; its other
blocks are computed and stored as hot. The tiers do what the index's functions do
(`neve.index`, tests/neve/test_simulate_tiers.py), with these simplifications: work that is due
(flush, expiry, idle rule) is done at once, and there are no pins.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neve.errors import Misuse
from neve.planner.simulate.hot import Promote
from neve.planner.simulate.index import Index, Served, Tier
from neve.planner.simulate.policies import Future
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.settings import Setting, TierSetting

__all__ = [
    "Bucket",
    "Promote",
    "Result",
    "Setting",
    "TierResult",
    "TierSetting",
    "hits_by_request",
    "run",
]


@dataclass(frozen=True)
class TierResult:
    """One tier's share of a run. Bytes are after the tier's codec.

    `hit_blocks`: of requests' prefixes, served by this tier; `hit_tokens`: of them, fewer in a
    prompt's last block if its `tokens` are known. `written_blocks`: stored in it (hot:
    computed and promoted ones). `evicted_blocks` left a full tier, `expired_blocks` at the end of
    their life, `idle_blocks` by the idle rule; `refused_blocks` found no room.
    """

    hit_blocks: int = 0
    hit_tokens: int = 0
    written_blocks: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    held_bytes: int = 0  # at the end
    peak_bytes: int = 0
    mean_bytes: float = 0.0
    gib_hours: float = 0.0
    evicted_blocks: int = 0
    expired_blocks: int = 0
    idle_blocks: int = 0
    refused_blocks: int = 0


@dataclass(frozen=True)
class Bucket:
    """Requests of one slice of time. `hit_blocks`, `held_bytes` (at its end): by tier."""

    start_s: float
    asked_blocks: int
    hit_blocks: dict[str, int]
    held_bytes: dict[str, int]


@dataclass(frozen=True)
class Result:
    """`tiers`: by name, only those of the setting. `span_s`: from the beginning of the counts to
    the last request.

    `promoted_blocks`: cold blocks that became hot again by reads. `expired_blocks`: at the end of
    their life, each once. `lost_blocks` left the hot tier without a
    cold copy because the cold tier had refused them.
    """

    setting: Setting
    requests: int
    asked_blocks: int
    asked_tokens: int
    tiers: dict[str, TierResult]
    promoted_blocks: int = 0
    expired_blocks: int = 0
    lost_blocks: int = 0
    span_s: float = 0.0
    buckets: tuple[Bucket, ...] = ()

    @property
    def hit_blocks(self) -> int:
        return sum(tier.hit_blocks for tier in self.tiers.values())

    @property
    def hit_tokens(self) -> int:
        return sum(tier.hit_tokens for tier in self.tiers.values())

    @property
    def hit_rate(self) -> float | None:
        """Hits ÷ blocks asked for; None before the first block."""
        return self.hit_blocks / self.asked_blocks if self.asked_blocks else None


def run(
    setting: Setting,
    requests: Iterable[BlockRequest],
    *,
    bucket_s: float | None = None,
    count_from_s: float | None = None,
) -> Result:
    """Plays requests in the order of their time. `bucket_s`: seconds of a bucket; None: none.

    `count_from_s`: requests before this moment fill the tiers and count nowhere, neither as asked
    nor in bytes moved, and the mean of held bytes begins there; None: all count. With a `belady`
    tier all requests are held in memory.

    Raises: Misuse for a request earlier than the one before it, a bucket without length, or
    `belady` for blocks that do not stand for prefixes.
    """
    if bucket_s is not None and not 0 < bucket_s < math.inf:
        raise Misuse(f"need more than 0 s, got {bucket_s}", field="bucket_s")
    future = None
    if any(tier.policy == "belady" for tier in setting.tiers.values()):
        requests = list(requests)
        future = _future(setting, requests)
    tally = _Tally(setting, future, bucket_s, count_from_s)
    for request in requests:
        tally.play(request)
    return tally.result()


def hits_by_request(setting: Setting, requests: Iterable[BlockRequest]) -> list[tuple[int, ...]]:
    """Hit blocks of each request, by tier in the order of `setting.tiers`. Raises: as `run`."""
    tally = _Tally(setting, _future(setting, requests := list(requests)), None, None)
    names, found = list(setting.tiers), []
    for request in requests:
        served = tally.play(request)
        found.append(tuple(getattr(served, name) for name in names))
    return found


def _future(setting: Setting, requests: Sequence[BlockRequest]) -> Future | None:
    if all(tier.policy != "belady" for tier in setting.tiers.values()):
        return None
    return Future([request.ids for request in requests])


class _Tally:
    """Counts of one run. A bucket is open from the first counted request on."""

    def __init__(
        self,
        setting: Setting,
        future: Future | None,
        bucket_s: float | None,
        count_from_s: float | None,
    ) -> None:
        self._setting, self._future = setting, future
        self._bucket_s, self._count_from_s = bucket_s, count_from_s
        self._index: Index | None = None
        self._seen = self._requests = self._asked = self._asked_tokens = 0
        self._hits = dict.fromkeys(setting.tiers, 0)
        self._tokens = dict.fromkeys(setting.tiers, 0)
        self._start_s: float | None = None  # of the counts
        self._buckets: list[Bucket] = []
        self._number = 0  # of the open bucket
        self._before = (0, dict(self._hits))  # asked blocks and hits before the open bucket

    def play(self, request: BlockRequest) -> Served:
        index, now_s = self._index, request.at_s
        self._seen += 1
        if index is None:
            index = self._index = Index(self._setting, now_s, self._future)
        elif now_s < index.now_s:
            words = f"request {self._seen} at {now_s} s is earlier than the one before it"
            raise Misuse(words, field="at_s")
        if self._start_s is None and (self._count_from_s is None or now_s >= self._count_from_s):
            self._start_s = max(index.now_s, self._count_from_s or -math.inf)
            index.advance(self._start_s)
            index.start_count()
        if self._bucket_s is not None and self._start_s is not None:
            number = int((now_s - self._start_s) // self._bucket_s)
            if number > self._number:
                self._close_bucket(index, self._start_s, self._bucket_s)
                self._number = number
        index.advance(now_s)
        served = index.request(request.ids, request.priority)
        if self._start_s is not None:
            self._requests += 1
            if not request.is_scan:
                self._count(request, served)
        return served

    def _count(self, request: BlockRequest, served: Served) -> None:
        asked, block_tokens = len(request.ids), self._setting.block_tokens
        self._asked += asked
        found = 0
        for name in self._hits:
            hits = getattr(served, name)
            found += hits
            self._hits[name] += hits
            self._tokens[name] += hits * block_tokens
        short = 0  # tokens that the last block lacks
        if request.tokens is not None and asked:
            short = min(block_tokens, max(0, asked * block_tokens - request.tokens))
        self._asked_tokens += asked * block_tokens - short
        if short and found == asked:
            self._tokens[served.last] -= short

    def _close_bucket(
        self, index: Index, start_s: float, bucket_s: float, *, is_last: bool = False
    ) -> None:
        start_s += self._number * bucket_s
        if not is_last:
            index.advance(start_s + bucket_s)
        asked, hits = self._before
        new = {name: count - hits[name] for name, count in self._hits.items()}
        held = {name: tier.used_bytes for name, tier in index.tiers.items()}
        self._buckets.append(Bucket(start_s, self._asked - asked, new, held))
        self._before = self._asked, dict(self._hits)

    def result(self) -> Result:
        index, start_s = self._index, self._start_s
        if index is None or start_s is None:
            return Result(self._setting, 0, 0, 0, {name: TierResult() for name in self._hits})
        if self._bucket_s is not None:
            self._close_bucket(index, start_s, self._bucket_s, is_last=True)
        span_s = index.now_s - start_s
        return Result(
            setting=self._setting,
            requests=self._requests,
            asked_blocks=self._asked,
            asked_tokens=self._asked_tokens,
            tiers={
                name: _result(tier, self._hits[name], self._tokens[name], span_s)
                for name, tier in index.tiers.items()
            },
            promoted_blocks=index.promoted_blocks,
            expired_blocks=index.expired_blocks,
            lost_blocks=index.lost_blocks,
            span_s=span_s,
            buckets=tuple(self._buckets),
        )


def _result(tier: Tier, hits: int, tokens: int, span_s: float) -> TierResult:
    return TierResult(
        hit_blocks=hits,
        hit_tokens=tokens,
        written_blocks=tier.written_blocks,
        read_bytes=hits * tier.block_bytes,
        written_bytes=tier.written_blocks * tier.block_bytes,
        held_bytes=tier.used_bytes,
        peak_bytes=tier.peak_bytes,
        mean_bytes=tier.byte_seconds / span_s if span_s else float(tier.used_bytes),
        gib_hours=tier.byte_seconds / (1 << 30) / 3600,
        evicted_blocks=tier.evicted_blocks,
        expired_blocks=tier.expired_blocks,
        idle_blocks=tier.idle_blocks,
        refused_blocks=tier.refused_blocks,
    )
