"""Live answers: one computation for all who see the same, and nobody gets another's."""

import asyncio
import gzip
from dataclasses import replace

import pytest
from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from django.test import AsyncRequestFactory, Client

from controlplane.handler import PooledHandler
from dashboard import shared
from dashboard.page import page
from support.rows import make_everything, make_person, make_tenant
from tenants import second_factor
from tenants.models import Membership

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

PATHS = ("/", "/tenants/", "/nodes/", "/contexts/", "/spaces/", "/keys/", "/jobs/")


@pytest.fixture
def handler(answering):
    handler = PooledHandler()
    handler.load_middleware()
    return handler


@pytest.fixture
def ask(handler):
    """ask(browser, path, since): the status, the text and the headers of a live answer."""

    async def ask(browser: Client, path: str = "/", since: int = 0, **headers: str):
        factory = AsyncRequestFactory()
        factory.cookies.update(browser.cookies)
        request = factory.get(path, headers={"Neve-Live": str(since)} | headers)
        answer = await handler.get_response_async(request)
        return answer.status_code, answer.content, answer.headers

    return ask


@pytest.fixture
def counted(monkeypatch):
    """The requests that went through Django, by path."""
    counted, real = [], PooledHandler._here

    async def here(handler, request):
        counted.append(request.path)
        return await real(handler, request)

    monkeypatch.setattr(PooledHandler, "_here", here)
    return counted


@database_sync_to_async
def stage() -> dict[str, Client]:
    acme, globex = make_tenant("acme"), make_tenant("globex")
    for tenant in (acme, globex):
        for one in make_everything(tenant).values():
            if hasattr(one, "node"):
                one.node = f"{tenant.slug}-node"
                one.save()
    people = {
        "operator": make_person("q7-operator", staff=True),
        "second": make_person("q7-second", staff=True),
        "team": make_person("q7-member", acme="team"),
        "viewer": make_person("q7-viewer", acme="viewer"),
        "other": make_person("q7-other", globex="team"),
        "both": make_person("q7-both", acme="team", globex="team"),
    }
    browsers = {name: Client() for name in people}
    for name, person in people.items():
        browsers[name].force_login(person)
    return browsers


async def test_many_viewers_of_one_tenant_set_cost_one_computation(ask, counted):
    browsers = await stage()
    await ask(browsers["operator"], "/jobs/")  # once a process: templates
    counted.clear()
    answers = await asyncio.gather(
        *(ask(browsers[name], "/") for _ in range(20) for name in ("operator", "second"))
    )
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, body, _ in answers}) == 1
    assert counted == ["/"]


async def test_nobody_gets_the_answer_of_another_role_or_tenant_set(ask):
    browsers = await stage()
    for path in PATHS:
        _, of_operator, _ = await ask(browsers["operator"], path)
        # Jobs are folded: one line for both tenants.
        assert b"globex" in of_operator or path in ("/keys/", "/contexts/", "/jobs/"), path
        for name, unseen in (("team", b"globex"), ("viewer", b"globex"), ("other", b"acme")):
            status, body, _ = await ask(browsers[name], path)
            assert status == 200
            assert unseen not in body, (name, path)
        _, of_team, _ = await ask(browsers["team"], path)
        _, of_viewer, _ = await ask(browsers["viewer"], path)
        if path == "/contexts/":  # one may act, the other may only look
            assert b'value="pin"' in of_team
            assert b'value="pin"' not in of_viewer


async def test_a_shared_answer_names_nobody_and_carries_no_token(ask):
    browsers = await stage()
    for path in PATHS:
        for name in ("operator", "team"):
            _, body, headers = await ask(browsers[name], path)
            assert b"q7-" not in body, path
            assert b"<html" not in body
            assert b'name="csrfmiddlewaretoken"' not in body or shared.CSRF_PLACE.encode() in body
            assert "Set-Cookie" not in headers
            assert headers["Cache-Control"] == "no-store"


async def test_a_page_that_asks_who_reads_it_is_not_shared(ask, monkeypatch):
    browsers = await stage()

    @page()
    def personal(request, person):
        return HttpResponse(f"{person.name} {request.user.username}")

    monkeypatch.setattr("controlplane.urls.urlpatterns", [])
    for name, said in (("operator", "q7-operator"), ("second", "q7-second")):
        request = AsyncRequestFactory().get("/", headers={"Neve-Live": "0"})
        request.user = await database_sync_to_async(lambda n=name: _user(browsers[n]))()
        answer = await database_sync_to_async(personal)(request)
        assert isinstance(answer, HttpResponse)
        assert answer.content.decode() == f"{said} {said}"
        assert not hasattr(answer, "neve_viewer")


def _user(browser: Client):
    from django.contrib.auth.models import User

    data = Session.objects.get(pk=browser.session.session_key).get_decoded()
    return User.objects.get(pk=data["_auth_user_id"])


