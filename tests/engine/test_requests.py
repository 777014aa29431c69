"""Look-ups, loads and saves, over a client that answers as slowly as a test wants."""

import threading
import time

import pytest

from neve.datapath.client import Match
from neve.engine.canary import Verdict
from neve.engine.handover import Prefilled
from neve.engine.load_policy import LEAST_DEADLINE_S
from neve.engine.lookups import STEP_WAIT_S
from neve.engine.params import RequestParams
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from neve.planner.choice import Decision
from neve.planner.measured import PrefillMeter
from support.engine_side import (
    CHUNK,
    TOKENS,
    Clock,
    answer,
    begin,
    counted,
    end,
    note,
    pace,
    side_over,
)


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

    def release(self):
        pass

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


@pytest.fixture
def side(ranks):
    made = side_over(ranks)
    yield made
    for rank in ranks:
        rank.gate.set()
    made.close()


@pytest.fixture
def hasty(ranks):
    """Look-ups may take a fifth of a second, as on nodes."""
    made = side_over(ranks, match_deadline_s=0.2)
    yield made
    for rank in ranks:
        rank.gate.set()
    made.close()


def answer_at_once(side, count, tokens_of):
    """`answer` of requests that come in one step."""
    answers = dict.fromkeys(map(str, range(count)))
    for name in answers:
        begin(side, name, tokens_of(int(name)))
    end = time.monotonic() + 60
    while None in answers.values():
        assert time.monotonic() < end, "no answer"
        for name, known in answers.items():
            answers[name] = side.matched_tokens(name, 0) if known is None else known
        side.lookups.end_step(idle=True)
    return list(answers.values())


def test_a_miss_is_saved_once_and_only_in_whole_chunks(side):
    begin(side)
    assert answer(side, "r") == 0
    first = side.saves.plan("r", 100, [range(10)])
    assert [save.engine_blocks for save in first] == [(0, 1)]
    rest = side.saves.plan("r", 300, [range(10)])
    assert [save.engine_blocks for save in rest] == [(2, 3), (4, 5), (6, 7)]
    assert rest[0].parents == first[0].ids
    assert side.saves.plan("r", 300, [range(10)]) == []
    begin(side, "again")
    assert side.saves.plan("again", 300, [range(10)]) == []


def test_a_hit_is_loaded_and_not_saved(side, ranks):
    ids = ranks[0].store(3)
    begin(side)
    assert answer(side, "r") == 192
    plan = side.loads.plan("r", 192, [list(range(20, 30))])
    assert [block.ids[0] for block in plan.blocks] == ids[:3]
    assert [block.written for block in plan.blocks] == [(20, 21), (22, 23), (24, 25)]
    note(side, loaded=["r"])
    assert [s.ids[0] for s in side.saves.plan("r", 300, [range(20, 30)])] == [ids[3]]


def test_a_local_hit_inside_a_chunk_is_not_overwritten(side, ranks):
    ranks[0].store(2)
    begin(side)
    assert answer(side, "r", 32) == 96
    plan = side.loads.plan("r", 96, [[5, 20, 21, 22]])
    assert [block.written for block in plan.blocks] == [(20,), (21, 22)]
    assert plan.blocks[0].engine_blocks == (5, 20)


def test_chunks_that_the_engine_has_are_not_asked_for(side, ranks):
    ids = ranks[0].store(4)
    begin(side)
    assert answer(side, "r", 128) == 128
    assert ranks[0].asked == [ids[2:]]


class Unanswered:
    """A look-up's future that never ends; adds up the time that callers wait."""

    def __init__(self):
        self.waited_s = 0.0

    def result(self, timeout):
        self.waited_s += timeout
        raise TimeoutError


