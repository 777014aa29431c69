"""Policies, rules and dry runs over REST."""

import os

import pytest
from django.utils import timezone

from cacheapi.teams import policies
from neve.formats.keys import BucketKeys
from neve.index.tier import CommitOutcome
from retention import provisioning
from retention.models import RetentionPolicy, RetentionRule
from storage import hot
from support.rows import make_context, make_space, make_tenant
from tenants.models import AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

SIZE = 100
POLICY = "/api/v1/policies/acme"


def store(tenant, space, count):
    """Blocks that were stored an hour ago and not used since, hot and never flushed."""
    ids = [os.urandom(16) for _ in range(count)]
    keys = BucketKeys(tenant.pk, 0)
    for id_ in ids:
        hot.admin().set(keys.block(space.pk, id_), bytes(SIZE), px=60_000)
    tier = hot.hot_tier(tenant.pk)
    assert set(tier.commit(space.pk, [(id_, SIZE, 256) for id_ in ids])) == {CommitOutcome.STORED}
    return ids


def age(tenant, ids, seconds):
    """Makes blocks older: the field `stored` of their entries (docs/formats/hot-tier.md)."""
    index = BucketKeys(tenant.pk, 0).bookkeeping[0]
    for id_ in ids:
        raw = hot.admin().hget(index, id_)
        stored_s = int.from_bytes(raw[28:32], "little") - seconds
        hot.admin().hset(index, id_, raw[:28] + stored_s.to_bytes(4, "little") + raw[32:])


@pytest.fixture
def tenant(clean_hot, tenant):
    provisioning.provision_tenant(tenant)
    return tenant


class TestPolicy:
    def test_a_policy_is_changed_and_told_with_its_state(self, operator, team, tenant):
        assert team.send("get", POLICY).json()["is_applied"] is True
        change = {"cold_ttl_s": 3600, "flush_mode": "after", "flush_after_s": 30}
        change |= {"eviction": "lru", "promote_window_s": 0, "cold_full": "refuse"}
        change |= {"cold_codec": "auto"}
        answer = operator.send("patch", POLICY, change)
        assert answer.status_code == 200, answer.content
        expected = {
            "tenant": "acme", "flush_mode": "after", "flush_after_s": 30, "hot_idle_s": None,
            "cold_ttl_s": 3600, "max_age_s": None, "priority": 5, "pin_budget_bytes": None,
            "eviction": "lru", "promote_window_s": 0, "cold_full": "refuse",
            "cold_codec": "auto", "lossy_codecs": "", "is_applied": False,
        }  # fmt: skip
        assert answer.json() == team.send("get", POLICY).json() == expected
        event = AuditEvent.unscoped.get(action="retention.set")
        assert event.after["cold_ttl_s"] == 3600

    def test_another_mode_takes_the_seconds_along(self, operator, tenant):
        operator.send("patch", POLICY, {"flush_mode": "after", "flush_after_s": 30})
        answer = operator.send("patch", POLICY, {"flush_mode": "now"})
        assert answer.json()["flush_after_s"] is None

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"cold_ttl_s": 0}, "cold_ttl_s"),
            ({"cold_ttl_s": "60"}, "cold_ttl_s"),
            ({"priority": 10}, "priority"),
            ({"priority": None}, "priority"),
            ({"ttl": 5}, "ttl"),
            ({"flush_mode": "sometimes"}, "flush_mode"),
        ],
    )
    def test_what_makes_no_sense_is_refused_by_name(self, operator, tenant, change, field):
        answer = operator.send("patch", POLICY, change)
        assert (answer.status_code, answer.json()["field"]) == (400, field)
        assert operator.send("patch", POLICY, {"flush_mode": "after"}).status_code == 400


