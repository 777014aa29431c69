"""The scheduler side over stand-ins for vLLM's requests and steps."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from neve.datapath.client import Match
from neve.engine.events import ChunkRemoved, ChunkStored
from neve.engine.options import Options
from neve.engine.scheduler import SchedulerSide
from neve.errors import MissReason
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from neve.vllm.scheduler import VllmScheduling
from support.engine_side import CHUNK, ENGINE_BLOCK, TOKENS, note


@dataclass
class Request:
    """The attributes of vLLM's `Request` that Neve reads."""

    request_id: str = "r"
    all_token_ids: list[int] = field(default_factory=lambda: list(TOKENS))
    prompt_embeds: Any = None
    cache_salt: str | None = None
    lora_request: Any = None
    mm_features: list[Any] = field(default_factory=list)
    kv_transfer_params: dict[str, Any] | None = None
    skip_reading_prefix_cache: bool = False
    block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self):
        self.num_prompt_tokens = len(self.all_token_ids)


class Loras:
    """Adapters' paths stand for their content; one without a path is never read to the end."""

    def content(self, lora):
        return lora.path.encode() or None

    def close(self):
        pass


class Store:
    """A link and its client in one; knows what was saved."""

    stats = Stats()

    def __init__(self):
        self.hasher = BlockHasher(b"f" * 32, CHUNK)
        self.ids = set()
        self.client = self

    def match(self, ids, *, deadline_s):
        found = []
        for block_id in ids:
            if block_id not in self.ids:
                return Match(found, MissReason.NEVER_STORED)
            found.append(Location(Tier.HOT, 1064))
        return Match(found, None)

    def release(self):
        pass


@pytest.fixture
def store():
    return Store()


@pytest.fixture(params=[False])
def side(store, request):
    """The parameter: whether workers copy behind the step."""
    made = SchedulerSide(
        [store],
        Options(endpoint="http://e", api_key="k", load="always", match_deadline_s=5, canary=0),
        engine_block_tokens=ENGINE_BLOCK,
        ranks=2,
        parts=2,
        defers=request.param,
        announces=True,
        loras=Loras(),
    )
    yield VllmScheduling(made, names_media=True)
    made.close()


def step(new=(), cached=(), tokens=300, preempted=(), drafts=(), encoded=()):
    """A step of vLLM: `new` and `cached` are (request id, engine blocks, computed, resumed)."""
    return SimpleNamespace(
        total_num_scheduled_tokens=tokens,
        num_scheduled_tokens={each[0]: tokens for each in (*new, *cached)},
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=(blocks,), num_computed_tokens=computed)
            for name, blocks, computed, _ in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[each[0] for each in cached],
            new_block_ids=[(each[1],) if each[1] else None for each in cached],
            num_computed_tokens=[each[2] for each in cached],
            resumed_req_ids={each[0] for each in cached if each[3]},
        ),
        preempted_req_ids=set(preempted) or None,
        scheduled_encoder_inputs={name: [0] for name in encoded},
        scheduled_spec_decode_tokens={name: [-1] * (tokens - 1) for name in drafts},
    )


def matched(side, request):
    while (tokens := side.matched_tokens(request, 0)) is None:
        side.build_step(step())
    return tokens


def save(side, store, request):
    """The request is computed in one step; what it saves is stored."""
    side.begin(request)
    plan = side.build_step(step([(request.request_id, list(range(10)), 0, False)]))
    store.ids.update(save.ids[0] for save in plan.saves)
    return len(plan.saves)


def test_without_this_steps_tables_an_engine_with_windows_saves_nothing(side, store):
    windowed = VllmScheduling(side.side, names_media=True, is_split=True)
    windowed.begin(Request())
    computed = step([("r", list(range(10)), 0, False)])
    computed.kv_connector_block_state = None
    assert windowed.build_step(computed).saves == []
    state = SimpleNamespace(get_block_ids=lambda _: (list(range(10)),))
    computed.kv_connector_block_state = state
    assert len(windowed.build_step(computed).saves) == 4


def lora(name, path):
    return SimpleNamespace(lora_name=name, lora_path=path, lora_int_id=7)


def picture(identifier, offset):
    return SimpleNamespace(
        identifier=identifier, mm_position=SimpleNamespace(offset=offset, length=20)
    )


OTHERS = [
    {"cache_salt": "s"},
    {"lora_request": lora("a", "/a")},
    {"lora_request": lora("a", "/b")},
    {"mm_features": [picture("p", 10)]},
    {"mm_features": [picture("q", 10)]},
    {"mm_features": [picture("p", 11)]},
]


