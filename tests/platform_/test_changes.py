"""Marks on charts: what people and nodes changed, of the reader's tenants only."""

from datetime import timedelta

import pytest
from django.utils import timezone

from catalog.changes import changes
from support.rows import make_session, make_space, make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]
GIB = 1 << 30


@pytest.fixture
def acme():
    return make_tenant("acme")


def seen(tenants, minutes=60):
    now = timezone.now()
    found = changes(tenants, (now - timedelta(minutes=minutes)).timestamp(), now.timestamp() + 1)
    return [(change.letter, change.words) for change in found]


def at(tenant, minutes_ago, **fields):
    event = AuditEvent.unscoped.create(tenant=tenant, object_type="x", object_id="1", **fields)
    when = timezone.now() - timedelta(minutes=minutes_ago)
    AuditEvent.unscoped.filter(pk=event.pk).update(at=when)


def test_quotas_policies_and_keys_say_what_differs(acme):
    AuditEvent.unscoped.all().delete()
    at(
        acme,
        30,
        action="quota.set",
        before={"hot_bytes": 8 * GIB, "cold_bytes": GIB},
        after={"hot_bytes": 8 * GIB, "cold_bytes": 3 * GIB // 2},
    )
    at(
        acme,
        20,
        action="retention.set",
        before={"hot_idle_s": 7200, "cold_ttl_s": 86400},
        after={"hot_idle_s": 1800, "cold_ttl_s": None},
    )
    at(acme, 10, action="key.revoke", before={"name": "ci-nodes"})
    at(acme, 5, action="context.pin", after={"name": "noise"})
    at(acme, 90, action="key.issue", after={"name": "too old"})
    assert seen([acme]) == [
        ("K", "key revoked ci-nodes"),
        ("P", "policy changed: cold ttl 1 d → never, hot idle 2 h → 30 min"),
        ("Q", "quota changed: cold 1 GiB → 1.5 GiB"),
    ]


def test_what_services_write_is_marked(acme):
    services.issue_key(tenant=acme, role="node", name="gpu", actor=SYSTEM)
    letters = [letter for letter, _ in seen([acme])]
    assert "K" in letters
    assert "T" in letters


def test_a_new_version_of_several_nodes_is_one_change(acme):
    AuditEvent.unscoped.all().delete()
    space, now = make_space(acme), timezone.now()
    old = {"name": "vllm", "version": "0.9.1"}
    new = {"name": "vllm", "version": "0.9.3"}
    begun = now.replace(minute=now.minute // 10 * 10, second=0) - timedelta(minutes=20)
    for number in range(5):
        node = f"gpu-{number}"
        make_session(space, node, engine=old, opened_at=now - timedelta(days=1), ended_at=begun)
        make_session(space, f"{node}/scheduler", engine=new, opened_at=begun)
        make_session(space, f"{node}/worker", engine=new, opened_at=begun + timedelta(seconds=1))
    make_session(space, "gpu-9", engine=new, opened_at=now - timedelta(minutes=2))
    found = seen([acme])
    assert ("V", "vllm 0.9.1 → vllm 0.9.3 on gpu-0, gpu-1, gpu-2 and 2 more") in found
    assert ("D", "vllm 0.9.3 on gpu-9 joined") in found


def test_others_changes_are_not_seen(acme):
    other = make_tenant("globex")
    AuditEvent.unscoped.filter(tenant=acme).delete()
    make_session(make_space(other), "gpu-1")
    assert seen([acme]) == []
    assert seen([other]) != []
