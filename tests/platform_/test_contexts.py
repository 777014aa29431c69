"""Contexts against a real hot tier: pins follow the chain, shared blocks keep the longest pin."""

import os
from dataclasses import replace
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from base.problems import Problem
from catalog.models import Context, Pin
from contexts import pins
from contexts import services as contexts
from contexts.chains import Chain
from contexts.expiry import Expiry, expire
from contexts.residency import residency_of
from neve.errors import MissReason
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.tier import BlockTerms, CommitOutcome, Location, Tier
from retention.services import add_rule, set_policy
from storage import hot
from support.rows import make_session, make_space, make_tenant
from support.servers import wait_until
from tenants import services
from tenants.audit import Actor
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

SIZE = 1000
ACTOR = Actor("ann", "req-1")
BOB, OPERATOR = Actor("bob", id="user:2"), Actor("olga", id="user:3", is_operator=True)


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
    assert pins.pin(context=context, until=in_minutes(10), actor=ACTOR).kept == 3
    world.store(7)
    assert residency_of(context).hot == 3
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
    pins.pin(context=a, until=in_minutes(10), actor=ACTOR)
    pins.pin(context=b, until=in_minutes(20), actor=ACTOR)
    assert world.pins(shared + only_a + only_b) == [20, 10, 20]
    pins.unpin(context=b, actor=ACTOR)
    assert world.pins(shared + only_a + only_b) == [10, 10, 0]
    pins.pin(context=a, until=in_minutes(5), actor=ACTOR)  # a pin can also be shortened
    assert world.pins(shared + only_a) == [5, 5]


def test_expire_spares_what_another_unexpired_context_holds(world):
    shared, own, others = world.store(3), world.store(2), world.store(2)
    a, _ = world.record("a", [*shared, *own, os.urandom(16)])
    b, _ = world.record("b", [*shared, *others])
    world.record("shorter", shared[:1])
    pins.pin(context=a, until=in_minutes(20), actor=ACTOR)
    pins.pin(context=b, until=in_minutes(10), actor=ACTOR)
    preview = expire(context=a, dry_run=True, actor=ACTOR)
    assert world.pins([*shared, *own]) == [20] * 5
    assert preview == Expiry(2, 2 * SIZE, 3, 3 * SIZE, pinned=3, lost=1)
    assert expire(context=a, actor=ACTOR) == preview
    assert world.tier.match(own) == [MissReason.EXPIRED] * 2
    assert world.pins([*shared, *others]) == [10] * 5
    a.refresh_from_db()
    assert a.expired_at is not None
    assert a.pinned_until is None
    found = residency_of(a)
    assert (found.hot, found.cold, found.lost) == (3, 0, 3)
    assert found.blocks[3].reason == "expired"
    # Of two that share, the later one to expire takes the rest.
    assert expire(context=b, actor=ACTOR).removed == 4
    assert world.pins(shared) == [0, None, None]


def test_what_an_expired_context_prolonged_ends_as_the_others_say(world):
    world.policy(cold_ttl_s=600)
    shared, own = world.store(2), world.store(1)
    a, _ = world.record("a", [*shared, *own])
    world.record("b", shared)
    contexts.extend(context=a, for_s=7200, actor=ACTOR)

    def ends(ids):
        expiry = BucketKeys(world.tenant.pk, 0).bookkeeping[6]
        now = timezone.now().timestamp()
        return [round((hot.admin().zscore(expiry, id_) - now) / 60) for id_ in ids]

    assert ends(shared) == [120, 120]
    expire(context=a, actor=ACTOR)
    assert ends(shared) == [10, 10]


def test_a_deleted_context_lets_go_of_its_blocks_which_stay(world):
    world.policy(cold_ttl_s=600)
    shared, own = world.store(1), world.store(1)
    a, _ = world.record("a", [*shared, *own], pin_s=1200)
    world.record("b", shared, pin_s=600)
    contexts.delete(context=a, actor=ACTOR)
    assert not Context.unscoped.filter(pk=a.pk).exists()
    assert world.pins([*shared, *own]) == [10, 0]
    event = AuditEvent.unscoped.get(action="context.delete")
    assert (event.before["name"], event.after) == ("a", None)
    with pytest.raises(Problem) as refusal:  # what somebody else still has on the screen
        expire(context=a, actor=ACTOR)
    assert refusal.value.kind == "not-found"


def test_recording_again_ends_the_expiry(world):
    ids = world.store(1)
    context, _ = world.record("a", ids)
    expire(context=context, actor=ACTOR)
    assert world.record("a", ids)[0].expired_at is None


def test_extend_lets_blocks_live_longer(world):
    world.policy(cold_ttl_s=60)
    ids = world.store(2)
    context, _ = world.record("a", ids)
    assert contexts.extend(context=context, for_s=3600, actor=ACTOR).extended == 2
    expiry = BucketKeys(world.tenant.pk, 0).bookkeeping[6]
    ends = [hot.admin().zscore(expiry, id_) - timezone.now().timestamp() for id_ in ids]
    assert all(3590 < end < 3610 for end in ends)


