"""Rows that are older than the settings keep them go, a slice at a time; younger ones stay."""

from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone

from catalog.models import Context, Job, NodeSession, Pin
from support.rows import make_context, make_session, make_space, make_tenant
from tenants.models import ApiKey, AuditEvent
from tenants.scope import tenant_scope
from tenants.services import issue_key
from tiering import pruning
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]
NONE_THERE = {"browser_sessions": 0, "invitations": 0, "sign_ins": 0}


def days_ago(n):
    return timezone.now() - timedelta(days=n)


@pytest.fixture
def rows(settings):
    """Of each kind a row of one day and one of 40 days; a session and a context in use."""
    settings.ENV = replace(
        settings.ENV, keep_sessions_days=30, keep_contexts_days=30, keep_audit_days=30
    )
    tenant = make_tenant()
    space = make_space(tenant)
    with tenant_scope(tenant.pk):
        for age in (1, 40):
            ended = make_session(space, f"ended {age}")
            silent = make_session(space, f"silent {age}")
            context = make_context(space, f"expired {age}")
            NodeSession.objects.filter(pk=ended.pk).update(ended_at=days_ago(age))
            NodeSession.objects.filter(pk=silent.pk).update(last_heartbeat_at=days_ago(age))
            Context.objects.filter(pk=context.pk).update(expired_at=days_ago(age))
            Pin.objects.create(context=context, owner=f"key:{age}", until=days_ago(age - 1.5))
            issue_key(tenant=tenant, role="team", name=f"{age}", expires_at=days_ago(age))
            if age == 40:  # it made a key that works
                maker, _ = issue_key(tenant=tenant, role="team", name="maker")
                ApiKey.objects.filter(pk=maker.pk).update(revoked_at=days_ago(age))
                issue_key(tenant=tenant, role="team", name="made", made_by_id=maker.pk)
        make_session(space, "live")
        old = make_context(space, "not expired")
        Context.objects.filter(pk=old.pk).update(updated_at=days_ago(400))
        AuditEvent.objects.all().delete()
        for age in (40, 1):
            event = AuditEvent.objects.create(action=f"{age}", object_type="x", object_id="1")
            AuditEvent.objects.filter(pk=event.pk).update(at=days_ago(age))


def left():
    return (
        set(NodeSession.unscoped.values_list("node", flat=True)),
        set(Context.unscoped.values_list("name", flat=True)),
        set(Pin.unscoped.values_list("owner", flat=True)),
        set(AuditEvent.unscoped.values_list("action", flat=True)),
    )


def test_what_is_older_than_the_settings_goes_and_the_rest_stays(rows):
    tasks.prune()
    sessions, contexts, pins, events = left()
    assert set(ApiKey.unscoped.values_list("name", flat=True)) == {"1", "maker", "made"}
    assert sessions == {"ended 1", "silent 1", "live"}
    assert contexts == {"expired 1", "not expired"}
    assert pins == {"key:1"}
    assert events == {"1"}
    job = Job.unscoped.get(kind="prune")
    assert job.detail == {
        **{"pins": 1, "sessions": 1, "keys": 1, "silent_sessions": 1},
        **{"contexts": 1, "audit_events": 1},
        **{"wrong_passwords": 0, "events": 0, **NONE_THERE},
    }
    tasks.prune()
    assert Job.unscoped.filter(kind="prune").count() == 1


def test_a_slice_bounds_what_goes_at_once(rows, monkeypatch):
    monkeypatch.setattr(pruning, "SLICE", 1)
    NodeSession.unscoped.update(ended_at=days_ago(40))
    assert [pruning.prune()["sessions"] for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert not pruning.has_work()


def test_nothing_goes_when_the_settings_keep_it_for_ever(rows, settings):
    settings.ENV = replace(
        settings.ENV, keep_sessions_days=0, keep_contexts_days=0, keep_audit_days=0
    )
    before = left()
    assert pruning.prune() == {"pins": 1, "wrong_passwords": 0, "events": 0, **NONE_THERE}
    assert [left()[n] for n in (0, 1, 3)] == [before[n] for n in (0, 1, 3)]
