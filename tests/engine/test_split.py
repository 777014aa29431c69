"""Requests of an engine with a full attention group and a window or a state, over a store that may
lose either."""

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


STATES = [GROUPS[0], KvGroup(("state",), None, ENGINE_BLOCK, 1, PartKind.STATE)]
# A state's blocks lie anywhere in the table, and are others' by now.
STATE_TABLES = [list(range(1, 11)), [31, 0, 0, 32, 0, 0, 0, 0, 33, 34]]


def step(side, tokens, states=(), *, tables=STATE_TABLES, blocks=((), ()), request_id="r"):
    """The plan of a step that computes the request's tokens up to `tokens`."""
    return side.build_step(
        [(request_id, 0, tokens, blocks, False, False)],
        computes=True,
        tables=lambda _: tables,
        states={request_id: states},
    )


def saved_states(plan):
    return [(save.ids[0], save.engine_blocks) for save in plan.saves if save.group == 1]


def test_of_states_only_the_offered_are_saved_and_once(make, store):
    side = make(STATES)
    begin(side)
    assert answer(side) == 0
    assert saved_states(step(side, CHUNK)) == []
    offers = [(1, 77, 2 * CHUNK), (1, 78, 2 * CHUNK + ENGINE_BLOCK), (1, 79, 4 * CHUNK)]
    plan = step(side, 2 * CHUNK, offers)  # not the one inside a chunk, nor one that lies ahead
    assert saved_states(plan) == [(store.ids[1][1], (77,))]
    assert saved_states(step(side, 3 * CHUNK, [(1, 80, 2 * CHUNK)])) == []


def test_a_loaded_state_is_offered_again_and_not_saved_again(make, store):
    side = make(STATES)
    store.stored = {store.ids[0][0], store.ids[1][0], store.ids[1][1]}
    begin(side)
    assert answer(side) == 2 * CHUNK
    load = side.loads.plan("r", 2 * CHUNK, [STATE_TABLES[0], [0, 0, 0, 55]])
    assert [(block.group, block.ids[0], block.engine_blocks) for block in load.blocks] == [
        (0, store.ids[0][0], (1, 2)),
        (0, store.ids[1][0], (3, 4)),
        (1, store.ids[1][1], (55,)),
    ]
    note(side, loaded=["r"])
    counters = side.take_telemetry()["counters"]
    assert (counters["states"], counters["state_bytes"]) == ({"loaded": 1}, {"loaded": 1000})
    plan = step(side, 3 * CHUNK, [(1, 55, 2 * CHUNK), (1, 56, 3 * CHUNK)])
    assert saved_states(plan) == [(store.ids[2][1], (56,))]


def test_a_request_goes_on_from_the_last_stored_state_and_not_between(make, store):
    side = make(STATES)
    store.fill()
    store.stored -= {store.ids[2][1], store.ids[3][1]}
    begin(side)
    assert answer(side) == 2 * CHUNK
    assert answer(side, local_tokens=2 * CHUNK) == 0


def test_a_hit_inside_an_engine_block_is_left_to_the_engine(make, store):
    side = make(STATES)
    store.fill()
    begin(side)
    assert answer(side, local_tokens=CHUNK + 1) == 0


def test_states_are_kept_at_multiples_and_at_a_prompts_end(make, store):
    side = make(STATES, state_every_tokens=2 * CHUNK + 1)
    begin(side)
    assert answer(side) == 0
    plan = step(side, 4 * CHUNK, [(1, 40 + n, n * CHUNK) for n in (1, 2, 3, 4)])
    assert [block for _, block in saved_states(plan)] == [(43,), (44,)]


def test_the_canary_compares_kv_and_no_states(make, store):
    side = make(STATES, canary=1000)
    store.fill()
    begin(side, "canary")
    assert answer(side, "canary") == 0
    plan = step(side, len(TOKENS), [(1, 77, 4 * CHUNK)], request_id="canary")
    assert {save.group for save in plan.saves if save.stored} == {0}
    note(side, compared=[(save.ids[0], Verdict.SAME) for save in plan.saves])
    begin(side, "then")
    assert answer(side, "then") == 4 * CHUNK


def test_a_fence_is_asked_for_when_a_copied_block_changes_hands(make, store):
    """Not in every step: the engine would wait for copies that disturb nobody."""
    side = make(STATES, defers=True)
    begin(side)
    assert answer(side) == 0
    assert step(side, CHUNK, [(1, 77, CHUNK)], blocks=([1, 2], [77])).handed_on == set()
    assert step(side, CHUNK + 1, blocks=([3], [78])).handed_on == set()
    plan = step(side, CHUNK + 1, blocks=((), [77]), request_id="another")
    assert plan.handed_on == {77}
    assert not plan.fences
    assert step(side, CHUNK + 1, blocks=((), [77])).handed_on == set()  # copied by now
    step(side, 2 * CHUNK, [(1, 79, 2 * CHUNK)])
    begin(side, "loads")
    store.fill()
    assert answer(side, "loads") == 4 * CHUNK
    side.plan_load("loads", 4 * CHUNK, [STATE_TABLES[0], [0, 0, 0, 0, 0, 0, 0, 79]])
    assert side.build_step((), computes=False, tables=lambda _: None).handed_on == {79}
