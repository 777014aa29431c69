"""Which rank stores which columns: its own, or by turns those that several ranks hold."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from neve.engine.link import Engine, Link
from neve.engine.options import Options
from neve.engine.sharding import share_of
from neve.engine.step import BlockSave, StepPlan
from neve.engine.worker import WorkerSide
from neve.errors import Misuse
from neve.formats.space import SpaceIdentity

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


def rank(pp_rank, tp_rank, *, latent, kv=None, step_tokens=128):
    identity = replace(IDENTITY, pp_rank=pp_rank, tp_rank=0 if latent else tp_rank)
    options = Options(endpoint="http://e", api_key="k", node="n")
    share = share_of("rank", tp_rank=tp_rank, tp_size=2, pp_rank=pp_rank, kv_heads=8, latent=latent)
    kv = kv or SimpleNamespace(defers=False)
    return WorkerSide(
        [kv], identity, options, engine=Engine("test", "0"), share=share, step_tokens=step_tokens
    )


def saved(worker):
    worker.end_step(StepPlan(saves=SAVES))
    return [block_id[0] for block_id in worker.report().unsaved]


def test_every_rank_saves_all_of_its_own_kv(nodes):
    workers = [rank(pp, tp, latent=False) for pp in (0, 1) for tp in (0, 1)]
    assert [saved(worker) for worker in workers] == [[0, 1, 2, 3, 4]] * 4
    assert nodes == ["n"] * 4


def test_ranks_with_the_same_kv_save_each_block_once(nodes):
    workers = [rank(pp, tp, latent=True) for pp in (0, 1) for tp in (0, 1)]
    assert [saved(worker) for worker in workers] == [[0, 2, 4], [1, 3]] * 2
    assert nodes == ["n", "n/tp1"] * 2  # a session has one owner


def shares(layout, *, tp_size, pp_size=1, kv_heads=4, latent=False):
    return [
        share_of(layout, tp_rank=tp, tp_size=tp_size, pp_rank=pp, kv_heads=kv_heads, latent=latent)
        for pp in range(pp_size)
        for tp in range(tp_size)
    ]


def test_a_column_is_a_rank_or_a_pipeline_stage_or_a_head():
    def columns(*args, **kwargs):
        return [share.columns for share in shares(*args, **kwargs)]

    assert columns("rank", tp_size=2, pp_size=2) == [(0,), (1,), (2,), (3,)]
    assert columns("rank", tp_size=2, pp_size=2, latent=True) == [(0,), (0,), (1,), (1,)]
    assert columns("canonical", tp_size=2, pp_size=2, latent=True) == [(0,), (0,), (1,), (1,)]
    assert columns("canonical", tp_size=1) == [(0, 1, 2, 3)]
    assert columns("canonical", tp_size=2) == [(0, 1), (2, 3)]
    assert columns("canonical", tp_size=4) == [(0,), (1,), (2,), (3,)]
    assert columns("canonical", tp_size=2, pp_size=2) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_with_more_ranks_than_heads_those_of_one_head_take_turns():
    found = shares("canonical", tp_size=4, kv_heads=2)
    assert [share.columns for share in found] == [(0,), (0,), (1,), (1,)]
    assert [(share.turn, share.turns) for share in found] == [(0, 2), (1, 2)] * 2
    assert [share.seat for share in found] == [0, 1, 2, 3]


def test_heads_that_ranks_do_not_divide_are_refused():
    with pytest.raises(Misuse, match="6 KV heads and 4 TP ranks"):
        shares("canonical", tp_size=4, kv_heads=6)


def test_an_ended_request_is_let_go_once_its_blocks_are_copied(nodes):
    worker = rank(0, 0, latent=False)
    copying = {"a"}
    worker._transfers = SimpleNamespace(copying=lambda request_id: request_id in copying)
    assert worker.take_copied(StepPlan(delayed_frees=["a", "b"])) == {"b"}
    assert worker.take_copied(StepPlan()) == set()
    copying.clear()
    assert worker.take_copied(StepPlan()) == {"a"}
    assert worker.take_copied(StepPlan()) == set()


@pytest.mark.parametrize(("latent", "chunks"), [(False, 20), (True, 10)])
def test_a_rank_stages_two_steps_of_what_it_saves(monkeypatch, latent, chunks):
    """Ranks that take turns stage their turns only. A chunk has 2 engine blocks of 100 MB here."""
    session = SimpleNamespace(chunk_tokens=64)
    link = SimpleNamespace(
        client=SimpleNamespace(session=session), wait_first_attempt=lambda _: None
    )
    monkeypatch.setattr(Link, "acquire", lambda *_, **__: link)
    made = []
    kv = SimpleNamespace(
        defers=False, block_bytes=100_000_000, allocate=lambda *_: made.append(1) or [object()]
    )
    worker = rank(0, 0, latent=latent, kv=kv, step_tokens=10 * 64)
    assert worker._is_ready()
    assert len(worker._transfers._savers[0]._pool.take(100)) == len(made) == chunks
