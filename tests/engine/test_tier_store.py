"""Chunks of a DRAM tier in Neve, over a stand-in for the client."""

import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from neve.datapath.client import Transfer
from neve.engine.options import Options
from neve.engine.tier_store import TierStore
from neve.errors import MissReason, Misuse, Unavailable
from neve.formats.ids import BlockHasher
from neve.index.tier import Location, Tier
from neve.vllm.compat import job_result, job_rows
from neve.vllm.tier_identity import identify_tier
from support.engine_side import Clock, pace

ROW = 16
KEYS = [bytes([n]) * 36 for n in range(4)]


class Neve:
    """A client whose transfers end when `answer` is called."""

    def __init__(self):
        self.hasher = BlockHasher(b"f" * 32, 64)
        self.stored = {}
        self.parents = {}
        self.questions = []
        self.trouble = None
        self.work = lambda: None
        self.gate = threading.Event()
        self.gate.set()
        self._open = []

    def locate(self, ids, *, deadline_s):
        self.gate.wait(10)
        self.questions.append(len(ids))
        self.work()
        if self.trouble is not None:
            raise self.trouble
        hit = Location(Tier.HOT, 64 + ROW)
        return [hit if id_ in self.stored else MissReason.NEVER_STORED for id_ in ids]

    def get_many(self, ids, buffers, *, locations, deadline_s):
        if len(locations) != len(ids):
            raise Misuse("need one of each")

        def act():
            for id_, buffer in zip(ids, buffers, strict=True):
                payload = self.stored.get(id_)
                if payload is not None:
                    buffer[:] = payload
                yield MissReason.EVICTED if payload is None else None

        return self._begin(len(ids), act)

    def put_many(self, refs, buffers, *, deadline_s):
        def act():
            for ref, buffer in zip(refs, buffers, strict=True):
                self.stored[ref.id] = bytes(buffer)
                self.parents[ref.id] = ref.parent
                yield None

        return self._begin(len(refs), act)

    def answer(self):
        """Ends all transfers."""
        opened, self._open = self._open, []
        for transfer, act in opened:
            for n, outcome in enumerate(act()):
                transfer.settle(n, outcome)
            transfer.end_job()

    def _begin(self, count, act):
        transfer = Transfer(count, time.monotonic() + 60)
        self._open.append((transfer, act))
        return transfer


@pytest.fixture
def neve():
    return Neve()


@pytest.fixture
def store(neve):
    memory = bytearray(b"".join(bytes([n]) * ROW for n in range(8)))
    made = TierStore(lambda: neve, memoryview(memory), ROW, match_deadline_s=30, load_deadline_s=5)
    made.memory = memory  # type: ignore[attr-defined]  # for the tests
    yield made
    neve.answer()
    made.close()


def found(store, *keys, request="r"):
    """`find` of `keys`, once everything was answered."""
    for _ in range(10_000):
        answers = [store.find(request, key) for key in keys]
        if None not in answers:
            return answers
        store.end_step()
    raise AssertionError("no answer")


def save(store, neve, *keys, rows):
    store.store(1, "r", keys, rows, 64)
    neve.answer()
    (job,) = store.finished()
    assert job.good == list(keys)


def test_what_was_stored_is_found_and_read_into_other_rows(store, neve):
    save(store, neve, *KEYS[:2], rows=[5, 3])
    assert found(store, *KEYS) == [True, True, False, False]
    store.load(2, "r", KEYS[:2], [0, 1])
    assert store.finished() == []
    neve.answer()
    (job,) = store.finished()
    assert (job.number, job.good, job.size_bytes) == (2, KEYS[:2], 2 * ROW)
    assert store.memory[: 2 * ROW] == bytes([5]) * ROW + bytes([3]) * ROW


def test_the_keys_of_a_step_are_one_question(store, neve):
    assert found(store, *KEYS) == [False] * 4
    assert neve.questions == [4]
    assert found(store, *KEYS) == [False] * 4
    assert neve.questions == [4]
    store.forget("r")
    assert found(store, KEYS[0]) == [False]
    assert neve.questions == [4, 1]


