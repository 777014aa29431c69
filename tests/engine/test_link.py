"""An engine's way to the platform: whatever the endpoint does, the engine starts without it."""

import socket
from collections.abc import Iterator

import pytest

from neve.engine import link
from neve.engine.link import Engine, Link
from neve.engine.options import Options
from neve.formats.parts import PartGroup, PartKind
from support.cache_endpoint import API_KEY, CacheEndpoint
from support.chains import IDENTITY, provision
from support.servers import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """No pause between attempts."""
    monkeypatch.setattr(link, "_RETRY_S", (0.01,) * 5)
    monkeypatch.setattr(link, "_REFUSED_RETRY_S", 0.01)


def link_to(url: str, **more: object) -> Link:
    options = Options(endpoint=url, api_key=API_KEY, node="n", **more)
    return Link.acquire(options, IDENTITY, engine=Engine("test", "0"))


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_endpoint_that_never_answers_is_waited_for_so_long_and_no_longer(silent):
    made = link_to(silent)
    made.wait_first_attempt(0.05)
    assert made.client is None
    assert not made._tried.is_set()  # it is still under way, and nobody waits
    made.release()
    assert made.client is None


@pytest.mark.parametrize("status", [503, 403])
def test_an_endpoint_that_fails_or_refuses_is_asked_again(clean_hot, status):
    provision(clean_hot)
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint:
        endpoint.fail = (status, {"title": "No", "status": status, "detail": "not now"})
        made = link_to(endpoint.url)
        made.wait_first_attempt(20)
        assert made.client is None
        endpoint.fail = None
        wait_until(lambda: made.client is not None, what="a connection")
        made.release()


def test_what_only_another_configuration_can_mend_is_tried_once(clean_hot, caplog):
    provision(clean_hot)
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint:
        endpoint.fail = (400, {"detail": "node: has NUL", "field": "node", "status": 400})
        made = link_to(endpoint.url)
        made._thread.join(20)
        assert not made._thread.is_alive()
        assert "given_up field=node" in caplog.text
        assert made.client is None
        made.release()


def test_the_scheduler_and_the_worker_of_one_process_have_one_session(clean_hot):
    provision(clean_hot)
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint:
        worker, scheduler = link_to(endpoint.url), link_to(endpoint.url)
        assert worker is scheduler
        wait_until(lambda: worker.client is not None, what="a connection")
        worker.release()
        assert scheduler.client is not None
        assert len(endpoint.opened) == len(endpoint.sessions) == 1
        scheduler.release()
        assert not endpoint.sessions
        other = link_to(endpoint.url, revision="other")
        assert other is not worker
        other.release()


def test_an_endpoint_hears_of_the_groups_that_chunks_have_parts_of(clean_hot):
    provision(clean_hot)
    groups = [PartGroup(PartKind.FULL, None, 16, 100), PartGroup(PartKind.WINDOW, 100, 16, 50)]
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint:
        for given in (groups, []):
            options = Options(endpoint=endpoint.url, api_key=API_KEY, node="n")
            made = Link.acquire(options, IDENTITY, engine=Engine("test", "0"), groups=given)
            made.wait_first_attempt(20)
            made.release()
        first, second = endpoint.opened
        assert [PartGroup.from_dict(each) for each in first["groups"]] == groups
        assert "groups" not in second
