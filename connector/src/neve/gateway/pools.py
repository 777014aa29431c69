"""Prefill pools: their options, and what is known of each now: lost nodes, queues, speeds.

One event loop; nothing here waits or sends.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from neve.errors import Misuse
from neve.gateway.nodes import Nodes
from neve.planner.breakeven import Store
from neve.planner.measured import MOST_SURPRISE
from neve.planner.prfaas import Curve
from neve.planner.threshold import Site, behind, measured_curve

Clock = Callable[[], float]
_SAMPLES: Final = 64  # of a site's prefill times
# Without new samples a pool or link counts as twice as fast after so long, so that it is tried
# again: the last samples may be those of a bad minute.
_FORGIVING_S: Final = 60.0
_FADE: Final = 0.5  # of earlier hand-overs' weight in a link's speed, with each new one


class Handover(StrEnum):
    """Where decode nodes are to find the blocks: in the hot tier, or in any tier, which is the
    cold one where the hot tier is too small or too far to hold them until then."""

    HOT = "hot"
    COLD = "cold"


@dataclass(frozen=True)
class PoolOptions:
    """Engines that compute prompts for others, of one place.

    Args:
        name: of the pool, in logs and metrics.
        urls: addresses of the engines' OpenAI-compatible servers, without /v1.
        model: the name under which they serve it.
        api_key: of the servers; "": none. It is sent to these addresses alone.
        handover: the tier in which the blocks are waited for.
        link: pools of one `link` share its bandwidth; "": the pool has one of its own.
        link_bytes_per_s: of the link until it is measured; None: the first hand-over measures it.
        prefill_tokens_per_s: of one engine until it is measured; likewise.
        step_tokens: `--max-num-batched-tokens` of the engines: KV is sent behind each step.
        least_tokens: shorter prompts never go to the pool.
        prefill_s: longest request of an engine.
        wait_s: longest wait for the blocks behind it.
        most_waiting: requests of this gateway in one engine; when all have them the pool is full.
    """

    name: str
    urls: tuple[str, ...]
    model: str
    api_key: str = field(default="", repr=False)
    handover: Handover = Handover.HOT
    link: str = ""
    link_bytes_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    step_tokens: int = 8192
    least_tokens: int = 256
    prefill_s: float = 60.0
    wait_s: float = 10.0
    most_waiting: int = 16

    def __post_init__(self) -> None:
        if not self.name:
            raise Misuse("must not be empty", field="pool.name")
        where = f"pool {self.name}"
        if not self.urls:
            raise Misuse("needs at least one address", field=f"{where}: urls")
        for name in ("prefill_s", "wait_s", "step_tokens", "least_tokens", "most_waiting"):
            if not getattr(self, name) > 0:
                raise Misuse("must be above 0", field=f"{where}: {name}")
        for name in ("link_bytes_per_s", "prefill_tokens_per_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise Misuse("must be above 0", field=f"{where}: {name}")


class SpeedMeter:
    """Seconds of prefills at one site, by their lengths.

    A sample counts for at most `MOST_SURPRISE` times what was expected, so one pause does not close
    a pool. The first one compiles and allocates: it counts until there is a second.
    """

    def __init__(self, clock: Clock, *, tokens_per_s: float | None = None) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=_SAMPLES)
        self._assumed = None if tokens_per_s is None else Curve(0.0, 1 / tokens_per_s)
        self._measured: Curve | None = None
        self._is_first = True
        self._sampled_at = 0.0

    def add(self, cached_tokens: int, tokens: int, took_s: float) -> None:
        """A prefill of `tokens` behind `cached_tokens`, with nothing before it in the engine."""
        if tokens <= 0 or took_s <= 0:
            return
        if self._measured is not None:
            expected_s = behind(self._measured, cached_tokens).at(tokens)
            took_s = min(took_s, MOST_SURPRISE * expected_s)
            if self._is_first:
                self._samples.clear()
                self._is_first = False
        self._samples.append((cached_tokens, tokens, took_s))
        self._measured = measured_curve(self._samples)
        self._sampled_at = self._clock()

    def assume(self, tokens_per_s: float) -> None:
        """What others measured; counts until there is a sample."""
        self._assumed = Curve(0.0, 1 / tokens_per_s)

    @property
    def is_measured(self) -> bool:
        return self._measured is not None

    def curve(self, *, cached_tokens: int = 0, forgives: bool = False) -> Curve | None:
        """None: nothing is known. `forgives`: the older the last sample, the faster."""
        known = self._measured or self._assumed
        if known is None:
            return None
        known = behind(known, cached_tokens)
        if forgives and self._measured is not None:
            age_s = self._clock() - self._sampled_at
            known = known.scaled(0.5 ** min(60.0, age_s / _FORGIVING_S), 0.0)
        return known


class LinkMeter:
    """Bandwidth of a link by the last hand-overs over it: those before count half as much each.

    As with a `SpeedMeter`, one sample counts for at most `MOST_SURPRISE` times what was expected,
    and the first one, which opens connections, only until there is a second.

    `queue_bytes`: of all hand-overs under way, also of those that are still computed.
    """

    def __init__(self, clock: Clock, *, bytes_per_s: float | None = None) -> None:
        self._clock, self._assumed = clock, bytes_per_s
        self.queue_bytes = 0
        self._arrived = 0.0  # bytes so far
        self._samples = 0
        self._bytes = self._seconds = self._asking_s = self._sampled_at = 0.0

    def begin(self) -> float:
        """A transfer begins. Returns what `end` wants."""
        return self._arrived

    def end(self, size_bytes: float, begun: float, took_s: float, *, asking_s: float) -> None:
        """`size_bytes` arrived in `took_s`, and what other transfers brought since `begun`.
        `asking_s`: until that was known."""
        self._arrived += size_bytes
        moved, took_s = self._arrived - begun, max(1e-6, took_s)
        if self._samples:
            took_s = min(took_s, MOST_SURPRISE * moved * self._seconds / max(1.0, self._bytes))
            asking_s = min(asking_s, MOST_SURPRISE * self._asking_s or asking_s)
        fade = _FADE if self._samples > 1 else 0.0
        self._samples += 1
        self._bytes = fade * self._bytes + moved
        self._seconds = fade * self._seconds + took_s
        self._asking_s = fade * self._asking_s + (1 - fade) * asking_s
        self._sampled_at = self._clock()

    def speed(self) -> Store | None:
        """None: nothing is known. The older the last sample, the faster."""
        if self._samples:
            hope = 2.0 ** min(60.0, (self._clock() - self._sampled_at) / _FORGIVING_S)
            rate = max(1.0, self._bytes / self._seconds * hope)
        elif self._assumed is not None:
            rate = self._assumed
        else:
            return None
        return Store(rate, self._asking_s, self.queue_bytes)


class Work:
    """Prompts that one engine computes for this gateway, as expected: one after the other."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: dict[int, float] = {}  # request → when it is expected to end
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._ends)

    def wait_s(self) -> float:
        """Until a new prompt begins."""
        return max(0.0, max(self._ends.values(), default=0.0) - self._clock())

    def begin(self, expected_s: float) -> int:
        number = next(self._numbers)
        self._ends[number] = self._clock() + self.wait_s() + expected_s
        return number

    def end(self, number: int) -> None:
        """Those behind it come sooner if it ends sooner. May be called twice."""
        expected = self._ends.pop(number, None)
        early_s = 0.0 if expected is None else expected - self._clock()
        if expected is not None and early_s > 0:
            for other, end in self._ends.items():
                if other > number:
                    self._ends[other] = end - early_s


