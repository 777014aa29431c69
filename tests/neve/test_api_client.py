"""`neve.api`: as the schema says, against a live platform, and in trouble."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from deploy.api_client import stale
from neve.api import ApiProblem, AsyncNeve, Neve, models
from neve.datapath.client import Client
from neve.errors import Closed, DeadlineExceeded, Misuse, Unavailable
from support.chains import ENGINE, IDENTITY, Chain, PatientClient
from support.servers import ROOT, ControlPlane

KEY = "neve_abc_secret"
CONTEXT = "822474d4-aa0b-4178-a28f-1e0a5ad9c6b7"

ISSUE_KEYS = """
from tenants.models import Tenant
from tenants.services import issue_key
print(issue_key(tenant=Tenant.objects.get(slug="demo"), role="team", name="client")[1])
print(issue_key(tenant=None, role="operator", name="client-ops")[1])
"""


def test_the_client_has_what_the_schema_has():
    assert stale() == [], "the API has changed: `make openapi`"


def operations() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """id, method, path without /api/v1, description of each operation for teams."""
    for path, methods in SCHEMA["paths"].items():
        if path.startswith("/api/v1/"):
            for method, operation in methods.items():
                yield operation["operationId"], method, path.removeprefix("/api/v1"), operation


def method_of(neve: Neve, operation_id: str) -> Callable[..., Any]:
    for name in [name for name in vars(neve) if operation_id.startswith(f"{name}_")]:
        found = getattr(getattr(neve, name), operation_id.removeprefix(f"{name}_"), None)
        if found is not None:
            return found
    return getattr(neve, operation_id.partition("_")[0])


SCHEMA = json.loads((ROOT / "docs/openapi.json").read_text())
SAMPLES = {"etag": '"1"', "after": 7}


@pytest.mark.parametrize("operation_id", [operation[0] for operation in operations()])
def test_each_operation_has_a_method_that_sends_what_the_schema_takes(operation_id):
    """Called with all parameters, it sends exactly the members that the schema has."""
    _, method, path, schema = next(one for one in operations() if one[0] == operation_id)
    world = Scripted(httpx.Response(200, json={"results": []}))
    call = method_of(world.client(), operation_id)
    given = {name: SAMPLES.get(name, "x") for name in inspect.signature(call).parameters}
    answer = call(**given)
    if not isinstance(answer, (models.Record, dict, type(None))):
        list(answer)
    (request,) = world.requests
    wanted = re.sub(r"\{[^}]+\}", "x", path)
    assert (request.method, request.url.path) == (method.upper(), f"/api/v1{wanted}")
    where = {kind: set() for kind in ("query", "header", "path")}
    for parameter in schema.get("parameters", ()):
        where[parameter["in"]].add(parameter["name"])
    assert set(request.url.params) == where["query"] - {"cursor"}
    assert ("If-Match" in request.headers) == ("If-Match" in where["header"])
    if request.content:
        body = members_of(schema["requestBody"]["content"]["application/json"]["schema"])
        assert set(json.loads(request.content)) == body


def members_of(schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return members_of(SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    members = schema.get("properties", {})
    return {name for name, member in members.items() if not member.get("deprecated")}


# --- against the platform ---


@pytest.fixture(scope="module")
def keys(control_plane: ControlPlane) -> dict[str, str]:
    team, operator = control_plane.manage("shell", "-v", "0", "-c", ISSUE_KEYS).split()
    return {"team": team, "operator": operator}


@pytest.fixture
def neve(control_plane: ControlPlane, keys: dict[str, str]) -> Iterator[Neve]:
    with Neve(control_plane.url, keys["team"]) as neve:
        yield neve


@pytest.fixture
def contexts(control_plane: ControlPlane) -> Iterator[list[str]]:
    """Names of three recorded contexts."""
    with PatientClient.connect(
        control_plane.url, control_plane.node_key, IDENTITY, node="api-1", engine=ENGINE
    ) as node:
        yield [record(node, f"api-{seed}", seed) for seed in (71, 72, 73)]


def record(node: Client, name: str, seed: int) -> str:
    chain = Chain(node, 2, seed=seed)
    assert chain.put() == [None] * 2
    assert node.report_context(name, chain.ids, tokens=len(chain.ids) * 16, label="api")
    return name


@pytest.mark.integration
def test_a_list_goes_on_through_its_pages(neve, contexts):
    listed = neve.contexts.list(label="api", page_size=1, ordering="name")
    assert [context.name for context in listed] == contexts
    first = listed.page()
    assert [context.name for context in first.items] == contexts[:1]
    assert first.next_cursor
    assert [one.name for one in listed.page(first.next_cursor).items] == contexts[1:2]
    assert neve.contexts.list(name="no such context").first() is None


@pytest.mark.integration
def test_a_context_is_pinned_looked_at_and_expired(neve, contexts):
    context = neve.contexts.list(name=contexts[0]).first()
    pinned = neve.contexts.pin(context.id, for_=timedelta(hours=2), reason="release")
    assert pinned.pin.reason == "release"
    assert pinned.pinned_until > datetime.now(UTC) + timedelta(hours=1)
    assert neve.contexts.get(context.id).pinned_until == pinned.pinned_until
    assert neve.contexts.unpin(context.id).pinned_until is None
    assert neve.contexts.expire(context.id, dry_run=True).dry_run is True
    assert neve.contexts.expire(context.id).removed == 2
    with pytest.raises(ApiProblem) as caught:
        neve.contexts.pin(context.id, for_="2h")
    assert (caught.value.kind, caught.value.status) == ("context-gone", 409)
    assert caught.value.members["state"] == "expired"
    assert caught.value.request_id
    neve.contexts.delete(context.id)
    with pytest.raises(ApiProblem, match="not-found"):
        neve.contexts.get(context.id)


@pytest.mark.integration
def test_the_same_client_is_there_for_asyncio(control_plane, keys, contexts):
    async def use() -> list[str]:
        async with AsyncNeve(control_plane.url, keys["team"]) as neve:
            names = [one.name async for one in neve.contexts.list(label="api", page_size=2)]
            await asyncio.gather(*(neve.contexts.get(CONTEXT) for _ in range(2)))
            return names

    with pytest.raises(ApiProblem, match="not-found"):
        asyncio.run(use())


@pytest.mark.integration
def test_a_refusal_names_the_member_and_the_remedy(neve):
    with pytest.raises(ApiProblem) as caught:
        neve.contexts.list(ordering="colour").first()
    assert (caught.value.kind, caught.value.field) == ("malformed", "ordering")
    assert caught.value.remedy in str(caught.value)


@pytest.mark.integration
def test_a_change_of_a_policy_sends_null_and_leaves_out_what_is_not_given(control_plane, keys):
    with Neve(control_plane.url, keys["operator"]) as operator:
        before = operator.policies.get("demo")
        assert operator.policies.update("demo", hot_idle_s=600).hot_idle_s == 600
        after = operator.policies.update("demo", hot_idle_s=None)
        assert (after.hot_idle_s, after.cold_ttl_s) == (None, before.cold_ttl_s)


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_a_stream_hears_of_a_pin(neve, contexts):
    context = neve.contexts.list(name=contexts[1]).first()
    before = neve.events.list(page_size=1).first()
    neve.contexts.pin(context.id, for_="1h")
    events = neve.events.stream(types="context.pinned", after=before.sequence if before else 0)
    event = next(event for event in events if event.subject.id == context.id)
    assert (event.type, event.tenant, event.subject.name) == ("context.pinned", "demo", "api-72")


@pytest.mark.integration
def test_a_job_is_waited_for_with_its_progress(control_plane, keys):
    with Neve(control_plane.url, keys["operator"]) as operator:
        job = operator.jobs.create(kind="reconcile")
        with pytest.raises(DeadlineExceeded):
            operator.jobs.wait(job.id, timeout="0s")
        seen: list[str] = []
        operator.jobs.cancel(job.id)
        done = operator.jobs.wait(job.id, on_progress=lambda job: seen.append(job.state))
        assert done.state == seen[-1] == "cancelled"


# --- in trouble ---


class Scripted:
    """Answers in turn, the last for ever; keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: object) -> Neve:
        return Neve("http://neve.test", KEY, http_transport=self.transport, **options)  # type: ignore[arg-type]


