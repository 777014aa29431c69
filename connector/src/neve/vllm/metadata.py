"""`neve.engine.step`'s data in the envelopes that vLLM carries between scheduler and workers."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from neve.engine.step import RankInfo, StepPlan, WorkerReport


@dataclass
class NeveMetadata(KVConnectorMetadata):  # type: ignore[misc]  # vllm is untyped here
    """Scheduler → workers, every step."""

    plan: StepPlan = field(default_factory=StepPlan)


@dataclass
class NeveWorkerMetadata(KVConnectorWorkerMetadata):  # type: ignore[misc]  # vllm is untyped here
    """Workers → scheduler, after steps with something to report; vLLM merges the ranks'."""

    report: WorkerReport = field(default_factory=WorkerReport)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "NeveWorkerMetadata":
        assert isinstance(other, NeveWorkerMetadata)
        return NeveWorkerMetadata(self.report.merged(other.report))


@dataclass
class NeveHandshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]  # vllm is untyped here
    """Worker → scheduler, once."""

    rank: RankInfo
