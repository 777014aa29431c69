"""Handshakes: spaces by name and by layout, the node limit, replaced and dead sessions."""

from datetime import timedelta

import pytest
from django.utils import timezone

from base.problems import Problem
from catalog import sessions
from catalog.models import NodeSession, Space, UsageRollup
from neve.formats.space import SpaceIdentity
from support.rows import IDENTITY, make_tenant
from tenants.audit import SYSTEM
from tenants.models import AuditEvent
from tenants.scope import tenant_scope
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def open_session(tenant, node="n1", *, instance="", space=None, max_chunk_tokens=256, **identity):
    return sessions.open_session(
        tenant=tenant,
        node=node,
        instance=instance,
        engine={"name": "vllm", "version": "1"},
        identity=SpaceIdentity.from_dict({**IDENTITY, **identity}),
        space_name=space,
        max_chunk_tokens=max_chunk_tokens,
        actor=SYSTEM,
    )


def beat(session, seq=1, **fields):
    fields = {"counters": {}, "misses": {}, "load_ms": {}, "breaker": "closed", **fields}
    with tenant_scope(session.tenant_id):
        return sessions.record_heartbeat(
            session_id=session.pk, heartbeat=sessions.Heartbeat(seq=seq, **fields)
        )


def test_equal_layouts_share_a_space_and_others_do_not():
    tenant = make_tenant()
    first = open_session(tenant, "n1").space
    assert open_session(tenant, "n2").space == first
    assert open_session(tenant, "n3", kv_dtype="fp8").space != first
    assert open_session(make_tenant(), "n1").space.fingerprint != first.fingerprint
    assert first.chunk_tokens == 256
    assert first.name == f"tiny-{first.fingerprint[:8]}"
    assert AuditEvent.unscoped.filter(action="space.create").count() == 3


def test_the_chunk_is_as_large_as_fits_2_mib():
    tenant = make_tenant()
    assert open_session(tenant, bytes_per_token=32768).space.chunk_tokens == 64
    assert open_session(tenant, max_chunk_tokens=100).space.chunk_tokens == 96
    assert open_session(tenant, bytes_per_token=1 << 20).space.chunk_tokens == 16


@pytest.mark.parametrize(
    ("field", "expected", "got"),
    [("dtype", "bfloat16", "float16"), ("revision", "main", "v2"), ("bytes_per_token", 4096, 8192)],
)
def test_a_named_space_refuses_another_layout_and_names_the_field(field, expected, got):
    tenant = make_tenant()
    open_session(tenant, space="mine")
    with pytest.raises(Problem) as refusal:
        open_session(tenant, "n2", space="mine", **{field: got})
    assert refusal.value.kind == "fingerprint-clash"
    assert refusal.value.members == {"field": field, "expected": expected, "got": got}


def test_a_named_space_keeps_its_chunk_size():
    tenant = make_tenant()
    space = open_session(tenant, space="mine", max_chunk_tokens=128).space
    assert open_session(tenant, "n2", space="mine").space == space
    with pytest.raises(Problem) as refusal:
        open_session(tenant, "n3", space="mine", max_chunk_tokens=64)
    assert refusal.value.members["field"] == "max_chunk_tokens"


def test_one_layout_has_one_name():
    tenant = make_tenant()
    open_session(tenant, space="mine")
    with pytest.raises(Problem) as refusal:
        open_session(tenant, "n2", space="other")
    assert refusal.value.members == {"field": "space", "expected": "mine", "got": "other"}


def test_a_node_counts_once_and_replaces_its_own_session():
    tenant = make_tenant(node_limit=1)
    first = open_session(tenant, "n1")
    second = open_session(tenant, "n1")
    other_rank = open_session(tenant, "n1/scheduler", tp_size=2, tp_rank=1)
    first.refresh_from_db()
    assert first.ended_at is not None
    with tenant_scope(tenant.pk):
        assert set(sessions.live_sessions()) == {second, other_rank}
    with pytest.raises(Problem) as refusal:
        open_session(tenant, "n2")
    assert refusal.value.kind == "node-limit"
    assert refusal.value.members == {"node_limit": 1}


def test_a_node_has_so_many_live_sessions(monkeypatch):
    monkeypatch.setattr(sessions, "PROCESSES_MOST", 2)
    tenant = make_tenant(node_limit=3)
    for name in ("n1/0", "n1/1"):
        open_session(tenant, name)
    with pytest.raises(Problem, match="n1 has 2 live sessions") as refusal:
        open_session(tenant, "n1/2")
    assert refusal.value.kind == "node-limit"
    open_session(tenant, "n2")


def fall_silent(session):
    long_ago = timezone.now() - timedelta(seconds=sessions.live_after_s() + 1)
    NodeSession.unscoped.filter(pk=session.pk).update(last_heartbeat_at=long_ago)


def test_engines_of_one_name_leave_each_other_their_sessions():
    tenant = make_tenant(node_limit=1)
    first, second = (open_session(tenant, instance=name) for name in ("a", "b"))
    assert beat(first)
    assert beat(second)
    again = open_session(tenant, instance="a")  # the same engine, after its session was lost
    with pytest.raises(Problem, match="open a new one"):
        beat(first)
    with tenant_scope(tenant.pk):
        assert set(sessions.live_sessions()) == {second, again}


