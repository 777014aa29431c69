"""Prefill here, decode there: the scheduler side of either engine, over a stand-in store."""

import time

import pytest

from neve.datapath.client import Match
from neve.engine.handover import Prefilled
from neve.engine.load_policy import LEAST_DEADLINE_S
from neve.engine.params import RequestParams
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from support.engine_side import CHUNK, TOKENS, answer, begin, counted, end, side_over

HANDS_OVER = RequestParams(hands_over=True)


class Store:
    """A link and its client in one."""

    stats = Stats()

    def __init__(self):
        self.hasher = BlockHasher(b"f" * 32, CHUNK)
        self.ids = self.hasher.chain(TOKENS, parent=self.hasher.root())
        self.stored = set()
        self.miss = MissReason.NEVER_STORED
        self.matches = self.counted = 0
        self.comes_at = None  # the match from which on all blocks are there

    @property
    def client(self):
        return self

    def release(self):
        pass

    def match(self, ids, *, deadline_s):
        self.counted += 1
        return self.match_again(ids, deadline_s=deadline_s)

    def match_again(self, ids, *, deadline_s):
        self.matches += 1
        if self.matches == self.comes_at:
            self.stored = set(self.ids)
        found = []
        for block_id in ids:
            if block_id not in self.stored:
                return Match(found, self.miss)
            found.append(Location(Tier.HOT, 1064))
        return Match(found, None)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def make(store):
    """Makes scheduler sides over `store`."""
    made = []

    def side(*, wait_s=1000.0, **role):
        made.append(side_over([store], match_deadline_s=30, handover_wait_s=wait_s, **role))
        return made[-1]

    yield side
    for each in made:
        each.close()


def outcomes(side):
    return counted(side, "handovers")


def decode(side, store, chunks=4, **changed):
    prefilled = Prefilled(**{"tokens": chunks * CHUNK, "block": store.ids[chunks - 1]} | changed)
    begin(side, params=RequestParams(prefilled=prefilled))


def test_named_blocks_that_are_still_on_their_way_are_waited_for(make, store):
    side = make(saves=False)
    store.stored = set(store.ids[:1])
    decode(side, store)
    store.comes_at = 3
    assert answer(side) == 256
    assert (store.matches, store.counted) == (4, 1)
    assert len(side.take_telemetry()["samples"]["match_seconds"]) == 1


def test_how_a_wait_ended_is_counted(make, store):
    side = make()
    store.stored = set(store.ids)
    decode(side, store)
    assert answer(side) == 256
    assert outcomes(side) == {"complete": 1}


def test_the_wait_ends_and_what_came_is_used(make, store):
    side = make(wait_s=0.05)
    store.stored = set(store.ids[:2])
    decode(side, store)
    assert answer(side) == 128
    assert outcomes(side) == {"late": 1}
    matches = store.matches
    assert answer(side) == 128
    assert store.matches == matches


def test_nobody_waits_longer_than_computing_takes(make, store):
    side = make()
    for step in range(10):
        side._policy._steps.begin(step, [(0, 300)])
        side._policy._steps.end(step, 0.01)
    decode(side, store)
    started = time.monotonic()
    assert answer(side) == 0
    assert time.monotonic() - started >= LEAST_DEADLINE_S  # and not for ever


@pytest.mark.parametrize(
    "strange",
    [{"block": bytes(16)}, {"tokens": 1 << 20}, {"tokens": 10}, {"tokens": 128}],
)
def test_blocks_of_another_chain_are_not_waited_for(make, store, strange):
    side = make()
    decode(side, store, **strange)
    assert answer(side) == 0
    assert (store.matches, store.counted) == (2, 1)
    assert outcomes(side) == {"strange": 1}


def test_a_store_in_trouble_is_not_waited_for(make, store):
    side = make()
    store.miss = MissReason.BREAKER
    decode(side, store)
    assert answer(side) == 0
    assert outcomes(side) == {"late": 1}


def test_blocks_that_the_engine_has_itself_need_not_come(make, store):
    side = make()
    decode(side, store, chunks=2)
    assert answer(side, local_tokens=128) == 0
    assert outcomes(side) == {"complete": 1}


def test_a_producer_loads_nothing_and_sends_what_is_missing(make, store):
    side = make(loads=False)
    store.stored = set(store.ids[:2])
    begin(side, params=HANDS_OVER)
    assert answer(side) == 0
    saves = side.saves.plan("r", 300, [range(10)])
    assert [save.engine_blocks for save in saves] == [(4, 5), (6, 7)]
    assert end(side)["prefilled"] == Prefilled(4 * CHUNK, store.ids[3]).as_param()


def test_a_consumer_loads_and_saves_nothing(make, store):
    side = make(saves=False)
    store.stored = set(store.ids)
    begin(side)
    assert answer(side) == 256
    assert side.saves.plan("r", 300, [range(10)]) == []


@pytest.mark.parametrize("role", [{"loads": False}, {}])
def test_what_was_evicted_is_sent_again_though_the_engine_has_it_all(make, store, role):
    side = make(**role)
    for name in ("first", "second"):
        begin(side, name, params=HANDS_OVER)
        local_tokens = 0 if name == "first" else 288
        assert answer(side, name, local_tokens) == 0
        assert len(side.saves.plan(name, 300, [range(10)])) == 4
        assert end(side, name)["prefilled"]["tokens"] == 4 * CHUNK
