"""Tenants whose nodes report at any time, and rounds of the evaluation at any time."""

from datetime import UTC, datetime

import pytest

from catalog.kinds import WATCH_INCIDENTS
from catalog.usage import record_deltas
from incidents import evaluate
from incidents.models import Incident
from support.rows import make_tenant

T0 = 1_800_000_000  # a whole hour
BLOCK = 16  # tokens


class World:
    """One clock for reports and evaluations; a step is 10 s."""

    def __init__(self):
        self.now_s, self.memory = T0, None

    @property
    def now(self):
        return datetime.fromtimestamp(self.now_s, UTC)

    def report(self, tenant, *, hits=0, misses=None, load_ms=None, **counters):
        """Blocks found and missed in the step that ends now."""
        missed = sum((misses or {}).values())
        counts = {
            "requested_blocks": hits + missed,
            "requested_tokens": BLOCK * (hits + missed),
            "hit_hot_blocks": hits,
            "hit_hot_tokens": BLOCK * hits,
        }
        record_deltas(
            tenant_id=tenant.pk,
            at=datetime.fromtimestamp(self.now_s - 1, UTC),
            counters=counts | counters,
            misses=misses or {},
            load_ms=load_ms or {},
        )

    def run(self, steps=1, tenants=(), **reported):
        """Steps: the same report of each tenant, then an evaluation."""
        for _ in range(steps):
            self.now_s += 10
            for tenant in tenants:
                self.report(tenant, **reported)
            evaluate.run(self.now)

    def live(self, seconds, tenant, **reported):
        """Heartbeats each second, rounds as beat starts them."""
        for _ in range(seconds):
            self.now_s += 1
            self.report(tenant, **reported)
            if self.now_s % WATCH_INCIDENTS.every_s == 0:
                evaluate.run(self.now)

    def opened(self, tenant=None):
        rows = Incident.unscoped.filter(opened_at__isnull=False)
        return list(rows if tenant is None else rows.filter(tenant=tenant))


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr("incidents.figures.read_memory", lambda: world.memory)
    return world


@pytest.fixture
def acme(db, clean_hot):
    return make_tenant("acme")