@pytest.mark.parametrize("other", OTHERS)
def test_kv_is_found_by_an_equal_request_and_by_no_other(side, store, other):
    assert save(side, store, Request("plain")) == 4
    assert save(side, store, Request("other", **other)) == 4
    assert matched(side, Request("plain again")) == 256
    assert matched(side, Request("other again", **other)) == 256
    for number, different in enumerate(OTHERS):
        if different != other:
            assert matched(side, Request(f"different {number}", **different)) == 0


def test_media_counts_from_the_block_it_begins_in(side, store):
    save(side, store, Request("plain"))
    assert matched(side, Request("late", mm_features=[picture("p", 130)])) == 128


@pytest.mark.parametrize("name", ["prompt_embeds", "prompt_is_token_ids", "resumable"])
def test_a_request_without_lasting_token_ids_is_left_alone(side, store, name):
    save(side, store, Request("plain"))
    request = Request("r")
    setattr(request, name, True)
    side.begin(request)
    assert not side.side.knows("r")
    assert matched(side, request) == 0
    assert save(side, store, request) == 0
    assert side.side.end("r") == (False, None)


def test_a_request_that_must_not_read_caches_still_saves(side, store):
    save(side, store, Request("plain"))
    assert matched(side, Request("r", skip_reading_prefix_cache=True)) == 0
    fresh = Request("fresh", [1, *TOKENS], skip_reading_prefix_cache=True)
    assert save(side, store, fresh) == 4


def test_a_prompt_computed_in_pieces_is_saved_block_by_block(side, store):
    side.begin(Request())
    first = side.build_step(step([("r", [5, 6, 7, 8], 0, False)], tokens=100))
    assert [each.engine_blocks for each in first.saves] == [(5, 6)]
    second = side.build_step(step(cached=[("r", [9, 10], 100, False)], tokens=100))
    assert [each.engine_blocks for each in second.saves] == [(7, 8), (9, 10)]


@pytest.mark.parametrize("as_new", [True, False])
def test_a_preempted_request_comes_back_in_other_blocks(side, store, as_new):
    """Its old blocks belong to others by then. Runners report it as a new or a cached request."""
    side.begin(Request())
    side.build_step(step([("r", [5, 6, 7, 8], 0, False)], tokens=100))
    back = ("r", list(range(20, 30)), 0, True)
    plan = side.build_step(step([back]) if as_new else step(cached=[back]))
    assert [each.engine_blocks for each in plan.saves] == [(22, 23), (24, 25), (26, 27)]


def test_after_a_reset_kv_is_shared_with_engines_of_the_same_weights_only(side, store):
    before = Request("before")
    save(side, store, before)
    running = Request("running", [3, *TOKENS])
    side.begin(running)
    side.side.reset()
    assert matched_after_reset(side, Request("after"), b"", b"other") == 0
    assert save(side, store, Request("after")) == 4
    assert matched(side, Request("again")) == 256
    # Computed with the old weights in part: it must not be saved.
    assert save(side, store, running) == 0
    assert matched(side, running) == 0
    # Equal weights give equal KV, whatever the weights were in between.
    for digests, found in (((b"third", b""), 0), ((b"other", b""), 256), ((b"", b""), 256)):
        side.side.reset()
        assert matched_after_reset(side, Request(f"{digests}"), *digests) == found


def matched_after_reset(side, request, *digests):
    """The request waits until both workers compared their weights, even if one is late."""
    assert side.matched_tokens(request, 0) is None
    asked = side.build_step(step(tokens=0)).weights_check
    note(side.side, weights={"a": (asked, digests[0]), "b": (asked - 1, b"of the reset before")})
    assert side.matched_tokens(request, 0) is None
    note(side.side, weights={"b": (asked, digests[1])})
    return matched(side, request)


def test_a_request_does_not_wait_for_ever_for_its_adapter_or_the_workers(side, monkeypatch):
    monkeypatch.setattr("neve.engine.pending.MOST_PENDING_S", 0.0)
    assert matched(side, Request("unread", lora_request=lora("a", ""))) == 0
    side.side.reset()
    assert matched(side, Request("unsaid")) == 0


def test_a_load_that_could_not_be_planned_fails_instead_of_hanging(side):
    side.side.plan_load("unknown", 100, [list(range(10))])
    (load,) = side.build_step(step()).loads
    assert load.request_id == "unknown"
    assert load.blocks[0].written == (6, 7, 8, 9)


def test_steps_that_compute_a_prompt_are_timed(side):
    side.begin(Request())
    plan = side.build_step(step([("r", list(range(10)), 0, False)]))
    assert plan.timed is not None
    assert side.build_step(step(cached=[("r", [], 300, False)], tokens=1)).timed is None
    seeing = step(cached=[("r", [], 0, True)], encoded=["r"])
    assert side.build_step(seeing).timed is None
    drafted = step(cached=[("r", [], 301, False)], tokens=100, drafts=["r"])
    assert side.build_step(drafted).timed is None  # answers, many at a time