async def test_an_answer_is_not_older_than_the_hint(ask, counted, monkeypatch):
    monkeypatch.setattr(shared, "PACE", 0)  # however slow this machine is
    browsers = await stage()
    _, _, headers = await ask(browsers["operator"], "/jobs/")
    first = int(headers["Neve-Computed"])
    _, _, headers = await ask(browsers["operator"], "/jobs/", since=first)
    assert int(headers["Neve-Computed"]) == first
    _, _, headers = await ask(browsers["second"], "/jobs/", since=first + 1)
    assert int(headers["Neve-Computed"]) >= first + 1000 * shared.EVERY_S - 50
    assert len(counted) == 2


async def test_a_page_that_takes_long_is_computed_less_often(ask, counted, monkeypatch):
    monkeypatch.setattr(shared, "PACE", 10_000)
    browsers = await stage()
    _, _, headers = await ask(browsers["operator"], "/jobs/")
    first = int(headers["Neve-Computed"])
    _, _, headers = await ask(browsers["second"], "/jobs/", since=first + 1)
    assert int(headers["Neve-Computed"]) == first
    assert int(headers["Neve-Age"]) >= 0
    assert len(counted) == 1


async def test_tables_come_only_to_pages_that_have_one_open(ask):
    browsers = await stage()
    _, closed, _ = await ask(browsers["operator"])
    _, opened, _ = await ask(browsers["operator"], **{"Neve-Open": "1"})
    assert b'data-part="token_table"' in opened
    assert b'data-part="token_table"' not in closed


async def test_what_has_not_changed_is_not_sent_again(ask):
    browsers = await stage()
    _, body, headers = await ask(browsers["operator"], "/tiers/")
    status, nothing, _ = await ask(
        browsers["second"], "/tiers/", **{"If-None-Match": headers["ETag"]}
    )
    assert (status, nothing) == (304, b"")
    _, zipped, headers = await ask(browsers["second"], "/tiers/", **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(zipped) == body
    assert headers["Content-Encoding"] == "gzip"


async def test_rights_that_ended_end_live_answers(ask, monkeypatch):
    browsers = await stage()
    monkeypatch.setattr(shared, "CHECK_S", 0.0)
    assert b"acme" in (await ask(browsers["both"], "/spaces/"))[1]
    left = Membership.objects.filter(user__username="q7-both", tenant__slug="acme")
    await database_sync_to_async(left.delete)()
    assert b"acme" not in (await ask(browsers["both"], "/spaces/"))[1]
    await database_sync_to_async(browsers["both"].logout)()
    signed_out = Client()
    signed_out.cookies["sessionid"] = "ended"
    assert (await ask(signed_out, "/spaces/"))[0] == 401


async def test_a_computation_that_fails_holds_up_nobody(ask, monkeypatch):
    browsers = await stage()
    answers = await asyncio.gather(*(ask(browsers["operator"], "/?range=2y") for _ in range(5)))
    assert [status for status, _, _ in answers] == [404] * 5


@database_sync_to_async
def note_factor(browser: Client, note: str) -> None:
    session = browser.session
    session[second_factor.NOTE] = note
    session.save()


@pytest.mark.parametrize("note", [second_factor.OWED, second_factor.NONE])
async def test_a_session_that_owes_a_second_factor_gets_no_answer_of_another(
    ask, monkeypatch, note
):
    monkeypatch.setattr(settings, "ENV", replace(settings.ENV, second_factor="operators"))
    browsers = await stage()
    await note_factor(browsers["operator"], second_factor.PASSED)
    await note_factor(browsers["second"], note)
    status, text, _ = await ask(browsers["operator"])
    assert (status, b"acme" in text) == (200, True)
    status, text, _ = await ask(browsers["second"])
    assert (status, b"acme" in text) == (401 if note == second_factor.OWED else 302, False)


async def test_many_pages_of_one_tenant_let_another_tenants_page_in_between(monkeypatch):
    answers, done = shared.Answers(None), []

    async def viewer(_, session):
        return (session,)

    async def compute(request):
        await asyncio.sleep(0.01)
        done.append(request.path)
        response = HttpResponse()
        response.neve_viewer = (request.COOKIES["sessionid"],)  # type: ignore[attr-defined]
        return response

    def asked(session, path):
        request = AsyncRequestFactory().get(path, headers={"Neve-Live": "0"})
        request.COOKIES["sessionid"] = session
        return asyncio.create_task(answers.answer(request, compute, compute))

    monkeypatch.setattr(shared.Answers, "viewer", viewer)
    await asyncio.gather(
        *(asked("acme", f"/acme/{n}") for n in range(5)),
        *(asked("globex", f"/globex/{n}") for n in range(2)),
    )
    assert done[:4] == ["/acme/0", "/globex/0", "/acme/1", "/globex/1"]
    assert sorted(done[4:]) == ["/acme/2", "/acme/3", "/acme/4"]
    assert not answers.lanes
