"""What left the index, for readers that ask again and again."""

import time

import pytest

from neve.errors import MissReason
from neve.formats.keys import BucketKeys
from neve.index.library import load_functions
from neve.index.tier import BlockTerms, HotTier, RestoredBlock, Tier
from support.servers import ValkeyServer

pytestmark = pytest.mark.integration

TENANT, SPACE, OTHER, BUCKETS = 7, 3, 4, 2
BLOCK = b"x" * 100
KEPT = 20_000  # tombstones of a bucket


class World:
    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.client = server.client()
        self.begin(blocks=1000)

    def begin(self, *, blocks: int) -> None:
        load_functions(self.client)
        self.tier = HotTier(self.client.execute_command, TENANT, BUCKETS)
        self.tier.set_policy(
            hot_bytes=blocks * BUCKETS * len(BLOCK),
            cold_bytes=0,
            terms=BlockTerms(flush_after_s=None),
        )

    def store(self, *ids: bytes, space: int = SPACE) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                keys = BucketKeys(TENANT, int.from_bytes(id_[:4], "big") % BUCKETS)
                pipe.set(keys.block(space, id_), BLOCK, px=60_000)
            pipe.execute()
        self.tier.commit(space, [(id_, len(BLOCK), 16) for id_ in ids])


def ids_of(count: int, *, seed: int = 0) -> list[bytes]:
    """Spread over both buckets."""
    return [n.to_bytes(4, "big") + seed.to_bytes(12, "big") for n in range(count)]


@pytest.fixture
def world(clean_hot):
    world = World(clean_hot)
    yield world
    world.client.close()


def test_each_way_to_leave_is_told_once_and_in_one_space_only(world):
    expired, lost, evicted = ids_of(40, seed=1), ids_of(40, seed=2), ids_of(40, seed=3)
    world.store(*evicted, *expired, *lost)
    world.store(*ids_of(5, seed=4), space=OTHER)
    begun = world.tier.removals(SPACE)
    assert (begun.ids, begun.is_reset) == ([], False)
    world.tier.expire([*expired, *ids_of(5, seed=4)])
    world.tier.forget(Tier.HOT, lost)
    world.tier.evict(10**6)
    found = world.tier.removals(SPACE, begun.marks)
    assert sorted(found.ids) == sorted(expired + lost + evicted)
    assert not found.is_reset
    assert world.tier.removals(SPACE, found.marks).ids == []
    assert sorted(world.tier.removals(OTHER, begun.marks).ids) == ids_of(5, seed=4)


def test_blocks_stored_again_are_not_told(world):
    ids = ids_of(4)
    world.store(*ids)
    begun = world.tier.removals(SPACE)
    world.tier.expire(ids)
    world.store(ids[1])
    assert sorted(world.tier.removals(SPACE, begun.marks).ids) == [ids[0], *ids[2:]]


def test_a_rebuild_keeps_telling_of_what_it_does_not_restore(world):
    back, ended = ids_of(2)
    world.store(back, ended)
    begun = world.tier.removals(SPACE)
    world.tier.evict(10**6)
    assert sorted(world.tier.removals(SPACE, begun.marks).ids) == [back, ended]
    world.tier.set_policy(hot_bytes=10_000, cold_bytes=10_000, terms=BlockTerms(flush_after_s=None))
    now_s = int(time.time())
    rows = [
        RestoredBlock(id_, len(BLOCK), 16, 64, stored_s=now_s, expires_s=expires_s)
        for id_, expires_s in ((back, 0), (ended, 1))
    ]
    world.tier.open_segment(1)
    assert world.tier.restore(1, SPACE, rows) == 1
    found = world.tier.removals(SPACE, begun.marks)
    assert (found.ids, found.is_reset) == ([ended], False)
    assert world.tier.match([ended]) == [MissReason.EVICTED]


def test_pages_lose_nothing_although_one_call_removes_many_at_once(world):
    ids = ids_of(300)
    world.store(*ids)
    begun = world.tier.removals(SPACE)
    for first in range(0, 300, 100):
        world.tier.expire(ids[first : first + 100])
    seen, marks = [], begun.marks
    while page := world.tier.removals(SPACE, marks, most=30).ids:
        found = world.tier.removals(SPACE, marks, most=30)
        assert found.ids == page
        assert len(page) <= BUCKETS * (30 + 50)
        seen, marks = seen + page, found.marks
    assert sorted(seen) == ids


def test_whoever_comes_too_late_is_told_so(world):
    world.begin(blocks=KEPT)
    first, most = ids_of(4), ids_of(2 * KEPT + 100, seed=1)
    world.store(*first)
    begun = world.tier.removals(SPACE)
    world.tier.expire(first)
    read = world.tier.removals(SPACE, begun.marks)
    for at in range(0, len(most), 2000):
        world.store(*most[at : at + 2000])
        world.tier.expire(most[at : at + 2000])
    assert world.tier.removals(SPACE, begun.marks).is_reset
    late = world.tier.removals(SPACE, read.marks)
    assert late.is_reset
    assert late.ids == []
    assert not world.tier.removals(SPACE, late.marks).is_reset


def test_a_server_that_starts_anew_does_not_claim_to_know_what_left(world):
    world.store(*ids_of(4))
    begun = world.tier.removals(SPACE)
    world.server.restart()
    world.begin(blocks=1000)
    again = world.tier.removals(SPACE, begun.marks)
    assert again.is_reset
    assert not world.tier.removals(SPACE, again.marks).is_reset


@pytest.mark.parametrize("harm", ["wiped", "mended", "discarded", "clock"])
def test_lost_books_and_a_clock_set_back_are_told(world, harm):
    world.store(*ids_of(4))
    marks = world.tier.removals(SPACE).marks
    keys = BucketKeys(TENANT, 0)
    if harm == "wiped":
        world.client.unlink(*keys.all_bookkeeping)
    elif harm == "mended":
        world.client.execute_command("SET", keys.pins, "no zset")
        world.client.execute_command("FCALL", "neve_mend", 7, *keys.arguments)
    elif harm == "discarded":
        world.client.hset(keys.bookkeeping[0], ids_of(1)[0], b"no entry")
        world.client.execute_command("FCALL", "neve_discard", 7, *keys.arguments, ids_of(1)[0])
    else:
        marks = tuple(mark + 10**9 for mark in marks)
    assert world.tier.removals(SPACE, marks).is_reset
    world.server.wipe()


def test_another_number_of_buckets_is_a_reset(world):
    assert world.tier.removals(SPACE, (1, 2, 3)).is_reset