def test_one_step_waits_a_millisecond_at_most_for_all_requests(side, monkeypatch):
    unanswered = Unanswered()
    monkeypatch.setattr(side.lookups._threads, "submit", lambda _: unanswered)
    for name in map(str, range(50)):
        begin(side, name, [int(name), *TOKENS])
    for steps in (1, 2, 3):
        assert all(side.matched_tokens(name, 0) is None for name in map(str, range(50)))
        side.lookups.end_step(idle=True)
        assert unanswered.waited_s == pytest.approx(steps * STEP_WAIT_S)
    # A step that computes something does not wait for look-ups.
    side.lookups.end_step(idle=False)
    assert side.matched_tokens("0", 0) is None
    assert unanswered.waited_s == pytest.approx(3 * STEP_WAIT_S)


def test_the_engine_does_not_wait_while_a_long_prompt_is_hashed(side, ranks, monkeypatch):
    ids = ranks[0].store(4)
    hashed, made = threading.Event(), BlockHasher.chain
    monkeypatch.setattr(
        BlockHasher, "chain", lambda *args, **more: hashed.wait(10) and made(*args, **more)
    )
    begin(side)
    assert side.matched_tokens("r", 0) is None
    hashed.set()
    assert answer(side, "r") == 256
    assert [b.ids[0] for b in side.loads.plan("r", 256, [list(range(16))]).blocks] == ids


def test_a_failed_load_is_not_tried_again(side, ranks):
    ids = ranks[0].store(4)
    begin(side)
    assert answer(side, "r") == 256
    plan = side.loads.plan("r", 256, [list(range(10))])
    note(side, failed=plan.blocks[0].written)
    note(side, loaded=["r"])
    assert answer(side, "r") == 0
    assert len(ranks[0].asked) == 1
    assert [s.ids[0] for s in side.saves.plan("r", 300, [range(10)])] == ids


def test_what_loaded_before_the_failure_counts_as_reused(side, ranks):
    side._policy._always = True
    ids = ranks[0].store(1)
    ranks[0].store(4, Tier.COLD)
    ranks[0].stored[ids[0]] = Tier.HOT
    begin(side, params=RequestParams(hands_over=True))
    assert answer(side, "r") == 256
    plan = side.loads.plan("r", 256, [list(range(10))])
    note(side, failed=plan.blocks[3].written)
    note(side, failed=plan.blocks[2].written)
    note(side, loaded=["r"])
    found = end(side)
    assert (found["hot"], found["cold"]) == (64, 64)
    assert counted(side, "hit_tokens") == {"hot": 64, "cold": 64}
    assert found["prefilled"] == Prefilled(2 * CHUNK, ids[1]).as_param()


@pytest.mark.parametrize("trouble", [MissReason.BREAKER, MissReason.TIMEOUT])
def test_a_store_in_trouble_has_lost_nothing(side, ranks, trouble):
    """Stored chunks are neither saved again nor reported as lost."""
    ids = ranks[0].store(4)
    begin(side)
    assert answer(side, "r") == 256
    ranks[0].trouble = trouble
    begin(side, "next")
    assert answer(side, "next") == 0
    assert side.saves.plan("next", 300, [range(10)]) == []
    assert side._table.stored.take_lost() == []
    ranks[0].trouble = None
    ranks[0].stored.clear()
    begin(side, "last")
    assert answer(side, "last") == 0
    assert side._table.stored.take_lost() == ids


def test_look_ups_that_nobody_waits_for_any_more_are_not_made(hasty, ranks):
    """Otherwise a store that was slow for a while would answer all of them before new ones."""
    ranks[0].gate.clear()
    answers = answer_at_once(hasty, 20, lambda n: [n, *TOKENS])
    assert answers == [0] * 20
    ranks[0].gate.set()
    begin(hasty, "next")
    assert answer(hasty, "next") == 0
    assert len(ranks[0].asked) < 5


def test_of_many_requests_that_come_at_once_the_last_wait_for_their_turn(hasty, ranks, monkeypatch):
    """Each answer takes a twentieth of the deadline, all together more than two deadlines."""
    match, clock = ranks[0].match, Clock()
    monkeypatch.setattr("neve.engine.lookups.time", clock)
    ranks[0].store(4)

    work = pace(monkeypatch, hasty.lookups, clock, 0.01)

    def slowly(ids, *, deadline_s):
        work()
        return match(ids, deadline_s=deadline_s)

    ranks[0].match = slowly
    assert answer_at_once(hasty, 50, lambda _: TOKENS) == [256] * 50


