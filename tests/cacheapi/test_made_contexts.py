"""/api/v1: engines, contexts made from prompts, look-ups, warm jobs and warm policies."""

from contextlib import ExitStack

import pytest

from base import outbound
from catalog.models import Job
from retention import provisioning
from support.caller import Caller
from support.engine_api import EngineApi
from support.rows import make_context, make_engine, make_key, make_space, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

TEXT = "Neve keeps what was computed once. " * 20  # 700 bytes, which are tokens here
MESSAGES = [{"role": "user", "content": TEXT}]


@pytest.fixture
def api():
    with EngineApi() as server:
        yield server


@pytest.fixture
def space(tenant, clean_hot):
    provisioning.provision_tenant(tenant)  # the server was wiped
    return make_space(tenant, "org/tiny")


@pytest.fixture
def engine(team, api, space):
    body = {"name": "gpu", "base_url": api.url, "model": "tiny", "spaces": [space.pk]}
    answer = team.send("post", "/api/v1/engines", body | {"api_key": "sk-secret"})
    assert answer.status_code == 201, answer.content
    return answer.json()


def refused(answer, status, kind, field=None):
    problem = answer.json()
    assert (answer.status_code, problem["type"], problem.get("field")) == (
        *(status, f"/problems/{kind}", field),
    )
    return problem


def test_an_engine_is_registered_by_a_team_and_its_key_is_never_shown(team, engine, space, tenant):
    assert engine | {"id": 0, "checked_at": "", "created_at": "", "updated_at": ""} == {
        **{"id": 0, "tenant": "acme", "name": "gpu", "base_url": engine["base_url"]},
        **{"model": "tiny", "spaces": [space.pk], "gpus": None, "has_api_key": True},
        "is_prefill": False,
        **{"source": "registered", "state": "healthy", "error": "", "checked_at": ""},
        **{"created_at": "", "updated_at": ""},
    }
    path = f"/api/v1/engines/{engine['id']}"
    assert team.send("patch", path, {"is_prefill": True}).json()["is_prefill"] is True
    found = team.get("/api/v1/engines?is_prefill=true").json()["results"]
    assert [each["id"] for each in found] == [engine["id"]]
    assert team.send("post", f"{path}/check").json()["state"] == "healthy"
    changed = team.send("patch", path, {"model": "other"}).json()
    assert (changed["state"], changed["error"]) == (
        *("unhealthy", "it does not serve 'other', but tiny"),
    )
    assert "sk-secret" not in str([team.get(each).content for each in (path, "/api/v1/audit")])
    found = team.get(f"/api/v1/engines?space={space.pk}&state=unhealthy").json()["results"]
    assert [each["id"] for each in found] == [engine["id"]]
    assert team.delete(path).status_code == 204


def test_an_engine_names_spaces_and_tenants_of_its_own(team, operator, space, api):
    other = make_space(make_tenant("other"))
    body = {"name": "gpu", "base_url": api.url, "model": "tiny"}
    wrong = body | {"spaces": [other.pk]}
    refused(team.send("post", "/api/v1/engines", wrong), 400, "malformed", "spaces")
    refused(
        team.send("post", "/api/v1/engines", body | {"tenant": "other"}),
        *(400, "malformed", "tenant"),
    )
    refused(operator.send("post", "/api/v1/engines", body), 400, "malformed", "tenant")
    made = operator.send(
        "post", "/api/v1/engines", body | {"tenant": "other", "spaces": [other.pk]}
    )
    assert (made.status_code, made.json()["tenant"]) == (201, "other")


@pytest.mark.parametrize("url", ["http://10.0.0.1", "http://169.254.169.254/", "http://[::]:80"])
def test_an_inner_address_is_refused_with_the_way_out(team, url):
    body = {"name": "gpu", "base_url": url, "model": "tiny"}
    problem = refused(
        team.send("post", "/api/v1/engines", body), 400, "address-refused", "base_url"
    )
    assert "NEVE_OUTBOUND_ALLOW" in problem["detail"]


