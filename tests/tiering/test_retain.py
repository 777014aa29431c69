"""Stored blocks follow policy, rules and contexts, on a real Valkey and a real S3."""

import os
from datetime import timedelta

import pytest
from django.utils import timezone

from catalog.models import Job
from contexts import services as contexts
from contexts import stored
from contexts.dry_run import dry_run, proposed_rulebook
from contexts.expiry import expire
from contexts.parts import Parts
from contexts.residency import residency_of
from neve.errors import MissReason
from neve.formats.parts import PartGroup, PartKind
from neve.index import scan
from retention.models import RetentionPolicy, RetentionRule
from retention.services import change_rule, remove_rule
from storage import s3 as bucket
from support.rows import make_space
from support.tenant_world import ACTOR, SIZE, World
from tenants.models import AuditEvent
from tenants.scope import tenant_scope
from tiering import recovery
from tiering import retain as claims
from tiering.flush import Flusher
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

HOUR, DAY = 3600, 86400


@pytest.fixture(autouse=True)
def servers(clean_hot, s3):
    bucket.ensure_bucket()
    recovery.rebuild_all()


@pytest.fixture
def world():
    return World(flush_mode="never")


def test_a_changed_policy_reaches_stored_blocks_and_new_ones(world):
    old = world.store(3)
    world.set(cold_ttl_s=DAY, priority=7)
    assert world.lives(world.store(1)) == [(DAY, 7)]
    assert world.lives(old) == [(0, 5)] * 3
    tasks.retain()
    assert world.lives(old) == [(DAY, 7)] * 3
    job = Job.unscoped.get(kind="retain", tenant=world.tenant)
    assert (job.state, job.detail) == ("done", {"blocks": 4, "changed": 3, "is_done": True})
    tasks.retain()
    assert Job.unscoped.filter(kind="retain", tenant=world.tenant).count() == 1


def test_a_shorter_life_ends_blocks_that_are_past_it(world):
    ids = world.store(2)
    world.set(max_age_s=1)
    tasks.retain()
    deadline = timezone.now() + timedelta(seconds=10)
    while world.tier.usage().hot_blocks and timezone.now() < deadline:
        tasks.expire()
    assert world.tier.match(ids) == [MissReason.EXPIRED] * 2
    assert world.tier.usage().hot_bytes == 0


def test_the_greatest_age_ends_what_extend_prolonged(world):
    world.set(cold_ttl_s=HOUR)
    ids = world.store(1)
    context = world.record("c", ids)
    contexts.extend(context=context, for_s=DAY, actor=ACTOR)
    assert world.lives(ids)[0][0] >= DAY
    world.set(max_age_s=2 * HOUR)
    tasks.retain()
    assert world.lives(ids)[0][0] == 2 * HOUR


def test_an_extension_survives_a_change_of_policy_and_a_rebuild(world, clean_hot):
    world.set(flush_mode="now", cold_ttl_s=HOUR)
    ids, other = world.store(2), world.store(1)
    Flusher(world.tenant.pk).run()
    contexts.extend(context=world.record("c", ids), for_s=DAY, actor=ACTOR)
    world.set(cold_ttl_s=2 * HOUR)
    tasks.retain()
    before = world.lives([*ids, *other])
    assert [round(life / HOUR) for life, _ in before] == [24, 24, 2]
    clean_hot.wipe()
    recovery.rebuild_all()
    assert world.lives([*ids, *other]) == before


def test_a_shorter_policy_holds_after_a_rebuild_although_footers_say_longer(world, clean_hot):
    world.set(flush_mode="now", cold_ttl_s=DAY)
    ids = world.store(2)
    stored_s = world.entries(ids)[0].stored_s
    Flusher(world.tenant.pk).run()
    world.set(cold_ttl_s=HOUR, hot_idle_s=60, priority=3)
    clean_hot.wipe()
    recovery.rebuild_all()
    for entry in world.entries(ids):
        assert (entry.stored_s, entry.expires_s) == (stored_s, stored_s + HOUR)
        assert (entry.idle_s, entry.priority, entry.held) == (60, 3, False)


def test_rules_for_a_space_hold_from_commit_on(world):
    other = make_space(world.tenant, "other")
    world.rule(space=other, overrides={"cold_ttl_s": HOUR, "flush_mode": "now", "priority": 1})
    world.set(cold_ttl_s=DAY)
    ids = [*world.store(1), *world.store(1, other)]
    assert world.lives(ids) == [(DAY, 5), (HOUR, 1)]
    assert [entry.is_dirty for entry in world.entries(ids)] == [False, True]


def test_a_context_gives_its_blocks_the_terms_of_its_rules(world):
    world.set(cold_ttl_s=DAY)
    world.rule(label="scratch", overrides={"cold_ttl_s": HOUR, "priority": 0})
    world.rule(context="repo-*", overrides={"cold_ttl_s": None, "flush_mode": "now"})
    plain, scratch, repo = world.store(1), world.store(1), world.store(1)
    world.record("a", scratch, label="scratch")
    world.record("repo-42", repo, label="scratch")
    assert world.lives([*plain, *scratch, *repo]) == [(DAY, 5), (HOUR, 0), (0, 0)]
    assert [e.is_dirty for e in world.entries([*plain, *scratch, *repo])] == [False, False, True]


