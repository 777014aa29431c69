"""Objects of any size as blocks, over a real Valkey; leases of what look-ups found."""

import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from neve.datapath.client import Client
from neve.engine import objects
from neve.engine.objects import (
    LEASE_S,
    STRIPE_BYTES,
    Found,
    Leases,
    ObjectRef,
    find_objects,
    load_objects,
    store_objects,
)
from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES, decode_header
from neve.index.tier import Location, Tier
from support.cache_endpoint import CacheEndpoint
from support.chains import PATIENCE_S, connect, provision
from support.engine_side import Clock
from support.servers import ValkeyServer

SIZES = (1, 64, 5000, STRIPE_BYTES, STRIPE_BYTES + 1, 2 * STRIPE_BYTES + 4097)
DEADLINE = {"deadline_s": PATIENCE_S}


@pytest.fixture
def client(clean_hot: ValkeyServer) -> Iterator[Client]:
    provision(clean_hot)
    with CacheEndpoint(f"127.0.0.1:{clean_hot.port}") as endpoint, connect(endpoint) as client:
        yield client


def ask(call, *args, **options):
    """What `call` gives to its `done`."""
    answers, is_done = [], threading.Event()

    def done(outcomes):
        answers.extend(outcomes)
        is_done.set()

    call(*args, done=done, **options)
    assert is_done.wait(60)
    return answers


def refs_of(sizes, tokens=256):
    return [ObjectRef(bytes([n]) * 32, size, tokens) for n, size in enumerate(sizes)]


def data(sizes):
    random = np.random.default_rng(3)
    return [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]


def store(client, refs, sent, before=None):
    return ask(store_objects, client, refs, sent, before=before or [None] * len(refs), **DEADLINE)


@pytest.mark.integration
def test_objects_of_all_sizes_come_back(client):
    refs, sent = refs_of(SIZES), data(SIZES)
    assert store(client, refs, sent) == [None] * len(SIZES)
    places = ask(find_objects, client, refs, **DEADLINE)
    assert [len(each.places) for each in places] == [1, 1, 1, 1, 2, 3]
    back = [np.zeros_like(each) for each in sent]
    assert ask(load_objects, client, refs, back, places, **DEADLINE) == [None] * len(SIZES)
    for mine, theirs in zip(back, sent, strict=True):
        assert (mine == theirs).all()
    counted = client.stats.totals().counters
    assert counted["hit_hot_tokens"] == counted["requested_tokens"] == 256 * len(SIZES)


@pytest.mark.integration
def test_an_object_is_found_if_all_its_stripes_are(client, clean_hot):
    refs, sent = refs_of([3 * STRIPE_BYTES] * 3), data([3 * STRIPE_BYTES] * 3)
    store(client, refs[:2], sent[:2])
    client.forget([refs[0].ids(client)[1]])
    found = ask(find_objects, client, refs, **DEADLINE)
    assert found[0] is MissReason.CORRUPT
    assert len(found[1].ids) == 3
    assert found[2] is MissReason.NEVER_STORED


@pytest.mark.integration
def test_a_size_is_part_of_the_key(client):
    refs, sent = refs_of([100]), data([100])
    store(client, refs, sent)
    other = [ObjectRef(refs[0].key, 101)]
    assert ask(find_objects, client, other, **DEADLINE) == [MissReason.NEVER_STORED]


@pytest.mark.integration
def test_stripes_follow_each_other_and_the_object_before(client, clean_hot):
    refs, sent = refs_of([2 * STRIPE_BYTES] * 2), data([2 * STRIPE_BYTES] * 2)
    store(client, refs, sent, before=[None, refs[0]])
    (first, second), (third, fourth) = (ref.ids(client) for ref in refs)
    with clean_hot.client() as valkey:
        heads = [decode_header(valkey.getrange(key, 0, HEADER_BYTES - 1)) for key in
                 valkey.keys("*:b:*")]  # fmt: skip
    parents = {head.id: head.parent for head in heads}
    assert parents == {
        first: client.hasher.root(), second: first, third: second, fourth: third,
    }  # fmt: skip
    assert sum(head.tokens for head in heads) == 2 * 256


@pytest.mark.integration
def test_without_storage_all_are_missed(client, clean_hot):
    clean_hot.kill()
    try:
        refs, sent = refs_of([100] * 2), data([100] * 2)
        troubles = {MissReason.BREAKER, MissReason.TIMEOUT}
        assert set(ask(find_objects, client, refs, **DEADLINE)) <= troubles
        assert set(store(client, refs, sent)) <= troubles
        places = [Found(ref.ids(client), [Location(Tier.HOT, HEADER_BYTES + 100)]) for ref in refs]
        assert set(ask(load_objects, client, refs, sent, places, **DEADLINE)) <= troubles
    finally:
        clean_hot.restart()


@pytest.mark.parametrize(
    "size", [1, STRIPE_BYTES - 1, STRIPE_BYTES, STRIPE_BYTES + 1, 10 * STRIPE_BYTES]
)
def test_stripes_cover_an_object_once(size):
    spans = ObjectRef(bytes(32), size).spans()
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(end == first for (_, end), (first, _) in pairwise(spans))
    assert all(0 < end - first <= STRIPE_BYTES for first, end in spans)


@pytest.mark.parametrize(("size", "tokens"), [(1, 256), (3 * STRIPE_BYTES, 256), (5, 0)])
def test_the_tokens_of_the_stripes_are_the_objects(size, tokens):
    assert sum(ObjectRef(bytes(32), size, tokens).stripe_tokens()) == tokens


class TestLeases:
    FOUND = Found([bytes(16)], [Location(Tier.HOT, 164)])
    REF = ObjectRef(bytes(32), 100)

    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def leases(self, clock):
        return Leases(clock.monotonic)

    def test_a_lease_ends_when_all_holders_gave_it_back(self, leases):
        leases.take([("a", self.REF, self.FOUND)])
        leases.take([("a", self.REF, self.FOUND)])
        leases.give_back("a")
        assert leases.of([("a", self.REF)]) == [self.FOUND]
        leases.give_back("a")
        assert leases.of([("a", self.REF)]) == [None]
        leases.give_back("a")

    def test_a_lease_ends_by_itself(self, leases, clock):
        leases.take([("a", self.REF, self.FOUND)])
        clock.now += LEASE_S - 1
        leases.take([("b", self.REF, self.FOUND)])
        assert leases.of([("a", self.REF)]) == [self.FOUND]
        clock.now += 2
        assert leases.of([("a", self.REF)]) == [None]
        assert len(leases) == 1

    def test_it_is_of_one_object(self, leases):
        leases.take([("a", self.REF, self.FOUND)])
        other = ObjectRef(bytes(32), 101)
        assert leases.of([("a", other), ("a", self.REF)]) == [None, self.FOUND]

    def test_there_is_a_bound(self, leases, monkeypatch):
        monkeypatch.setattr(objects, "MOST_LEASES", 2)
        leases.take([(name, self.REF, self.FOUND) for name in "abc"])
        assert leases.of([("a", self.REF)]) == [None]
        assert len(leases) == 2
