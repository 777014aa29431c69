"""The planner against a client that answers from a set of ids, as slowly as a test wants."""

import threading
import time

import pytest

from neve.datapath.client import Match
from neve.engine.canary import Canary, Verdict
from neve.engine.chains import Origin
from neve.engine.load_policy import LEAST_DEADLINE_S, LoadPolicy
from neve.engine.params import RequestParams
from neve.engine.planner import STEP_WAIT_S, Planner
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from neve.planner.choice import Decision
from neve.planner.measured import PrefillMeter

CHUNK, ENGINE_BLOCK = 64, 32
TOKENS = [7 * i % 251 for i in range(300)]


class Rank:
    """A link and its client in one."""

    stats = Stats()

    def __init__(self, number=0):
        self.hasher = BlockHasher(bytes([number]) * 32, CHUNK)
        self.stored: dict[bytes, Tier] = {}
        self.asked = []
        self.trouble = None
        self.gate = threading.Event()
        self.gate.set()

    @property
    def client(self):
        return self

    def match(self, ids, *, deadline_s):
        self.asked.append(list(ids))
        self.gate.wait(10)
        if self.trouble is not None:
            return Match([], self.trouble)
        found = []
        for block_id in ids:
            if block_id not in self.stored:
                return Match(found, MissReason.NEVER_STORED)
            found.append(Location(self.stored[block_id], 1064))
        return Match(found, None)

    def store(self, count, tier=Tier.HOT, tokens=TOKENS):
        ids = self.hasher.chain(tokens, parent=self.hasher.root())
        self.stored |= dict.fromkeys(ids[:count], tier)
        return ids


@pytest.fixture
def ranks():
    return [Rank()]


def planner_over(links, *, shards=1, canary=None, **judge):
    telemetry = Telemetry()
    judge = LoadPolicy(telemetry, **{"load_deadline_s": 2.0} | judge)
    return Planner(
        links,
        engine_block_tokens=ENGINE_BLOCK,
        match_deadline_s=0.2,
        judge=judge,
        telemetry=telemetry,
        canary=canary,
        shards=shards,
    )


@pytest.fixture
def planner(ranks):
    made = planner_over(ranks)
    yield made
    for rank in ranks:
        rank.gate.set()
    made.close()


def answer(planner, request_id, local_tokens=0):
    """What the scheduler would learn in the end, asking every step."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        tokens = planner.matched_tokens(request_id, local_tokens)
        planner.end_step()
        if tokens is not None:
            return tokens
    raise AssertionError("no answer")


def answer_at_once(planner, count, tokens_of):
    """`answer` of requests that come in one step."""
    answers = dict.fromkeys(map(str, range(count)))
    for name in answers:
        begin(planner, name, tokens_of(int(name)))
    end = time.monotonic() + 20
    while None in answers.values():
        assert time.monotonic() < end, "no answer"
        for name, known in answers.items():
            answers[name] = planner.matched_tokens(name, 0) if known is None else known
        planner.end_step()
    return list(answers.values())


def told(planner, name):
    """What vLLM's metrics would hear of one counter."""
    return planner._telemetry.take()["counters"][name]


def begin(planner, request_id="r", tokens=TOKENS, wish=None):
    planner.add(request_id, tokens, Origin(), wish)


def test_a_miss_is_saved_once_and_only_in_whole_chunks(planner):
    begin(planner)
    assert answer(planner, "r") == 0
    first = planner.plan_saves("r", 100, range(10))
    assert [save.engine_blocks for save in first] == [(0, 1)]
    rest = planner.plan_saves("r", 300, range(10))
    assert [save.engine_blocks for save in rest] == [(2, 3), (4, 5), (6, 7)]
    assert rest[0].parents == first[0].ids
    assert planner.plan_saves("r", 300, range(10)) == []
    begin(planner, "again")
    assert planner.plan_saves("again", 300, range(10)) == []


def test_a_hit_is_loaded_and_not_saved(planner, ranks):
    ids = ranks[0].store(3)
    begin(planner)
    assert answer(planner, "r") == 192
    plan = planner.plan_load("r", 192, list(range(20, 30)))
    assert [block.ids[0] for block in plan.blocks] == ids[:3]
    assert [block.written for block in plan.blocks] == [(20, 21), (22, 23), (24, 25)]
    planner.note_loaded("r")
    assert [s.ids[0] for s in planner.plan_saves("r", 300, range(20, 30))] == [ids[3]]


