"""`load: both`: which rears are fetched, when a request may jump, and what is copied then."""

from types import SimpleNamespace

import pytest

from neve.datapath.client import Match
from neve.engine.rear_loader import RearLoader
from neve.engine.rears import MOST_BESIDE, MOST_REARS
from neve.engine.staging import Done, StagingPool
from neve.engine.step import RearPlan
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from neve.planner.choice import Decision
from support.engine_side import CHUNK, TOKENS, answer, begin, counted, note, side_over

BLOCKS = [list(range(10))]  # of the engine, 32 tokens each


class Store:
    """A link and its client in one, of which everything is stored."""

    stats = Stats()

    def __init__(self):
        self.hasher = BlockHasher(b"r" * 32, CHUNK)

    @property
    def client(self):
        return self

    def release(self):
        pass

    def match(self, ids, *, deadline_s):
        return Match([Location(Tier.HOT, 1064) for _ in ids], None)

    match_again = match


@pytest.fixture
def side(monkeypatch):
    made = side_over([Store()], load="both")
    monkeypatch.setattr(made._policy, "_gains_by_both", lambda *_: True)
    for step in range(1, 6):
        made._policy.begin_step(step, [(0, 1000)])
        made._policy.end_step(step, 1.0)
    made.rears.can_jump = True
    yield made
    made.close()


def test_the_engine_computes_while_the_rear_is_fetched(side):
    begin(side)
    assert answer(side) == 0
    assert counted(side, "decisions") == {Decision.BOTH: 1}
    plan = side.rears.plan({"r": 32})
    (load,) = plan.begun
    assert (load.first_chunk, len(load.blocks)) == (0, 4)
    assert side.rears.plan({"r": 64}).floors == {"r": 1}
    assert side.rears.plan({}) is None


def test_a_request_jumps_where_front_and_rear_meet(side):
    begin(side)
    answer(side)
    side.rears.plan({"r": 32})
    assert side.rears.jump("r", 32) is None
    note(side, staged={("r", "w"): 2})
    assert side.rears.jump("r", 96) is None  # chunk 1 is not here
    note(side, staged={("r", "w"): 1})
    assert side.rears.jump("r", 96) == 256
    assert side.rears.jump("r", 96) is None
    assert side.rears.jumping() == ["r"]
    assert side.rears.rear_tokens("r") == (96, 256)
    copy = side.rears.land("r", *BLOCKS)
    assert (copy.first_chunk, copy.blocks[0].skip) == (1, 1)
    assert [block.written for block in copy.blocks] == [(3,), (4, 5), (6, 7)]
    assert counted(side, "hit_tokens") == {Tier.HOT: 160}
    assert "r" not in side.rears
    side.build_step([], computes=False, preempted=["r"])
    assert answer(side) > 0  # loaded as usual


def test_every_rank_must_have_the_rear():
    side = side_over([Store()], load="both", parts=1)
    side.rears._ranks = 2
    side.rears.can_jump = True
    side._policy._gains_by_both = lambda *_: True
    for step in range(1, 6):
        side._policy.begin_step(step, [(0, 1000)])
        side._policy.end_step(step, 1.0)
    begin(side)
    answer(side)
    side.rears.plan({"r": 32})
    note(side, staged={("r", "one"): 0})
    assert side.rears.jump("r", 64) is None
    note(side, staged={("r", "two"): 2})
    assert side.rears.jump("r", 64) is None
    note(side, staged={("r", "two"): 1})
    assert side.rears.jump("r", 64) == 256
    side.close()


def test_an_engine_that_is_faster_drops_the_rear(side):
    begin(side)
    answer(side)
    side.rears.plan({"r": 32})
    assert side.rears.plan({"r": 200}) is None
    assert side.rears.plan({}).dropped == ["r"]
    assert "r" not in side.rears


def test_a_request_that_ends_drops_its_rear(side):
    begin(side)
    answer(side)
    side.rears.plan({"r": 32})
    side.end("r")
    assert side.rears.plan({}).dropped == ["r"]


def test_after_a_reset_no_rear_is_used(side):
    begin(side)
    answer(side)
    side.rears.plan({"r": 32})
    note(side, staged={("r", "w"): 0})
    side.reset()
    assert side.rears.jump("r", 64) is None


