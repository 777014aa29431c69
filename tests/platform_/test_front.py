"""Headers of every answer, and uvicorn's --root-path beside NEVE_URL."""

import asyncio

import pytest
from django.test import Client

from controlplane.asgi import application
from controlplane.front import MOST_BODY_BYTES, Front
from support.rows import make_person

pytestmark = [
    *(pytest.mark.integration, pytest.mark.django_db),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/login/", "/healthz", "/nothing", "/problems/throttled", "/problems/nothing"),
        *("/admin/", "/admin/tenants/tenant/", "/admin/auth/user/add/", "/admin/nothing/"),
        *("/api/v1/keys", "/api/v1/docs/", "/api/v1/nothing", "/cache/v1/sessions"),
    ],
)
@pytest.mark.parametrize("is_operator", [True, False])
def test_every_answer_has_a_policy_and_is_kept_by_no_cache(path, is_operator):
    client = Client()
    if is_operator:
        client.force_login(make_person("op", staff=True))
    answer = client.get(path)
    policy = answer["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "no-store" in answer["Cache-Control"]


def test_an_unknown_host_has_a_policy_too():
    answer = Client().get("/api/v1/keys", headers={"host": "elsewhere.example"})
    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/unknown-host"
    assert answer.json()["host"] == "elsewhere.example"
    assert "default-src 'none'" in answer["Content-Security-Policy"]
    assert Client().get("/healthz", headers={"host": "elsewhere.example"}).status_code == 200


async def test_a_root_path_that_neve_url_does_not_have_is_refused_with_the_fix():
    sent = []

    async def send(message):
        sent.append(message)

    async def never(*_):
        raise AssertionError("the platform was asked")

    scope = {"type": "http", "path": "/neve/login/", "root_path": "/neve", "headers": []}
    await Front(never)(scope, never, send)
    assert sent[0]["status"] == 500
    assert b"NEVE_URL" in sent[1]["body"]
    await Front(never)({**scope, "type": "websocket"}, never, send)
    assert sent[2] == {"type": "websocket.close", "code": 1011}


def asking(size, *, at_once):
    """The ASGI side of a server that gets a body of so many bytes."""
    left = [b"x" * at_once] * (size // at_once)

    async def receive():
        if not left:
            await asyncio.Event().wait()  # for the end of the connection
        body = left.pop()
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    return receive, left


async def test_a_body_beyond_all_limits_is_not_read_to_its_end():
    """Django would write it to the disk before it asks for a key."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/api/v1/contexts", "query_string": b""},
        **{"headers": [(b"host", b"testserver")], "client": ("127.0.0.1", 1)},
    }
    receive, left = asking(3 * MOST_BODY_BYTES, at_once=1 << 20)
    await application(scope, receive, send)
    assert [sent[0]["status"], len(sent), len(left)] == [413, 2, 31]
    receive, left = asking(MOST_BODY_BYTES, at_once=1 << 20)
    await application(scope, receive, send)
    assert [sent[2]["status"], len(left)] == [401, 0]
