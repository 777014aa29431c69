"""GET /api/v1/events: who sees which events, in which order."""

from contextlib import ExitStack

import pytest
from django.http import StreamingHttpResponse

from base.problems import Problem
from events import feed, order
from events.access import lost_access, reader_of
from events.services import Subject, emit
from support.rows import make_key, make_tenant
from tenants import issuing
from tenants.audit import SYSTEM
from tenants.keys import find_key
from tenants.principal import principal_of_key

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def emit_all(*kinds: str, tenant_id: int | None) -> None:
    for n, kind in enumerate(kinds):
        subject: Subject = {"type": "context", "id": f"id-{n}", "name": f"name-{n}"}
        emit(kind, tenant_id=tenant_id, subject=subject, data={"n": n})
    order.number_all()


def types(caller, query=""):
    return [each["type"] for each in caller.get(f"/api/v1/events{query}").json()["results"]]


def test_an_event_has_one_shape(team, tenant):
    emit_all("context.stored", tenant_id=tenant.pk)
    event = team.get("/api/v1/events").json()["results"][0]
    assert event == team.get(f"/api/v1/events/{event['id']}").json()
    assert event | {"id": "", "at": ""} == {
        **{"id": "", "at": "", "sequence": 1, "type": "context.stored", "tenant": "acme"},
        **{"subject": {"type": "context", "id": "id-0", "name": "name-0"}, "data": {"n": 0}},
    }


def test_another_tenants_events_do_not_exist(team, operator, tenant):
    emit_all("node.up", tenant_id=make_tenant("other").pk)
    emit_all("job.failed", tenant_id=None)
    emit_all("node.down", tenant_id=tenant.pk)
    assert types(team) == ["node.down"]
    assert types(operator) == ["node.down", "job.failed", "node.up"]
    foreign = operator.get("/api/v1/events?types=node.up").json()["results"][0]["id"]
    assert team.get(f"/api/v1/events/{foreign}").status_code == 404


def test_an_event_that_is_not_numbered_yet_is_not_listed(team, tenant):
    emit("node.up", tenant_id=tenant.pk, subject={"type": "node", "id": "n", "name": "n"})
    assert types(team) == []
    order.number()
    assert types(team) == ["node.up"]


def test_filters(team, tenant):
    emit_all("context.stored", "node.up", "context.pinned", tenant_id=tenant.pk)
    assert types(team, "?types=context.*") == ["context.pinned", "context.stored"]
    assert types(team, "?types=node.up,context.stored") == ["node.up", "context.stored"]
    assert types(team, "?subject=id-2") == ["context.pinned"]
    assert types(team, "?after=1&ordering=sequence") == ["node.up", "context.pinned"]
    assert types(team, "?after=3") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("types=context.stord", "types"),
        ("types=context.*,", "types"),
        ("after=x", "after"),
        ("after=-1", "after"),
        ("after=9999999999999999999", "after"),
    ],
)
def test_what_matches_nothing_is_refused(team, query, field):
    answer = team.get(f"/api/v1/events?{query}")
    assert (answer.status_code, answer.json()["field"]) == (400, field)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_position_that_was_never_given_is_gone(team, accept):
    answer = team.get("/api/v1/events?after=5", headers={"Accept": accept})
    assert answer.status_code == 410
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/events-gone"


def stream(caller, query="", **headers):
    return caller.get(f"/api/v1/events{query}", headers={"Accept": "text/event-stream", **headers})


def test_a_stream_is_not_cached_or_buffered(team):
    answer = stream(team)
    assert isinstance(answer, StreamingHttpResponse)
    assert answer["Content-Type"] == "text/event-stream"
    assert (answer["Cache-Control"], answer["X-Accel-Buffering"]) == ("no-store", "no")


@pytest.mark.parametrize("query", ["?page_size=5", "?ordering=sequence", "?types=nothing.*"])
def test_a_stream_refuses_what_it_has_not(team, query):
    answer = stream(team, query)
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"


def test_a_stream_of_another_tenant_is_refused(team):
    make_tenant("other")
    assert stream(team, "?tenant=other").status_code == 404


def test_a_last_event_id_with_a_line_break_is_refused(team):
    answer = stream(team, **{"Last-Event-ID": "1\r\nSet-Cookie: x"})
    assert answer.status_code == 400


def test_a_stream_ends_with_its_own_key_not_with_one_that_was_rotated(tenant):
    old = find_key(make_key(tenant, "team", ["read", "keys"]))
    who = principal_of_key(old)
    new, _ = issuing.rotate_key(caller=who, key=old, overlap_s=60, actor=SYSTEM)
    old_reader, new_reader = reader_of(who, None), reader_of(principal_of_key(new), None)
    assert old_reader.id == new_reader.id
    assert lost_access([old_reader, new_reader]) == set()
    issuing.revoke_key(caller=who, key=new, actor=SYSTEM)
    assert lost_access([old_reader, new_reader]) == {new_reader}


def test_a_stream_goes_on_when_the_key_before_ends(tenant):
    old = find_key(make_key(tenant, "team", ["read", "keys"]))
    who = principal_of_key(old)
    new, _ = issuing.rotate_key(caller=who, key=old, overlap_s=0, actor=SYSTEM)
    assert lost_access([reader_of(who, None), reader_of(principal_of_key(new), None)]) == {
        reader_of(who, None)
    }


def test_a_tenant_with_many_keys_leaves_streams_to_others(tenant, settings):
    def reader(of):
        return reader_of(principal_of_key(find_key(make_key(of, "team"))), None)

    with ExitStack() as streams:
        for _ in range(settings.ENV.streams // feed.SHARE):
            streams.enter_context(feed.counted(reader(tenant)))
        with pytest.raises(Problem, match="Your tenant has"):
            feed.require_room(reader(tenant))
        feed.require_room(reader(make_tenant("other")))
    feed.require_room(reader(tenant))
