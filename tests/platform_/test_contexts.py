"""Contexts against a real hot tier: pins follow the chain, shared blocks keep the longest pin."""

import os
from dataclasses import replace
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from catalog import contexts
from catalog.models import Context
from controlplane import hot
from controlplane.problems import Problem
from neve.errors import MissReason
from neve.hot import BlockTerms, CommitOutcome, Location
from neve.keys import BucketKeys, bucket_of
from retention.services import add_rule, set_policy
from rows import make_session, make_space, make_tenant
from servers import wait_until
from tenants import services
from tenants.audit import Actor
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

SIZE = 1000
ACTOR = Actor("ann", "req-1")


class World:
    """A tenant with room for ten blocks, never flushed, so that all are clean at once."""

    def __init__(self):
        self.tenant = make_tenant(hot_bytes=10 * SIZE)
        self.space = make_space(self.tenant)
        self.session = make_session(self.space)
        self.tier = hot.hot_tier(self.tenant.pk)
        never = BlockTerms(flush_after_s=None)
        self.tier.set_policy(hot_bytes=10 * SIZE, cold_bytes=0, terms=never)

    def policy(self, **fields):
        set_policy(tenant=self.tenant, actor=ACTOR, flush_mode="never", **fields)

    def store(self, count):
        return self.store_as([os.urandom(16) for _ in range(count)])

    def store_as(self, ids):
        for id_ in ids:
            keys = BucketKeys(self.tenant.pk, bucket_of(id_, settings.ENV.hot_buckets))
            hot.admin().set(keys.block(self.space.pk, id_), bytes(SIZE), px=60_000)
        outcomes = self.tier.commit(self.space.pk, [(id_, SIZE, 256) for id_ in ids])
        return [
            id_
            for id_, outcome in zip(ids, outcomes, strict=True)
            if outcome == CommitOutcome.STORED
        ]

    def record(self, name, ids, **fields):
        fields = {"label": None, "pin_s": None, **fields}
        with tenant_scope(self.tenant.pk):
            return contexts.record(
                session=self.session, name=name, ids=ids, tokens=256 * len(ids), actor=ACTOR,
                **fields,
            )  # fmt: skip

    def pins(self, ids):
        """Ends of pins in seconds from now, rounded to the minute; None for a miss."""
        now = timezone.now().timestamp()
        return [
            round(max(0, found.pinned_until_s - now) / 60) if isinstance(found, Location) else None
            for found in self.tier.match(ids)
        ]


@pytest.fixture
def world(clean_hot):
    return World()


def in_minutes(n):
    return timezone.now() + timedelta(minutes=n)


def test_a_pinned_context_survives_quota_pressure_that_evicts_others(world):
    kept, lost = world.store(3), world.store(3)
    context, _ = world.record("kept", kept)
    world.record("lost", lost)
    assert contexts.pin(context=context, until=in_minutes(10), actor=ACTOR) == 3
    world.store(7)
    assert contexts.residency(context).hot == 3
    assert world.tier.match(lost) == [MissReason.EVICTED] * 3


def test_recording_again_with_a_longer_chain_pins_the_new_blocks(world):
    ids = world.store(4)
    world.record("c", ids[:2], pin_s=600)
    assert world.pins(ids) == [10, 10, 0, 0]
    context, created = world.record("c", ids)
    assert not created
    assert world.pins(ids) == [10, 10, 10, 10]
    assert context.blocks == 4


def test_blocks_that_leave_the_chain_lose_its_pin(world):
    ids = world.store(3)
    world.record("c", ids[:2], pin_s=600)
    world.record("c", [ids[0], ids[2]])
    assert world.pins(ids) == [10, 0, 10]


def test_shared_blocks_keep_the_longest_pin(world):
    shared, only_a, only_b = world.store(1), world.store(1), world.store(1)
    a, _ = world.record("a", shared + only_a)
    b, _ = world.record("b", shared + only_b)
    contexts.pin(context=a, until=in_minutes(10), actor=ACTOR)
    contexts.pin(context=b, until=in_minutes(20), actor=ACTOR)
    assert world.pins(shared + only_a + only_b) == [20, 10, 20]
    contexts.unpin(context=b, actor=ACTOR)
    assert world.pins(shared + only_a + only_b) == [10, 10, 0]
    contexts.pin(context=a, until=in_minutes(5), actor=ACTOR)  # a pin can also be shortened
    assert world.pins(shared + only_a) == [5, 5]


