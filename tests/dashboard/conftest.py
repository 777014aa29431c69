"""Tenants with people, and what nodes reported: made by the services that nodes reach in life."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.conf import settings
from django.test import Client

from catalog.usage import record_deltas
from dashboard import probes
from neve.index.library import load_functions
from support.rows import make_person, make_tenant


@pytest.fixture(autouse=True)
def answering(monkeypatch, request):
    """Probes ask real servers in threads of their own: here they have been answered."""
    if not request.node.get_closest_marker("browser"):
        settings.STATIC_ROOT.mkdir(exist_ok=True)  # or WhiteNoise warns
        answer = probes.Answer(True, "1", datetime.now(UTC))
        for probe in (probes.HOT, probes.COLD, probes.WORKERS):
            monkeypatch.setattr(probe, "read", lambda: answer)


@pytest.fixture
def hot_tier(clean_hot):
    """An empty hot tier that has its functions."""
    with clean_hot.client() as client:
        load_functions(client)


@pytest.fixture
def acme(db):
    return make_tenant("acme")


@pytest.fixture
def globex(db):
    return make_tenant("globex")


@pytest.fixture
def people(acme, globex) -> dict[str, Client]:
    """Signed-in browsers by name."""
    made = {
        "operator": make_person("operator", staff=True),
        "team": make_person("team", acme="team"),
        "viewer": make_person("viewer", acme="viewer"),
        "stranger": make_person("stranger"),
    }
    browsers = {name: Client() for name in made}
    for name, person in made.items():
        browsers[name].force_login(person)
    return browsers


@pytest.fixture
def report() -> Callable[..., None]:
    """report(tenant, at_s, misses=…, load_ms=…, **counters): a heartbeat's deltas at that time."""

    def report(tenant, at_s: float, *, misses=None, load_ms=None, **counters: int) -> None:
        record_deltas(
            tenant_id=tenant.pk,
            at=datetime.fromtimestamp(at_s, UTC),
            counters=counters,
            misses=misses or {},
            load_ms=load_ms or {},
        )

    return report