def test_keys_that_come_while_an_answer_is_awaited_are_asked_for_next(store, neve):
    neve.gate.clear()
    store.find("r", KEYS[0])
    store.end_step()
    store.find("r", KEYS[1])
    store.end_step()
    neve.gate.set()
    assert found(store, *KEYS[:2]) == [False, False]
    assert neve.questions == [1, 1]


@pytest.fixture
def hasty(neve):
    """A store whose questions may take a fifth of a second."""
    made = TierStore(
        lambda: neve, memoryview(bytearray(ROW)), ROW, match_deadline_s=0.2, load_deadline_s=5
    )
    yield made
    neve.gate.set()
    made.close()


def at_once(store, count):
    """What is found for requests that come in one step."""
    answers = dict.fromkeys(map(str, range(count)))
    end = time.monotonic() + 60
    while None in answers.values():
        assert time.monotonic() < end, "no answer"
        for name, known in answers.items():
            answers[name] = store.find(name, KEYS[0]) if known is None else known
        store.end_step()
    return list(answers.values())


def test_of_many_requests_that_come_at_once_the_last_wait_for_their_turn(hasty, neve, monkeypatch):
    """Each answer takes a twentieth of the deadline, all together more than two deadlines."""
    clock = Clock()
    monkeypatch.setattr("neve.engine.tier_store.time", clock)
    neve.stored[neve.hasher.of_key(KEYS[0])] = bytes(ROW)
    neve.work = pace(monkeypatch, hasty, clock, 0.01)
    assert at_once(hasty, 50) == [True] * 50


def test_questions_that_nobody_waits_for_any_more_are_not_asked(hasty, neve):
    neve.gate.clear()
    assert at_once(hasty, 20) == [False] * 20
    neve.gate.set()
    assert found(hasty, KEYS[1], request="next") == [False]
    assert len(neve.questions) < 5


def test_nobody_asks_for_a_request_that_ended(store, neve):
    store.find("r", KEYS[0])
    store.forget("r")
    store.end_step()
    assert found(store, KEYS[1], request="other") == [False]
    assert neve.questions == [1]


def test_a_chunk_follows_what_was_looked_up_before_it(store, neve):
    found(store, *KEYS[:3])
    save(store, neve, KEYS[2], KEYS[0], KEYS[3], rows=[1, 2, 3])
    of_key, root = neve.hasher.of_key, neve.hasher.root()
    parents = [root, of_key(KEYS[1]), root]
    assert [neve.parents[of_key(key)] for key in (KEYS[0], KEYS[2], KEYS[3])] == parents


def test_a_chunk_that_could_not_be_read_is_not_found_again(store, neve):
    save(store, neve, *KEYS[:3], rows=[1, 2, 3])
    assert found(store, *KEYS[:3]) == [True] * 3
    del neve.stored[neve.hasher.of_key(KEYS[1])]
    store.load(2, "r", KEYS[:3], [4, 5, 6])
    neve.answer()
    (job,) = store.finished()
    assert job.good == [KEYS[0], KEYS[2]]
    assert found(store, *KEYS[:3]) == [True, False, True]


def test_a_load_of_what_nobody_found_fails(store):
    store.load(2, "r", KEYS[:1], [0])
    (job,) = store.finished()
    assert job.good == []


def test_trouble_is_a_miss(store, neve):
    save(store, neve, KEYS[0], rows=[1])
    neve.trouble = Unavailable("down")
    assert found(store, KEYS[0]) == [False]


def test_an_answer_that_takes_too_long_is_a_miss(store, neve):
    neve.gate.clear()
    store._match_deadline_s = 0.01
    save(store, neve, KEYS[0], rows=[1])
    assert found(store, KEYS[0]) == [False]
    neve.gate.set()


def test_without_a_connection_nothing_is_found_and_jobs_end(store):
    store._client = lambda: None
    assert store.find("r", KEYS[0]) is False
    store.store(1, "r", KEYS[:1], [0], 64)
    store.load(2, "r", KEYS[:1], [0])
    assert [(job.number, job.good) for job in store.finished()] == [(1, []), (2, [])]


