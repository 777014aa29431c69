"""Webhooks by REST, with receivers that verify: what arrives, when again, and what never."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db.models import F
from standardwebhooks.webhooks import WebhookVerificationError

from events import deliveries, order, webhooks
from events.models import Delivery, Event, Webhook
from events.services import emit
from support.rows import make_tenant
from support.webhook_receiver import Receiver
from tenants.models import AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

HOOKS = "/api/v1/webhooks"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


@pytest.fixture
def hook(team, receiver):
    """As the answer to its creation, with its secret."""
    return add(team, receiver)


def add(team, receiver, **body):
    answer = team.send("post", HOOKS, {"url": receiver.url, **body})
    assert answer.status_code == 201, answer.content
    return answer.json()


def happen(tenant, *kinds, name="n"):
    for kind in kinds:
        emit(kind, tenant_id=tenant.pk, subject={"type": "node", "id": name, "name": name})


def pass_time(**delta):
    """As if all that waits had waited for so long."""
    ago = timedelta(**delta)
    Delivery.unscoped.update(
        next_attempt_at=F("next_attempt_at") - ago, created_at=F("created_at") - ago
    )
    for name in ("quiet_until", "leased_until", "failing_since", "delivered_at"):
        rows = Webhook.unscoped.filter(**{f"{name}__isnull": False})
        rows.update(**{name: F(name) - ago})


def log_of(team, hook, query=""):
    return team.get(f"{HOOKS}/{hook['id']}/deliveries{query}").json()["results"]


def test_an_event_arrives_signed_once(team, tenant, receiver, hook):
    happen(tenant, "node.up")
    assert [deliveries.deliver(), deliveries.deliver()] == [1, 0]
    (body,) = receiver.verified(hook["secret"])
    assert body == team.get("/api/v1/events").json()["results"][0]
    assert receiver.ids() == [body["id"]]
    (row,) = log_of(team, hook)
    assert (row["state"], row["type"], row["event"]) == ("delivered", "node.up", body["id"])
    assert [each["status"] for each in row["log"]] == [204]


def test_the_secret_is_shown_once(team, receiver, hook):
    shown = team.get(f"{HOOKS}/{hook['id']}").json()
    assert hook["secret"].startswith("whsec_")
    assert shown == {name: value for name, value in hook.items() if name != "secret"}
    headers = {"Idempotency-Key": "one"}
    first, again = (
        team.send("post", HOOKS, {"url": receiver.url}, headers=headers).json() for _ in range(2)
    )
    assert again == {**first, "secret": None}
    stored = [str(vars(row)) for row in (*Webhook.unscoped.all(), *AuditEvent.unscoped.all())]
    assert not any("whsec_" in text or hook["secret"][6:] in text for text in stored)


def test_after_a_rotation_both_secrets_verify_until_the_overlap_ends(team, tenant, receiver, hook):
    rotated = team.send("post", f"{HOOKS}/{hook['id']}/rotate-secret", {"overlap": "1h"}).json()
    assert rotated["secret"] != hook["secret"]
    happen(tenant, "node.up")
    deliveries.deliver()
    assert receiver.verified(hook["secret"]) == receiver.verified(rotated["secret"])
    Webhook.unscoped.update(previous_until=F("previous_until") - timedelta(hours=1))
    happen(tenant, "node.down")
    deliveries.deliver()
    assert len(receiver.verified(rotated["secret"])) == 2
    with pytest.raises(WebhookVerificationError):
        receiver.verified(hook["secret"])


def test_types_choose(team, tenant, receiver):
    add(team, receiver, types=["context.*", "node.down"])
    happen(tenant, "node.up", "context.stored", "job.done", "node.down")
    deliveries.deliver()
    seen = Event.unscoped.filter(uuid__in=receiver.ids()).values_list("kind", flat=True)
    assert sorted(seen) == ["context.stored", "node.down"]


def test_another_tenants_events_do_not_arrive(team, receiver, hook):
    happen(make_tenant("other"), "node.up")
    emit("job.failed", tenant_id=None, subject={"type": "job", "id": "1", "name": "n"})
    deliveries.deliver()
    assert receiver.requests == []


def test_a_receiver_that_is_down_for_an_hour_loses_nothing(team, tenant, receiver, hook):
    receiver.status = 503
    for minute in range(60):
        happen(tenant, "node.up", "node.down", name=str(minute))
        deliveries.deliver()
        pass_time(minutes=1)
    tried = len(receiver.refused)
    assert 0 < tried < 120  # a dead receiver is not asked for each event
    receiver.status = 200
    for _ in range(12):  # what failed often waits longest: two hours
        deliveries.deliver()
        deliveries.deliver()
        deliveries.deliver()
        pass_time(minutes=15)
    emitted = [str(uuid) for uuid in Event.unscoped.values_list("uuid", flat=True)]
    assert sorted(receiver.ids()) == sorted(emitted)
    assert len(emitted) == 120
    assert len(receiver.verified(hook["secret"])) == 120
    shown = team.get(f"{HOOKS}/{hook['id']}").json()
    assert (shown["is_active"], shown["failures"], shown["failing_since"]) == (True, 0, None)


def test_three_days_of_failures_deactivate_a_webhook_and_tell(
    team, tenant, receiver, hook, log_lines
):
    receiver.status = 500
    happen(tenant, "node.up")
    hours = 0
    while Webhook.unscoped.get().is_active:
        deliveries.deliver()
        pass_time(hours=1)
        hours += 1
        assert hours < 100
    assert hours > 72
    shown = team.get(f"{HOOKS}/{hook['id']}").json()
    assert shown["inactive_reason"].startswith("no success since")
    assert [each["status"] for each in log_of(team, hook, "?state=failed")[0]["log"]] == [500] * 10
    told = team.get("/api/v1/audit?action=webhook.deactivate").json()["results"]
    assert [each["actor_name"] for each in told] == ["system"]
    assert any("webhook_deactivated" in line for line in log_lines())


def test_what_is_repaired_begins_anew(team, tenant, receiver, hook):
    receiver.status = 500
    happen(tenant, "node.up")
    deliveries.deliver()
    webhooks.deactivate(Webhook.unscoped.get(), "test")
    happen(tenant, "node.down")
    pass_time(hours=1)
    assert deliveries.deliver() == 0
    receiver.status = 200
    answer = team.send("patch", f"{HOOKS}/{hook['id']}", {"is_active": True})
    assert (answer.json()["is_active"], answer.json()["inactive_reason"]) == (True, "")
    deliveries.deliver()
    # What happened while it was inactive was never meant for it.
    assert [each["type"] for each in receiver.verified(hook["secret"])] == ["node.up"]


def test_a_receiver_that_is_gone_is_asked_no_more(team, tenant, receiver, hook):
    receiver.status = 410
    happen(tenant, "node.up", "node.down")
    deliveries.deliver()
    pass_time(hours=1)
    deliveries.deliver()
    assert receiver.refused == [410]
    assert team.get(f"{HOOKS}/{hook['id']}").json()["inactive_reason"].endswith("410 Gone")


def test_a_receiver_that_hangs_holds_up_nobody(team, tenant, receiver, hook, monkeypatch):
    monkeypatch.setattr(deliveries, "ATTEMPT_S", 0.5)
    with Receiver() as dead:
        dead.hangs = True
        for _ in range(3):
            add(team, dead)
        happen(tenant, *["node.up"] * 20)
        assert deliveries.deliver() == 20 + 3
    assert len(receiver.requests) == 20
    waiting = Delivery.unscoped.filter(state="waiting")
    assert (waiting.count(), waiting.filter(attempts=1).count()) == (60, 3)


def test_a_webhook_that_one_worker_serves_is_left_alone_by_others(tenant, hook):
    happen(tenant, "node.up")
    order.number_all()
    assert len(deliveries._take()) == 1
    assert deliveries._take() == []
    pass_time(seconds=deliveries.LEASE_S)  # the worker died
    assert len(deliveries._take()) == 1


def test_a_tenant_with_many_webhooks_leaves_room_for_others(tenant, team, operator, receiver):
    for _ in range(webhooks.MOST):
        add(team, receiver)
    other = make_tenant("other")
    add(operator, receiver, tenant="other")
    happen(tenant, "node.up")
    happen(other, "node.up")
    order.number_all()
    taken = [webhook.tenant_id for webhook in deliveries._take()]
    assert (taken.count(tenant.pk), taken.count(other.pk)) == (deliveries.OF_TENANT, 1)


def test_the_test_button_reaches_this_webhook_only(team, receiver, hook):
    with Receiver() as second:
        add(team, second)
        answer = team.send("post", f"{HOOKS}/{hook['id']}/test")
        assert answer.status_code == 202
        deliveries.deliver()
        assert [each["type"] for each in receiver.verified(hook["secret"])] == ["webhook.test"]
        assert second.requests == []


def test_a_delivery_is_repeated_by_hand(team, tenant, receiver, hook):
    happen(tenant, "node.up")
    deliveries.deliver()
    number = log_of(team, hook)[0]["id"]
    again = f"{HOOKS}/{hook['id']}/deliveries/{number}/retry"
    assert team.send("post", again).json()["state"] == "waiting"
    deliveries.deliver()
    assert len(receiver.ids()) == 2
    assert len(set(receiver.ids())) == 1
    team.send("patch", f"{HOOKS}/{hook['id']}", {"is_active": False})
    assert team.send("post", again).status_code == 409
    assert team.send("post", f"{HOOKS}/{hook['id']}/test").status_code == 409


def test_answers_are_not_kept(team, tenant, receiver, hook):
    receiver.status, receiver.answer = 500, b"secret of an internal server"
    happen(tenant, "node.up")
    deliveries.deliver()
    (row,) = log_of(team, hook)
    assert row["log"][0] == {**row["log"][0], "status": 500, "error": ""}
    assert "internal" not in str(row)


def test_an_address_that_is_not_allowed_any_more_is_not_asked(
    team, tenant, receiver, hook, settings
):
    settings.OUTBOUND_ALLOW = ["public"]
    happen(tenant, "node.up")
    deliveries.deliver()
    assert receiver.requests == []
    error = log_of(team, hook)[0]["log"][0]["error"]
    assert error == "the platform may not connect to this address"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://127.0.0.1:9/\r\nX-Evil: 1"}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "http://user:pw@example.com/"}, "url"),
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "http://127.0.0.1:9/", "types": ["context.stord"]}, "types"),
        ({"url": "http://127.0.0.1:9/", "types": ["node.up"] * 21}, "types"),
        ({"url": "http://127.0.0.1:9/", "tenant": "other"}, "tenant"),
        ({"url": "http://127.0.0.1:9/", "secret": "mine"}, "secret"),
    ],
)
def test_a_bad_webhook_is_refused(team, body, field):
    make_tenant("other")
    answer = team.send("post", HOOKS, body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["field"] == field
    assert not Webhook.unscoped.exists()


def test_a_tenant_has_so_many_webhooks_at_most(team, receiver):
    for _ in range(webhooks.MOST):
        add(team, receiver)
    answer = team.send("post", HOOKS, {"url": receiver.url})
    assert (answer.status_code, answer.json()["limit"]) == (409, "webhooks")


def test_a_webhook_is_removed_with_its_deliveries(team, tenant, receiver, hook):
    happen(tenant, "node.up")
    deliveries.deliver()
    assert team.send("delete", f"{HOOKS}/{hook['id']}").status_code == 204
    assert not Delivery.unscoped.exists()
    assert team.get(f"{HOOKS}/{hook['id']}/deliveries").status_code == 404
    assert Event.unscoped.exists()


def test_another_tenants_webhook_does_not_exist(team, operator, tenant, receiver):
    make_tenant("other")
    foreign = add(operator, receiver, tenant="other")["id"]
    for method, path, body in (
        ("get", foreign, None),
        ("get", f"{foreign}/deliveries", None),
        ("patch", foreign, {"is_active": False}),
        ("delete", foreign, None),
        ("post", f"{foreign}/test", None),
        ("post", f"{foreign}/rotate-secret", {}),
    ):
        assert team.send(method, f"{HOOKS}/{path}", body).status_code == 404
    assert team.get(HOOKS).json()["results"] == []


def test_an_inactive_tenant_gets_no_deliveries(tenant, receiver, hook):
    happen(tenant, "node.up")
    tenant.is_active = False
    tenant.save()
    assert deliveries.deliver() == 0
    assert receiver.requests == []


def test_a_change_of_what_was_changed_meanwhile_is_refused(team, tenant, receiver, hook):
    path = f"{HOOKS}/{hook['id']}"
    seen = team.get(path)["ETag"]
    happen(tenant, "node.up")
    deliveries.deliver()
    row = seen.split("-")[0]
    assert team.get(path)["ETag"].startswith(row)  # a delivery is no change of the row
    body = {"types": ["node.*"]}
    assert team.send("patch", path, body, headers={"If-Match": seen}).status_code == 200
    for method, action, sent in (
        ("patch", "", {"types": []}),
        ("post", "/rotate-secret", {}),
        ("delete", "", None),
    ):
        answer = team.send(method, path + action, sent, headers={"If-Match": seen})
        assert answer.status_code == 412
    assert Webhook.unscoped.get().types == ["node.*"]