def test_a_block_that_is_stored_anew_gets_its_contexts_terms_with_the_next_report(world):
    world.rule(label="agent", overrides={"cold_ttl_s": HOUR})
    ids = world.store(2)
    world.record("a", ids, label="agent")
    world.tier.evict(SIZE)
    (lost,) = [id_ for id_ in ids if world.tier.match([id_]) == [MissReason.EVICTED]]
    world.store_as([lost])
    assert world.lives([lost]) == [(0, 5)]
    world.record("a", ids)
    assert world.lives(ids) == [(HOUR, 5)] * 2


def test_a_block_of_several_contexts_gets_the_most_generous_terms(world):
    world.rule(label="short", overrides={"cold_ttl_s": HOUR, "priority": 8})
    world.rule(label="long", overrides={"cold_ttl_s": DAY, "priority": 1})
    shared = world.store(1)
    world.record("a", [*shared, *world.store(1)], label="long")
    world.record("b", [*shared, *world.store(1)], label="short")
    assert world.lives(shared) == [(DAY, 8)]
    world.set(hot_idle_s=60)
    tasks.retain()  # a walk comes to the same as the contexts one after another
    assert world.lives(shared) == [(DAY, 8)]


def test_a_rule_that_changes_or_goes_is_followed(world):
    ids = world.store(2)
    world.record("a", ids, label="agent")
    rule = world.rule(label="agent", overrides={"cold_ttl_s": HOUR})
    tasks.retain()
    assert world.lives(ids) == [(HOUR, 5)] * 2
    change_rule(rule=rule, overrides={"cold_ttl_s": DAY, "priority": 9}, actor=ACTOR)
    tasks.retain()
    assert world.lives(ids) == [(DAY, 9)] * 2
    remove_rule(rule=rule, actor=ACTOR)
    tasks.retain()
    assert world.lives(ids) == [(0, 5)] * 2


def test_another_label_takes_hold_at_once_also_when_it_is_shorter(world):
    world.rule(label="short", overrides={"cold_ttl_s": HOUR})
    world.rule(label="long", overrides={"cold_ttl_s": DAY})
    ids = world.store(2)
    world.record("a", ids, label="long")
    world.record("a", ids, label="short")
    assert world.lives(ids) == [(HOUR, 5)] * 2


def test_a_policy_that_begins_to_flush_takes_blocks_that_were_only_hot(world):
    ids = world.store(2)
    world.set(flush_mode="now")
    tasks.retain()
    assert Flusher(world.tenant.pk).run().blocks == 2
    world.set(flush_mode="never")
    tasks.retain()
    assert all(entry.is_cold for entry in world.entries(ids))  # what is in S3 stays there
    later = world.store(1)
    assert not world.entries(later)[0].is_dirty


def test_blocks_of_lower_priority_leave_first(world):
    low, high = world.store(2), world.store(2)
    world.rule(label="low", overrides={"priority": 0})
    world.record("low", low, label="low")
    world.tier.touch(low)  # used last, and yet:
    world.tier.evict(2 * SIZE)
    assert world.tier.match(low) == [MissReason.EVICTED] * 2
    assert all(not isinstance(found, MissReason) for found in world.tier.match(high))


def test_two_workers_do_not_walk_at_once_and_a_dead_ones_lease_lapses(world):
    world.set(priority=6)
    generation, _ = claims.claim(world.tenant.pk)
    assert claims.claim(world.tenant.pk) is None
    with tenant_scope(world.tenant.pk):
        RetentionPolicy.objects.update(applying_until=timezone.now() - timedelta(seconds=1))
    assert claims.claim(world.tenant.pk)[0] == generation
    with tenant_scope(world.tenant.pk):
        far = timezone.now() + timedelta(days=1)  # given before the clock was set back
        RetentionPolicy.objects.update(applying_until=far)
    assert claims.claim(world.tenant.pk)[0] == generation


def test_a_change_while_a_walk_goes_on_is_walked_again(world):
    world.set(priority=6)
    first = claims.claim(world.tenant.pk)
    world.set(priority=7)
    claims.apply(world.tenant.pk, *first)
    ids = world.store(1)
    second = claims.claim(world.tenant.pk)
    assert second[0] == first[0] + 1
    claims.apply(world.tenant.pk, *second)
    assert claims.claim(world.tenant.pk) is None
    assert world.lives(ids) == [(0, 7)]


def test_a_long_walk_goes_on_pass_after_pass_until_all_follow(world, monkeypatch):
    ids = world.store(600)  # a large hash comes in pages
    monkeypatch.setattr(scan, "PAGE_ENTRIES", 50)
    monkeypatch.setattr(claims, "PASS_S", 0)
    world.set(priority=8)
    passes = 0
    while (claimed := claims.claim(world.tenant.pk)) is not None:
        assert claimed[1].blocks >= 50 * passes
        claims.apply(world.tenant.pk, *claimed)
        passes += 1
    assert passes > 3
    assert world.lives(ids) == [(0, 8)] * 600


