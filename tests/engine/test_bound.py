"""How long a request waits for Neve at worst before it computes, as docs/nodes.md states it.

Scheduler side and loader run as in an engine that makes a step every few milliseconds, over a store
in trouble and by a clock of the test's own: the time that passes is counted, not measured.
"""

import random
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from neve.datapath.client import Match
from neve.engine.handover import ASK_AGAIN_S, Prefilled
from neve.engine.load_policy import LEAST_DEADLINE_S, TRIAL, LoadPolicy
from neve.engine.loader import _GRACE_S, BlockLoader
from neve.engine.params import RequestParams
from neve.engine.staging import Done, StagingPool
from neve.engine.step import BlockLoad, LoadPlan
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import SPEEDS, Stats
from neve.planner.choice import Decision
from neve.planner.measured import PrefillMeter
from support.engine_side import CHUNK, TOKENS, Clock, begin, note, side_over

STEP_S = 0.005
MATCH_S, LOAD_S, HANDOVER_S = 0.2, 2.0, 1.0


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in ("lookups", "loader", "load_policy"):
        monkeypatch.setattr(f"neve.engine.{module}.time", made)
    return made


class Transfer:
    """Loads nothing. Ends at its deadline, unless its client keeps no deadlines."""

    def __init__(self, clock, count, until):
        self._clock, self._count, self._until = clock, count, until

    def done(self):
        return self._clock.now >= self._until

    def wait(self, timeout_s):
        return [MissReason.TIMEOUT] * self._count

    def add_done_callback(self, callback):
        pass


class Store:
    """A link and its client in one. Look-ups hang while `gate` is closed; loads bring nothing."""

    stats = Stats()

    def __init__(self, clock):
        self.clock = clock
        self.hasher = BlockHasher(b"f" * 32, CHUNK)
        self.ids = self.hasher.chain(TOKENS, parent=self.hasher.root())
        self.has_all = True
        self.keeps_deadlines = True
        self.loads = self.matches = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def client(self):
        return self

    def release(self):
        pass

    def match(self, ids, *, deadline_s):
        self.matches += 1
        self.gate.wait(30)
        found = [Location(Tier.HOT, 1064) for _ in ids] if self.has_all else []
        return Match(found, None if found else MissReason.NEVER_STORED)

    match_again = match

    def get_many(self, ids, buffers, *, locations, deadline_s, tokens=None):
        self.loads += 1
        until = self.clock.now + deadline_s if self.keeps_deadlines else float("inf")
        return Transfer(self.clock, len(ids), until)


@pytest.fixture
def store(clock):
    return Store(clock)


@pytest.fixture
def engine(clock, store):
    """`waited_s(params)`: how long the engine's first prompt token waits for Neve."""
    side = side_over(
        [store], match_deadline_s=MATCH_S, load_deadline_s=LOAD_S, handover_wait_s=HANDOVER_S
    )
    kv = SimpleNamespace(move_in=lambda *_: Done())
    pool = StagingPool(lambda _: [SimpleNamespace(memory=memoryview(bytearray(64)))], 8)
    loader = BlockLoader(store, kv, pool, (0,))

    def until_begun():
        """Waits until the look-up's thread runs; the test's clock stands still meanwhile."""
        lookup, end = side._table.requests["r"].lookup, time.monotonic() + 60
        while lookup is not None and lookup.future is not None and lookup.begun_at is None:
            assert time.monotonic() < end, "its turn never came"
            time.sleep(0.0001)

    def waited_s(params=None, during=lambda: None):
        started = clock.now
        begin(side, params=params)
        while (tokens := side.matched_tokens("r", 0)) != 0:
            assert clock.now - started < 60, "it waits for ever"
            side.lookups.end_step(idle=True)
            until_begun()
            clock.now += STEP_S
            during()
            if tokens is None:
                continue
            loader.start(side.loads.plan("r", tokens, [list(range(10))]))
            while not (results := loader.poll()).request_ids:
                assert clock.now - started < 60, "it loads for ever"
                clock.now += STEP_S
            note(side, failed=results.failed_engine_blocks, loaded=["r"])
        return clock.now - started

    def measure(prefill_s):
        """Seconds for 1000 tokens."""
        side._policy._steps = meter = PrefillMeter()
        for step in range(1, 6):
            meter.begin(step, [(0, 1000)])
            meter.end(step, prefill_s)

    def measure_hot():
        for _ in range(3):
            meter = side._policy._stores[Tier.HOT]
            meter.end(1 << 30, meter.begin(1 << 30), 1e-3, clock.now)

    def look_up():
        return side._table.requests["r"].lookup.future

    yield SimpleNamespace(
        waited_s=waited_s, measure=measure, measure_hot=measure_hot, look_up=look_up
    )
    store.gate.set()
    side.close()