def test_a_local_hit_inside_a_chunk_is_not_overwritten(planner, ranks):
    ranks[0].store(2)
    begin(planner)
    assert answer(planner, "r", 32) == 96
    plan = planner.plan_load("r", 96, [5, 20, 21, 22])
    assert [block.written for block in plan.blocks] == [(20,), (21, 22)]
    assert plan.blocks[0].engine_blocks == (5, 20)


def test_chunks_that_the_engine_has_are_not_asked_for(planner, ranks):
    ids = ranks[0].store(4)
    begin(planner)
    assert answer(planner, "r", 128) == 128
    assert ranks[0].asked == [ids[2:]]


class Unanswered:
    """A look-up's future that adds up how long it is waited for."""

    def __init__(self):
        self.waited_s = 0.0

    def result(self, timeout):
        self.waited_s += timeout
        raise TimeoutError


def test_one_step_waits_a_millisecond_at_most_for_all_requests(planner, monkeypatch):
    unanswered = Unanswered()
    monkeypatch.setattr(planner._threads, "submit", lambda _: unanswered)
    for name in map(str, range(50)):
        begin(planner, name, [int(name), *TOKENS])
    for steps in (1, 2, 3):
        assert all(planner.matched_tokens(name, 0) is None for name in map(str, range(50)))
        planner.end_step()
        assert unanswered.waited_s == pytest.approx(steps * STEP_WAIT_S)
    # While something is computed nobody waits for a look-up.
    planner.end_step(idle=False)
    assert planner.matched_tokens("0", 0) is None
    assert unanswered.waited_s == pytest.approx(3 * STEP_WAIT_S)


def test_the_engine_does_not_wait_while_a_long_prompt_is_hashed(planner, ranks, monkeypatch):
    ids = ranks[0].store(4)
    hashed, made = threading.Event(), BlockHasher.chain
    monkeypatch.setattr(
        BlockHasher, "chain", lambda *args, **more: hashed.wait(10) and made(*args, **more)
    )
    begin(planner)
    assert planner.matched_tokens("r", 0) is None
    hashed.set()
    assert answer(planner, "r") == 256
    assert [b.ids[0] for b in planner.plan_load("r", 256, list(range(16))).blocks] == ids


def test_a_failed_load_is_not_tried_again(planner, ranks):
    ids = ranks[0].store(4)
    begin(planner)
    assert answer(planner, "r") == 256
    plan = planner.plan_load("r", 256, list(range(10)))
    planner.note_failures(plan.blocks[0].written)
    planner.note_loaded("r")
    assert answer(planner, "r") == 0
    assert len(ranks[0].asked) == 1
    assert [s.ids[0] for s in planner.plan_saves("r", 300, range(10))] == ids


def test_what_loaded_before_the_failure_counts_as_reused(planner, ranks):
    ids = ranks[0].store(1)
    ranks[0].store(4, Tier.COLD)
    ranks[0].stored[ids[0]] = Tier.HOT
    begin(planner, wish=RequestParams("c"))
    assert answer(planner, "r") == 256
    plan = planner.plan_load("r", 256, list(range(10)))
    planner.note_failures(plan.blocks[3].written)
    planner.note_failures(plan.blocks[2].written)
    planner.note_loaded("r")
    ended = planner.end("r")
    assert (ended.hot_tokens, ended.cold_tokens) == (64, 64)
    assert told(planner, "hit_tokens") == {"hot": 64, "cold": 64}
    assert [every[0] for every in ended.ids] == ids[:2]


@pytest.mark.parametrize("trouble", [MissReason.BREAKER, MissReason.TIMEOUT])
def test_a_store_in_trouble_has_lost_nothing(planner, ranks, trouble):
    """What is stored is neither sent again nor said to be gone."""
    ids = ranks[0].store(4)
    begin(planner)
    assert answer(planner, "r") == 256
    ranks[0].trouble = trouble
    begin(planner, "next")
    assert answer(planner, "next") == 0
    assert planner.plan_saves("next", 300, range(10)) == []
    assert planner.take_lost() == []
    ranks[0].trouble = None
    ranks[0].stored.clear()
    begin(planner, "last")
    assert answer(planner, "last") == 0
    assert planner.take_lost() == ids