def test_a_walk_that_was_not_finished_counts_for_nothing_after_another_change(world, monkeypatch):
    ids = world.store(600)
    monkeypatch.setattr(scan, "PAGE_ENTRIES", 50)
    monkeypatch.setattr(claims, "PASS_S", 0)
    world.set(priority=8)
    claims.apply(world.tenant.pk, *claims.claim(world.tenant.pk))
    world.set(priority=1)
    while (claimed := claims.claim(world.tenant.pk)) is not None:
        claims.apply(world.tenant.pk, *claimed)
    assert world.lives(ids) == [(0, 1)] * 600


def test_a_context_recorded_while_a_walk_goes_on_keeps_its_terms(world, monkeypatch):
    """The walk has read the contexts before this one came."""
    world.rule(label="long", overrides={"cold_ttl_s": DAY})
    ids = world.store(2)
    scan_tenant = stored.scan_tenant

    def record_first(*args):
        world.record("late", ids, label="long")
        return scan_tenant(*args)

    monkeypatch.setattr(stored, "scan_tenant", record_first)
    tasks.retain()
    assert world.lives(ids) == [(DAY, 5)] * 2


def test_changes_of_rules_are_audited(world):
    rule = world.rule(label="a", overrides={"priority": 1})
    change_rule(rule=rule, order=3, actor=ACTOR)
    remove_rule(rule=rule, actor=ACTOR)
    events = AuditEvent.unscoped.filter(object_type="retentionrule").order_by("pk")
    assert [event.action for event in events] == [
        *("retention.rule.add", "retention.rule.change", "retention.rule.remove"),
    ]
    assert (events[1].before["order"], events[1].after["order"]) == (0, 3)
    assert events[2].before["overrides"] == {"priority": 1}
    assert not RetentionRule.unscoped.exists()


WINDOWED = [PartGroup(PartKind.FULL, None, 16, 40), PartGroup(PartKind.WINDOW, 300, 16, 20)]


def windowed(world, chunks):
    """A chain of a space with a window, and its stored parts."""
    world.space.groups = [group.as_dict() for group in WINDOWED]
    world.space.save()
    chain = [os.urandom(16) for _ in range(chunks)]
    return chain, world.store_as(Parts(world.space).of(chain))


def test_a_context_gives_its_terms_to_all_parts_of_its_chunks(world):
    chain, parts = windowed(world, 3)
    world.rule(label="agent", overrides={"cold_ttl_s": HOUR})
    world.record("a", chain, label="agent")
    assert world.lives(parts) == [(HOUR, 5)] * 6
    world.set(priority=7)
    tasks.retain()  # a walk, which meets the parts one by one
    assert world.lives(parts) == [(HOUR, 7)] * 6
    context = world.record("a", chain, label="other")
    assert world.lives(parts) == [(0, 7)] * 6
    contexts.extend(context=context, for_s=DAY, actor=ACTOR)
    world.set(cold_ttl_s=HOUR)
    tasks.retain()
    assert [round(life / HOUR) for life, _ in world.lives(parts)] == [24] * 6
    contexts.delete(context=context, actor=ACTOR)
    assert world.lives(parts) == [(HOUR, 7)] * 6


def test_parts_are_found_pinned_and_resumable_after_a_rebuild(world, clean_hot):
    world.set(flush_mode="now")
    chain, parts = windowed(world, 3)
    context = world.record("a", chain, pin_s=HOUR)
    Flusher(world.tenant.pk).run()
    clean_hot.wipe()
    recovery.rebuild_all()
    found = residency_of(context)
    assert (found.cold, found.lost, found.usable_tokens, found.usable_hot_tokens) == (6, 0, 768, 0)
    assert all(place.pinned_until_s for place in world.tier.match(parts))


def test_an_expired_contexts_parts_do_not_come_back(world, clean_hot):
    world.set(flush_mode="now")
    chain, parts = windowed(world, 3)
    context = world.record("a", chain)
    world.record("b", chain[:1])
    Flusher(world.tenant.pk).run()
    assert expire(context=context, actor=ACTOR).removed == 4
    clean_hot.wipe()
    recovery.rebuild_all()
    answers = world.tier.match(parts)
    assert [isinstance(answer, MissReason) for answer in answers] == [False] * 2 + [True] * 4


def test_a_dry_run_counts_a_context_that_would_lose_a_part(world):
    chain, parts = windowed(world, 3)
    world.record("a", chain)
    world.tier.expire([part for part in parts if part not in parts[3:4]])  # one window part stays
    report = dry_run(world.tenant.pk, proposed_rulebook(world.tenant, policy={"max_age_s": 1}))
    deadline = timezone.now() + timedelta(seconds=10)
    while not report.removed_blocks and timezone.now() < deadline:  # it is a second old
        report = dry_run(world.tenant.pk, proposed_rulebook(world.tenant, policy={"max_age_s": 1}))
    assert (report.removed_blocks, report.contexts) == (1, 1)