def problem(status: int, kind: str, **headers: str) -> httpx.Response:
    document = {"type": f"/problems/{kind}", "title": kind, "status": status, "detail": "why"}
    return httpx.Response(status, json=document, headers=headers)


@pytest.mark.parametrize(
    "trouble",
    [
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ReadTimeout("slow"),
        lambda: problem(429, "throttled", **{"Retry-After": "0"}),
        lambda: problem(503, "database-unavailable", **{"Retry-After": "0"}),
        lambda: problem(409, "idempotency-in-progress", **{"Retry-After": "0"}),
        lambda: httpx.Response(502, text="<html>"),
    ],
)
def test_a_change_is_repeated_under_one_idempotency_key(
    trouble: Callable[[], httpx.Response | Exception],
):
    world = Scripted(trouble(), httpx.Response(200, json={"removed": 1}))
    assert world.client().contexts.unpin(CONTEXT).removed == 1
    first, second = world.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.content == second.content


def test_two_changes_have_two_idempotency_keys_and_a_read_has_none():
    world = Scripted(httpx.Response(200, json={}))
    with world.client() as neve:
        neve.contexts.unpin(CONTEXT)
        neve.contexts.unpin(CONTEXT)
        neve.contexts.get(CONTEXT)
    first, second, read = (request.headers.get("Idempotency-Key") for request in world.requests)
    assert first != second
    assert read is None