class TestMaking:
    def make(self, team, space, **body):
        body = {"space": space.pk, "name": "repo-42"} | body
        return team.send("post", "/api/v1/contexts", body)

    def test_a_context_is_made_from_tokens_text_and_messages(self, team, space, engine, api):
        for name, prompt in (
            ("tokens", {"tokens": list(TEXT.encode()), "labels": {"team": "blue"}}),
            ("text", {"text": TEXT, "label": "agent"}),
            ("messages", {"messages": MESSAGES, "tools": [], "continue_final_message": True}),
        ):
            answer = self.make(team, space, name=name, **prompt)
            assert answer.status_code == 201, answer.content
            made = answer.json()
            assert (made["name"], made["space"]) == (name, space.pk)
            assert made["label"] == prompt.get("label", "")
        assert [body.get("continue_final_message") for body in api.bodies("/tokenize")] == [
            *(None, True),
        ]
        assert api.bodies("/tokenize")[1]["add_generation_prompt"] is False
        assert [key for path, _, key in api.calls if path == "/tokenize"] == [
            "Bearer sk-secret"
        ] * 2

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("tokens", {}),
            ("tokens", {"tokens": []}),
            ("tokens", {"tokens": [1, -1]}),
            ("tokens", {"tokens": [True]}),
            ("tokens", {"tokens": [2**32]}),
            ("tokens", {"tokens": [1]}),  # shorter than a chunk
            ("text", {"tokens": [1], "text": "a"}),
            ("tools", {"text": "a", "tools": []}),
            ("messages", {"messages": [{"content": "a"}]}),
            ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            ("labels", {"text": "a", "labels": {"x" * 64: "y"}}),
            ("lora", {"text": "a", "lora": "sql"}),
            ("name", {"text": "a", "name": "a\x07b"}),
        ],
    )
    def test_what_cannot_be_made_is_refused_by_name(self, team, space, engine, field, body):
        refused(self.make(team, space, **body), 400, "malformed", field)

    def test_of_another_tenants_space_nothing_is_made(self, space, engine, api):
        stranger = Caller(make_key(make_tenant("other"), "team"))
        refused(self.make(stranger, space, text=TEXT), 400, "malformed", "space")
        body = {"space": space.pk, "text": TEXT}
        refused(stranger.send("post", "/api/v1/lookup", body), 400, "malformed", "space")
        assert api.bodies("/tokenize") == []

    def test_without_an_engine_text_is_refused_clearly(self, team, space):
        problem = refused(self.make(team, space, text=TEXT), 409, "no-engine")
        assert problem["space"] == space.pk


def test_a_lookup_names_who_shares_the_prompt(team, space, engine):
    made = TestMaking().make(team, space, text=TEXT).json()
    answer = team.send("post", "/api/v1/lookup", {"space": space.pk, "text": TEXT + "more"})
    assert answer.json() == {
        **{"tokens": 704, "tail_tokens": 192, "hot_tokens": 0, "cold_tokens": 0},
        **{"lost_tokens": 512, "usable_tokens": 0, "usable_hot_tokens": 0},
        "contexts": [{"id": made["id"], "name": "repo-42", "shared_tokens": 512}],
        "cost": {
            **{"load_s": None, "compute_s": None, "verdict": None, "basis": "unknown"},
            "nodes": 0,
        },
    }


class TestWarming:
    @pytest.fixture
    def context(self, team, space, engine):
        return TestMaking().make(team, space, text=TEXT).json()

    def test_warm_requests_a_job(self, team, context, engine, tenant):
        path = f"/api/v1/contexts/{context['id']}/warm"
        answer = team.send("post", path, {"engine": engine["id"]})
        assert (answer.status_code, answer.json()["kind"]) == (202, "warm")
        job = Job.unscoped.get(pk=answer.json()["id"])
        assert job.arguments == {"context_id": context["id"], "engine_id": engine["id"]}
        assert team.send("post", path).json()["id"] == str(job.pk)

    def test_another_tenants_engine_is_none(self, team, context):
        other = make_engine(make_space(make_tenant("other")), state="healthy")
        path = f"/api/v1/contexts/{context['id']}/warm"
        refused(team.send("post", path, {"engine": other.pk}), 400, "malformed", "engine")

    def test_a_nodes_context_needs_its_tokens(self, team, space, engine):
        context = make_context(space)
        path = f"/api/v1/contexts/{context.pk}/warm"
        refused(team.send("post", path), 409, "tokens-unknown")
        refused(team.send("post", path, {"text": TEXT}), 409, "conflict", "tokens")

    def test_policies_are_made_paused_resumed_and_removed(self, team, context, engine):
        body = {"context": context["id"], "mode": "schedule", "cron": "0 6 * * 1-5"}
        made = team.send("post", "/api/v1/warm-policies", body)
        assert made.status_code == 201, made.content
        policy = made.json()
        assert (policy["time_zone"], policy["engine"], policy["is_paused"]) == ("UTC", None, False)
        path = f"/api/v1/warm-policies/{policy['id']}"
        paused = team.send("patch", path, {"is_paused": True, "engine": engine["id"]}).json()
        assert (paused["next_run_at"], paused["engine"]) == (None, engine["id"])
        listed = team.get(f"/api/v1/warm-policies?context={context['id']}&paused=true").json()
        assert [each["id"] for each in listed["results"]] == [policy["id"]]
        refused(team.send("patch", path, {"cron": "x"}), 400, "malformed", "cron")
        assert team.delete(path).status_code == 204


def test_engines_that_hang_hold_few_threads(team, engine, space, api, tenant):
    body = {"space": space.pk, "text": TEXT}
    with ExitStack() as waiting:
        for _ in range(outbound.WEB.most):
            waiting.enter_context(outbound.WEB.turn(tenant.pk))
        for path, sent in [
            ("lookup", body),
            ("contexts", body | {"name": "a"}),
            ("engines", {"name": "b", "base_url": api.url, "model": "tiny"}),
            (f"engines/{engine['id']}/check", {}),
            ("webhooks", {"url": api.url}),
        ]:
            answer = team.send("post", f"/api/v1/{path}", sent)
            refused(answer, 429, "throttled")
            assert answer["Retry-After"] == "2"
        ids = {"space": space.pk, "tokens": list(TEXT.encode())}
        assert team.send("post", "/api/v1/lookup", ids).status_code == 200  # asks nobody
        with outbound.WEB.turn(make_tenant("other").pk):
            pass
    assert team.send("post", "/api/v1/lookup", body).status_code == 200
