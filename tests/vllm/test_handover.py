"""Prefill here, decode there: the planner of either side, over a stand-in for the store."""

import time

import pytest

from neve.datapath.client import Match
from neve.engine.chains import Origin
from neve.engine.handover import Prefilled
from neve.engine.load_policy import LEAST_DEADLINE_S, LoadPolicy
from neve.engine.params import RequestParams
from neve.engine.planner import Planner
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import Stats

CHUNK, ENGINE_BLOCK = 64, 32
TOKENS = [7 * i % 251 for i in range(300)]
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
    """Makes planners over `store`."""
    made = []

    def planner(*, wait_s=1000.0, **role):
        telemetry = Telemetry()
        made.append(
            Planner(
                [store],
                engine_block_tokens=ENGINE_BLOCK,
                match_deadline_s=5,
                judge=LoadPolicy(telemetry, load_deadline_s=2.0),
                telemetry=telemetry,
                handover_wait_s=wait_s,
                **role,
            )
        )
        return made[-1]

    yield planner
    for each in made:
        each.close()


def answer(planner, request_id="r", local_tokens=0):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        tokens = planner.matched_tokens(request_id, local_tokens)
        planner.end_step()
        if tokens is not None:
            return tokens
    raise AssertionError("no answer")


def outcomes(planner):
    return planner._telemetry.take()["counters"].get("handovers", {})


def decode(planner, store, chunks=4, **changed):
    prefilled = Prefilled(**{"tokens": chunks * CHUNK, "block": store.ids[chunks - 1]} | changed)
    planner.add("r", TOKENS, Origin(), RequestParams(prefilled=prefilled))


def test_named_blocks_that_are_still_on_their_way_are_waited_for(make, store):
    planner = make(saves=False)
    store.stored = set(store.ids[:1])
    decode(planner, store)
    store.comes_at = 3
    assert answer(planner) == 256
    assert (store.matches, store.counted) == (4, 1)
    assert len(planner._telemetry.take()["samples"]["match_seconds"]) == 1


def test_how_a_wait_ended_is_counted(make, store):
    planner = make()
    store.stored = set(store.ids)
    decode(planner, store)
    assert answer(planner) == 256
    assert outcomes(planner) == {"complete": 1}


def test_the_wait_ends_and_what_came_is_used(make, store):
    planner = make(wait_s=0.05)
    store.stored = set(store.ids[:2])
    decode(planner, store)
    assert answer(planner) == 128
    assert outcomes(planner) == {"late": 1}
    matches = store.matches
    assert answer(planner) == 128
    assert store.matches == matches


def test_nobody_waits_longer_than_computing_takes(make, store):
    planner = make()
    for step in range(10):
        planner._judge._steps.begin(step, [(0, 300)])
        planner._judge._steps.end(step, 0.01)
    decode(planner, store)
    begin = time.monotonic()
    assert answer(planner) == 0
    assert time.monotonic() - begin >= LEAST_DEADLINE_S  # and not for ever


@pytest.mark.parametrize(
    "strange",
    [{"block": bytes(16)}, {"tokens": 1 << 20}, {"tokens": 10}, {"tokens": 128}],
)
def test_blocks_of_another_chain_are_not_waited_for(make, store, strange):
    planner = make()
    decode(planner, store, **strange)
    assert answer(planner) == 0
    assert (store.matches, store.counted) == (2, 1)
    assert outcomes(planner) == {"strange": 1}


def test_a_store_in_trouble_is_not_waited_for(make, store):
    planner = make()
    store.miss = MissReason.BREAKER
    decode(planner, store)
    assert answer(planner) == 0
    assert outcomes(planner) == {"late": 1}


def test_blocks_that_the_engine_has_itself_need_not_come(make, store):
    planner = make()
    decode(planner, store, chunks=2)
    assert answer(planner, local_tokens=128) == 0
    assert outcomes(planner) == {"complete": 1}


def test_a_producer_loads_nothing_and_sends_what_is_missing(make, store):
    planner = make(loads=False)
    store.stored = set(store.ids[:2])
    planner.add("r", TOKENS, Origin(), HANDS_OVER)
    assert answer(planner) == 0
    saves = planner.plan_saves("r", 300, range(10))
    assert [save.engine_blocks for save in saves] == [(4, 5), (6, 7)]
    ended = planner.end("r")
    assert [ids[0] for ids in ended.ids] == store.ids[:4]


def test_a_consumer_loads_and_saves_nothing(make, store):
    planner = make(saves=False)
    store.stored = set(store.ids)
    planner.add("r", TOKENS, Origin(), None)
    assert answer(planner) == 256
    assert planner.plan_saves("r", 300, range(10)) == []


@pytest.mark.parametrize("role", [{"loads": False}, {}])
def test_what_was_evicted_is_sent_again_though_the_engine_has_it_all(make, store, role):
    planner = make(**role)
    for name in ("first", "second"):
        planner.add(name, TOKENS, Origin(), HANDS_OVER)
        local_tokens = 0 if name == "first" else 288
        assert answer(planner, name, local_tokens) == 0
        assert len(planner.plan_saves(name, 300, range(10))) == 4
        assert len(planner.end(name).ids) == 4