def test_look_ups_that_nobody_waits_for_any_more_are_not_made(planner, ranks):
    """Else a store that is slow for a while would have to answer them all before new ones."""
    ranks[0].gate.clear()
    answers = answer_at_once(planner, 20, lambda n: [n, *TOKENS])
    assert answers == [0] * 20
    ranks[0].gate.set()
    begin(planner, "next")
    assert answer(planner, "next") == 0
    assert len(ranks[0].asked) < 5


def test_of_many_requests_that_come_at_once_the_last_wait_for_their_turn(planner, ranks):
    """Each answer takes a tenth of the deadline, all together more than two of it."""
    match = ranks[0].match
    ranks[0].store(4)

    def slowly(ids, *, deadline_s):
        time.sleep(0.02)
        return match(ids, deadline_s=deadline_s)

    ranks[0].match = slowly
    assert answer_at_once(planner, 50, lambda _: TOKENS) == [256] * 50


def test_nobody_waits_for_a_turn_longer_than_computing_takes(planner, ranks, judge):
    measure(judge, prefill_s=0.5, load_s_per_block=1e-6)  # 0.15 s for such a prompt
    ranks[0].gate.clear()
    for name in "abc":  # two begin
        begin(planner, name)
        assert planner.matched_tokens(name, 0) is None
    last = planner._requests["c"].lookup
    patience_s = planner._answer_by(planner._requests["c"], last) - last.asked_at
    assert patience_s == pytest.approx(0.2)  # the deadline at least
    judge._steps = PrefillMeter()
    measure(judge, prefill_s=2.0, load_s_per_block=1e-6)
    patience_s = planner._answer_by(planner._requests["c"], last) - last.asked_at
    assert patience_s == pytest.approx(0.6)


def test_a_preempted_request_asks_again(planner, ranks):
    begin(planner)
    assert answer(planner, "r") == 0
    planner.plan_saves("r", 300, range(10))
    ranks[0].store(4)
    planner.note_preempted(["r", "unknown"])
    assert answer(planner, "r") == 256


def test_what_a_preempted_request_loads_again_was_reused_once(planner, ranks):
    ranks[0].store(4)
    begin(planner, wish=RequestParams())
    for _ in range(2):
        assert answer(planner, "r") == 256
        planner.plan_load("r", 256, range(10))
        planner.note_loaded("r")
    assert planner.end("r").hot_tokens == 256


def test_what_was_not_stored_may_be_saved_by_the_next_request(planner):
    begin(planner)
    saves = planner.plan_saves("r", 300, range(10))
    planner.note_unsaved([saves[1].ids[0]])
    begin(planner, "next")
    assert [s.ids for s in planner.plan_saves("next", 300, range(10))] == [saves[1].ids]


def test_decode_grows_the_chain(planner):
    tokens = TOKENS[:60]
    begin(planner, tokens=tokens)
    assert planner.plan_saves("r", 60, range(2)) == []
    tokens += TOKENS[60:70]
    assert len(planner.plan_saves("r", 69, range(3))) == 1


def test_tokens_that_are_not_final_are_not_saved(planner):
    begin(planner, tokens=TOKENS[:63])
    assert planner.plan_saves("r", 66, range(3)) == []


def test_without_a_connection_nothing_is_asked_loaded_or_saved():
    class Down:
        client = None

    planner = planner_over([Down()])
    begin(planner, wish=RequestParams("c"))
    assert planner.matched_tokens("r", 0) == 0
    assert planner.plan_saves("r", 300, range(10)) == []
    assert planner.end("r").ids == []


def test_with_several_ranks_the_shortest_prefix_counts():
    ranks = [Rank(0), Rank(1)]
    ranks[0].store(4)
    ids = ranks[1].store(2)
    planner = planner_over(ranks)
    begin(planner)
    assert answer(planner, "r") == 128
    plan = planner.plan_load("r", 128, list(range(10)))
    assert [block.ids[1] for block in plan.blocks] == ids[:2]
    assert all(len(block.locations) == 2 for block in plan.blocks)


