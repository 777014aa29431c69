"""Prefill pools behind a gateway: which prompts they compute, and the hand-over of the blocks.

For `neve router` and for gateways with plug-ins. A gateway keeps one `Prefills`; for each prompt,
once it chose the decode node and before it sends the request there:

    async with prefills.prepared(tokens, found, salt=salt, node="gpu-01") as handed:
        request["kv_transfer_params"] = handed.added_to(request.get("kv_transfer_params"))
        ...                                   # the decode node answers
        handed.first_token()                  # once it begins to: speeds are measured by that

`prepared` never fails because of a pool: the worst outcome is that the decode node computes the
prompt. It may be cancelled, which ends the request in the pool.

Must not be here: the gateway's HTTP server, the choice of a decode node.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import httpx

from neve import log_events
from neve.gateway.pools import (
    Clock,
    Handover,
    Pool,
    PoolNode,
    PoolOptions,
    SpeedMeter,
    Work,
    make_pools,
)
from neve.gateway.store import Found
from neve.planner.measured import StoreMeter
from neve.planner.parts import PrefixBytes
from neve.planner.prfaas import Measured
from neve.planner.threshold import Link, Site, Threshold, sooner_from, sustained_from

_CONNECT_S: Final = 2.0
_FIRST_POLL_S: Final = 0.02
_MOST_POLL_S: Final = 1.0
_POLL_GROWTH: Final = 1.5
_LENGTHS: Final = 512  # last prompts of which the distribution of lengths is made
_RATE_S: Final = 60.0  # over which the rate of arrivals is taken
_LEAST_RATE_S: Final = 10.0  # so that a burst is no rate
_SUSTAINED_S: Final = 1.0  # how long a sustained threshold counts
# A hand-over is given up after so many times the seconds that computing would have taken.
_PATIENCE: Final = 3.0
_LEAST_PATIENCE_S: Final = 2.0
_LEAST_CAME: Final = 0.02  # of a transfer that was given up: a block may have been on its way
_REFUSALS: Final = frozenset((400, 413, 422))  # of a request, not of an engine


# What of these tokens with this salt ("": none) is stored; None if Neve does not answer. Does not
# raise.
LookUp = Callable[[Sequence[int], str], Awaitable[Found | None]]


class Outcome(StrEnum):
    """What was done with a prompt; the values are a metric's labels."""

    HANDED_OVER = "handed_over"  # computed by a pool, all of its blocks are there
    LATE = "late"  # computed by a pool, but its blocks were not there in time
    SLOW = "slow"  # the pool's engine did not answer in time
    FAILED = "failed"  # the pool's engine failed
    SHORT = "short"  # below the threshold
    LOST = "lost"  # no engine of any pool answers
    FULL = "full"  # all engines have as many requests as they may
    UNKNOWN = "unknown"  # speed of the decode nodes or size of KV not measured yet
    UNREACHABLE = "unreachable"  # Neve did not say what is stored
    NO_POOL = "no_pool"  # none is configured


@dataclass
class Handed:
    """What became of one prompt.

    `prefilled`: names the blocks for the decode node, which waits a little more for those that
    are late; None: nothing was handed over. `tokens`: uncached ones. `threshold`: the least of
    those in force. `took_s`: from the decision until the blocks were there, or were given up.
    """

    outcome: Outcome
    tokens: int = 0
    threshold: float | None = None
    pool: str = ""
    prefilled: Mapping[str, Any] | None = None
    took_s: float = 0.0
    _note: Callable[[float | None], None] | None = field(default=None, repr=False)

    def added_to(self, params: Any) -> Any:
        """`kv_transfer_params` of the request for the decode node; `params`: the client's."""
        if self.prefilled is None or not (params is None or isinstance(params, Mapping)):
            return params
        wish = (params or {}).get("neve")
        wish = dict(wish) if isinstance(wish, Mapping) else {}
        return {**(params or {}), "neve": {**wish, "prefilled": dict(self.prefilled)}}

    def first_token(self, at: float | None = None) -> None:
        """The decode node's first token is there, or was there at `at` by the clock of the
        `Prefills`. Later calls change nothing."""
        note, self._note = self._note, None
        if note is not None:
            note(at)

    def summary(self) -> str:
        """`x-neve-prefill` of an answer: the outcome, then `; name=value` of what is known."""
        parts = [str(self.outcome)]
        if self.pool:
            parts.append(f"pool={self.pool}")
        parts.append(f"uncached={self.tokens}")
        if self.threshold is not None:
            parts.append(f"threshold={self.threshold:.0f}")
        if self.took_s:
            parts.append(f"took={self.took_s:.3f}")
        return "; ".join(part for part in parts if part.isascii() and part.isprintable())


