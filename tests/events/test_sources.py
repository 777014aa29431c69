"""Each kind of event beside those of contexts: when it is sent, and how often."""

from contextlib import suppress
from datetime import timedelta

import pytest
from django.db.models import F

from catalog import jobs, nodes, sessions
from catalog.models import Job, NodeSession
from events import order, quotas
from events.kinds import KINDS
from events.models import Event
from retention import services as retention
from support.rows import make_key, make_space, make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import ApiKey
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture
def tenant(db):
    return make_tenant("acme")


def told(*kinds: str) -> list[tuple[str, dict]]:
    """(type, data) of the events so far, oldest first; each has what its kind declares."""
    rows = list(Event.unscoped.filter(kind__in=kinds or KINDS).order_by("pk"))
    for row in rows:
        assert row.subject_type == KINDS[row.kind].subject
        assert set(row.data) <= set(KINDS[row.kind].data), row.kind
    return [(row.kind, row.data) for row in rows]


class TestJobs:
    def test_a_requested_job_that_is_done(self, tenant):
        job = jobs.enqueue("flush", tenant_id=tenant.pk, by="ann")
        with jobs.job_run(job.pk):
            assert told() == []
        assert told() == [("job.done", {"kind": "flush", "requested_by": "ann"})]
        assert Event.unscoped.get().subject_id == str(job.pk)

    def test_only_the_last_failure_is_told(self, tenant):
        job = jobs.enqueue("flush", tenant_id=tenant.pk, by="ann")
        for _ in range(jobs.REQUEST_ATTEMPTS):
            with suppress(ZeroDivisionError), jobs.job_run(job.pk):
                assert told() == []
                raise ZeroDivisionError
        data = {"kind": "flush", "requested_by": "ann", "attempts": jobs.REQUEST_ATTEMPTS}
        assert told() == [("job.failed", data)]

    def test_a_job_whose_last_worker_was_lost(self, tenant):
        job = jobs.enqueue("flush", tenant_id=tenant.pk)
        Job.unscoped.filter(pk=job.pk).update(
            state="running", attempts=jobs.REQUEST_ATTEMPTS, seen_at=job.created_at - jobs.LOST
        )
        jobs.fail_lost()
        jobs.fail_lost()
        assert [kind for kind, _ in told()] == ["job.failed"]

    def test_ticks_and_cancelled_jobs_are_not_told(self, tenant):
        with jobs.attempt("flush", tenant.pk):
            pass
        jobs.cancel(jobs.enqueue("flush", tenant_id=tenant.pk))
        assert told() == []


class TestNodes:
    def beat(self, tenant, **ago):
        with tenant_scope(tenant.pk):
            NodeSession.objects.update(last_heartbeat_at=F("last_heartbeat_at") - timedelta(**ago))

    def test_processes_of_one_node_are_told_once(self, tenant):
        space = make_space(tenant)
        with tenant_scope(tenant.pk):
            rows = [
                NodeSession.objects.create(space=space, node=name)
                for name in ("gpu-1/scheduler", "gpu-1/worker")
            ]
        nodes.tell(tenant.pk, reason="silent")
        nodes.tell(tenant.pk, reason="silent")
        assert told() == [("node.up", {"space": space.name})]
        with tenant_scope(tenant.pk):
            sessions.end_session(session_id=rows[0].pk)
            assert len(told()) == 1
            sessions.end_session(session_id=rows[1].pk)
        assert told("node.down") == [("node.down", {"reason": "ended"})]

    def test_a_node_that_goes_silent_and_comes_back(self, tenant):
        make = make_space(tenant)
        with tenant_scope(tenant.pk):
            NodeSession.objects.create(space=make, node="gpu-1")
        nodes.tell(tenant.pk, reason="silent")
        self.beat(tenant, hours=1)
        for _ in range(2):
            nodes.tell(tenant.pk, reason="silent")
        self.beat(tenant, hours=-1)
        nodes.tell(tenant.pk, reason="silent")
        assert [kind for kind, _ in told()] == ["node.up", "node.down", "node.up"]
        assert told("node.down") == [("node.down", {"reason": "silent"})]

    def test_a_revoked_key_takes_its_nodes_down(self, tenant):
        prefix = make_key(tenant, "node").split("_")[1]
        key = ApiKey.unscoped.get(prefix=prefix)
        with tenant_scope(tenant.pk):
            NodeSession.objects.create(space=make_space(tenant), node="gpu-1", key=key)
        nodes.tell(tenant.pk, reason="silent")
        services.revoke_key(key=key, actor=SYSTEM)
        assert told("node.down") == [("node.down", {"reason": "cut"})]

    def test_when_nothing_changed_two_queries_find_that(self, tenant, django_assert_num_queries):
        with django_assert_num_queries(2):
            nodes.tell(tenant.pk, reason="silent")