# A deadline is noticed in the step after it; loads begin in the step after they are planned.
about = partial(pytest.approx, abs=3 * STEP_S)


def test_a_look_up_that_is_not_answered_costs_its_deadline(engine, store):
    store.gate.clear()
    assert engine.waited_s() == about(MATCH_S)
    assert (store.matches, store.loads) == (1, 0)


def test_a_load_that_brings_nothing_costs_its_deadline_once(engine, store):
    assert engine.waited_s() == about(LOAD_S)
    assert (store.matches, store.loads) == (1, 1)


def test_both_are_the_most(engine, store, clock):
    """The answer comes at the last moment."""
    store.gate.clear()
    begin = clock.now

    def during():
        if clock.now - begin > MATCH_S - 2 * STEP_S and not store.gate.is_set():
            store.gate.set()
            engine.look_up().result(10)  # no time passes by the test's clock

    assert engine.waited_s(during=during) == about(MATCH_S + LOAD_S)
    assert (store.matches, store.loads) == (1, 1)


@pytest.mark.parametrize(
    ("prefill_s", "load_s"), [(1.0, 0.256), (0.01, LEAST_DEADLINE_S), (60.0, LOAD_S)]
)
def test_a_load_may_take_as_long_as_computing_would(engine, prefill_s, load_s):
    engine.measure(prefill_s)
    engine.measure_hot()
    assert engine.waited_s() == about(load_s)


@pytest.mark.parametrize("prefill_s", [0.01, 1.0, 60.0])
def test_a_tier_that_was_never_measured_may_take_a_tenth_of_a_second(engine, prefill_s):
    engine.measure(prefill_s)
    assert engine.waited_s() == about(LEAST_DEADLINE_S)


def test_a_client_that_is_stuck_costs_its_grace_more(engine, store):
    store.keeps_deadlines = False
    assert engine.waited_s() == about(LOAD_S + _GRACE_S)
    assert store.loads == 1


def promised(store):
    return RequestParams(prefilled=Prefilled(4 * CHUNK, store.ids[3]))


def test_blocks_that_a_prefill_node_named_and_did_not_send_cost_the_handovers_wait(engine, store):
    store.has_all = False
    assert engine.waited_s(promised(store)) == about(HANDOVER_S)
    assert store.matches <= HANDOVER_S / ASK_AGAIN_S + 2
    assert store.loads == 0


def test_a_store_that_falls_silent_meanwhile_costs_two_look_ups_more(engine, store, clock):
    """The look-up under way, and the last one, whose answer is used."""
    store.has_all = False
    begin = clock.now

    def during():
        if clock.now - begin > HANDOVER_S - 2 * STEP_S:
            store.gate.clear()

    assert engine.waited_s(promised(store), during) == about(HANDOVER_S + 2 * MATCH_S)
    assert store.loads == 0


COLD = Location(Tier.COLD, 1 << 20, 7, 64)


