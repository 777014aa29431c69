"""Which ranks store what: every one its own, or (MLA) each block once."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from neve.space import SpaceIdentity
from neve.vllm.link import Link
from neve.vllm.options import Options
from neve.vllm.plan import BlockSave, StepPlan
from neve.vllm.worker import WorkerSide

IDENTITY = SpaceIdentity(
    model="m", revision="r", dtype="d", kv_dtype="d", layout="l", layout_version=1,
    engine_block_tokens=32, bytes_per_token=16, tp_size=2, tp_rank=0, pp_size=2, pp_rank=0,
)  # fmt: skip
SAVES = [BlockSave("r", (bytes([n]),), (b"",), 64, (n,)) for n in range(5)]


@pytest.fixture
def nodes(monkeypatch):
    """Node names under which ranks connect. Nobody answers, so every save is reported back."""
    seen = []

    def acquire(*_, node, **__):
        seen.append(node)
        return SimpleNamespace(client=None, wait_first_attempt=lambda _: None)

    monkeypatch.setattr(Link, "acquire", acquire)
    return seen


def rank(pp_rank, tp_rank, *, shared):
    identity = replace(IDENTITY, pp_rank=pp_rank, tp_rank=0 if shared else tp_rank)
    options = Options(endpoint="http://e", api_key="k", node="n")
    return WorkerSide(
        SimpleNamespace(defers=False), identity, options, engine="0", tp_rank=tp_rank, shared=shared
    )


def saved(worker):
    worker.save(StepPlan(saves=SAVES))
    return [block_id[0] for block_id in worker.take_unsaved()]


def test_every_rank_saves_all_of_its_own_kv(nodes):
    workers = [rank(pp, tp, shared=False) for pp in (0, 1) for tp in (0, 1)]
    assert [saved(worker) for worker in workers] == [[0, 1, 2, 3, 4]] * 4
    assert [worker._rank for worker in workers] == [0, 1, 2, 3]
    assert nodes == ["n"] * 4


def test_ranks_with_the_same_kv_save_each_block_once(nodes):
    workers = [rank(pp, tp, shared=True) for pp in (0, 1) for tp in (0, 1)]
    assert [saved(worker) for worker in workers] == [[0, 2, 4], [1, 3]] * 2
    assert [worker._rank for worker in workers] == [0, 0, 1, 1]
    assert nodes == ["n", "n/tp1"] * 2  # a session has one owner


def test_an_ended_request_is_let_go_once_its_blocks_are_copied(nodes):
    worker = rank(0, 0, shared=False)
    copying = {"a"}
    worker._saver = SimpleNamespace(copying=lambda request_id: request_id in copying)
    assert worker.take_copied(StepPlan(held=["a", "b"])) == {"b"}
    assert worker.take_copied(StepPlan()) == set()
    copying.clear()
    assert worker.take_copied(StepPlan()) == {"a"}
    assert worker.take_copied(StepPlan()) == set()