def test_nobody_waits_for_a_turn_longer_than_computing_takes(hasty, ranks):
    side, policy = hasty, hasty._policy
    measure(policy, prefill_s=0.5, load_s_per_block=1e-6)  # 0.15 s for such a prompt
    ranks[0].gate.clear()
    for name in "abc":  # two begin
        begin(side, name)
        assert side.matched_tokens(name, 0) is None
    last = side._table.requests["c"].lookup
    patience_s = side.lookups._answer_by(side._table.requests["c"], last) - last.asked_at
    assert patience_s == pytest.approx(0.2)  # the deadline at least
    policy._steps = PrefillMeter()
    measure(policy, prefill_s=2.0, load_s_per_block=1e-6)
    patience_s = side.lookups._answer_by(side._table.requests["c"], last) - last.asked_at
    assert patience_s == pytest.approx(0.6)


def test_a_load_that_the_engine_plans_steps_later_is_in_the_next_plan(side, ranks):
    """vLLM 0.33 defers loads while steps that may write their blocks are under way."""
    ids = ranks[0].store(4)
    begin(side)
    begin(side, "aborted")
    assert (answer(side), answer(side, "aborted")) == (256, 256)
    for _ in range(2):
        assert not side.build_step((), computes=True).loads
    assert side.end("aborted") == (False, None)  # its load was never planned
    side.plan_load("r", 256, [list(range(10))])
    (load,) = side.build_step((), computes=True).loads
    assert (load.request_id, [block.ids[0] for block in load.blocks]) == ("r", ids[:4])
    note(side, loaded=["r"])
    assert [save.ids[0] for save in side.saves.plan("r", 300, [range(10)])] == []
    assert not side.build_step((), computes=False).loads


def test_a_preempted_request_asks_again(side, ranks):
    begin(side)
    assert answer(side, "r") == 0
    side.saves.plan("r", 300, [range(10)])
    ranks[0].store(4)
    side.build_step((), computes=False, preempted=["r", "unknown"])
    assert answer(side, "r") == 256


def test_what_a_preempted_request_loads_again_was_reused_once(side, ranks):
    ranks[0].store(4)
    begin(side, params=RequestParams())
    for _ in range(2):
        assert answer(side, "r") == 256
        side.loads.plan("r", 256, [range(10)])
        note(side, loaded=["r"])
    assert end(side)["hot"] == 256


def test_what_was_not_stored_may_be_saved_by_the_next_request(side):
    begin(side)
    saves = side.saves.plan("r", 300, [range(10)])
    note(side, unsaved=[saves[1].ids[0]])
    begin(side, "next")
    assert [s.ids for s in side.saves.plan("next", 300, [range(10)])] == [saves[1].ids]


def test_decode_grows_the_chain(side):
    tokens = TOKENS[:60]
    begin(side, tokens=tokens)
    assert side.saves.plan("r", 60, [range(2)]) == []
    tokens += TOKENS[60:70]
    assert len(side.saves.plan("r", 69, [range(3)])) == 1


def test_tokens_that_are_not_final_are_not_saved(side):
    begin(side, tokens=TOKENS[:63])
    assert side.saves.plan("r", 66, [range(3)]) == []


def test_without_a_connection_nothing_is_asked_loaded_or_saved():
    class Down:
        client = None

    side = side_over([Down()])
    begin(side, params=RequestParams(hands_over=True))
    assert side.matched_tokens("r", 0) == 0
    assert side.saves.plan("r", 300, [range(10)]) == []
    assert "prefilled" not in end(side)


def test_with_several_ranks_the_shortest_prefix_counts():
    ranks = [Rank(0), Rank(1)]
    ranks[0].store(4)
    ids = ranks[1].store(2)
    side = side_over(ranks)
    begin(side)
    assert answer(side, "r") == 128
    plan = side.loads.plan("r", 128, [list(range(10))])
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
    side = side_over(ranks, shards=2)
    begin(side)
    assert answer(side, "r") == 128
    assert [rank.asked for rank in ranks] == [[every] for every in ids]  # one question a space
    plan = side.loads.plan("r", 128, [list(range(10))])
    assert [block.ids for block in plan.blocks] == [
        (*ids[0][:2], *ids[1][:2]), (*ids[0][2:4], *ids[1][2:4])
    ]  # fmt: skip
    assert all(len(block.locations) == 4 for block in plan.blocks)


