"""Django admin works for operators: every page opens, changes go through the services."""

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from retention.models import RetentionRule
from support.rows import make_everything, make_person, make_tenant
from tenants.models import AuditEvent, Quota, Tenant
from tenants.scope import TenantScoped

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

OURS = [model for model in admin.site._registry if model.__module__.split(".")[0] != "django"]


@pytest.fixture
def tenant():
    tenant = make_tenant("acme")
    make_everything(tenant)
    return tenant


@pytest.fixture
def operator(tenant):
    from django.contrib.auth import get_user_model

    get_user_model().objects.create_superuser("op", password="pw")
    client = Client()
    client.login(username="op", password="pw")
    return client


def url(model, page, *args):
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def test_all_models_of_the_platform_have_a_page():
    names = {model.__name__ for model in OURS}
    assert names >= {
        *("Tenant", "ApiKey", "Quota", "AuditEvent", "RetentionPolicy", "Space", "NodeSession"),
        *("Context", "Segment", "UsageRollup", "Job"),
    }


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_lists_searches_and_details_open(operator, model):
    rows = model.unscoped if issubclass(model, TenantScoped) else model._default_manager
    assert operator.get(url(model, "changelist")).status_code == 200
    if admin.site._registry[model].search_fields:
        assert operator.get(url(model, "changelist"), {"q": "a"}).status_code == 200
    for page in ("change", "history"):
        assert operator.get(url(model, page, rows.first().pk)).status_code == 200


def test_a_tenant_made_here_has_quota_policy_and_audit(operator):
    form = {
        "slug": "new", "name": "New", "node_limit": 3, "is_active": "on", "overcommit": "on",
        "memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0,
    }  # fmt: skip
    answer = operator.post(url(Tenant, "add"), form)
    assert answer.status_code == 302, answer.context["errors"]
    tenant = Tenant.objects.get(slug="new")
    assert tenant.node_limit == 3
    assert Quota.unscoped.filter(tenant=tenant).exists()
    event = AuditEvent.unscoped.get(tenant=tenant, action="tenant.create")
    assert event.actor_name == "op"
    assert event.request_id


def test_a_tenant_and_its_members_are_changed_here(operator, tenant):
    person = make_person("ann")
    form = {
        "name": "Acme 2", "node_limit": 5,
        "memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 0,
        "memberships-0-user": person.pk, "memberships-0-role": "viewer",
    }  # fmt: skip
    assert operator.post(url(Tenant, "change", tenant.pk), form).status_code == 302
    tenant.refresh_from_db()
    assert (tenant.name, tenant.node_limit, tenant.is_active) == ("Acme 2", 5, False)
    assert person.memberships.get().role == "viewer"
    assert AuditEvent.unscoped.filter(action="tenant.change").exists()


def test_a_quota_is_changed_here_and_audited(operator, tenant):
    quota = Quota.unscoped.get(tenant=tenant)
    form = {"hot_bytes": 11, "cold_bytes": 12}
    assert operator.post(url(Quota, "change", quota.pk), form).status_code == 302
    quota.refresh_from_db()
    assert (quota.hot_bytes, quota.cold_bytes) == (11, 12)
    assert AuditEvent.unscoped.get(action="quota.set").after == form


def test_a_policy_is_changed_here_and_a_wrong_one_is_explained(operator, tenant):
    policy = tenant.retention
    page = url(type(policy), "change", policy.pk)
    wrong = operator.post(page, {"flush_mode": "after"})
    assert wrong.status_code == 200
    assert wrong.context["errors"]
    numbers = {"flush_after_s": 30, "priority": 7, "promote_window_s": 60}
    right = {"flush_mode": "after", "eviction": "lru", "cold_full": "refuse", **numbers}
    right |= {"cold_codec": "auto"}
    assert operator.post(page, right).status_code == 302
    policy.refresh_from_db()
    assert policy.as_dict()["flush_after_s"] == 30


def test_keys_are_revoked_here(operator, tenant):
    from tenants.models import ApiKey

    key = ApiKey.unscoped.first()
    form = {"action": "revoke", "_selected_action": [key.pk]}
    assert operator.post(url(ApiKey, "changelist"), form).status_code == 302
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert "secret" not in operator.get(url(ApiKey, "change", key.pk)).content.decode()


def test_what_machines_write_is_read_only(operator, tenant):
    from catalog.models import Segment

    page = url(Segment, "change", Segment.unscoped.first().pk)
    assert operator.post(page, {"state": "deleting"}).status_code == 403


def test_others_do_not_get_in(tenant):
    make_person("ann", acme="team")
    client = Client()
    client.login(username="ann", password="pw")
    assert client.get(url(Tenant, "changelist")).status_code == 302


def test_a_rule_is_made_changed_and_removed_here(operator, tenant):
    RetentionRule.unscoped.all().delete()
    form = {"tenant": tenant.pk, "label": "agent", "order": 0, "overrides": '{"cold_ttl_s": 60}'}
    answer = operator.post(url(RetentionRule, "add"), form)
    assert answer.status_code == 302, answer.context["errors"]
    rule = RetentionRule.unscoped.get()
    page = url(RetentionRule, "change", rule.pk)
    wrong = operator.post(page, form | {"overrides": '{"ttl": 60}'})
    assert "unknown member" in wrong.content.decode()
    assert operator.post(page, form | {"order": 4}).status_code == 302
    rule.refresh_from_db()
    assert (rule.order, rule.label) == (4, "agent")
    assert operator.post(url(RetentionRule, "delete", rule.pk), {"post": "yes"}).status_code == 302
    assert not RetentionRule.unscoped.exists()
    actions = AuditEvent.unscoped.filter(object_id=str(rule.pk), object_type="retentionrule")
    assert {event.action.rsplit(".")[-1] for event in actions} == {"add", "change", "remove"}


def test_a_space_of_another_tenant_is_no_condition(operator, tenant):
    other = make_everything(make_tenant("other"))["space"]
    form = {"tenant": tenant.pk, "space": other.pk, "order": 0, "overrides": '{"priority": 1}'}
    answer = operator.post(url(RetentionRule, "add"), form)
    assert answer.status_code == 200
    assert "no space of this tenant" in answer.content.decode()


def test_a_dry_run_is_shown_and_saves_nothing(operator, tenant, clean_hot):
    policy = tenant.retention
    form = {"flush_mode": "now", "eviction": "2q", "priority": 5, "promote_window_s": 60}
    form |= {"cold_full": "evict", "cold_codec": "none"}
    form |= {"max_age_s": 60, "_dry_run": "1"}
    answer = operator.post(url(type(policy), "change", policy.pk), form)
    assert answer.status_code == 200
    assert "Dry run, nothing was saved" in answer.content.decode()
    assert "would remove 0 blocks" in answer.content.decode()
    assert "Please correct" not in answer.content.decode()
    policy.refresh_from_db()
    assert policy.max_age_s is None
    rule = {"tenant": tenant.pk, "label": "a", "order": 0, "overrides": '{"priority": 1}'}
    answer = operator.post(url(RetentionRule, "add"), rule | {"_dry_run": "1"})
    assert "Dry run, nothing was saved" in answer.content.decode()
    assert not RetentionRule.unscoped.filter(label="a").exists()