@pytest.mark.parametrize("kind", ["malformed", "conflict", "internal"])
def test_a_refusal_is_not_repeated(kind):
    world = Scripted(problem({"malformed": 400, "conflict": 409}.get(kind, 500), kind))
    with pytest.raises(ApiProblem, match=kind):
        world.client().contexts.unpin(CONTEXT)
    assert len(world.requests) == 1


def test_repeating_ends():
    world = Scripted(problem(503, "hot-tier-unavailable", **{"Retry-After": "0"}))
    with pytest.raises(ApiProblem) as caught:
        world.client(retries=2).contexts.get(CONTEXT)
    assert (len(world.requests), caught.value.kind) == (3, "hot-tier-unavailable")
    unreachable = Scripted(httpx.ConnectError("refused"))
    with pytest.raises(Unavailable, match=r"http://neve\.test.*refused"):
        unreachable.client(retries=0).contexts.get(CONTEXT)
    late = Scripted(httpx.ReadTimeout("slow"))
    with pytest.raises(DeadlineExceeded):
        late.client(retries=0).contexts.get(CONTEXT)


@pytest.mark.parametrize("body", ["<html>", "[1]", "null"])
def test_an_answer_of_another_server_is_no_record(body):
    world = Scripted(httpx.Response(200, text=body))
    with pytest.raises(Unavailable):
        world.client().contexts.get(CONTEXT)
    with pytest.raises(Unavailable):
        world.client().contexts.list().first()


def test_a_redirect_does_not_lead_the_key_to_another_host():
    world = Scripted(httpx.Response(302, headers={"Location": "http://elsewhere.test/"}))
    with pytest.raises(ApiProblem):
        world.client().contexts.get(CONTEXT)
    page = {"results": [], "next": "http://elsewhere.test/api/v1/contexts?cursor=abc"}
    world.answers = [httpx.Response(200, json=page), httpx.Response(200, json={"results": []})]
    assert list(world.client().contexts.list()) == []
    assert {request.url.host for request in world.requests} == {"neve.test"}
    assert world.requests[-1].url.params["cursor"] == "abc"


def test_a_newer_platform_breaks_no_older_client():
    answer = {"name": "repo", "colour": "blue", "created_at": "2027-01-31T18:00:00Z"}
    context = Scripted(httpx.Response(200, json=answer, headers={"ETag": '"7"'})).client().contexts
    got = context.get(CONTEXT)
    assert got.created_at == datetime(2027, 1, 31, 18, tzinfo=UTC)
    assert (got.raw["colour"], got.etag, got.tokens) == ("blue", '"7"', None)


def test_no_secret_is_in_a_repr():
    neve = Scripted(httpx.Response(201, json={"id": 1, "key": "neve_new_key"})).client()
    issued = neve.keys.create(role="team", name="ci")
    assert issued.key == "neve_new_key"
    shown = f"{issued!r} {neve!r} {neve.contexts!r} {vars(neve)!r}"
    assert "neve_new_key" not in shown
    assert KEY not in shown