def measure(policy, *, prefill_s, load_s_per_block, tier=Tier.HOT, blocks=4):
    """Teaches the policy: seconds for 1000 prompt tokens, and for each block of a load."""
    for step in range(1, 9):
        policy._steps.begin(step, [(0, 1000)])
        policy._steps.end(step, prefill_s)
    meter = policy._stores[tier]
    size = blocks * 1064
    took_s = load_s_per_block * blocks
    for _ in range(2):  # the first one only warms up
        meter.end(size, meter.begin(size), took_s, now=time.monotonic())


@pytest.fixture
def policy(side):
    return side._policy


def test_a_found_prefix_that_is_faster_to_compute_is_not_loaded(side, ranks, policy):
    ids = ranks[0].store(4)
    measure(policy, prefill_s=0.1, load_s_per_block=0.1)
    begin(side)
    assert answer(side, "r") == 0
    assert answer(side, "r") == 0
    assert counted(side, "decisions") == {Decision.RECOMPUTE: 1}
    assert side.saves.plan("r", 300, [range(10)]) == []  # it is stored, though not loaded
    assert len(ids) == 4


def test_only_the_worthy_part_of_a_prefix_is_loaded(side, ranks, policy):
    ids = ranks[0].store(4, Tier.COLD)
    ranks[0].stored |= dict.fromkeys(ids[:3], Tier.HOT)
    measure(policy, prefill_s=1.0, load_s_per_block=0.001)
    measure(policy, prefill_s=1.0, load_s_per_block=5.0, tier=Tier.COLD)
    begin(side)
    assert answer(side, "r") == 192
    assert not (side.take_telemetry() or {"counters": {}})["counters"].get("decisions")
    plan = side.loads.plan("r", 192, [list(range(10))])
    assert [block.ids[0] for block in plan.blocks] == ids[:3]
    assert counted(side, "decisions") == {Decision.LOAD_PREFIX: 1}


@pytest.mark.parametrize(
    ("prefill_s", "deadline_s"), [(1.0, 0.256), (0.04, LEAST_DEADLINE_S), (100.0, 2.0), (None, 2.0)]
)
def test_a_load_gets_as_long_as_computing_would_take(side, ranks, policy, prefill_s, deadline_s):
    ranks[0].store(4)
    if prefill_s is not None:
        measure(policy, prefill_s=prefill_s, load_s_per_block=1e-6)
    begin(side)
    answer(side, "r")
    plan = side.loads.plan("r", 256, [list(range(10))])
    assert plan.deadline_s == pytest.approx(deadline_s)


def load_all(side, name, *, fail=False):
    begin(side, name)
    assert answer(side, name) == 256
    plan = side.loads.plan(name, 256, [list(range(10))])
    time.sleep(0.01)
    if fail:
        note(side, failed=plan.blocks[0].written)
    note(side, loaded=[name])


def test_loads_teach_the_judge_how_fast_a_tier_is(side, ranks, policy):
    ranks[0].store(4)
    load_all(side, "bad", fail=True)
    load_all(side, "first")  # opens connections, so it says nothing
    assert policy._stores[Tier.HOT].store(0.0) is None
    load_all(side, "good")
    store = policy._stores[Tier.HOT].store(time.monotonic())
    assert 0 < store.bytes_per_s < 2 * 4 * 1064 / 0.01
    assert store.queue_bytes == 0


def test_a_load_that_ran_out_of_time_teaches_too(ranks):
    ranks[0].store(4)
    side = side_over(ranks, load_deadline_s=0.005)
    policy = side._policy
    load_all(side, "first", fail=True)
    load_all(side, "late", fail=True)
    assert policy._stores[Tier.HOT].store(time.monotonic()).bytes_per_s < 2 * 4 * 1064 / 0.01
    side.close()


