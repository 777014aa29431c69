"""/metrics of the router, in Prometheus's text format."""

import math
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from neve.gateway import Gateway, Node
from neve.gateway.prefill import Handed, Outcome, Prefills

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)


class Metrics:
    """Counts of one router. `prefills` and the others are read when somebody asks."""

    def __init__(self, prefills: Prefills, gateway: Gateway, nodes: tuple[Node, ...]) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "neve_router_answers",
            "Answers to clients, by status.",
            ["status"],
            registry=self._registry,
        )
        self._handover_s = Histogram(
            "neve_router_handover_seconds",
            "From the decision for a pool until the blocks were there, or were given up.",
            ["pool"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._state = _State(prefills, gateway, nodes)
        self._registry.register(self._state)

    def answered(self, status: int) -> None:
        self._answers.labels(str(status)).inc()

    def handed(self, handed: Handed) -> None:
        if handed.pool:
            self._handover_s.labels(handed.pool).observe(handed.took_s)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _State:
    """What pools and nodes are like now."""

    def __init__(self, prefills: Prefills, gateway: Gateway, nodes: tuple[Node, ...]) -> None:
        self._prefills, self._gateway, self._nodes = prefills, gateway, nodes

    def collect(self) -> Iterator[Metric]:
        prefills = self._prefills
        prompts = CounterMetricFamily(
            "neve_router_prompts",
            "Prompts by what was done with them; without a pool if none got them.",
            labels=["pool", "outcome"],
        )
        for name in ("", *(pool.name for pool in prefills.pools)):
            for outcome in Outcome:
                count = prefills.counts[name, outcome]
                if count or (name and outcome is Outcome.HANDED_OVER):
                    prompts.add_metric([name, outcome], count)
        yield prompts
        sent = CounterMetricFamily(
            "neve_router_sent_bytes", "KV that pools handed over.", labels=["pool"]
        )
        threshold = _gauge(
            "threshold_tokens", "Uncached tokens above which a pool computes; absent: unknown."
        )
        sooner = _gauge("threshold_sooner_tokens", "From here on the pool is faster.")
        sustained = _gauge("threshold_sustained_tokens", "From here on pool and link keep up.")
        link = _gauge("link_bytes_per_second", "Bandwidth of a pool's link, as measured.")
        queue = _gauge("link_queue_bytes", "KV of hand-overs under way on that link.")
        waiting = _gauge("pool_waiting", "Prompts of this router in the pool's engines.")
        wait_s = _gauge("pool_wait_seconds", "Until the least loaded engine begins a new prompt.")
        lost = _gauge("pool_lost_engines", "Engines of the pool that failed and rest.")
        for pool in prefills.pools:
            labels = [pool.name]
            sent.add_metric(labels, prefills.sent_bytes[pool.name])
            found, speed = prefills.threshold(pool), pool.link.speed()
            if found is not None:
                for gauge, value in (
                    (threshold, found.tokens),
                    (sooner, found.sooner),
                    (sustained, found.sustained),
                ):
                    gauge.add_metric(labels, value)
            if speed is not None:
                link.add_metric(labels, speed.bytes_per_s)
            queue.add_metric(labels, pool.link.queue_bytes)
            waiting.add_metric(labels, sum(len(node.work) for node in pool.nodes))
            wait_s.add_metric(labels, min((n.work.wait_s() for n in pool.nodes), default=math.nan))
            lost.add_metric(
                labels, sum(not pool.health.is_healthy(node.url) for node in pool.nodes)
            )
        yield from (sent, threshold, sooner, sustained, link, queue, waiting, wait_s, lost)
        running = _gauge("node_in_flight", "Requests in a decode node.", "node")
        healthy = _gauge("node_healthy", "0 while a decode node that failed rests.", "node")
        for node in self._nodes:
            running.add_metric([node.name], self._gateway.nodes.load(node.name).in_flight)
            healthy.add_metric([node.name], self._gateway.nodes.is_healthy(node.name))
        yield from (running, healthy)
        arrivals = GaugeMetricFamily(
            "neve_router_arrivals_per_second", "Prompts whose uncached length is known."
        )
        arrivals.add_metric([], prefills.arrivals_per_s())
        yield arrivals
        reached = GaugeMetricFamily(
            "neve_router_neve_reached", "0 while look-ups fail and none is sent."
        )
        store = self._gateway.store
        reached.add_metric([], store is not None and store.is_open)
        yield reached


def _gauge(name: str, words: str, label: str = "pool") -> GaugeMetricFamily:
    return GaugeMetricFamily(f"neve_router_{name}", words, labels=[label])