def test_expire_makes_misses_with_that_reason_and_spares_others_pins(world):
    shared, own = world.store(1), world.store(2)
    a, _ = world.record("a", shared + own)
    b, _ = world.record("b", shared)
    contexts.pin(context=a, until=in_minutes(10), actor=ACTOR)
    contexts.pin(context=b, until=in_minutes(10), actor=ACTOR)
    assert contexts.expire(context=a, actor=ACTOR) == (2, 1)
    assert world.tier.match(own) == [MissReason.EXPIRED] * 2
    assert world.pins(shared) == [10]
    a.refresh_from_db()
    assert a.expired_at is not None
    assert a.pinned_until is None
    found = contexts.residency(a)
    assert (found.hot, found.cold, found.lost) == (1, 0, 2)
    assert found.blocks[1] == {"id": own[0].hex(), "tier": None, "reason": "expired"}


def test_recording_again_ends_the_expiry(world):
    ids = world.store(1)
    context, _ = world.record("a", ids)
    contexts.expire(context=context, actor=ACTOR)
    assert world.record("a", ids)[0].expired_at is None


def test_extend_lets_blocks_live_longer(world):
    world.policy(cold_ttl_s=60)
    ids = world.store(2)
    context, _ = world.record("a", ids)
    assert contexts.extend(context=context, for_s=3600, actor=ACTOR) == 2
    expiry = BucketKeys(world.tenant.pk, 0).bookkeeping[6]
    ends = [hot.admin().zscore(expiry, id_) - timezone.now().timestamp() for id_ in ids]
    assert all(3590 < end < 3610 for end in ends)


def test_a_pin_needs_a_time_ahead_within_a_year(world):
    context, _ = world.record("a", world.store(1))
    for until in (in_minutes(-1), timezone.now() + timedelta(days=366)):
        with pytest.raises(Problem) as refusal:
            contexts.pin(context=context, until=until, actor=ACTOR)
        assert refusal.value.members == {"field": "until"}


def test_changes_are_audited_with_actor_request_before_and_after(world):
    context, _ = world.record("a", world.store(1))
    contexts.pin(context=context, until=in_minutes(10), actor=ACTOR)
    contexts.unpin(context=context, actor=ACTOR)
    contexts.expire(context=context, actor=ACTOR)
    contexts.extend(context=context, for_s=5, actor=ACTOR)
    events = list(AuditEvent.unscoped.filter(object_type="context").order_by("pk"))
    assert [event.action.split(".")[1] for event in events] == [
        *("record", "pin", "unpin", "expire", "extend")
    ]
    assert {(event.actor_name, event.request_id) for event in events} == {("ann", "req-1")}
    pin = events[1]
    assert pin.before["pinned_until"] is None
    assert pin.after["pinned_until"] is not None
    assert pin.object_id == str(context.pk)


def test_a_label_stays_until_another_is_given(world):
    ids = world.store(1)
    world.record("a", ids, label="agent")
    assert world.record("a", ids)[0].label == "agent"
    assert world.record("a", ids, label="chat")[0].label == "chat"


def test_without_the_hot_tier_a_pin_is_noted_and_settled_later(world, settings):
    ids = world.store(1)
    context, _ = world.record("a", ids)
    working = settings.ENV
    settings.ENV = replace(working, hot_url="valkey://127.0.0.1:1/0")
    with pytest.raises(Problem) as refusal:
        contexts.pin(context=context, until=in_minutes(10), actor=ACTOR)
    assert refusal.value.status == 503
    world.record("b", ids, pin_s=60)  # a node's report does not fail for it
    assert Context.unscoped.get(name="b").is_pinned
    settings.ENV = working
    assert world.pins(ids) == [0]
    contexts.settle_pins(tenant_id=world.tenant.pk, space_id=world.space.pk, ids=ids)
    assert world.pins(ids) == [10]


def test_a_pin_over_the_budget_is_refused_as_a_whole(world):
    world.policy(pin_budget_bytes=3 * SIZE)
    first, second = world.store(2), world.store(2)
    a, _ = world.record("a", first)
    b, _ = world.record("b", second)
    assert contexts.pin(context=a, until=in_minutes(10), actor=ACTOR) == 2
    with pytest.raises(Problem) as refusal:
        contexts.pin(context=b, until=in_minutes(10), actor=ACTOR)
    assert refusal.value.kind == "pin-budget"
    assert refusal.value.members == {
        "field": "pin_budget_bytes",
        "budget_bytes": 3 * SIZE,
        "used_bytes": 2 * SIZE,
        "asked_bytes": 2 * SIZE,
    }
    assert world.pins([*first, *second]) == [10, 10, 0, 0]
    assert world.tier.usage().pinned_bytes == 2 * SIZE
    b.refresh_from_db()
    assert b.pinned_until is None
    assert not AuditEvent.unscoped.filter(action="context.pin", object_id=str(b.pk)).exists()