def ask(policy, clock, chunks, loading_s, *, at=COLD):
    """Seconds to the first token after `chunks` chunks there, each loaded in `loading_s`."""
    found = [(at,)] * chunks
    begin = clock.now
    choice = policy.choose(
        found, first_chunk=0, chunk_tokens=CHUNK, local_tokens=0, prompt_tokens=chunks * CHUNK
    )
    policy.note_decision(choice)
    came = 0
    if choice.blocks:
        blocks = tuple(BlockLoad((b"",), at, (0, 1), 0) for at in found[: choice.blocks])
        plan = LoadPlan("r", 0, blocks, policy.deadline_s(choice))
        policy.begin_load(plan)
        came = min(choice.blocks, int(plan.deadline_s / loading_s))
        clock.now += min(plan.deadline_s, choice.blocks * loading_s)
        policy.end_load("r", came)
    if came < chunks:
        took_s = (chunks - came) * COMPUTING_S
        policy.begin_step(1, [(came * CHUNK, chunks * CHUNK)])
        policy.end_step(1, took_s)
        clock.now += took_s
    return clock.now - begin


@pytest.fixture
def policy(clock):
    made = LoadPolicy(Telemetry(), load_deadline_s=60.0)
    for step in range(1, 6):
        made.begin_step(step, [(0, 1000)])
        made.end_step(step, 1000 / CHUNK * COMPUTING_S)
    return made


COMPUTING_S = 0.002


def test_speeds_are_told_once_after_each_measurement(policy, clock):
    speeds = policy.take_speeds()
    assert speeds["prefill_s_per_token"] == pytest.approx(COMPUTING_S / CHUNK, rel=0.01)
    assert policy.take_speeds() is None
    for _ in range(3):  # a tier's first load is none of its samples
        ask(policy, clock, 64, COMPUTING_S / 10)
    speeds = policy.take_speeds()
    assert set(speeds) <= set(SPEEDS)
    assert speeds["cold_bytes_per_s"] > 0


def test_the_local_tier_has_a_speed_of_its_own(policy, clock):
    """As slow as it is, hot blocks beside it are loaded on."""
    here = Location(Tier.HOT, 1 << 20, is_local=True)
    for _ in range(4):
        ask(policy, clock, 64, 50 * COMPUTING_S, at=here)
    speeds = policy.take_speeds()
    assert speeds["local_bytes_per_s"] > 0
    assert "hot_bytes_per_s" not in speeds
    assert ask(policy, clock, 64, COMPUTING_S / 10, at=here) == pytest.approx(64 * COMPUTING_S)
    for _ in range(4):
        hot = ask(policy, clock, 64, COMPUTING_S / 10, at=here._replace(is_local=False))
    assert hot == pytest.approx(64 * COMPUTING_S / 10)


def test_a_store_that_cannot_keep_up_is_left_alone_after_two_loads(policy, clock):
    """Loads of any length: the blocks that arrived before the deadline show the store's speed, here
    half of computing's."""
    lengths = (32, 64, 128, 256, 512, 64)
    took_s = [ask(policy, clock, chunks, 2 * COMPUTING_S) for chunks in lengths]
    loaded = [s > 1.001 * n * COMPUTING_S for n, s in zip(lengths, took_s, strict=True)]
    assert loaded == [True, True, False, False, False, False]


@pytest.mark.parametrize("loading_s", [1e9, 10.0, 0.05, 0.003])
@pytest.mark.parametrize("chunks", [64, 1024, 16384])
def test_the_first_loads_of_an_engine_cost_a_tenth_of_a_second_each(
    policy, clock, chunks, loading_s
):
    """Chunks that never come, or more slowly than they are computed, of prompts of any length."""
    took_s = [ask(policy, clock, chunks, loading_s) for _ in range(4)]
    assert [s - chunks * COMPUTING_S < LEAST_DEADLINE_S + 1e-6 for s in took_s] == [True] * 4
    if chunks == 64:  # 3 % of a longer prompt's computing pays for another trial
        assert took_s[2:] == pytest.approx([chunks * COMPUTING_S] * 2)


