"""Requests of an engine with a full attention group and a window, over a store that may lose
either."""

import pytest

from neve.datapath.client import Match
from neve.engine.canary import Verdict
from neve.engine.groups import KvGroup
from neve.engine.handover import Prefilled
from neve.engine.params import RequestParams
from neve.engine.step import NewRequest, WorkerReport
from neve.errors import MissReason, Unavailable
from neve.formats.ids import BlockHasher
from neve.formats.parts import PartKind
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from support.engine_side import (
    CHUNK,
    ENGINE_BLOCK,
    TOKENS,
    answer,
    begin,
    counted,
    end,
    note,
    side_over,
)  # fmt: skip

GROUPS = [
    KvGroup(("full",), None, ENGINE_BLOCK, 0),
    KvGroup(("window",), 33, ENGINE_BLOCK, 1, PartKind.WINDOW),
]
# As the engine's tables: no reader at the end sees more of the window than its last block.
TABLES = [list(range(1, 11)), [0, 21, 0, 22, 0, 23, 0, 24, 0, 25]]


class Store:
    """A link and its client in one."""

    def __init__(self):
        self.hasher = BlockHasher(b"f" * 32, CHUNK)
        chain = self.hasher.chain(TOKENS, parent=self.hasher.root())
        self.ids = [self.hasher.of_groups(id_, 2) for id_ in chain]
        self.stored = set()
        self.stats = Stats()
        self.trouble = None

    @property
    def client(self):
        return self

    def release(self):
        pass

    def match_again(self, ids, *, deadline_s):
        found = self.locate_again(ids, deadline_s=deadline_s)
        count = next((n for n, at in enumerate(found) if isinstance(at, MissReason)), len(found))
        return Match(found[:count], None if count == len(found) else found[count])

    def locate_again(self, ids, *, deadline_s):
        if self.trouble is not None:
            raise self.trouble
        at = Location(Tier.HOT, 1064)
        return [at if each in self.stored else MissReason.NEVER_STORED for each in ids]

    def fill(self):
        self.stored = {each for ids in self.ids for each in ids}


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def make(store):
    made = []

    def side(groups=GROUPS, **options):
        made.append(side_over([store], groups=groups, **options))
        return made[-1]

    yield side
    for each in made:
        each.close()


def test_a_decode_node_does_not_wait_for_a_chunk_that_it_computes_anyway(make, store):
    """The prompt ends with a chunk, so its last chunk is computed."""
    side = make(handover_wait_s=1000.0)
    store.fill()
    prefilled = Prefilled(4 * CHUNK, store.ids[3][0])
    begin(side, tokens=TOKENS[: 4 * CHUNK], params=RequestParams(prefilled=prefilled))
    assert answer(side) == 3 * CHUNK
    assert counted(side, "handovers") == {"complete": 1}


def test_a_prompt_of_one_chunk_waits_for_nothing(make, store):
    side = make(handover_wait_s=1000.0)
    prefilled = Prefilled(CHUNK, store.ids[0][0])
    begin(side, tokens=TOKENS[:CHUNK], params=RequestParams(prefilled=prefilled))
    assert answer(side) == 0
    assert counted(side, "handovers") == {"complete": 1}


def test_a_prefill_node_names_the_last_chunk_that_a_decode_node_can_go_on_from(make, store):
    side = make()
    begin(side, params=RequestParams(hands_over=True))
    assert answer(side) == 0
    side.saves.plan("r", len(TOKENS), TABLES)
    note(side, unsaved=[store.ids[3][1]])  # the last window
    assert end(side)["prefilled"] == Prefilled(3 * CHUNK, store.ids[2][0]).as_param()


def test_a_load_that_cannot_be_planned_is_not_tried_again(make, store):
    side = make()
    store.fill()
    begin(side)
    assert answer(side) == 4 * CHUNK
    side.plan_load("r", 4 * CHUNK, [TABLES[0], [0] * 10])
    (load,) = side.build_step((), computes=False, tables=lambda _: None).loads
    assert load.whole
    side.note_results(WorkerReport(), failed_blocks=(), loaded=["r"], failed_requests=["r"])
    assert answer(side) == 0