def test_a_chunk_is_there_when_every_head_of_every_stage_is():
    ranks = [Rank(0), Rank(1)]
    chains = [rank.hasher.chain(TOKENS, parent=rank.hasher.root()) for rank in ranks]
    ids = [
        [id_ for plain in chain for id_ in rank.hasher.of_heads(plain, 2)]
        for rank, chain in zip(ranks, chains, strict=True)
    ]
    for rank, every in zip(ranks, ids, strict=True):
        rank.stored = dict.fromkeys(every[:6], Tier.HOT)
    del ranks[1].stored[ids[1][5]]
    planner = planner_over(ranks, shards=2)
    begin(planner)
    assert answer(planner, "r") == 128
    assert [rank.asked for rank in ranks] == [[every] for every in ids]  # one question a space
    plan = planner.plan_load("r", 128, list(range(10)))
    assert [block.ids for block in plan.blocks] == [
        (*ids[0][:2], *ids[1][:2]), (*ids[0][2:4], *ids[1][2:4])
    ]  # fmt: skip
    assert all(len(block.locations) == 4 for block in plan.blocks)


def measure(judge, *, prefill_s, load_s_per_block, tier=Tier.HOT, blocks=4):
    """Teaches the judge: seconds for 1000 prompt tokens, and for each block of a load."""
    for step in range(1, 9):
        judge._steps.begin(step, [(0, 1000)])
        judge._steps.end(step, prefill_s)
    meter = judge._stores[tier]
    size = blocks * 1064
    took_s = load_s_per_block * blocks
    for _ in range(2):  # the first one only warms up
        meter.end(size, meter.begin(size), took_s, now=time.monotonic())


@pytest.fixture
def judge(planner):
    return planner._judge


def test_a_found_prefix_that_is_faster_to_compute_is_not_loaded(planner, ranks, judge):
    ids = ranks[0].store(4)
    measure(judge, prefill_s=0.1, load_s_per_block=0.1)
    begin(planner)
    assert answer(planner, "r") == 0
    assert answer(planner, "r") == 0
    assert told(planner, "decisions") == {Decision.RECOMPUTE: 1}
    assert planner.plan_saves("r", 300, range(10)) == []  # it is stored, though not loaded
    assert len(ids) == 4


def test_only_the_worthy_part_of_a_prefix_is_loaded(planner, ranks, judge):
    ids = ranks[0].store(4, Tier.COLD)
    ranks[0].stored |= dict.fromkeys(ids[:3], Tier.HOT)
    measure(judge, prefill_s=1.0, load_s_per_block=0.001)
    measure(judge, prefill_s=1.0, load_s_per_block=5.0, tier=Tier.COLD)
    begin(planner)
    assert answer(planner, "r") == 192
    assert not (planner._telemetry.take() or {"counters": {}})["counters"].get("decisions")
    plan = planner.plan_load("r", 192, list(range(10)))
    assert [block.ids[0] for block in plan.blocks] == ids[:3]
    assert told(planner, "decisions") == {Decision.LOAD_PREFIX: 1}


@pytest.mark.parametrize(
    ("prefill_s", "deadline_s"), [(1.0, 0.256), (0.04, LEAST_DEADLINE_S), (100.0, 2.0), (None, 2.0)]
)
def test_a_load_gets_as_long_as_computing_would_take(planner, ranks, judge, prefill_s, deadline_s):
    ranks[0].store(4)
    if prefill_s is not None:
        measure(judge, prefill_s=prefill_s, load_s_per_block=1e-6)
    begin(planner)
    answer(planner, "r")
    plan = planner.plan_load("r", 256, list(range(10)))
    assert plan.deadline_s == pytest.approx(deadline_s)


def load_all(planner, name, *, fail=False):
    begin(planner, name)
    assert answer(planner, name) == 256
    plan = planner.plan_load(name, 256, list(range(10)))
    time.sleep(0.01)
    if fail:
        planner.note_failures(plan.blocks[0].written)
    planner.note_loaded(name)


def test_loads_teach_the_judge_how_fast_a_tier_is(planner, ranks, judge):
    ranks[0].store(4)
    load_all(planner, "bad", fail=True)
    load_all(planner, "first")  # opens connections, so it says nothing
    assert judge._stores[Tier.HOT].store(0.0) is None
    load_all(planner, "good")
    store = judge._stores[Tier.HOT].store(time.monotonic())
    assert 0 < store.bytes_per_s < 2 * 4 * 1064 / 0.01
    assert store.queue_bytes == 0


def test_a_load_that_ran_out_of_time_teaches_too(ranks):
    ranks[0].store(4)
    planner = planner_over(ranks, load_deadline_s=0.005)
    judge = planner._judge
    load_all(planner, "first", fail=True)
    load_all(planner, "late", fail=True)
    assert judge._stores[Tier.HOT].store(time.monotonic()).bytes_per_s < 2 * 4 * 1064 / 0.01
    planner.close()


