"""What a rank reports after its steps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from neve.engine.canary import Verdict
from neve.engine.link import Engine, Link
from neve.engine.loader import LoadResults
from neve.engine.options import Options
from neve.engine.sharding import share_of
from neve.engine.step import BlockLoad, BlockSave, LoadPlan, StepPlan
from neve.engine.worker import WorkerSide
from neve.errors import DeadlineExceeded
from neve.formats.space import SpaceIdentity
from neve.index.tier import Location, Tier


class Device:
    """A device that reaches its marks when the test says so."""

    defers = True

    def __init__(self):
        self.marks = []
        self.fences = self.released = 0

    def fence(self):
        self.fences += 1

    def release(self):
        self.released += 1

    def mark(self):
        self.marks.append(Mark())
        return self.marks[-1]


class Mark:
    at = None

    def done(self):
        return self.at is not None

    def since(self, earlier):
        return self.at - earlier.at


@pytest.fixture
def device():
    return Device()


class Weights:
    now = b"as loaded"

    def read(self):
        if self.now is None:
            raise RuntimeError("no such kernel")
        return self.now


@pytest.fixture
def weights():
    return Weights()


@pytest.fixture
def worker(device, monkeypatch, weights):
    link = SimpleNamespace(client=None, wait_first_attempt=lambda _: None)
    monkeypatch.setattr(Link, "acquire", lambda *_, **__: link)
    identity = SpaceIdentity(
        model="m", revision="r", dtype="d", kv_dtype="d", layout="l", layout_version=1,
        engine_block_tokens=32, bytes_per_token=16, tp_size=1, tp_rank=0, pp_size=1, pp_rank=0,
    )  # fmt: skip
    share = share_of("rank", tp_rank=0, tp_size=1, pp_rank=0, kv_heads=8, latent=False)
    options = Options(endpoint="http://e", api_key="k")
    return WorkerSide(
        [device],
        identity,
        options,
        engine=Engine("test", "0"),
        share=share,
        step_tokens=128,
        weights=weights.read,
    )


def launch(worker, timed):
    worker.begin_step(StepPlan(timed=timed))
    worker.end_step(StepPlan(timed=timed))


def test_steps_are_timed_by_the_device_and_told_of_when_they_are_over(worker, device):
    for step in (1, None, 3):
        launch(worker, step)
    assert worker.report().timed == []
    device.marks[0].at, device.marks[1].at, device.marks[2].at = 10.0, 10.5, 11.0
    assert worker.report().timed == [(1, 0.5)]
    device.marks[3].at = 11.25
    assert worker.report().timed == [(3, 0.25)]
    assert worker.report().timed == []


class Transfers:
    """One load is under way until they are stopped."""

    def __init__(self):
        self.begun = []
        self.is_loading = self.copies_end = True

    def stop_loads(self):
        was_loading, self.is_loading = self.is_loading, False
        return LoadResults({"open"}, {"open"}) if was_loading else LoadResults()

    def end_copies(self, timeout_s):
        return self.copies_end

    in_flight = 1

    def reads(self, engine_blocks):
        return 7 in engine_blocks

    def start(self, load):
        self.begun.append(load)

    save = start

    def poll(self, wait_s):
        return LoadResults()

    def take_unsaved(self):
        return []

    take_stored = take_compared = take_unsaved

    def take_differences(self):
        return {}


def test_a_rank_waits_for_copies_only_out_of_blocks_that_change_hands(worker, device):
    worker.begin_step(StepPlan(fences=False, handed_on=frozenset({7})))
    assert device.fences == 0  # nothing was ever copied
    worker._transfers = Transfers()
    for handed_on, fences in (({8}, 0), ({7, 8}, 1), (set(), 1)):
        worker.begin_step(StepPlan(fences=False, handed_on=frozenset(handed_on)))
        assert device.fences == fences
    worker.begin_step(StepPlan(fences=True))
    assert device.fences == 2
    worker._others_fill = True  # blocks of which no plan says anything
    worker.begin_step(StepPlan(fences=False))
    assert device.fences == 3


def test_a_suspended_rank_leaves_weights_and_blocks_alone(worker, device, weights):
    transfers = worker._transfers = Transfers()
    worker.suspend()
    worker.suspend()
    assert device.released == 2
    weights.now = None  # memory that is not mapped
    blocks = (BlockLoad((b"i",), (), (4, 5), 0),)
    plan = StepPlan(
        loads=[LoadPlan("r", 0, blocks, 5.0)],
        saves=[BlockSave("s", (b"s",), (b"",), 64, (1,))],
        weights_check=1,
    )
    worker.start_loads(plan)
    worker.end_step(plan)
    assert not transfers.begun
    assert (worker.poll_loads(plan), worker.take_failed_blocks()) == ({"open", "r"}, {4, 5})
    assert worker.take_failed_requests() == {"open"}
    report = worker.report()
    assert (report.unsaved, report.weights) == ([b"s"], {})
    worker.resume()
    weights.now = b"as loaded"
    worker.start_loads(plan)
    worker.end_step(plan)
    assert len(transfers.begun) == 2
    assert list(worker.report().weights.values()) == [(1, b"")]


def test_loads_end_also_if_copies_out_of_the_engine_do_not(worker):
    transfers = worker._transfers = Transfers()
    transfers.copies_end = False
    with pytest.raises(DeadlineExceeded):
        worker.suspend()
    assert worker.poll_loads(StepPlan()) == {"open"}


@pytest.mark.parametrize("family", [None, "llamas"])
def test_a_member_whose_rare_weights_changed_in_place_moves_nothing(worker, weights, family):
    """No proof by prompts shows an embedding row that no prompt has."""
    transfers = worker._transfers = Transfers()
    worker._options = replace(worker._options, family=family)
    worker._selective_weights = lambda: "other"
    load = LoadPlan("r", 0, (BlockLoad((b"i",), (), (4, 5), 0),), 5.0)
    compared = BlockSave("s", (b"s",), (b"",), 64, (1,), stored=(Location(Tier.HOT, 64),))

    def step(check):
        plan = StepPlan(loads=[load], saves=[compared], weights_check=check)
        transfers.begun.clear()
        worker.start_loads(plan)
        worker.end_step(plan)
        return len(transfers.begun), worker.report().compared

    assert step(0) == (2, [])
    weights.now = b"updated"
    step(1)
    moved = step(1)
    assert moved == ((2, []) if family is None else (0, [(b"s", Verdict.UNKNOWN)]))
    weights.now = b"as loaded"
    step(2)
    assert step(2) == (2, [])


def test_weights_are_compared_once_after_every_reset(worker, weights):
    def reported(check):
        worker.start_loads(StepPlan(weights_check=check))
        return list(worker.report().weights.values())

    assert reported(0) == []
    assert reported(1) == [(1, b"")]
    weights.now = b"updated"
    assert reported(1) == []
    assert reported(2) == [(2, b"updated")]
    weights.now = b"as loaded"
    assert reported(3) == [(3, b"")]
    weights.now = None  # unreadable weights equal no others
    (number, first), (_, second) = reported(4) + reported(5)
    assert number == 4
    assert len({first, second, b""}) == 3
