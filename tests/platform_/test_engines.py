"""Engines: registered, announced, checked, and chosen for spaces of their own tenant."""

from datetime import timedelta

import pytest
from django.utils import timezone

from base import sealing
from base.problems import Problem
from catalog import sessions
from engines import client, services, work
from engines.models import Engine, Serving
from support.engine_api import EngineApi
from support.rows import make_session, make_space, make_tenant
from tenants.audit import SYSTEM
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture
def tenant(clean_hot):
    return make_tenant()


@pytest.fixture
def space(tenant):
    return make_space(tenant, "org/tiny")


@pytest.fixture
def api():
    with EngineApi() as server:
        yield server


def add(tenant, api, *spaces, **fields):
    fields = {"name": "one", "base_url": api.url, "model": "tiny", "actor": SYSTEM} | fields
    return services.add_engine(tenant=tenant, spaces=spaces, **fields)


def announce(session, url, model="tiny", **more):
    with tenant_scope(session.tenant_id):
        services.announce(session=session, url=url, model=model, gpus=1, shards=None, **more)


def refused(kind, do, **how):
    with pytest.raises(Problem) as problem:
        do(**how)
    assert problem.value.kind == kind
    return problem.value


def test_a_registered_engine_is_checked_at_once_and_serves_its_spaces(tenant, space, api):
    other = make_space(tenant, "other")
    engine = add(tenant, api, space)
    assert (engine.state, engine.error) == ("healthy", "")
    assert services.serving(space) == [engine]
    assert services.serving(other) == []
    problem = refused("no-engine", services.require_serving, space=other)
    assert "none is registered or announced" in problem.detail


def test_engines_of_prefill_pools_come_first(tenant, space, api):
    add(tenant, api, space, name="any")
    first = add(tenant, api, space, name="prefill", is_prefill=True)
    assert [each.name for each in services.serving(space)] == ["prefill", "any"]
    services.change_engine(engine=first, is_prefill=False, actor=SYSTEM)
    assert [each.name for each in services.serving(space)] == ["any", "prefill"]


def test_the_ways_to_write_an_address_are_one(tenant, api):
    assert add(tenant, api, base_url=f"{api.url}/v1/").base_url == api.url


def test_a_key_is_sent_and_never_stored_in_the_clear(tenant, space):
    with EngineApi(api_key="sk-secret") as api:
        assert (
            add(tenant, api, space, name="a").error
            == "/v1/models: HTTP 401: it needs another API key"
        )
        engine = add(tenant, api, space, name="b", api_key="sk-secret")
        assert engine.state == "healthy"
    assert b"sk-secret" not in bytes(engine.sealed_key)
    assert "sk-secret" not in repr(services.address_of(engine))
    trail = AuditEvent.unscoped.filter(object_type="engine").values_list("after", flat=True)
    assert "sk-secret" not in str(list(trail))


def test_a_key_under_another_secret_is_asked_for_again(tenant, api, settings):
    engine = add(tenant, api, api_key="sk-secret")
    settings.SECRET_KEY = "another" * 8
    assert services.check_engine(engine).error.endswith("set api_key again")
    with pytest.raises(sealing.Unsealable):
        sealing.unseal(bytes(engine.sealed_key), purpose="engine key")


def test_another_address_does_not_get_the_old_ones_key(tenant, space):
    with EngineApi(api_key="sk-secret") as api, EngineApi() as elsewhere:
        engine = add(tenant, api, space, api_key="sk-secret")
        services.change_engine(engine=engine, base_url=elsewhere.url, actor=SYSTEM)
        assert [key for _, _, key in elsewhere.calls] == [None]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {"data": [{"id": "other"}]}), "it does not serve 'tiny', but other"),
        ((200, {"data": 7}), "it does not serve 'tiny', but no models"),
        ((200, ["x"]), "it does not serve 'tiny', but no models"),
        (
            (503, {"error": {"message": "loading\n weights"}}),
            "/v1/models: HTTP 503: loading weights",
        ),
        ((302, {}), "/v1/models: HTTP 302"),
    ],
)
def test_an_unhealthy_engine_says_why_and_is_not_used(tenant, space, api, answer, words):
    api.answers["/v1/models"] = lambda body: answer
    engine = add(tenant, api, space)
    assert (engine.state, engine.error) == ("unhealthy", words)
    assert services.serving(space) == []
    assert f"one is unhealthy: {words}" in services.no_engine(space).detail


def test_an_engine_of_another_model_is_unhealthy(tenant, space):
    with EngineApi(root="org/huge") as api:
        assert add(tenant, api, space).error == (
            "it serves org/huge, and the space org/tiny is of org/tiny"
        )
    with EngineApi(root="/models/org/tiny") as api:
        assert add(tenant, api, make_space(tenant, "tiny"), name="b").state == "healthy"


def test_an_address_that_may_not_be_reached_is_refused(tenant, api, settings):
    settings.OUTBOUND_ALLOW = ["public"]
    problem = refused("address-refused", lambda: add(tenant, api))
    assert problem.members["field"] == "base_url"
    assert api.calls == []