def test_a_session_of_a_crash_ends_once_it_is_silent_and_another_is_there():
    tenant = make_tenant()
    crashed, alone = open_session(tenant, instance="a"), open_session(tenant, "n2", instance="x")
    after = open_session(tenant, instance="b")  # too soon to know that "a" is gone
    assert sessions.end_replaced(tenant_id=tenant.pk) == 0
    fall_silent(crashed)
    fall_silent(alone)
    assert sessions.end_replaced(tenant_id=tenant.pk) == 1
    open_ones = set(NodeSession.unscoped.filter(ended_at=None))
    assert open_ones == {alone, after}  # nobody came in place of the lonely one: it is missed
    open_session(tenant, "n2", instance="y")
    alone.refresh_from_db()
    assert alone.ended_at is not None


def test_a_scheduler_part_that_was_killed_as_its_ranks_ended_is_not_missed():
    """vLLM kills its engine's process while it waits for its workers to end."""
    tenant = make_tenant()
    ranks, part = open_session(tenant, "loc"), open_session(tenant, "loc/scheduler")
    fall_silent(part)
    assert sessions.end_replaced(tenant_id=tenant.pk) == 0  # its ranks are live: it crashed
    with tenant_scope(tenant.pk):
        sessions.end_session(session_id=ranks.pk)
    beat(part)
    assert sessions.end_replaced(tenant_id=tenant.pk) == 0  # it may end its session yet
    fall_silent(part)
    assert sessions.end_replaced(tenant_id=tenant.pk) == 1
    part.refresh_from_db()
    assert part.ended_at is not None


@pytest.mark.parametrize("other", ["loc/dp1", "other/scheduler", "loc/dp1/scheduler"])
def test_other_engines_than_those_that_ended_are_missed(other):
    tenant = make_tenant()
    ranks, silent = open_session(tenant, "loc"), open_session(tenant, other)
    fall_silent(silent)
    with tenant_scope(tenant.pk):
        sessions.end_session(session_id=ranks.pk)
    assert sessions.end_replaced(tenant_id=tenant.pk) == 0


def test_a_part_that_fell_silent_long_after_other_ranks_of_its_name_ended_is_missed():
    tenant = make_tenant()
    first = open_session(tenant, "loc", instance="a")
    with tenant_scope(tenant.pk):
        sessions.end_session(session_id=first.pk)
    NodeSession.unscoped.filter(pk=first.pk).update(ended_at=timezone.now() - timedelta(hours=1))
    open_session(tenant, "loc", instance="b")
    fall_silent(open_session(tenant, "loc/scheduler", instance="b"))
    assert sessions.end_replaced(tenant_id=tenant.pk) == 0


def test_a_tick_ends_the_sessions_of_crashes(clean_hot):
    tenant = make_tenant()
    crashed = open_session(tenant, instance="a")
    after = open_session(tenant, instance="b")
    fall_silent(crashed)
    tasks.end_access()
    assert list(NodeSession.unscoped.filter(ended_at=None)) == [after]


def test_silent_and_ended_nodes_do_not_count():
    tenant = make_tenant(node_limit=1)
    old = open_session(tenant, "n1")
    with tenant_scope(tenant.pk):
        sessions.end_session(session_id=old.pk)
    silent = open_session(tenant, "n2")
    fall_silent(silent)
    open_session(tenant, "n3")


def test_a_heartbeat_is_counted_once_in_all_resolutions():
    session = open_session(make_tenant())
    delta = {"requested_tokens": 512, "hit_hot_tokens": 256}
    beat(session, 1, counters=delta, misses={"evicted": 3}, load_ms={"<=1": 2})
    beat(session, 1, counters=delta)  # its answer was lost, the node sends it again
    after = beat(session, 2, counters=delta, misses={"evicted": 1}, breaker="open")
    assert after.totals == {"requested_tokens": 1024, "hit_hot_tokens": 512}
    assert after.breaker == "open"
    for resolution_s in (10, 60, 3600):
        rows = UsageRollup.unscoped.filter(resolution_s=resolution_s)
        assert sum(row.requested_tokens for row in rows) == 1024
        assert sum(row.hit_hot_tokens for row in rows) == 512
        assert sum(row.misses.get("evicted", 0) for row in rows) == 4
        assert sum(row.load_ms.get("<=1", 0) for row in rows) == 2


def test_an_idle_heartbeat_leaves_no_rollup():
    beat(open_session(make_tenant()))
    assert not UsageRollup.unscoped.exists()


def test_ended_unknown_and_foreign_sessions_are_not_found():
    session = open_session(make_tenant())
    other = make_tenant()
    with tenant_scope(other.pk), pytest.raises(Problem, match="unknown"):
        sessions.end_session(session_id=session.pk)
    with tenant_scope(session.tenant_id):
        sessions.end_session(session_id=session.pk)
        sessions.end_session(session_id=session.pk)
    with pytest.raises(Problem, match="open a new one"):
        beat(session)


def test_the_space_of_a_session_holds_the_identity():
    space = open_session(make_tenant()).space
    assert SpaceIdentity.from_dict(space.identity) == SpaceIdentity.from_dict(IDENTITY)
    assert Space.unscoped.count() == 1