def test_a_load_whose_request_was_aborted_leaves_the_queue(planner, ranks, judge):
    ranks[0].store(4)
    begin(planner)
    answer(planner, "r")
    planner.plan_load("r", 256, list(range(10)))
    assert planner._telemetry.take()["gauges"]["loads_in_flight"] == {"": 1}
    planner.end("r")
    planner.note_loaded("r")  # the worker still reports it
    assert planner._telemetry.take()["gauges"]["loads_in_flight"] == {"": 0}


def test_always_loads_whatever_is_found_within_the_deadline(ranks):
    ranks[0].store(4)
    planner = planner_over(ranks, always=True)
    judge = planner._judge
    measure(judge, prefill_s=0.001, load_s_per_block=10)
    begin(planner)
    assert answer(planner, "r") == 256
    assert planner.plan_load("r", 256, list(range(10))).deadline_s == 2.0
    planner.close()


@pytest.fixture
def careful(ranks):
    """Two ranks hold a part of each block; one in three found prefixes is compared."""
    telemetry = Telemetry()
    made = planner_over(ranks, canary=Canary(3, 2, telemetry))
    yield made
    made.close()


def compared(planner, request_id, tokens=TOKENS):
    """Computes the whole prompt; what is to be compared of it."""
    planner.add(request_id, tokens, Origin(), None)
    assert answer(planner, request_id) == 0
    saves = planner.plan_saves(request_id, len(tokens), range(10))
    assert all(save.stored for save in saves)  # nothing is stored behind what is doubted
    return saves


def test_the_first_prefix_of_others_is_computed_and_compared_before_any_is_loaded(careful, ranks):
    ids = ranks[0].store(4)
    first, last = compared(careful, "canary")
    assert (first.ids, last.ids) == ((ids[0],), (ids[3],))
    assert last.engine_blocks == (6, 7)
    assert compared(careful, "meanwhile") == []
    careful.note_compared([(ids[0], Verdict.SAME), (ids[3], Verdict.SAME)])
    assert compared(careful, "half of the ranks said so") == []
    careful.note_compared([(ids[0], Verdict.SAME)])
    found = []
    for number in range(6):
        careful.add(f"later {number}", TOKENS, Origin(), None)
        found.append(answer(careful, f"later {number}"))
    assert sorted(found) == [0, 0, 256, 256, 256, 256]  # one in three


def test_a_comparison_that_did_not_take_place_is_made_up_for(careful, ranks):
    ids = ranks[0].store(4)
    assert len(compared(careful, "not fetched")) == 2
    careful.note_compared([(ids[0], Verdict.UNKNOWN), (ids[3], Verdict.UNKNOWN)])
    careful.add("aborted", TOKENS, Origin(), None)
    assert answer(careful, "aborted") == 0
    careful.end("aborted")
    assert len(compared(careful, "then")) == 2


def test_what_the_engine_stored_itself_proves_nothing(careful, ranks):
    careful.add("own", TOKENS, Origin(), None)
    assert answer(careful, "own") == 0
    assert len(careful.plan_saves("own", len(TOKENS), range(10))) == 4
    ranks[0].store(4)
    careful.add("again", TOKENS, Origin(), None)
    assert answer(careful, "again") == 256


def test_an_engine_that_computes_something_else_serves_alone(careful, ranks):
    ids = ranks[0].store(4)
    compared(careful, "canary")
    careful.add("running", [9, *TOKENS], Origin(), None)
    careful.note_compared([(ids[0], Verdict.SAME), (ids[0], Verdict.SAME), (ids[3], Verdict.OTHER)])
    for tokens in (TOKENS, [8, *TOKENS]):
        assert compared(careful, f"{tokens[0]}", tokens) == []
    assert careful.plan_saves("running", 300, range(10)) == []


def test_after_a_preemption_only_tokens_of_the_prompt_count_as_reused(planner, ranks):
    ranks[0].store(4)
    prompt = list(TOKENS[:150])
    planner.add("r", prompt, Origin(), RequestParams())
    prompt += TOKENS[150:]  # the answer, which is stored as well
    assert answer(planner, "r") == 256
    planner.plan_load("r", 256, range(10))
    planner.note_loaded("r")
    assert planner.end("r").hot_tokens == 150