def test_names_are_taken_once_and_engines_are_limited(tenant, api, monkeypatch):
    engine = add(tenant, api)
    refused("conflict", lambda: add(tenant, api))
    monkeypatch.setattr(services, "MOST_REGISTERED", 1)
    refused("limit-reached", lambda: add(tenant, api, name="two"))
    services.remove_engine(engine=engine, actor=SYSTEM)
    add(tenant, api)


class TestAnnounced:
    def test_an_announced_engine_serves_the_space_of_its_session_while_it_lives(self, space, api):
        session = make_session(space, "gpu-07")
        announce(session, f"{api.url}/v1")
        (engine,) = self.checked(space)
        assert (engine.name, engine.source, engine.state) == ("gpu-07", "announced", "healthy")
        refused("conflict", services.remove_engine, engine=engine, actor=SYSTEM)
        with tenant_scope(space.tenant_id):
            sessions.end_session(session_id=session.pk)
        assert services.serving(space) == []
        services.forget_silent(space.tenant_id)
        assert not Engine.unscoped.exists()

    def test_a_silent_session_announces_nothing(self, space, api):
        long_ago = timezone.now() - timedelta(hours=1)
        announce(make_session(space, last_heartbeat_at=long_ago), api.url)
        assert self.checked(space) == []

    def test_ranks_of_one_engine_are_one_row_which_serves_their_spaces(self, tenant, api):
        spaces = [make_space(tenant, f"org/tiny-{n}") for n in range(2)]
        for space in spaces:
            announce(make_session(space, "gpu-07"), api.url)
        assert Engine.unscoped.count() == 1
        assert self.checked(spaces[0]) == self.checked(spaces[1]) != []

    def test_registered_engines_come_first(self, tenant, space, api):
        announce(make_session(space), api.url)
        mine = add(tenant, api, space)
        assert [each.source for each in self.checked(space)] == ["registered", "announced"]
        assert services.serving(space, only=mine) == [mine]

    def test_a_hostile_node_fills_no_more_than_its_own_tenants_list(self, space, api, monkeypatch):
        monkeypatch.setattr(services, "MOST_ANNOUNCED", 3)
        victim = make_space(make_tenant(), "org/tiny")
        for n in range(5):
            announce(make_session(space, f"n{n}"), f"http://127.0.0.1:{n + 1}")
        assert Engine.unscoped.filter(tenant=space.tenant_id).count() == 3
        announce(make_session(space, "in"), "http://169.254.169.254/latest")
        announce(make_session(victim, "mine"), api.url)
        self.checked(space)
        assert [each.tenant_id for each in self.checked(victim)] == [victim.tenant_id]

    def test_an_announced_address_has_to_pass_the_rule_too(self, space, api, settings):
        settings.OUTBOUND_ALLOW = ["public"]
        announce(make_session(space), api.url)
        assert self.checked(space) == []
        assert "NEVE_OUTBOUND_ALLOW" in Engine.unscoped.get().error
        assert api.calls == []
        with pytest.raises(Problem, match="no http or https"):
            announce(make_session(space), "file:///etc/passwd")

    def checked(self, space):
        with tenant_scope(space.tenant_id):
            Engine.objects.update(check_at=timezone.now())
        services.check_due(space.tenant_id)
        return services.serving(space)


def test_the_check_takes_only_engines_that_are_due_and_pauses_longer_after_failures(tenant, api):
    engine = add(tenant, api)
    assert services.check_due(tenant.pk) == 0
    api.answers["/v1/models"] = lambda body: (500, {})
    for _ in range(12):
        services.check_engine(engine)
    assert engine.check_at - engine.checked_at == timedelta(seconds=services.CHECK_MOST_S)
    assert work.tenants_with_engines() == [(tenant.pk, {})]


def test_an_engine_of_another_tenant_never_serves(tenant, space, api):
    stranger = make_tenant()
    engine = add(stranger, api)
    with tenant_scope(stranger.pk):  # even where a row says so
        Serving.objects.create(engine=engine, space=space)
    assert services.serving(space) == []
    assert services.serving(space, only=engine) == []


def test_gpus_come_from_the_engine_or_from_its_space(tenant, space, api):
    assert services.gpus_of(add(tenant, api, name="a", gpus=8), space) == 8
    unsaid = add(tenant, api, name="b")
    assert services.gpus_of(unsaid, space) == 1
    space.identity |= {"tp_size": 4, "pp_size": 2}
    assert services.gpus_of(unsaid, space) == 8
    space.identity |= {"layout": "by KV head: 2 layers"}
    assert services.gpus_of(unsaid, space) is None


@pytest.mark.parametrize("tokens", [None, ["1"], [1.5], [True], [-1], [2**32], {"0": 1}])
def test_token_ids_are_not_taken_on_trust(tenant, api, tokens):
    api.answers["/tokenize"] = lambda body: (200, {"tokens": tokens})
    address = services.address_of(add(tenant, api))
    with pytest.raises(client.EngineFailed, match="no list of token ids"):
        client.tokenize(address, {"prompt": "x"})