def test_a_load_whose_request_was_aborted_leaves_the_queue(side, ranks, policy):
    ranks[0].store(4)
    begin(side)
    answer(side, "r")
    side.loads.plan("r", 256, [list(range(10))])
    assert side.take_telemetry()["gauges"]["loads_in_flight"] == {"": 1}
    side.end("r")
    note(side, loaded=["r"])  # the worker still reports it
    assert side.take_telemetry()["gauges"]["loads_in_flight"] == {"": 0}


@pytest.fixture
def heartbeat(ranks):
    """Takes the counters that the next heartbeat would carry."""
    ranks[0].stats = Stats()
    return lambda: ranks[0].stats.take().as_dict()["counters"]


def test_a_heartbeat_counts_each_decision_once(side, ranks, policy, heartbeat):
    ids = ranks[0].store(4, Tier.COLD)
    begin(side, "all")
    assert [answer(side, "all") for _ in range(2)] == [256, 256]
    assert heartbeat() == {"tail_tokens": 300 % 64}  # the engine may still have it nearer
    side.loads.plan("all", 256, [list(range(10))])
    assert heartbeat() == {"decided_all": 1}
    ranks[0].stored |= dict.fromkeys(ids[:3], Tier.HOT)
    measure(policy, prefill_s=1.0, load_s_per_block=0.001)
    measure(policy, prefill_s=1.0, load_s_per_block=5.0, tier=Tier.COLD)
    begin(side, "prefix")
    assert answer(side, "prefix") == 192
    side.loads.plan("prefix", 192, [list(range(10))])
    ranks[0].stored = dict.fromkeys(ids, Tier.COLD)
    begin(side, "none")
    assert [answer(side, "none") for _ in range(2)] == [0, 0]
    assert heartbeat() == {
        "decided_prefix": 1, "decided_recompute": 1, "tail_tokens": 2 * (300 % 64)
    }  # fmt: skip


@pytest.fixture
def loads(ranks, heartbeat, monkeypatch):
    """An engine of 8 GPUs that computes 1,000 tokens in a second; returns a function that makes a
    load of 256 tokens, of which `good` chunks arrive after `took_s`, and returns what counted."""
    clock = Clock()
    monkeypatch.setattr("neve.engine.load_policy.time", clock)
    ranks[0].store(4)
    side = side_over(ranks, load="always", gpus=8)

    def load(name, took_s, good=4, local_tokens=0, known=True):
        if known:
            side._policy._steps = PrefillMeter()
            for step in range(1, 9):
                side._policy._steps.begin(step, [(0, 1000)])
                side._policy._steps.end(step, 1.0)
        begin(side, name)
        tokens = answer(side, name, local_tokens)
        plan = side.loads.plan(name, tokens, [list(range(10))])
        heartbeat()
        clock.sleep(took_s)
        if good < len(plan.blocks):
            note(side, failed=plan.blocks[good].written)
        note(side, loaded=[name])
        return heartbeat()

    yield load
    side.close()


def test_a_load_that_was_faster_spares_prefill_of_every_gpu(loads):
    assert loads("r", 0.064) == {
        "spared_tokens": 256, "spared_gpu_us": 8 * 256_000, "load_gpu_us": 8 * 64_000
    }  # fmt: skip


def test_tokens_that_the_engine_had_itself_spare_nothing(loads):
    assert loads("r", 0.01, local_tokens=96) == {
        "spared_tokens": 160, "spared_gpu_us": 8 * 160_000, "load_gpu_us": 8 * 10_000
    }  # fmt: skip


def test_a_load_that_was_slower_spares_nothing_and_counts_as_a_loss(loads):
    assert loads("r", 0.5) == {"slower_tokens": 256, "slower_gpu_us": 8 * 244_000}