def test_no_value_reaches_another_address():
    world = Scripted(httpx.Response(200, json={}))
    world.client().tenants.get("../keys?x=#")
    assert world.requests[0].url.raw_path == b"/api/v1/tenants/..%2Fkeys%3Fx%3D%23"
    for nothing in ("", "..", " "):
        with pytest.raises(Misuse):
            world.client().tenants.get(nothing)


def test_moments_and_durations_are_sent_as_text():
    world = Scripted(httpx.Response(200, json={}))
    neve = world.client()
    neve.contexts.pin(CONTEXT, for_=timedelta(minutes=1, milliseconds=1))
    neve.contexts.pin(CONTEXT, until=datetime(2027, 1, 31, tzinfo=UTC))
    bodies = [json.loads(request.content) for request in world.requests]
    assert bodies == [{"for": "61s"}, {"until": "2027-01-31T00:00:00+00:00"}]
    with pytest.raises(Misuse, match="time zone"):
        neve.contexts.pin(CONTEXT, until=datetime(2027, 1, 31))  # noqa: DTZ001


@pytest.mark.parametrize(
    "endpoint", ["", "neve.test", "ftp://neve.test", "http://", "http://user:pw@neve.test"]
)
def test_an_endpoint_that_is_none_is_named_at_once(endpoint):
    with pytest.raises(Misuse, match="endpoint"):
        Neve(endpoint, KEY)


def test_a_key_that_cannot_be_one_is_not_shown():
    with pytest.raises(Misuse) as caught:
        Neve("http://neve.test", "geheim\nx")
    assert "geheim" not in str(caught.value)


def test_a_closed_client_says_so():
    neve = Scripted(httpx.Response(200, json={})).client()
    neve.close()
    with pytest.raises(Closed):
        neve.contexts.get(CONTEXT)


def test_events_go_on_after_the_last_one_seen():
    def stream(first: int, *sequences: int, end: str = "") -> httpx.Response:
        text = "".join(
            f'id: {n}\nevent: job.done\ndata: {{"sequence": {n}, "data": {{"n": 1}}}}\n\n'
            for n in sequences
        )
        return httpx.Response(200, text=f"retry: 1000\nid: {first}\n\n: here\n\n{text}{end}")

    ended = 'event: end\ndata: {"type": "/problems/unauthorized"}\n\n'
    world = Scripted(
        stream(0), stream(0, 1, 2, end=ended), httpx.ConnectError("gone"), stream(2, 3)
    )
    events = world.client().events.stream(types=["job.done", "job.failed"])
    seen = [next(events) for _ in range(3)]
    assert [event.sequence for event in seen] == [1, 2, 3]
    assert seen[0].data == {"n": 1}
    resumed = [request.headers.get("Last-Event-ID") for request in world.requests]
    assert resumed == [None, "0", "2", "2"]
    assert world.requests[0].url.params["types"] == "job.done,job.failed"


def test_a_stream_that_never_comes_ends_with_an_error(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda s: None)
    told = []
    with pytest.raises(Unavailable):
        next(Scripted(httpx.ConnectError("gone")).client().events.stream(on_lost=told.append))
    assert told
    assert all(isinstance(each, Unavailable) for each in told)
    with pytest.raises(ApiProblem, match="forbidden"):
        next(Scripted(problem(403, "forbidden")).client().events.stream())


def test_an_answer_of_another_server_says_to_check_the_endpoint():
    other = Scripted(httpx.Response(403, text="<Error>AccessDenied</Error>")).client()
    with pytest.raises(ApiProblem) as caught:
        other.me()
    assert (caught.value.kind, caught.value.status) == ("http", 403)
    assert "endpoint" in caught.value.remedy


def test_every_record_can_be_made_of_an_empty_answer():
    """An older platform may send less."""
    from neve.api.records import Record, record_of

    for record in vars(models).values():
        if isinstance(record, type) and issubclass(record, Record) and record is not Record:
            made = record_of(record, {})
            assert all(getattr(made, field.name) is None for field in fields(record))  # type: ignore[arg-type]


def test_without_httpx_it_says_what_to_install_and_the_data_path_needs_none():
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "import neve, neve.vllm; neve.connect\n"
        "try: import neve.api\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "neve.api needs httpx: pip install 'neve[api]'"