@pytest.mark.parametrize("side", [True], indirect=True)
def test_where_workers_copy_behind_the_step_an_ended_request_keeps_its_blocks(side, store):
    request, short = Request("saves"), Request("short", TOKENS[:40])
    save(side, store, request)
    save(side, store, short)
    assert side.side.end("saves")[0]
    assert not side.side.end("saves")[0]
    assert not side.side.end("short")[0]  # nothing of it is copied
    assert side.build_step(step()).delayed_frees == ["saves"]
    assert side.build_step(step()).delayed_frees == []


@pytest.mark.parametrize("side", [True], indirect=True)
def test_a_delayed_free_is_reported_whatever_goes_wrong_with_the_response(side, store, monkeypatch):
    request = Request("r")
    save(side, store, request)
    monkeypatch.setattr(side.side, "_finish", lambda _: 1 / 0)
    assert side.side.end("r") == (True, None)
    assert side.build_step(step()).delayed_frees == ["r"]


@pytest.mark.parametrize("side", [True], indirect=True)
def test_an_aborted_load_is_freed_once_even_if_its_request_had_saved_before(side, store):
    """Preempted after its saves, loading again, then aborted: vLLM frees it when the load ends."""
    request = Request("r")
    save(side, store, request)
    side.build_step(step(preempted=["r"]))
    assert matched(side, request) == 256
    side.side.plan_load("r", 256, [list(range(10))])
    assert not side.side.end("r")[0]
    assert side.build_step(step()).delayed_frees == []


def test_where_copies_are_done_within_the_step_no_free_is_delayed(side, store):
    save(side, store, Request("saves"))
    assert not side.side.end("saves")[0]


def events(side, plan, ranks=2):
    """Events for routers once `ranks` ranks stored what a step saved."""
    for _ in range(ranks):
        note(side.side, stored=[save.ids[0] for save in plan.saves])
    return side.side.take_events()


def test_routers_hear_of_a_chunk_once_all_ranks_stored_it_and_when_it_is_gone(side, store):
    request = Request("r", lora_request=lora("a", "/a"))
    request.block_hashes = [bytes([n]) for n in range(len(TOKENS) // ENGINE_BLOCK)]
    side.begin(request)
    plan = side.build_step(step([("r", list(range(10)), 0, False)]))
    store.ids.update(save.ids[0] for save in plan.saves)
    assert events(side, plan, ranks=1) == []
    first, second, *_ = events(side, plan, ranks=1)
    assert first == ChunkStored((b"\0", b"\1"), None, tuple(TOKENS[:64]), 7, "a")
    assert (second.hashes, second.parent) == ((b"\2", b"\3"), b"\1")
    assert side.side.take_events() == []

    store.ids.remove(plan.saves[2].ids[0])
    assert matched(side, Request("later", lora_request=request.lora_request)) == 128
    side.build_step(step())
    assert side.side.take_events() == [ChunkRemoved((b"\4", b"\5")), ChunkRemoved((b"\6", b"\7"))]


def test_routers_hear_nothing_of_what_a_rank_did_not_store_or_a_reset_made_private(side, store):
    for request_id in ("refused", "private"):
        request = Request(request_id)
        request.block_hashes = [bytes([n]) for n in range(len(TOKENS) // ENGINE_BLOCK)]
        side.begin(request)
        plan = side.build_step(step([(request_id, list(range(10)), 0, False)]))
        assert len(plan.saves) == 4
        if request_id == "refused":
            note(side.side, unsaved=[save.ids[0] for save in plan.saves])
        assert events(side, plan) == []
        side.side.reset()
        note(
            side.side,
            weights={rank: (side.build_step(step()).weights_check, b"other") for rank in "ab"},
        )


@pytest.mark.parametrize("preempted", [False, True])
def test_a_preempted_request_finds_what_it_saved_itself(side, store, preempted):
    request = Request("r")
    assert matched(side, request) == 0
    save(side, store, request)
    side.build_step(step(preempted=["r"] if preempted else ()))
    assert matched(side, request) == (256 if preempted else 0)


@pytest.mark.parametrize("tokens", [0, 5])
def test_only_a_step_that_computes_nothing_waits_for_look_ups(side, monkeypatch, tokens):
    seen = []
    monkeypatch.setattr(side.side.lookups, "end_step", lambda *, idle: seen.append(idle))
    side.build_step(step(tokens=tokens))
    assert seen == [tokens == 0]


def test_a_step_waits_for_copies_only_where_blocks_change_hands(side):
    side.build_step(step([("r", [5, 6, 7, 8], 0, False)], tokens=100))
    assert not side.build_step(step(cached=[("r", [9], 100, False)], tokens=1)).fences
    assert side.build_step(step(preempted=["r"], tokens=0)).fences