def test_the_first_loads_of_a_fast_tier_lead_to_whole_loads(policy, clock):
    for _ in range(6):
        took_s = ask(policy, clock, 1024, COMPUTING_S / 10)
    assert took_s == pytest.approx(1024 * COMPUTING_S / 10)


@pytest.mark.parametrize(
    ("ratio", "step_tokens", "chosen"),
    [(1.0, 1000, True), (2.0, 1000, True), (0.2, 1000, False), (4.0, 1000, False),
     (1.0, 20_000, False), (0.4, 4000, False)],
)  # fmt: skip
def test_a_long_prefix_is_computed_and_loaded_at_once_if_that_is_sooner(
    clock, ratio, step_tokens, chosen
):
    """`ratio`: of the load's time to computing's. Long steps meet the rear late."""
    policy = LoadPolicy(Telemetry(), load_deadline_s=60.0)
    for step in range(1, 6):
        policy.begin_step(step, [(0, step_tokens)])
        policy.end_step(step, step_tokens / CHUNK * COMPUTING_S)
    meter, chunks = policy._stores[Tier.COLD], 512
    for size in (1 << 20, 1 << 24, 1 << 28, 1 << 28):
        meter.end(size, meter.begin(size), ratio * COMPUTING_S * size / (1 << 20), clock.now)
    found = [(Location(Tier.COLD, 1 << 20, 7, 64),)] * chunks
    asked = {"first_chunk": 0, "chunk_tokens": CHUNK, "local_tokens": 0}
    choice = policy.choose(found, prompt_tokens=chunks * CHUNK + 9, both=True, **asked)
    assert (choice.decision is Decision.BOTH) == chosen
    few = policy.choose(found[:16], prompt_tokens=16 * CHUNK + 9, both=True, **asked)
    assert few.decision is not Decision.BOTH
    alone = policy.choose(found, prompt_tokens=chunks * CHUNK + 9, **asked)
    assert alone.decision is not Decision.BOTH


def test_cold_blocks_get_a_tenth_of_a_second_before_prefill_is_measured(clock):
    policy = LoadPolicy(Telemetry(), load_deadline_s=60.0)
    hot, cold = (Location(Tier.HOT, 1 << 20),), (Location(Tier.COLD, 1 << 20, 7, 64),)
    asked = {"first_chunk": 0, "chunk_tokens": CHUNK, "local_tokens": 0, "prompt_tokens": 9999}
    assert policy.deadline_s(policy.choose([cold] * 8, **asked)) == LEAST_DEADLINE_S
    assert policy.deadline_s(policy.choose([hot] * 8, **asked)) == 60.0
    both = policy.choose([hot] * 3 + [cold] * 5, **asked)
    assert (both.blocks, policy.deadline_s(both)) == (3, 60.0)


def test_trying_a_store_that_stays_slow_costs_three_hundredths(policy, clock):
    for _ in range(2):
        ask(policy, clock, 64, 50 * COMPUTING_S)
    rng, took_s, computing_s, trials = random.Random(5), 0.0, 0.0, 0
    for _ in range(2000):
        chunks = rng.choice((32, 64, 512, 1024))
        one_s = ask(policy, clock, chunks, 3 * COMPUTING_S)
        took_s, computing_s = took_s + one_s, computing_s + chunks * COMPUTING_S
        trials += one_s > 1.001 * chunks * COMPUTING_S
        clock.now += rng.choice((0.0, 60.0))  # its speed may have changed meanwhile
    assert trials > 10
    assert took_s < (1 + TRIAL) * computing_s + LEAST_DEADLINE_S


def test_a_store_that_is_well_again_is_used_again(policy, clock):
    for _ in range(8):
        ask(policy, clock, 64, 50 * COMPUTING_S)
    for _ in range(60):
        took_s = ask(policy, clock, 64, COMPUTING_S / 5)
        clock.now += 20.0
    assert took_s == pytest.approx(64 * COMPUTING_S / 5)