def test_no_pins_remain_of_a_refused_one_when_other_buckets_had_granted_it(world, monkeypatch):
    monkeypatch.setattr(settings, "ENV", replace(settings.ENV, hot_buckets=4))
    world.tier = hot.hot_tier(world.tenant.pk)
    services.set_quota(tenant=world.tenant, hot_bytes=400 * SIZE, cold_bytes=0, actor=ACTOR)
    in_bucket_0, in_bucket_1 = (0).to_bytes(4, "big"), (1).to_bytes(4, "big")
    ids = world.store_as(
        [in_bucket_0 + os.urandom(12), *(in_bucket_1 + os.urandom(12) for _ in range(4))]
    )
    world.policy(pin_budget_bytes=4 * 3 * SIZE)  # three blocks in each bucket
    context, _ = world.record("c", ids)
    with pytest.raises(Problem):
        contexts.pin(context=context, until=in_minutes(10), actor=ACTOR)
    assert world.pins(ids) == [0] * 5
    assert world.tier.usage().pinned_bytes == 0


def test_shared_blocks_are_charged_once_and_a_longer_pin_costs_nothing(world):
    world.policy(pin_budget_bytes=3 * SIZE)
    shared, own = world.store(2), world.store(1)
    a, _ = world.record("a", shared, pin_s=600)
    b, _ = world.record("b", [*shared, *own], pin_s=1200)
    assert a.is_pinned
    assert b.is_pinned
    assert world.tier.usage().pinned_bytes == 3 * SIZE
    assert contexts.pin(context=b, until=in_minutes(40), actor=ACTOR) == 3
    contexts.unpin(context=b, actor=ACTOR)
    assert world.tier.usage().pinned_bytes == 2 * SIZE


def test_a_report_over_the_budget_is_recorded_without_its_pin(world):
    world.policy(pin_budget_bytes=SIZE)
    context, created = world.record("a", world.store(2), pin_s=600)
    assert created
    assert not context.is_pinned
    assert world.tier.usage().pinned_bytes == 0
    event = AuditEvent.unscoped.get(action="context.pin_refused")
    assert event.after["asked_bytes"] == 2 * SIZE


def test_a_pinned_chain_that_outgrows_the_budget_keeps_its_beginning(world):
    world.policy(pin_budget_bytes=3 * SIZE)
    ids = world.store(5)
    world.record("a", ids[:2], pin_s=600)
    world.record("a", ids)
    assert world.pins(ids) == [10, 10, 10, 0, 0]
    assert world.tier.usage().pinned_bytes == 3 * SIZE


def test_a_rule_gives_some_contexts_another_budget(world):
    world.policy(pin_budget_bytes=0)
    add_rule(
        tenant=world.tenant, label="prod", overrides={"pin_budget_bytes": 2 * SIZE}, actor=ACTOR
    )
    prod, _ = world.record("prod", world.store(2), label="prod")
    other, _ = world.record("other", world.store(1))
    with pytest.raises(Problem):
        contexts.pin(context=other, until=in_minutes(10), actor=ACTOR)
    assert contexts.pin(context=prod, until=in_minutes(10), actor=ACTOR) == 2


def test_a_pin_that_ends_gives_its_budget_back(world):
    world.policy(pin_budget_bytes=2 * SIZE)
    first, second = world.store(2), world.store(2)
    world.record("a", first)
    soon = int(timezone.now().timestamp()) + 1
    world.tier.pin(first, soon, budget_bytes=2 * SIZE)
    later, _ = world.record("b", second)

    def granted():
        try:
            return contexts.pin(context=later, until=in_minutes(10), actor=ACTOR) == 2
        except Problem:
            return False

    wait_until(granted, timeout_s=10, what="the end of the first pin")
    assert world.tier.usage().pinned_bytes == 2 * SIZE
    world.tier.evict(2 * SIZE)  # what was pinned can be evicted again
    assert world.tier.match(first) == [MissReason.EVICTED] * 2
