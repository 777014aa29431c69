"""Tenants with people, and what nodes reported: made by the services that nodes reach in life.
For browser tests Chromium, signed-in pages, and walkers that count clicks.
"""

import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from catalog.usage import record_deltas
from dashboard import probes
from neve.index.library import load_functions
from support import testsettings
from support.browser import COUNTER, WAIT_MS, Node, Walker, Watched, make_member, sign_in
from support.chromium import CHROMIUM, FLAGS
from support.rows import make_person, make_tenant
from support.servers import ControlPlane, S3Server

expect.set_options(timeout=WAIT_MS)


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


@pytest.fixture(scope="module")
def control_plane(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A platform for each file: pages show what comes first, the worst incident or a silent node
    say, and what other files left would come first."""
    folder = tmp_path_factory.mktemp("platform")
    with ControlPlane(folder, s3, postgres_url=testsettings.POSTGRES_URL) as server:
        yield server


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Its event loop runs until it ends: Django refuses the database to tests beside it."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
    yield browser
    browser.close()


@pytest.fixture
def open_page(chromium: Browser, control_plane: ControlPlane) -> Iterator[Callable[..., Walker]]:
    """open_page(person=None, **context options): a signed-in page, the operator's unless a user
    name and a password are given. No page may ask another host."""
    opened: list[Walker] = []

    def open_page(person: tuple[str, str] | None = None, **options: Any) -> Walker:
        viewport = {"width": 1440, "height": 900}
        page = chromium.new_context(**{"viewport": viewport, **options}).new_page()
        page.set_default_timeout(WAIT_MS)
        page.add_init_script(COUNTER)
        watched = Walker(page)
        opened.append(watched)
        _watch(watched)
        sign_in(page, control_plane, person)
        return watched

    yield open_page
    for watched in opened:
        foreign = [url for url in watched.requests if not url.startswith(control_plane.url)]
        watched.page.context.close()
        assert foreign == []


def _watch(watched: Watched) -> None:
    page = watched.page
    page.on(
        "console",
        lambda message: (
            message.type == "error"
            and watched.errors.append(f"{message.text} {message.location['url']}")
        ),
    )
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))


@pytest.fixture
def walker(open_page, control_plane: ControlPlane) -> Walker:
    """An operator at the first screen, whose clicks count from there."""
    walker: Walker = open_page()
    walker.start(f"{control_plane.url}/")
    return walker


@pytest.fixture(scope="module")
def member(control_plane: ControlPlane) -> tuple[str, str]:
    """User name and password of a member (team) of the demo tenant."""
    return make_member(control_plane)


@pytest.fixture
def member_walker(open_page, control_plane: ControlPlane, member: tuple[str, str]) -> Walker:
    """A member of the demo tenant at the first screen, whose clicks count from there."""
    walker: Walker = open_page(person=member)
    walker.start(f"{control_plane.url}/")
    return walker


@pytest.fixture
def node(control_plane: ControlPlane) -> Node:
    return Node(control_plane, f"gpu-{secrets.token_hex(3)}").connect()
