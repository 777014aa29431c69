"""Tenants come with quota and policy; their changes are checked and audited."""

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError

from retention.models import RetentionPolicy
from retention.services import set_policy
from support.rows import make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Quota, Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def test_a_tenant_comes_with_quota_policy_and_audit():
    tenant = make_tenant("acme", hot_bytes=5, cold_bytes=6)
    assert (tenant.quota.hot_bytes, tenant.quota.cold_bytes) == (5, 6)
    assert tenant.retention.as_dict() == {
        "flush_after_s": 0, "hot_idle_s": None, "cold_ttl_s": None
    }  # fmt: skip
    event = AuditEvent.unscoped.get()
    assert (event.action, event.actor_name, event.tenant_id) == (
        *("tenant.create", "system", tenant.pk),
    )


@pytest.mark.parametrize("slug", ["", "Acme", "1st", "a_b", "a b", "all", "x" * 41])
def test_bad_slugs_are_refused(slug):
    with pytest.raises(ValidationError) as error:
        services.create_tenant(slug=slug, name="x")
    assert "slug" in error.value.message_dict
    assert not Tenant.objects.exists()


def test_a_slug_is_taken_once():
    make_tenant("acme")
    with pytest.raises(ValidationError):
        make_tenant("acme")


def test_negative_quotas_are_refused_by_service_and_database():
    tenant = make_tenant()
    with pytest.raises(ValidationError):
        services.set_quota(tenant=tenant, hot_bytes=-1, cold_bytes=0, actor=SYSTEM)
    with pytest.raises(IntegrityError):
        Quota.unscoped.update(hot_bytes=-1)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"flush_mode": "now"}, 0),
        ({"flush_mode": "never"}, None),
        ({"flush_mode": "after", "flush_after_s": 30}, 30),
    ],
)
def test_a_node_is_told_when_to_flush(fields, told):
    policy = set_policy(tenant=make_tenant(), actor=SYSTEM, **fields)
    assert policy.as_dict()["flush_after_s"] == told


def test_after_needs_seconds_and_now_has_none():
    tenant = make_tenant()
    for fields in ({"flush_mode": "after"}, {"flush_after_s": 3}, {"flush_mode": "later"}):
        with pytest.raises(ValidationError):
            set_policy(tenant=tenant, actor=SYSTEM, **fields)
    with pytest.raises(IntegrityError):
        RetentionPolicy.unscoped.update(flush_mode="after")


def test_two_changes_at_once_do_not_undo_each_other():
    """Each request read the tenant before the other one's change."""
    tenant = make_tenant("acme", hot_bytes=1000, cold_bytes=1000)
    stale = Tenant.objects.select_related("quota").get(pk=tenant.pk)
    services.set_quota(tenant=tenant, hot_bytes=500, actor=SYSTEM)
    services.set_quota(tenant=stale, cold_bytes=700, actor=SYSTEM)
    quota = Quota.unscoped.get()
    assert (quota.hot_bytes, quota.cold_bytes) == (500, 700)
    services.change_tenant(tenant=tenant, name="Acme & sons", actor=SYSTEM)
    changed = services.change_tenant(tenant=stale, node_limit=3, actor=SYSTEM)
    assert (changed.name, changed.node_limit, changed.is_active) == ("Acme & sons", 3, True)
