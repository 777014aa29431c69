"""What a rank reports after its steps."""

from types import SimpleNamespace

import pytest

from neve.engine.link import Engine, Link
from neve.engine.options import Options
from neve.engine.sharding import share_of
from neve.engine.step import StepPlan
from neve.engine.worker import WorkerSide
from neve.formats.space import SpaceIdentity


class Device:
    """A device that reaches its marks when the test says so."""

    defers = True

    def __init__(self):
        self.marks = []

    def fence(self):
        pass

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