class PoolNode:
    """One engine of a pool."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url, self.work = url, Work(clock)


class Pool:
    """Its engines, their health by address, its link, and the speed of its prefills."""

    def __init__(self, options: PoolOptions, link: LinkMeter, clock: Clock) -> None:
        self.options, self.link = options, link
        self.nodes = [PoolNode(url, clock) for url in options.urls]
        self.health = Nodes(clock=clock)
        self.prefill = SpeedMeter(clock, tokens_per_s=options.prefill_tokens_per_s)

    @property
    def name(self) -> str:
        return self.options.name

    def free_nodes(self) -> list[PoolNode]:
        """Nodes that are not lost and not full, the least loaded first."""
        free = [
            node
            for node in self.nodes
            if self.health.is_healthy(node.url) and len(node.work) < self.options.most_waiting
        ]
        return sorted(free, key=lambda node: (node.work.wait_s(), len(node.work)))

    @property
    def is_lost(self) -> bool:
        """Each engine failed, and rests."""
        return not any(self.health.is_healthy(node.url) for node in self.nodes)

    def site(self, *, cached_tokens: int = 0) -> Site | None:
        """None: its speed is not known, or no node is free."""
        curve = self.prefill.curve(cached_tokens=cached_tokens, forgives=True)
        free = self.free_nodes()
        if curve is None or not free:
            return None
        return Site(curve, len(free), free[0].work.wait_s())


def make_pools(options: Sequence[PoolOptions], clock: Clock) -> list[Pool]:
    """Raises `Misuse` for two pools of one name, or of one link with two speeds."""
    links: dict[str, LinkMeter] = {}
    speeds: dict[str, float | None] = {}
    names: set[str] = set()
    pools = []
    for each in options:
        if each.name in names:
            raise Misuse(f"two pools are named {each.name!r}", field="pool.name")
        names.add(each.name)
        key = f"link {each.link}" if each.link else f"pool {each.name}"
        if key not in links:
            links[key] = LinkMeter(clock, bytes_per_s=each.link_bytes_per_s)
            speeds[key] = each.link_bytes_per_s
        elif speeds[key] != each.link_bytes_per_s:
            raise Misuse(
                f"link {each.link!r} has another speed in an earlier pool: give both the same",
                field=f"pool {each.name}: link_bytes_per_s",
            )
        pools.append(Pool(each, links[key], clock))
    return pools