def test_nothing_is_loaded_before_each_group_was_compared(make, store):
    side = make(canary=1000)
    store.fill()
    begin(side, "canary")
    assert answer(side, "canary") == 0
    saves = side.saves.plan("canary", len(TOKENS), TABLES)
    assert {save.group for save in saves if save.stored} == {0, 1}
    note(side, compared=[(save.ids[0], Verdict.SAME) for save in saves if save.group == 0])
    begin(side, "between")
    assert answer(side, "between") == 0
    note(side, compared=[(save.ids[0], Verdict.SAME) for save in saves if save.group == 1])
    begin(side, "then")
    assert answer(side, "then") == 4 * CHUNK


def test_a_group_that_was_not_compared_is_made_up_for(make, store):
    side = make(canary=1000)
    store.fill()
    begin(side, "canary")
    assert answer(side, "canary") == 0
    saves = side.saves.plan("canary", len(TOKENS), [TABLES[0], [0] * 10])
    assert {save.group for save in saves} == {0}
    note(side, compared=[(save.ids[0], Verdict.SAME) for save in saves])
    begin(side, "again")
    assert answer(side, "again") == 0
    saves = side.saves.plan("again", len(TOKENS), TABLES)
    assert {save.group for save in saves} == {0, 1}


def test_routers_hear_of_a_chunk_once_and_not_of_its_window(make, store):
    side = make([GROUPS[0], KvGroup(("window",), CHUNK + 1, ENGINE_BLOCK, 1, PartKind.WINDOW)])
    side._events._parts, side._events._is_paused = 1, False
    hashes = [bytes([n]) for n in range(len(TOKENS) // ENGINE_BLOCK)]
    side.begin(NewRequest("r", TOKENS, len(TOKENS), engine_hashes=lambda: hashes))
    assert answer(side) == 0
    tables = [range(1, 11), range(11, 21)]
    scheduled = [("r", 0, len(TOKENS), tables, True, False)]
    step = side.build_step(scheduled, computes=True, tables=lambda _: tables)
    note(side, stored=[save.ids[0] for save in step.saves])
    chunks = [tuple(hashes[2 * n : 2 * n + 2]) for n in range(4)]
    assert [event.hashes for event in side.take_events()] == chunks
    note(side, unsaved=[store.ids[0][1]])
    assert side.take_events() == []


def test_what_is_loaded_of_a_whole_prompt_was_asked_for_and_nothing_missed(make, store):
    """The last chunk is computed anyway."""
    side = make()
    store.fill()
    begin(side, tokens=TOKENS[: 4 * CHUNK])
    assert answer(side) == 3 * CHUNK
    load = side.loads.plan("r", 3 * CHUNK, TABLES)
    counts = store.stats.totals()
    assert counts.counters["requested_blocks"] == len(load.blocks) == 3 + 1
    assert counts.misses == {}


def test_a_store_in_trouble_has_lost_nothing(make, store):
    side = make()
    begin(side)
    assert answer(side) == 0
    side.saves.plan("r", len(TOKENS), TABLES)
    store.trouble = Unavailable("away")
    begin(side, "next")
    assert answer(side, "next") == 0
    assert side._table.stored.take_lost() == []
    assert store.stats.totals().misses == {"never_stored": 5, "timeout": 5}


def test_windows_that_were_not_asked_for_are_not_lost(make, store, monkeypatch):
    monkeypatch.setattr("neve.engine.lookups.CALL_IDS", 2)
    side = make()
    begin(side)
    assert answer(side) == 0
    side.saves.plan("r", len(TOKENS), TABLES)
    store.fill()
    begin(side, "next")
    assert answer(side, "next") == 4 * CHUNK
    assert side._table.stored.take_lost() == []
