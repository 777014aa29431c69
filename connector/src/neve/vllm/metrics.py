"""The connector's figures as vLLM's `KVConnectorStats` and Prometheus metrics.

Names begin with `vllm:neve_`: when an engine starts again in the same process, vLLM unregisters the
metrics that begin with `vllm`.
"""

from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from neve.engine import telemetry
from neve.engine.telemetry import Metric

PREFIX = "vllm:neve_"


class NeveStats(KVConnectorStats):  # type: ignore[misc]  # vllm is untyped here
    """A `telemetry.Data` that vLLM can merge."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data=data or telemetry.empty())

    def reset(self) -> None:
        self.data = telemetry.empty()

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        telemetry.merge(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        return telemetry.summarize(self.data)

    def is_empty(self) -> bool:
        return telemetry.is_empty(self.data)


class NevePromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]  # vllm is untyped here
    """Registers every metric of `telemetry` with vLLM's labels (model, engine) and its own."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)

        def register(kind: type, metric: Metric, **more: Any) -> Any:
            labels = labelnames + ([metric.label] if metric.label else [])
            return metric_types[kind](
                name=PREFIX + metric.name, documentation=metric.help, labelnames=labels, **more
            )

        self._counters = {m.name: register(Counter, m) for m in telemetry.COUNTERS}
        self._gauges = {
            m.name: register(Gauge, m, multiprocess_mode="mostrecent") for m in telemetry.GAUGES
        }
        self._histograms = {
            m.name: register(Histogram, m, buckets=telemetry.BUCKETS_S)
            for m in telemetry.HISTOGRAMS
        }
        for engine in per_engine_labelvalues:
            # Counters start at 0, because rate() ignores a counter's first value. Gauges show no 0:
            # they are unknown before the engine's first step.
            for metric in (*telemetry.COUNTERS, *telemetry.HISTOGRAMS):
                for value in metric.values:
                    self._of(engine, metric.name, value)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Called in the process that serves `/metrics`, for every step with figures."""
        for name, by_label in transfer_stats_data["counters"].items():
            for label, number in by_label.items():
                self._of(engine_idx, name, label).inc(number)
        for name, by_label in transfer_stats_data["gauges"].items():
            for label, number in by_label.items():
                self._of(engine_idx, name, label).set(number)
        for name, samples in transfer_stats_data["samples"].items():
            histogram = self._of(engine_idx, name)
            for value in samples:
                histogram.observe(value)

    def _of(self, engine: int, name: str, label: str = "") -> Any:
        every = self._counters.get(name) or self._gauges.get(name) or self._histograms[name]
        own = [label] if label else []
        return every.labels(*self.per_engine_labelvalues[engine], *own)