class TestQuotas:
    @pytest.mark.parametrize(
        ("used", "was", "now"),
        [
            *((79, 0, 0), (80, 0, 80), (89, 80, 80), (95, 80, 90), (100, 90, 100), (130, 0, 100)),
            *((96, 100, 100), (95, 100, 100), (94, 100, 90), (84, 90, 80), (74, 80, 0)),
            (76, 80, 80),
        ],
    )
    def test_thresholds(self, used, was, now):
        assert quotas.passed(used, 100, was) == now

    def test_a_quota_of_nothing_is_full_with_one_byte(self):
        assert (quotas.passed(0, 0, 0), quotas.passed(1, 0, 0)) == (0, 100)

    def test_each_tier_tells_each_change_once(self, tenant):
        services.set_quota(tenant=tenant, hot_bytes=100, cold_bytes=1000, actor=SYSTEM)
        for hot in (50, 85, 85, 79, 91, 60):
            quotas.tell_use(tenant_id=tenant.pk, hot_bytes=hot, cold_bytes=0)
        steps = [
            (data["tier"], data["was_percent"], data["percent"], data["used_bytes"])
            for _, data in told("quota.threshold")
        ]
        assert steps == [("hot", 0, 80, 85), ("hot", 80, 90, 91), ("hot", 90, 0, 60)]


class TestPolicies:
    def test_a_changed_policy_names_what_changed(self, tenant):
        retention.set_policy(tenant=tenant, actor=SYSTEM, priority=7, cold_ttl_s=3600)
        retention.set_policy(tenant=tenant, actor=SYSTEM, priority=7)  # changes nothing
        assert told() == [
            ("policy.changed", {"what": "policy", "changed": ["cold_ttl_s", "priority"]})
        ]

    def test_rules(self, tenant):
        rule = retention.add_rule(
            tenant=tenant, label="agent", overrides={"priority": 6}, actor=SYSTEM
        )
        rule = retention.change_rule(rule=rule, overrides={"priority": 7}, actor=SYSTEM)
        retention.remove_rule(rule=rule, actor=SYSTEM)
        assert [data["what"] for _, data in told("policy.changed")] == ["rule"] * 3
        assert told()[1][1]["changed"] == ["overrides"]

    def test_quota(self, tenant):
        services.set_quota(tenant=tenant, hot_bytes=100, cold_bytes=1000, actor=SYSTEM)
        services.set_quota(tenant=tenant, hot_bytes=100, cold_bytes=1000, actor=SYSTEM)
        data = {"what": "quota", "changed": ["cold_bytes", "hot_bytes"]}
        assert told() == [("policy.changed", data)]


def test_marks_go_with_their_tenant(tenant):
    with tenant_scope(tenant.pk):
        NodeSession.objects.create(space=make_space(tenant), node="gpu-1")
    nodes.tell(tenant.pk, reason="silent")
    order.number_all()
    tenant.delete()
    assert not Event.unscoped.exists()