def test_of_a_failed_load_only_what_arrived_is_spared(loads):
    assert loads("half", 0.1, good=2) == {
        "spared_tokens": 128, "spared_gpu_us": 8 * 128_000, "load_gpu_us": 8 * 100_000
    }  # fmt: skip
    assert loads("slow half", 0.2, good=2) == {
        "slower_tokens": 128, "slower_gpu_us": 8 * 72_000
    }  # fmt: skip
    assert loads("all lost", 0.2, good=0) == {"slower_gpu_us": 8 * 200_000}


def test_a_load_before_prefill_was_measured_has_no_price(loads):
    assert loads("r", 0.1, known=False) == {"unpriced_tokens": 256}


def test_always_loads_whatever_is_found_within_the_deadline(ranks):
    ranks[0].store(4)
    side = side_over(ranks, load="always")
    policy = side._policy
    measure(policy, prefill_s=0.001, load_s_per_block=10)
    begin(side)
    assert answer(side, "r") == 256
    assert side.loads.plan("r", 256, [list(range(10))]).deadline_s == 2.0
    side.close()


@pytest.fixture
def careful(ranks):
    """Two ranks hold a part of each block; one in three found prefixes is compared."""
    made = side_over(ranks, canary=3, parts=2)
    yield made
    made.close()


def compared(side, request_id, tokens=TOKENS):
    """Computes the whole prompt. Returns its blocks that are to be compared."""
    begin(side, request_id, tokens)
    assert answer(side, request_id) == 0
    saves = side.saves.plan(request_id, len(tokens), [range(10)])
    assert all(save.stored for save in saves)  # chunks behind unproven ones are not stored
    return saves


def test_the_first_prefix_of_others_is_computed_and_compared_before_any_is_loaded(careful, ranks):
    ids = ranks[0].store(4)
    first, last = compared(careful, "canary")
    assert (first.ids, last.ids) == ((ids[0],), (ids[3],))
    assert last.engine_blocks == (6, 7)
    assert compared(careful, "meanwhile") == []
    note(careful, compared=[(ids[0], Verdict.SAME), (ids[3], Verdict.SAME)])
    assert compared(careful, "half of the ranks said so") == []
    note(careful, compared=[(ids[0], Verdict.SAME)])
    found = []
    for number in range(6):
        begin(careful, f"later {number}", TOKENS)
        found.append(answer(careful, f"later {number}"))
    assert sorted(found) == [0, 0, 256, 256, 256, 256]  # one in three


def test_a_comparison_that_did_not_take_place_is_made_up_for(careful, ranks):
    ids = ranks[0].store(4)
    assert len(compared(careful, "not fetched")) == 2
    note(careful, compared=[(ids[0], Verdict.UNKNOWN), (ids[3], Verdict.UNKNOWN)])
    begin(careful, "aborted", TOKENS)
    assert answer(careful, "aborted") == 0
    careful.end("aborted")
    assert len(compared(careful, "then")) == 2


def test_what_the_engine_stored_itself_proves_nothing(careful, ranks):
    begin(careful, "own", TOKENS)
    assert answer(careful, "own") == 0
    assert len(careful.saves.plan("own", len(TOKENS), [range(10)])) == 4
    ranks[0].store(4)
    begin(careful, "again", TOKENS)
    assert answer(careful, "again") == 256


def test_an_engine_that_computes_something_else_serves_alone(careful, ranks):
    ids = ranks[0].store(4)
    compared(careful, "canary")
    begin(careful, "running", [9, *TOKENS])
    note(
        careful, compared=[(ids[0], Verdict.SAME), (ids[0], Verdict.SAME), (ids[3], Verdict.OTHER)]
    )
    for tokens in (TOKENS, [8, *TOKENS]):
        assert compared(careful, f"{tokens[0]}", tokens) == []
    assert careful.saves.plan("running", 300, [range(10)]) == []


def test_after_a_preemption_only_tokens_of_the_prompt_count_as_reused(side, ranks):
    ranks[0].store(4)
    prompt = list(TOKENS[:150])
    begin(side, "r", prompt, RequestParams())
    prompt += TOKENS[150:]  # the answer, which is stored as well
    assert answer(side, "r") == 256
    side.loads.plan("r", 256, [range(10)])
    note(side, loaded=["r"])
    assert end(side)["hot"] == 150