def test_a_broken_client_ends_jobs_too(store, neve):
    neve.put_many = None
    store.store(1, "r", KEYS[:1], [0], 64)
    assert [job.good for job in store.finished()] == [[]]


def test_after_draining_nothing_is_under_way(store, neve):
    store.store(1, "r", KEYS[:1], [0], 64)
    threading.Timer(0.05, neve.answer).start()
    store.drain()
    assert [job.good for job in store.finished()] == [KEYS[:1]]


def test_after_a_reset_nothing_older_is_found_and_others_dont_find_what_is_newer(store, neve):
    store.begin("r")
    save(store, neve, *KEYS[:2], rows=[1, 2])
    assert found(store, *KEYS[:2]) == [True, True]
    store.reset()
    # Computed with the old weights in part: neither read nor stored.
    assert store.find("r", KEYS[0]) is False
    store.store(2, "r", KEYS[:1], [3], 64)
    assert [job.good for job in store.finished()] == [[]]
    store.begin("new")
    assert found(store, *KEYS[:2], request="new") == [False, False]
    store.store(3, "new", KEYS[:1], [3], 64)
    neve.answer()
    assert found(store, KEYS[0], request="another") == [True]
    assert neve.stored[neve.hasher.of_key(KEYS[0])] == bytes([1]) * ROW  # as others see it


# ---- identity and releases

CONFIG = SimpleNamespace(
    groups=(SimpleNamespace(tokens_per_block=32, layer_names=("a", "b")),),
    worker_kv_bytes_per_block=1024,
    model=SimpleNamespace(name="m", dtype="bfloat16"),
    cache=SimpleNamespace(tokens_per_hash=32, blocks_per_chunk=2),
    parallel=SimpleNamespace(tp_size=1, pp_size=1, world_size=1, pcp_size=1, dcp_size=1),
    kv_cache_layout="LBHNC",
)
OPTIONS = Options(endpoint="http://e", api_key="k", revision="r")


def identity(options=OPTIONS, row_bytes=4096, engine="0.32", device="d", **changed):
    config = SimpleNamespace(**vars(CONFIG) | changed)
    return identify_tier(config, row_bytes, options, engine=engine, device=device)


def test_a_row_is_one_block():
    made = identity()
    assert (made.engine_block_tokens, made.bytes_per_token) == (64, 64)


def test_nothing_that_changes_a_rows_bytes_is_shared():
    parallel = SimpleNamespace(**vars(CONFIG.parallel) | {"world_size": 2, "tp_size": 2})
    others = [
        identity(engine="0.33"),
        identity(device="other"),
        identity(row_bytes=8192),
        identity(replace(OPTIONS, revision="other")),
        identity(kv_cache_layout="BLHNC"),
        identity(replicated_layout=True),
        identity(parallel=parallel),
        identity(model=SimpleNamespace(name="m", dtype="fp8")),
        identity(groups=(SimpleNamespace(tokens_per_block=32, layer_names=("a",)),)),
    ]
    assert len({*others, identity()}) == len(others) + 1


def test_weights_without_a_name_and_too_large_rows_are_refused():
    with pytest.raises(Misuse, match="revision"):
        identity(replace(OPTIONS, revision=None))
    with pytest.raises(Misuse, match="block_size"):
        identity(row_bytes=65 << 20)


def test_a_job_of_any_release_is_understood():
    assert job_rows(SimpleNamespace(chunk_ids=[1, 2])) == [1, 2]
    assert job_rows(SimpleNamespace(block_ids=[3])) == [3]


def test_a_result_says_what_the_release_asks_for():
    @dataclass
    class Old:
        job_id: int
        success: bool

    @dataclass
    class New(Old):
        successful_keys: list[bytes] | None = None

    known = {"job_id": 7, "success": False, "successful_keys": [b"k"], "transfer_time": 1.0}
    assert job_result(Old, **known) == Old(7, False)
    assert job_result(New, **known) == New(7, False, [b"k"])
