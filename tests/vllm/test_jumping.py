"""What a jump does to vLLM's objects, without an engine (test_jumps.py has one)."""

import sys
from types import SimpleNamespace

import pytest

from neve.vllm.jumps import Jumps, why_not

SIZE, CHUNK, END = 32, 64, 256


class Rears:
    """One rear of request r, chunks 0 to 4, that is here down to chunk 0."""

    engine_block_tokens = SIZE

    def __init__(self):
        self.state, self.at = "fetching", None

    def __contains__(self, request_id):
        return self.state != "gone"

    def plan(self, computed):
        return None

    def jump(self, request_id, tokens):
        if self.state != "fetching":
            return None
        self.state, self.at = "jumped", tokens
        return END

    def jumping(self):
        return ["r"] if self.state == "jumped" else []

    def rear_tokens(self, request_id):
        return self.at // SIZE * SIZE, END

    def land(self, request_id, blocks):
        self.state = "gone"
        return list(blocks)

    def drop(self, request_id):
        self.state = "gone"


class Manager:
    """Hashes are their block's number; blocks 0, 1 and 3 are cached."""

    def __init__(self):
        self.evicted = set()
        cached = {n: [SimpleNamespace(block_id=100 + n)] for n in (0, 1, 3)}
        self.block_pool = SimpleNamespace(get_cached_block=lambda hash_, _: cached.get(hash_))

    def get_block_ids(self, request_id):
        return ([7, 8, 9],)

    def evict_blocks(self, ids):
        self.evicted |= ids


@pytest.fixture
def request_():
    return SimpleNamespace(
        request_id="r",
        num_computed_tokens=0,
        num_output_tokens=0,
        prefill_stats=SimpleNamespace(
            num_external_cached_tokens=0, num_cached_tokens=0, num_computed_tokens=300
        ),
        status=SimpleNamespace(name="RUNNING"),
        block_hashes=list(range(9)),
        _all_token_ids=[1] * 300,
    )


def step(tokens, preempted=()):
    cached = SimpleNamespace(
        req_ids=["q", "r"], new_token_ids=[], new_block_ids=[None, ([9],)],
        num_computed_tokens=[5, END], num_output_tokens=[1, 0], all_token_ids={"r": [1]},
    )  # fmt: skip
    return SimpleNamespace(
        num_scheduled_tokens={} if preempted else {"r": tokens},
        preempted_req_ids=set(preempted) or None,
        scheduled_cached_reqs=cached,
        scheduled_new_reqs=[],
    )


def jumped(request, *, v2=False):
    jumps = Jumps(Rears(), Manager(), v2=v2)
    jumps.watch(request)
    assert jumps.land(step(80)) == []
    jumps.meet(step(80))
    request.num_computed_tokens += 80  # as vLLM does behind its connector's call
    return jumps


def test_vllm_goes_on_behind_the_rear_and_counts_it_as_loaded(request_):
    jumps = jumped(request_)
    assert request_.num_computed_tokens == END
    stats = request_.prefill_stats
    assert (stats.num_external_cached_tokens, stats.num_cached_tokens) == (END - 80, END - 80)
    assert stats.num_computed_tokens == 300 - (END - 80)
    other = step(1)
    other.num_scheduled_tokens = {"q": 1}
    assert jumps.land(other) == []  # it was not scheduled
    later = step(44)
    assert jumps.land(later) == [[7, 8, 9]]
    assert later.scheduled_cached_reqs.req_ids == ["q", "r"]


def test_model_runner_v2_gets_the_request_as_a_new_one(request_, monkeypatch):
    made = SimpleNamespace(from_request=lambda *each: each)
    module = SimpleNamespace(NewRequestData=made)
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.output", module)
    later = step(44)
    jumped(request_, v2=True).land(later)
    cached = later.scheduled_cached_reqs
    assert (cached.req_ids, cached.new_block_ids, cached.num_computed_tokens) == (
        ["q"],
        [None],
        [5],
    )
    assert cached.all_token_ids == {}
    assert later.scheduled_new_reqs == [(request_, ([7, 8, 9],), [1] * 300)]


def test_a_preemption_in_the_step_of_the_copy_evicts_what_nobody_wrote(request_):
    """vLLM has hashed these blocks: its prefix cache would serve them."""
    jumps = jumped(request_)
    assert jumps.land(step(0, preempted=["r"])) == []
    assert jumps._manager.evicted == {103}  # blocks 2 to 7 are the rear's
    assert "r" not in jumps._rears


def test_requests_with_output_do_not_jump(request_):
    request_.num_output_tokens = 1
    jumped(request_)
    assert request_.num_computed_tokens == 80


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, None),
        ({"pipeline_parallel_size": 2}, "pipeline"),
        ({"decode_context_parallel_size": 2}, "context"),
        ({"speculative_config": object()}, "speculative"),
        ({"uses_mrope": True}, "images"),
    ],
)
def test_an_engine_that_cannot_jump_is_told_apart(changes, word):
    names = ("pipeline_parallel_size", "decode_context_parallel_size")
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**{name: changes.get(name, 1) for name in names}),
        model_config=SimpleNamespace(uses_mrope=changes.get("uses_mrope", False)),
        speculative_config=changes.get("speculative_config"),
    )
    detail = why_not(config, Manager())
    assert detail is None if word is None else word in detail
    assert "manager" in why_not(config, object())