def test_a_pin_needs_a_time_ahead_within_a_year(world):
    context, _ = world.record("a", world.store(1))
    for until in (in_minutes(-1), timezone.now() + timedelta(days=366)):
        with pytest.raises(Problem) as refusal:
            pins.pin(context=context, until=until, actor=ACTOR)
        assert refusal.value.members == {"field": "until"}


def test_changes_are_audited_with_actor_request_before_and_after(world):
    context, _ = world.record("a", world.store(1))
    pins.pin(context=context, until=in_minutes(10), actor=ACTOR)
    pins.unpin(context=context, actor=ACTOR)
    contexts.extend(context=context, for_s=5, actor=ACTOR)
    expire(context=context, actor=ACTOR)
    events = list(AuditEvent.unscoped.filter(object_type="context").order_by("pk"))
    assert [event.action.split(".")[1] for event in events] == [
        *("record", "pin", "unpin", "extend", "expire")
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
        pins.pin(context=context, until=in_minutes(10), actor=ACTOR)
    assert refusal.value.status == 503
    world.record("b", ids, pin_s=60)  # a node's report does not fail for it
    assert Context.unscoped.get(name="b").is_pinned
    settings.ENV = working
    assert world.pins(ids) == [0]
    pins.settle(tenant_id=world.tenant.pk, space_id=world.space.pk, chains=[ids])
    assert world.pins(ids) == [10]


def test_a_pin_over_the_budget_is_refused_as_a_whole(world):
    world.policy(pin_budget_bytes=3 * SIZE)
    first, second = world.store(2), world.store(2)
    a, _ = world.record("a", first)
    b, _ = world.record("b", second)
    assert pins.pin(context=a, until=in_minutes(10), actor=ACTOR).kept == 2
    with pytest.raises(Problem) as refusal:
        pins.pin(context=b, until=in_minutes(10), actor=ACTOR)
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
        pins.pin(context=context, until=in_minutes(10), actor=ACTOR)
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
    assert pins.pin(context=b, until=in_minutes(40), actor=ACTOR).kept == 3
    pins.unpin(context=b, actor=ACTOR)
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
        pins.pin(context=other, until=in_minutes(10), actor=ACTOR)
    assert pins.pin(context=prod, until=in_minutes(10), actor=ACTOR).kept == 2


def test_a_pin_that_ends_gives_its_budget_back(world):
    world.policy(pin_budget_bytes=2 * SIZE)
    first, second = world.store(2), world.store(2)
    world.record("a", first)
    soon = int(timezone.now().timestamp()) + 1
    world.tier.pin(first, soon, budget_bytes=2 * SIZE)
    later, _ = world.record("b", second)

    def granted():
        try:
            return pins.pin(context=later, until=in_minutes(10), actor=ACTOR).kept == 2
        except Problem:
            return False

    wait_until(granted, what="the end of the first pin")
    assert world.tier.usage().pinned_bytes == 2 * SIZE
    world.tier.evict(2 * SIZE)  # what was pinned can be evicted again
    assert world.tier.match(first) == [MissReason.EVICTED] * 2


def test_a_pin_belongs_to_who_set_it_and_the_latest_end_counts(world):
    ids = world.store(2)
    context, _ = world.record("a", ids)
    mine = pins.pin(context=context, until=in_minutes(60), reason="release", actor=ACTOR).pin
    theirs = pins.pin(context=context, until=in_minutes(5), actor=BOB)
    assert theirs.pinned_until == mine.until
    assert world.pins(ids) == [60, 60]
    for asked in ({"everybody": True}, {"pin_id": mine.pk}):
        with pytest.raises(Problem) as refusal:
            pins.unpin(context=context, actor=BOB, **asked)
        assert refusal.value.kind == "forbidden"
    left = pins.unpin(context=context, actor=BOB)
    assert left == pins.Unpinned(removed=1, pinned_until=mine.until, kept=2)
    assert pins.unpin(context=context, actor=BOB).removed == 0
    assert [(row.owner_name, row.reason) for row in pins.live_of(context)] == [("ann", "release")]
    left = pins.unpin(context=context, actor=OPERATOR, pin_id=mine.pk)
    assert left == pins.Unpinned(removed=1, pinned_until=None, kept=0)
    assert world.pins(ids) == [0, 0]
    event = AuditEvent.unscoped.filter(action="context.unpin").order_by("pk").last()
    assert (event.actor_name, event.after["removed"][0]["owner"]) == ("olga", "ann")


@pytest.mark.parametrize("end", [expire, contexts.delete])
def test_a_context_that_others_pin_ends_by_an_operator_only(world, end):
    context, _ = world.record("a", world.store(1))
    pins.pin(context=context, until=in_minutes(60), actor=ACTOR)
    with pytest.raises(Problem) as refusal:
        end(context=context, actor=BOB)
    assert refusal.value.kind == "pinned-by-others"
    assert refusal.value.members["pins"][0]["owner"] == "ann"
    end(context=context, actor=OPERATOR)
    assert pins.live_of(context) == []


def test_an_ended_pin_counts_no_more(world):
    context, _ = world.record("a", world.store(1), pin_s=600)
    with tenant_scope(world.tenant.pk):
        Pin.objects.update(until=in_minutes(-1))
    assert pins.pin(context=context, until=in_minutes(5), actor=BOB).pinned_until < in_minutes(6)
    assert [row.owner_name for row in pins.live_of(context)] == ["bob"]


@pytest.mark.parametrize("state", ["expired", "lost"])
def test_what_is_gone_can_not_be_kept(world, state):
    ids = world.store(2)
    context, _ = world.record("a", ids)
    expire(context=context, actor=ACTOR) if state == "expired" else world.tier.expire(ids)
    for keep in (
        lambda: pins.pin(context=context, until=in_minutes(5), actor=ACTOR),
        lambda: contexts.extend(context=context, for_s=60, actor=ACTOR),
    ):
        with pytest.raises(Problem) as refusal:
            keep()
        assert refusal.value.kind == "context-gone"
        assert refusal.value.members["state"] == state
    context.refresh_from_db()
    assert (context.pinned_until, context.extended_until) == (None, None)


def test_a_part_that_is_lost_is_told(world):
    ids = world.store(3)
    context, _ = world.record("a", ids)
    world.tier.expire(ids[1:])
    pinned = pins.pin(context=context, until=in_minutes(5), actor=ACTOR)
    assert (pinned.kept, pinned.lost) == (1, 2)
    assert contexts.extend(context=context, for_s=60, actor=ACTOR) == contexts.Extended(1, 2)


def test_residency_says_what_is_durable_in_tokens_and_bytes(world):
    world.tier.set_policy(
        hot_bytes=10 * SIZE, cold_bytes=10 * SIZE, terms=BlockTerms(flush_after_s=0)
    )
    ids = world.store(6)
    context, _ = world.record("a", ids)
    world.tier.lease_dirty(lease_s=60, most_blocks=10, most_bytes=1 << 20)
    world.tier.open_segment(1)
    world.tier.flushed(1, [(id_, SIZE * n) for n, id_ in enumerate(ids[:3])])
    world.tier.forget(Tier.HOT, ids[:1])  # cold only
    world.tier.expire(ids[4:5])
    found = residency_of(context)
    assert (found.hot, found.cold, found.lost, found.durable) == (4, 1, 1, 3)
    assert (found.hot_bytes, found.cold_bytes, found.durable_bytes) == (4 * SIZE, SIZE, 3 * SIZE)
    assert (found.hot_tokens, found.cold_tokens, found.lost_tokens) == (1024, 256, 256)
    assert (found.durable_tokens, found.usable_tokens) == (768, 1024)
    assert [block.is_durable for block in found.blocks] == [True, True, True, *[False] * 3]
    # Two shards of each chunk: one with a lost shard is lost, one is durable with both in S3.
    context.tokens = 3 * 256
    found = residency_of(context)
    assert (found.hot_tokens, found.cold_tokens, found.lost_tokens) == (256, 256, 256)
    assert (found.durable_tokens, found.usable_tokens) == (256, 512)


def test_a_pin_reads_no_other_context_and_its_end_those_of_the_same_root(world, monkeypatch):
    system_prompt, ids = world.store(1), world.store(2)
    for n in range(12):
        world.record(f"same root {n}", [*system_prompt, os.urandom(16)], pin_s=600)
        world.record(f"other root {n}", [os.urandom(16)], pin_s=600)
    context, _ = world.record("a", [*system_prompt, *ids])
    chains, calls = [], []
    shared_with, execute = Chain.shared_with, hot.admin().execute_command
    monkeypatch.setattr(
        Chain,
        "shared_with",
        lambda self, other: (chains.append(other), shared_with(self, other))[1],
    )
    monkeypatch.setattr(
        hot.admin(), "execute_command", lambda *args: (calls.append(args[1]), execute(*args))[1]
    )
    assert pins.pin(context=context, until=in_minutes(20), actor=ACTOR).kept == 3
    assert world.pins([*system_prompt, *ids]) == [20, 20, 20]
    assert (chains, calls.count("neve_pin")) == ([], 1)
    pins.pin(context=context, until=in_minutes(5), actor=ACTOR)
    assert world.pins([*system_prompt, *ids]) == [10, 5, 5]
    assert len(chains) == 13
    assert calls.count("neve_pin") <= 4  # for each block once, however many contexts share it
