"""A worker's process: the platform's real tasks in random order, until it is stopped or killed.

Tells ("durable", ids) once a flush was acknowledged.
"""

import random
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from catalog.targets import active_tenants
from neve.index.tier import FlushOutcome, HotTier
from storage import hot
from torture import tuning
from workers import tasks


def cool() -> None:
    """Evicts as many new blocks would, so that blocks are read from S3."""
    for tenant_id, _ in active_tenants():
        hot.hot_tier(tenant_id).evict(1 << 20)


# Task -> how often. Beat has other intervals; here a second is a day.
TASKS: dict[Any, int] = {
    cool: 4,
    tasks.flush: 8,
    tasks.sweep: 4,
    tasks.compact: 4,
    tasks.move: 6,
    tasks.check_stores: 1,
    tasks.expire: 2,
    tasks.retain: 1,
    tasks.remove_space: 1,
    tasks.remove_tenant: 1,
    tasks.rebuild_index: 3,
    tasks.reconcile: 2,
}


def run_worker(wire: Connection, seed: int) -> None:
    """Works until `wire` says something or closes."""
    tuning.hurry()
    _tell_what_is_durable(wire)
    rng = random.Random(seed)
    while not wire.poll(rng.uniform(0, 0.05)):
        task = rng.choices(tuple(TASKS), tuple(TASKS.values()))[0]
        try:
            task()
        except Exception as error:  # as Celery would: the task failed, the worker goes on
            wire.send(("failed", f"{task.__name__}: {type(error).__name__}"))
    wire.send(("done",))


def _tell_what_is_durable(wire: Connection) -> None:
    flushed = HotTier.flushed

    def flushed_and_told(
        tier: HotTier, segment: int, blocks: Sequence[tuple[bytes, int]]
    ) -> list[FlushOutcome]:
        outcomes = flushed(tier, segment, blocks)
        done = [
            id_
            for (id_, _), outcome in zip(blocks, outcomes, strict=True)
            if outcome is FlushOutcome.FLUSHED
        ]
        wire.send(("durable", done))
        return outcomes

    HotTier.flushed = flushed_and_told