@dataclass(frozen=True)
class _Prompt:
    """`cached`: of its tokens, those that need not be computed."""

    tokens: Sequence[int] = field(repr=False)
    salt: str
    cached: int

    @property
    def uncached(self) -> int:
        return len(self.tokens) - self.cached


@dataclass(frozen=True)
class _Choice:
    pool: Pool
    node: PoolNode
    threshold: Threshold | None  # None: the pool is tried to measure it
    expected_s: float  # of the prefill in the pool
    local_s: float  # expected of the decode node
    bytes: int


@dataclass(frozen=True)
class _Seen:
    """`tokens` of a prompt were stored when `asked_at` it was asked."""

    tokens: int
    asked_at: float


class Prefills:
    """Pools, and the thresholds that follow their speeds. One event loop.

    `local`: speed of the decode nodes. `counts`: prompts by (pool or "", outcome). `sent_bytes`:
    of KV that arrived, by pool.
    """

    def __init__(
        self,
        options: Sequence[PoolOptions],
        *,
        http: httpx.AsyncClient,
        look_up: LookUp,
        decode_nodes: int = 1,
        most_tokens: int = 131_072,
        clock: Clock = time.monotonic,
    ) -> None:
        """`most_tokens`: longest prompt of the model. Raises `Misuse` for a wrong option."""
        self.pools = make_pools(options, clock)
        self.local = SpeedMeter(clock)
        self.kv: PrefixBytes | None = None
        self.decode_nodes, self.most_tokens = decode_nodes, most_tokens
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self._http, self._look_up, self._clock = http, look_up, clock
        self._loads = StoreMeter()  # by decode nodes, behind hand-overs
        self._decoding: dict[str, Work] = {}  # decode node → what it computes
        self._lengths: deque[int] = deque(maxlen=_LENGTHS)
        self._arrived: deque[float] = deque(maxlen=_LENGTHS)
        self._sustained: dict[str, tuple[float, float]] = {}  # pool → (until, tokens)

    def measured(self, *, kv: PrefixBytes | None, prefill_tokens_per_s: float | None) -> None:
        """What the space's nodes measured (`break_even` of `GET /api/v1/spaces/{id}`). Speeds
        count until there are samples of this gateway's own."""
        if kv is not None and (kv.per_token > 0 or kv.fixed > 0):
            self.kv = kv
        if prefill_tokens_per_s:
            for meter in (self.local, *(pool.prefill for pool in self.pools)):
                if meter.curve() is None:
                    meter.assume(prefill_tokens_per_s)

    @asynccontextmanager
    async def prepared(
        self, tokens: Sequence[int], found: Found | None, *, salt: str = "", node: str = ""
    ) -> AsyncIterator[Handed]:
        """Has a pool compute the prompt if that is sooner, and waits for its blocks; then the
        body is to let the decode node `node` answer.

        `found`: what of the prompt is stored, None: Neve did not say.
        """
        # An engine computes the last token in any case.
        cached = 0 if found is None else min(found.usable, max(0, len(tokens) - 1))
        prompt = _Prompt(tokens, salt, cached)
        handed = await self._prepare(prompt, is_known=found is not None, node=node)
        self.counts[handed.pool, handed.outcome] += 1
        work = self._work(node)
        is_alone, begun = not work, self._clock()
        if handed.outcome is Outcome.HANDED_OVER:
            yield self._noting_load(handed, begun) if is_alone else handed
            return
        known = self.local.curve(cached_tokens=cached)
        number = work.begin(0.0 if known is None else known.at(prompt.uncached))

        def note(at: float | None) -> None:
            work.end(number)
            if is_alone and handed.prefilled is None and found is not None:
                self.local.add(cached, prompt.uncached, (at or self._clock()) - begun)

        handed._note = note
        try:
            yield handed
        finally:
            work.end(number)

    async def _prepare(self, prompt: _Prompt, *, is_known: bool, node: str) -> Handed:
        if not self.pools:
            return Handed(Outcome.NO_POOL)
        if not is_known:
            return Handed(Outcome.UNREACHABLE)
        self._lengths.append(prompt.uncached)
        self._arrived.append(self._clock())
        chosen = self._choose(prompt, self._work(node).wait_s())
        if isinstance(chosen, Handed):
            chosen.tokens = prompt.uncached
            return chosen
        handed = Handed(Outcome.FAILED, prompt.uncached, pool=chosen.pool.name)
        handed.threshold = None if chosen.threshold is None else chosen.threshold.tokens
        begun = self._clock()
        await self._hand_over(chosen, prompt, handed)
        handed.took_s = self._clock() - begun
        return handed

    def _work(self, node: str) -> Work:
        return self._decoding.setdefault(node, Work(self._clock))

    def _noting_load(self, handed: Handed, begun: float) -> Handed:
        size_bytes = 0 if self.kv is None else int(self.kv.of(handed.tokens))

        def note(at: float | None) -> None:
            ahead = self._loads.begin(size_bytes)
            self._loads.end(size_bytes, ahead, (at or self._clock()) - begun, self._clock())

        handed._note = note
        return handed

    def threshold(
        self, pool: Pool, *, cached_tokens: int = 0, decode_wait_s: float = 0.0
    ) -> Threshold | None:
        """Of prompts that come now; None as long as a speed is unknown or no engine is free."""
        local = self.local.curve(cached_tokens=cached_tokens)
        site = pool.site(cached_tokens=cached_tokens)
        speed = pool.link.speed()
        if local is None or site is None or speed is None or self.kv is None:
            return None
        load = self._loads.measured()
        kv = self.kv
        link = Link(
            speed,
            kv,
            overhead_s=load.round_trip_s if load is not None else 0.0,
            step_tokens=pool.options.step_tokens,
        )
        here = Site(local, self.decode_nodes, decode_wait_s)
        sooner = sooner_from(here, site, link, most_tokens=self.most_tokens)
        least = float(pool.options.least_tokens)
        return Threshold(max(least, sooner), self._sustained_from(pool, here, site, link))

    def arrivals_per_s(self) -> float:
        """Of prompts, over the last minute."""
        since = self._clock() - _RATE_S
        while self._arrived and self._arrived[0] < since:
            self._arrived.popleft()
        if not self._arrived:
            return 0.0
        return len(self._arrived) / max(_LEAST_RATE_S, self._clock() - self._arrived[0])

    def _sustained_from(self, pool: Pool, local: Site, site: Site, link: Link) -> float:
        until, tokens = self._sustained.get(pool.name, (0.0, 0.0))
        if self._clock() < until:
            return tokens
        rate, lengths = self.arrivals_per_s(), [each for each in self._lengths if each > 0]
        tokens = 0.0
        if rate and lengths:
            tokens = sustained_from(local, site, link, Measured(lengths), arrivals_per_s=rate)
        self._sustained[pool.name] = self._clock() + _SUSTAINED_S, tokens
        return tokens

    def _choose(self, prompt: _Prompt, decode_wait_s: float) -> _Choice | Handed:
        """The pool that has the prompt's KV at the decode node soonest, or why none gets it."""
        if prompt.uncached <= min(pool.options.least_tokens for pool in self.pools):
            return Handed(Outcome.SHORT)
        free = [pool for pool in self.pools if pool.free_nodes()]
        if not free:
            is_lost = all(pool.is_lost for pool in self.pools)
            return Handed(Outcome.LOST if is_lost else Outcome.FULL)
        tokens, cached = prompt.uncached, prompt.cached
        local = self.local.curve(cached_tokens=cached)
        if local is None or self.kv is None:
            return Handed(Outcome.UNKNOWN)
        local_s = decode_wait_s + local.at(tokens)
        size_bytes = int(self.kv.of(tokens))
        least, best = None, None
        for pool in free:
            node = pool.free_nodes()[0]
            found = self.threshold(pool, cached_tokens=cached, decode_wait_s=decode_wait_s)
            if found is None:
                # One prompt at a time measures an unknown pool.
                if tokens > pool.options.least_tokens and not node.work:
                    return _Choice(pool, node, None, local_s, local_s, size_bytes)
                continue
            least = found.tokens if least is None else min(least, found.tokens)
            site, speed = pool.site(cached_tokens=cached), pool.link.speed()
            assert site is not None
            assert speed is not None
            if tokens > found.tokens:
                link = Link(speed, self.kv, step_tokens=pool.options.step_tokens)
                there_s = link.seconds(tokens, site)
                if best is None or there_s < best[0]:
                    expected_s = site.prefill.at(tokens)
                    choice = _Choice(pool, node, found, expected_s, local_s, size_bytes)
                    best = there_s, choice
        if best is None:
            return Handed(Outcome.SHORT, threshold=least)
        return best[1]

    async def _hand_over(self, choice: _Choice, prompt: _Prompt, handed: Handed) -> None:
        """Fills `handed`. Raises nothing but CancelledError."""
        pool, options = choice.pool, choice.pool.options
        patience_s = max(_LEAST_PATIENCE_S, _PATIENCE * choice.local_s)
        begun = self._clock()
        pool.link.queue_bytes += choice.bytes
        try:
            prefilled = await self._prefilled(choice, prompt, handed, patience_s)
            if prefilled is None:
                return
            handed.prefilled, handed.outcome = prefilled, Outcome.LATE
            answered = self._clock()
            until = min(answered + options.wait_s, max(answered, begun + patience_s))
            transfer = pool.link.begin()
            wanted = int(prefilled["tokens"])
            seen = await self._wait(prompt.tokens[:wanted], prompt.salt, options.handover, until)
            if seen is None:
                return
            came = (seen.tokens - prompt.cached) / max(1, wanted - prompt.cached)
            came_bytes = max(0.0, min(1.0, came)) * choice.bytes
            self.sent_bytes[pool.name] += int(came_bytes)
            took_s = self._transfer_s(choice, prompt.uncached, begun, answered, seen.asked_at)
            if seen.tokens >= wanted:
                handed.outcome = Outcome.HANDED_OVER
            elif not came_bytes:
                detail = "none of its blocks arrived in time: is it of the decode nodes' space?"
                self._lost(pool, choice.node, detail)
            least = _LEAST_CAME * choice.bytes
            asking_s = self._clock() - seen.asked_at
            pool.link.end(max(least, came_bytes), transfer, took_s, asking_s=asking_s)
        finally:
            pool.link.queue_bytes -= choice.bytes

    async def _prefilled(
        self, choice: _Choice, prompt: _Prompt, handed: Handed, patience_s: float
    ) -> Mapping[str, Any] | None:
        """`prefilled` of the engine's answer; None, with `handed.outcome`, if there is none."""
        pool, node, limit_s = choice.pool, choice.node, choice.pool.options.prefill_s
        if choice.threshold is not None:
            limit_s = min(limit_s, node.work.wait_s() + patience_s)
        was_alone, begun = not node.work, self._clock()
        number = node.work.begin(choice.expected_s)
        try:
            async with asyncio.timeout(limit_s):
                prefilled = await self._prefill(pool, node, prompt)
        except (TimeoutError, httpx.TimeoutException):
            self._lost(pool, node, f"no answer in {limit_s:.1f} s")
            handed.outcome = Outcome.SLOW
            return None
        except _Refused:  # what it refuses, the decode node is to refuse
            return None
        except (httpx.HTTPError, httpx.InvalidURL, _Failed) as error:
            self._lost(pool, node, str(error) or type(error).__name__)
            return None
        finally:
            node.work.end(number)
        pool.health.succeed(node.url)
        if was_alone:
            pool.prefill.add(prompt.cached, prompt.uncached, self._clock() - begun)
        if prefilled is None:  # the prompt has no whole block
            handed.outcome = Outcome.SHORT
        return prefilled

    def _transfer_s(
        self, choice: _Choice, tokens: int, begun: float, answered: float, ended: float
    ) -> float:
        """Seconds that the link took for the bytes: from the end of the engine's first step on.

        Where computing is slower than the link, the link had pauses: the speed that follows is
        then below the true one, and predicts the time of such a hand-over all the same.
        """
        share = min(tokens, choice.pool.options.step_tokens) / tokens
        return max(1e-6, ended - begun - share * (answered - begun))

    async def _prefill(
        self, pool: Pool, node: PoolNode, prompt: _Prompt
    ) -> Mapping[str, Any] | None:
        """`prefilled` of the engine's answer. Raises _Failed, httpx.HTTPError."""
        body: dict[str, Any] = {
            **{"model": pool.options.model, "prompt": list(prompt.tokens), "max_tokens": 1},
            **{"temperature": 0, "stream": False},
            "kv_transfer_params": {"do_remote_decode": True},
            **({"cache_salt": prompt.salt} if prompt.salt else {}),
        }
        key = pool.options.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(pool.options.prefill_s, connect=_CONNECT_S)
        answer = await self._http.post(
            f"{node.url}/v1/completions", json=body, headers=headers, timeout=timeout
        )
        if answer.status_code in _REFUSALS:
            raise _Refused
        if answer.status_code != 200:
            raise _Failed(f"HTTP {answer.status_code}")
        try:
            said = answer.json()["kv_transfer_params"]["neve"]
        except (ValueError, KeyError, TypeError):
            raise _Failed("its answer names no blocks: does it run NeveConnector?") from None
        prefilled = said.get("prefilled") if isinstance(said, dict) else None
        if prefilled is None:
            return None
        if not isinstance(prefilled, dict) or type(prefilled.get("tokens")) is not int:
            raise _Failed("its answer's `prefilled` is malformed")
        return prefilled

    async def _wait(
        self, tokens: Sequence[int], salt: str, where: Handover, until: float
    ) -> _Seen | None:
        """Asks until the tokens are stored, or the time is over. None: Neve does not say, so the
        decode node has to look for itself."""
        pause_s = _FIRST_POLL_S
        while True:
            asked_at = self._clock()
            try:
                async with asyncio.timeout(max(_MOST_POLL_S, until - self._clock())):
                    found = await self._look_up(tokens, salt)
            except TimeoutError:
                found = None
            if found is None:
                return None
            is_hot = where is Handover.HOT
            arrived = found.usable_hot if is_hot else found.usable
            left_s = until - self._clock()
            if arrived >= len(tokens) or left_s <= 0:
                return _Seen(arrived, asked_at)
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(_MOST_POLL_S, _POLL_GROWTH * pause_s)

    def _lost(self, pool: Pool, node: PoolNode, why: str) -> None:
        pool.health.fail(node.url)
        log_events.POOL_FAILED.log(pool=pool.name, node=node.url, detail=why)


class _Failed(Exception):
    """The pool's engine answered, but not as it should."""


class _Refused(Exception):
    """The pool's engine takes the request for malformed."""
