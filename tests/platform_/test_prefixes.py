"""The prefix tree of a space by bytes, and the contexts that a prefix names."""

import os
from datetime import timedelta

import pytest
from django.utils import timezone

from base.problems import Problem
from catalog.models import Context, Slice
from contexts import choosing, prefixes
from support.rows import make_context
from support.tenant_world import SIZE, World
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def world(clean_hot):
    return World(flush_mode="never")


def ids(count):
    return [os.urandom(16) for _ in range(count)]


def shown(node):
    return (node.name, node.contexts, node.own.blocks, node.total.stored_bytes // SIZE)


def test_a_prefix_has_its_own_bytes_and_those_of_all_that_continues_it(world):
    system, tools = world.store(4), world.store(2)
    world.record("system", system)
    world.record("agent-1", system + tools + world.store(3))
    world.record("agent-2", system + tools + world.store(1))
    world.record("alone", world.store(5))
    root = prefixes.tree(world.space).root
    assert shown(root) == ("space", 4, 0, 15)
    head, alone = root.children
    assert shown(head) == ("system", 3, 4, 10)
    assert shown(alone) == ("alone", 1, 5, 5)
    (agents,) = head.children
    assert shown(agents) == ("agent-…", 2, 2, 6)
    assert [shown(child) for child in agents.children] == [
        ("agent-1", 1, 3, 3),
        ("agent-2", 1, 1, 1),
    ]
    assert (agents.tokens, agents.children[0].tokens) == (6 * 256, 9 * 256)


def test_its_contexts_are_chosen_by_its_key(world):
    system = world.store(4)
    world.record("system", system)
    one = world.record("agent-1", system + world.store(3))
    world.record("alone", world.store(5))
    rows = Context.unscoped.filter(space=world.space)
    for node in prefixes.tree(world.space).root.walk():
        if node.key:
            assert choosing.under(rows, node.key).count() == node.contexts
    key = prefixes.key_of(one.ids()[5], 6)
    assert [each.name for each in choosing.under(rows, key)] == ["agent-1"]
    for wrong in ("", "4", "0-" + "0" * 32, "4-zz", "4-" + "0" * 31):
        with pytest.raises(Problem, match="under"):
            choosing.under(rows, wrong)


def test_lost_blocks_are_drawn_at_the_size_that_others_have(world):
    world.record("whole", world.store(3))
    lost = world.store(4)
    world.record("holes", lost)
    world.tier.expire(lost[1:])
    holes = next(c for c in prefixes.tree(world.space).root.children if c.name == "holes")
    assert holes.own.stored_bytes == SIZE
    assert holes.own.lost_bytes == 3 * SIZE


def test_nothing_stored_and_no_context_are_trees_too(world):
    assert prefixes.tree(world.space).root.contexts == 0
    make_context(world.space, "expected", ids(3))
    root = prefixes.tree(world.space).root
    assert (root.total.stored_bytes, root.total.blocks) == (0, 3)


def test_the_smallest_are_counted_as_the_rest(world, monkeypatch):
    monkeypatch.setattr(prefixes, "MOST_NODES", 2)
    for n in range(1, 6):
        world.record(f"c-{n}", world.store(n))
    root = prefixes.tree(world.space).root
    assert [child.name for child in root.children] == ["c-5", "c-4"]
    assert (root.rest_contexts, root.rest.stored_bytes) == (3, 6 * SIZE)
    assert root.total.stored_bytes == 15 * SIZE


def test_a_sample_keeps_blocks_exact_and_says_that_bytes_are_estimated(world, monkeypatch):
    monkeypatch.setattr(prefixes, "MOST_ASKED", 20)
    system = world.store(20)
    for n in range(4):
        world.record(f"c-{n}", system + world.store(20))
    found = prefixes.tree(world.space)
    assert found.is_estimate
    assert found.root.total.blocks == 100
    assert found.root.total.stored_bytes == pytest.approx(100 * SIZE)


def test_pins_and_uses_are_those_of_all_contexts_below(world):
    system = world.store(2)
    world.record("a", system + world.store(1))
    world.record("b", system + world.store(1))
    ends, used = timezone.now() + timedelta(days=2), timezone.now() - timedelta(days=9)
    Context.unscoped.update(last_used_at=used)
    Context.unscoped.filter(name="a").update(pinned_until=ends)
    (head,) = prefixes.tree(world.space).root.children
    assert (head.pinned, head.pinned_until, head.used_at) == (1, ends, used)


def test_each_context_knows_with_whom_it_shares(world):
    system, tools = world.store(4), world.store(2)
    a = world.record("a", system + tools + world.store(1))
    b = world.record("b", system + tools + world.store(1))
    c = world.record("c", system + world.store(1))
    alone = world.record("alone", world.store(1))
    order = prefixes.tree(world.space).order
    assert order.sharers(a.pk, 10) == [(b.pk, 6), (c.pk, 4)]
    assert {pk for pk, _ in order.sharers(c.pk, 10)} == {a.pk, b.pk}
    assert order.sharers(alone.pk, 10) == []
    assert [order.own_from(each.pk) for each in (a, b, c, alone)] == [6, 6, 4, 0]
    assert [order.sharing(each.pk) for each in (a, b, c, alone)] == [2, 2, 2, 0]


def test_a_tree_survives_its_cache(world):
    system = world.store(2)
    world.record("a", system + world.store(1))
    world.record("b", system + world.store(1), pin_s=60)
    root = prefixes.tree(world.space).root
    assert prefixes.from_json(prefixes.as_json(root)) == root


def test_hits_of_the_last_day_add_up_towards_the_root(world):
    system = world.store(2)
    for name in "ab":
        world.record(name, system + world.store(1))
    now = int(timezone.now().timestamp()) // 600 * 600
    with tenant_scope(world.tenant.pk):
        for name, at, tokens in (("a", now, 500), ("a", now - 600, 20), ("b", now - 90_000, 7)):
            Slice.objects.create(
                **{"kind": "context", "resolution_s": 600, "bucket_ts": at, "name": name},
                **{"space_number": world.space.pk, "hit_tokens": tokens},
            )
    (head,) = prefixes.tree(world.space).root.children
    assert head.hit_tokens == 520
    assert sorted(child.hit_tokens for child in head.children) == [0, 520]