class TestRules:
    def test_a_rule_is_added_changed_and_removed(self, operator, team, tenant):
        space = make_space(tenant)
        body = {"tenant": "acme", "space": space.pk, "label": "agent", "overrides": {"priority": 9}}
        added = operator.send("post", "/api/v1/rules", body)
        assert added.status_code == 201, added.content
        rule = added.json()
        assert rule == body | {"id": rule["id"], "context": "", "order": 0}
        path = f"/api/v1/rules/{rule['id']}"
        assert operator.send("patch", path, {"order": 2, "space": None}).json() == rule | {
            "order": 2,
            "space": None,
        }
        assert team.send("get", "/api/v1/rules?label=agent").json()["results"][0]["order"] == 2
        assert operator.send("delete", path).status_code == 204
        assert operator.send("get", path).status_code == 404
        assert AuditEvent.unscoped.filter(action__startswith="retention.rule").count() == 3

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ({"label": ""}, "condition"),
            ({"overrides": {}}, "at least one field"),
            ({"overrides": {"ttl": 5}}, "unknown member"),
            ({"overrides": {"cold_ttl_s": 0}}, "cold_ttl_s"),
            ({"overrides": {"cold_ttl_s": True}}, "cold_ttl_s"),
            ({"overrides": {"priority": None}}, "priority"),
            ({"overrides": {"flush_mode": "after"}}, "flush_after_s"),
            ({"overrides": {"flush_after_s": 5}}, "flush_after_s"),
            ({"overrides": {"flush_mode": 7}}, "flush_mode"),
            ({"overrides": [1]}, "overrides"),
            ({"space": 10**9}, "no such space"),
            ({"tenant": "nobody"}, "no such tenant"),
            ({"surprise": 1}, "unknown member"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, operator, tenant, change, part):
        body = {"tenant": "acme", "label": "agent", "overrides": {"priority": 9}} | change
        answer = operator.send("post", "/api/v1/rules", body)
        assert answer.status_code == 400
        assert part in answer.content.decode()
        assert not RetentionRule.unscoped.exists()

    def test_a_space_of_another_tenant_does_not_exist(self, operator, tenant):
        space = make_space(make_tenant("other"))
        body = {"tenant": "acme", "space": space.pk, "overrides": {"priority": 9}}
        assert operator.send("post", "/api/v1/rules", body).status_code == 400


class TestDryRun:
    def test_it_says_what_would_go_and_changes_nothing(self, team, tenant):
        space = make_space(tenant)
        old, young = store(tenant, space, 3), store(tenant, space, 2)
        age(tenant, old, 3600)
        make_context(space, "a", old[:2])
        make_context(space, "b", young)
        late = make_context(space, "c", [*young, *old])
        late.last_used_at = timezone.now()
        late.save()
        before = hot.hot_tier(tenant.pk).usage()
        answer = team.send("post", f"{POLICY}/dry-run", {"policy": {"cold_ttl_s": 600}})
        report = answer.json()
        named = [(one["name"], one["lost_blocks"], one["blocks"]) for one in report.pop("named")]
        assert named == [("c", 3, 5), ("a", 2, 2)]
        assert report == {
            "looked_at": 5, "is_complete": True, "removed_blocks": 3,
            "removed_hot_bytes": 3 * SIZE, "removed_cold_bytes": 0,
            "cooled_blocks": 0, "cooled_bytes": 0, "contexts": 2, "contexts_used_24h": 1,
        }  # fmt: skip
        assert hot.hot_tier(tenant.pk).usage() == before
        assert RetentionPolicy.unscoped.get(tenant=tenant).cold_ttl_s is None

    def test_rules_and_pins_count(self, team, tenant):
        space = make_space(tenant)
        ids = store(tenant, space, 3)
        age(tenant, ids, 3600)
        make_context(space, "a", ids[:2])
        hot.hot_tier(tenant.pk).pin(ids[:1], 4_000_000_000)
        rule = {"context": "a", "overrides": {"max_age_s": 60}}
        answer = team.send("post", f"{POLICY}/dry-run", {"rules": [rule]})
        assert (answer.json()["removed_blocks"], answer.json()["contexts"]) == (1, 1)

    def test_a_large_index_is_looked_at_in_part(self, team, tenant, monkeypatch):
        store(tenant, make_space(tenant), 3)
        monkeypatch.setattr(policies, "MOST_BLOCKS", 0)
        answer = team.send("post", f"{POLICY}/dry-run", {})
        assert answer.json()["is_complete"] is False

    @pytest.mark.parametrize(
        "body",
        [{"policy": {"priority": 11}}, {"rules": [{"overrides": {"priority": 1}}]}, {"rule": []}],
    )
    def test_what_could_not_be_saved_is_refused(self, team, tenant, body):
        assert team.send("post", f"{POLICY}/dry-run", body).status_code == 400
