"""Changes that an operator takes back by their event in the audit."""

import pytest

from retention.models import RetentionPolicy, RetentionRule
from support.rows import make_space, make_tenant
from tenants.models import AuditEvent, Quota, Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

POLICY = "/api/v1/policies/acme"
GIB = 1 << 30


def undo(caller, action):
    """Takes back the newest change of this kind."""
    event = AuditEvent.unscoped.filter(action=action).latest("pk")
    return caller.send("post", f"/api/v1/audit/{event.pk}/undo")


def kind_of(answer):
    return answer.status_code, answer.json()["type"].rsplit("/", 1)[-1]


@pytest.fixture
def tenant(clean_hot, tenant):
    return tenant


def test_a_quota_comes_back_and_the_undoing_is_audited(operator, tenant):
    before = Quota.unscoped.get(tenant=tenant)
    operator.send("patch", "/api/v1/tenants/acme/quota", {"cold_bytes": 3 * GIB})
    answer = undo(operator, "quota.set")
    assert answer.status_code == 200, answer.content
    assert answer.json()["before"]["cold_bytes"] == 3 * GIB
    assert answer.json()["after"]["cold_bytes"] == before.cold_bytes
    assert Quota.unscoped.get(tenant=tenant).cold_bytes == before.cold_bytes
    assert undo(operator, "quota.set").status_code == 200  # and again
    assert Quota.unscoped.get(tenant=tenant).cold_bytes == 3 * GIB


def test_a_policy_comes_back_but_not_over_a_later_change(operator, tenant):
    operator.send("patch", POLICY, {"flush_mode": "after", "flush_after_s": 30})
    first = AuditEvent.unscoped.get(action="retention.set")
    operator.send("patch", POLICY, {"cold_ttl_s": 60})
    assert undo(operator, "retention.set").status_code == 200
    assert RetentionPolicy.unscoped.get(tenant=tenant).cold_ttl_s is None
    operator.send("patch", POLICY, {"flush_after_s": 40})
    late = operator.send("post", f"/api/v1/audit/{first.pk}/undo")
    assert kind_of(late) == (409, "conflict")
    assert late.json()["field"] == "flush_after_s"
    assert RetentionPolicy.unscoped.get(tenant=tenant).flush_after_s == 40


def test_rules_come_and_go_back(operator, tenant):
    space = make_space(tenant)
    made = operator.send(
        "post",
        "/api/v1/rules",
        {"tenant": "acme", "space": space.pk, "overrides": {"priority": 6}},
    ).json()
    path = f"/api/v1/rules/{made['id']}"
    operator.send("patch", path, {"order": 3, "label": "agents"})
    assert undo(operator, "retention.rule.change").status_code == 200
    assert operator.get(path).json() == made
    operator.send("delete", path)
    assert undo(operator, "retention.rule.remove").status_code == 200
    rule = RetentionRule.unscoped.get(tenant=tenant)
    assert (rule.space, rule.overrides) == (space, {"priority": 6})
    assert undo(operator, "retention.rule.add").status_code == 200
    assert not RetentionRule.unscoped.filter(tenant=tenant).exists()
    assert kind_of(undo(operator, "retention.rule.add")) == (409, "conflict")


def test_a_rule_of_a_space_that_is_gone_stays_away(operator, tenant):
    space = make_space(tenant)
    body = {"tenant": "acme", "space": space.pk, "overrides": {"priority": 6}}
    made = operator.send("post", "/api/v1/rules", body).json()
    operator.send("delete", f"/api/v1/rules/{made['id']}")
    space.delete()
    assert kind_of(undo(operator, "retention.rule.remove")) == (409, "conflict")


def test_a_tenant_gets_its_name_back(operator, tenant):
    operator.send("patch", "/api/v1/tenants/acme", {"name": "Acme 2", "node_limit": 3})
    assert undo(operator, "tenant.change").status_code == 200
    tenant = Tenant.objects.get(slug="acme")
    assert (tenant.name, tenant.node_limit) == ("Acme", 16)


def test_what_cannot_be_taken_back_is_refused(operator, team, tenant):
    operator.send("post", "/api/v1/keys", {"tenant": "acme", "role": "team", "name": "k"})
    assert kind_of(undo(operator, "key.issue")) == (409, "conflict")
    operator.send("patch", POLICY, {"priority": 6})
    assert undo(team, "retention.set").status_code == 403
    assert RetentionPolicy.unscoped.get(tenant=tenant).priority == 6


def test_another_tenants_event_does_not_exist(team, operator, tenant):
    make_tenant("globex")
    operator.send("patch", "/api/v1/policies/globex", {"priority": 6})
    assert undo(team, "retention.set").status_code in (403, 404)