def test_rears_are_few_and_only_for_an_engine_with_little_to_do(side):
    for number in range(MOST_REARS + 1):
        begin(side, str(number), [number, *TOKENS])
        assert (answer(side, str(number)) == 0) == (number < MOST_REARS)
    for number in range(MOST_REARS):
        side.end(str(number))
    for number in range(MOST_BESIDE):
        begin(side, f"beside {number}")
    begin(side, "last")
    assert answer(side, "last") > 0


class Transfer:
    def __init__(self, count):
        self.count, self.outcomes, self.cancelled = count, None, False

    def done(self):
        return self.outcomes is not None

    def wait(self, timeout_s):
        return self.outcomes

    def cancel(self):
        self.cancelled = True

    def end(self, outcome=None):
        self.outcomes = [outcome] * self.count


class Client:
    """Notes what is asked for, last chunk first."""

    def __init__(self):
        self.asked, self.transfers = [], []

    def get_many(self, ids, buffers, *, locations, deadline_s):
        self.asked.append(list(ids))
        self.transfers.append(Transfer(len(ids)))
        return self.transfers[-1]


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr("neve.engine.rear_loader._WAVE_CHUNKS", 2)
    moved = []
    kv = SimpleNamespace(move_in=lambda *each: moved.append(each) or Done())
    made = 0

    def allocate(_):
        nonlocal made
        made += 1
        return [SimpleNamespace(memory=memoryview(bytearray(64)))]

    client = Client()
    loader = RearLoader(client, kv, StagingPool(allocate, 8), (0,))
    return SimpleNamespace(loader=loader, client=client, moved=moved, pieces=lambda: made)


def begun(side):
    begin(side)
    answer(side)
    return side.rears.plan({"r": 0})


def test_a_worker_fetches_the_last_chunks_first_and_copies_what_it_staged(side, worker):
    plan = begun(side)
    ids = [block.ids[0] for block in plan.begun[0].blocks]
    worker.loader.start(plan)
    worker.loader.poll()
    assert worker.client.asked == [ids[2:], ids[:2]]
    worker.client.transfers[1].end()
    worker.loader.poll()
    assert worker.loader.take_staged() == {}  # the rear has a gap
    worker.client.transfers[0].end()
    worker.loader.poll()
    assert worker.loader.take_staged() == {"r": 0}
    note(side, staged={("r", "w"): 0})
    assert side.rears.jump("r", 32) == 256
    copy = side.rears.land("r", *BLOCKS)
    worker.loader.land([copy])
    ((blocks, skip, pieces),) = worker.moved
    assert (blocks, skip, len(pieces)) == ([(0, 1), (2, 3), (4, 5), (6, 7)], 1, 4)
    worker.loader.start(RearPlan(begun=plan.begun))
    worker.loader.poll()
    assert worker.pieces() == 4  # staging was given back


def test_a_rear_that_breaks_keeps_what_came_before(side, worker):
    worker.loader.start(begun(side))
    worker.loader.poll()
    worker.client.transfers[0].end()
    worker.client.transfers[1].end(MissReason.BREAKER)
    worker.loader.poll()
    assert worker.loader.take_staged() == {"r": 2}
    worker.loader.poll()
    assert len(worker.client.asked) == 2


def test_a_worker_does_not_fetch_what_the_engine_computes(side, worker, monkeypatch):
    monkeypatch.setattr("neve.engine.rear_loader._WAVES", 1)
    worker.loader.start(begun(side))
    worker.loader.poll()
    worker.loader.start(RearPlan(floors={"r": 1}))
    worker.client.transfers[0].end()
    worker.loader.poll()
    assert [len(each) for each in worker.client.asked] == [2, 1]


def test_a_copy_of_what_is_not_here_stops_the_engine(side, worker):
    plan = begun(side)
    note(side, staged={("r", "w"): 0})
    side.rears.jump("r", 0)
    copy = side.rears.land("r", *BLOCKS)
    worker.loader.start(plan)
    with pytest.raises(KeyError):
        worker.loader.land([copy])


def test_a_dropped_rear_gives_its_staging_back_once_nothing_is_received(side, worker):
    plan = begun(side)
    worker.loader.start(plan)
    worker.loader.poll()
    worker.loader.start(RearPlan(dropped=["r"]))
    assert [each.cancelled for each in worker.client.transfers] == [True, True]
    for each in worker.client.transfers:
        each.end(MissReason.TIMEOUT)
    worker.loader.poll()
    worker.loader.start(RearPlan(begun=plan.begun))
    worker.loader.poll()
    assert worker.pieces() == 4
