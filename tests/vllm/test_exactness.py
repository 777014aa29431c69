"""An engine with Neve answers as without, and reuses exactly the tokens that a model predicts.

One script of requests runs on an engine without Neve, then on engines that begin with an empty
store, a full hot tier, one that lacks blocks, one that loses some between the batches, only S3,
and nothing but damaged blocks. The model knows the store's real keys, the prompts and their ids,
and nothing of the engine.
"""

import json
import random
import time

import pytest

from neve.errors import Corrupt
from neve.formats.block import HEADER_BYTES, verify
from neve.formats.ids import BlockHasher
from neve.formats.keys import parse_key
from neve.index.tier import HotTier
from neve.planner.breakeven import model_kv
from support.servers import ControlPlane

pytestmark = pytest.mark.vllm

CHUNK, ENGINE_BLOCK = 64, 32
# Allowed by rounding: computing a tail has other shapes than computing all.
LOGPROB_BOUND = {"float32": 1e-4, "bfloat16": 0.25}


def words(seed, count):
    return random.Random(seed).choices(range(256), k=count)


def options(platform, **more):
    """Neither a busy test machine nor a tiny model's speed turns these hits into misses."""
    return {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": CHUNK,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    } | more


def ask(tokens, max_tokens=4, **more):
    return {"tokens": tokens, "max_tokens": max_tokens, "params": {"neve": {}}} | more


SHARED = words("shared", 200)
EDGES = (1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 192, 193, 300)
# Batches, one after the other; within a batch requests run at once and share no unstored prefix.
# None stands for the answer to the batch's only request before, as in a conversation.
SCRIPT = [
    [ask(words(length, length)) for length in EDGES],
    [ask(words("talk", 90), 50)],
    [ask([None, *words("turn 2", 30)], 70)],
    [ask([None, *words("turn 3", 5)], 10)],
    [ask(SHARED + words("a", 20))],
    [ask(SHARED + words("b", 90)), ask(SHARED + words("c", 1))],
    [ask(SHARED, salt="one")],
    [ask(SHARED + words("d", 9), salt="one"), ask(SHARED, salt="two"), ask(SHARED)],
    [ask(words("sampled", 150), 40, seed=11), ask(words("sampled too", 80), 40, seed=12)],
    [ask(words("sampled", 150), 40, seed=13)],
]
SPACES = """
from catalog.models import Space
import json
for s in Space.unscoped.all():
    if not s.identity["revision"].startswith("set:"):  # those are of tests that want their own
        of = s.identity
        print(json.dumps([of["model"], of["dtype"], s.pk, s.fingerprint, of["bytes_per_token"]]))
"""


class Store:
    """What a space really holds, by the keys in Valkey."""

    def __init__(self, platform: ControlPlane, model: str, dtype: str) -> None:
        self._platform = platform
        rows = map(json.loads, platform.manage("shell", "-v", "0", "-c", SPACES).splitlines())
        ((space, fingerprint, self.bytes_per_token),) = [
            row[2:] for row in rows if row[:2] == [model, f"torch.{dtype}"]
        ]
        self._mark = f":b:{space}:".encode()
        self._hasher = BlockHasher(bytes.fromhex(fingerprint), CHUNK)

    def keys(self) -> dict[bytes, bytes]:
        """Block id → key."""
        with self._platform.hot.client() as client:
            keys = [key for key in client.scan_iter(count=1000) if self._mark in key]
        return {key[-16:]: key for key in keys}

    def chain(self, tokens, salt=None) -> list[bytes]:
        return self._hasher.chain(tokens, parent=self._hasher.root(salt=(salt or "").encode()))

    def evict(self, ids: set[bytes]) -> None:
        """Removes blocks as the hot tier itself does, index and all."""
        keys = self.keys()
        bucket, _ = parse_key(keys[min(ids)])
        with self._platform.hot.client() as client:
            removed, _ = HotTier(client.execute_command, bucket.tenant_id).expire(sorted(ids))
        assert removed == len(ids)

    def wait_for(self, ids: set[bytes]) -> None:
        """Waits until all are stored and undamaged: saves end after the step."""
        deadline = time.monotonic() + 20
        keys = self.keys()
        with self._platform.hot.client() as client:
            while ids:
                assert time.monotonic() < deadline, "not all was saved"
                ids = {i for i in ids if i not in keys or not _is_whole(client.get(keys[i]), i)}
                keys = self.keys() if ids else {}


def _is_whole(value: bytes | None, block_id: bytes) -> bool:
    try:
        verify(value[:HEADER_BYTES], memoryview(value)[HEADER_BYTES:], expect_id=block_id)
    except (Corrupt, TypeError):
        return False
    return True


class PrefixCache:
    """The engine's prefix cache: whole blocks of all that it computed or loaded."""

    def __init__(self) -> None:
        self._prefixes: set[tuple[object, ...]] = set()

    def add(self, tokens, salt=None) -> None:
        ends = range(ENGINE_BLOCK, len(tokens) + 1, ENGINE_BLOCK)
        self._prefixes.update((salt, *tokens[:end]) for end in ends)

    def tokens(self, tokens, salt=None) -> int:
        """Tokens found there, without the prompt's last: that is computed for the first logits."""
        found = 0
        while found + ENGINE_BLOCK < len(tokens):
            if (salt, *tokens[: found + ENGINE_BLOCK]) not in self._prefixes:
                break
            found += ENGINE_BLOCK
        return found


def run(
    process,
    store=None,
    held=frozenset(),
    damaged=frozenset(),
    cold=frozenset(),
    *,
    evicts=False,
    caches=False,
):
    """The script's outputs. With `store`: asserts every hit.

    `held` can be loaded at first, `damaged` is there and bad: a block that is never read stays so,
    because storing it again finds one of its name. `cold` are in S3, and hot again only if
    they are read twice. With `evicts` the hot tier loses every fourth block between two batches;
    those that this engine stored or found are stored again only once it has missed them. With
    `caches` the engine has a prefix cache of its own, which comes first.
    """
    own = PrefixCache()
    held, damaged, unmissed = set(held), set(damaged), set()
    known = set()
    outputs = []
    for number, batch in enumerate(SCRIPT):
        if evicts and number:
            gone = set(random.Random(number).sample(sorted(held), len(held) // 4))
            store.evict(gone)
            held -= gone
            unmissed |= gone & known
        requests = []
        for request in batch:
            tokens = request["tokens"]
            if tokens[0] is None:
                before, said = outputs[-1]
                tokens = before["tokens"] + said["tokens"] + tokens[1:]
            requests.append(request | {"tokens": tokens})
        answers = process.generate(*requests)
        outputs += zip(requests, answers, strict=True)
        if store is None:
            continue
        computed = set()
        for request, answer in zip(requests, answers, strict=True):
            ids = store.chain(request["tokens"], request.get("salt"))
            found = next((n for n, id_ in enumerate(ids) if id_ not in held), len(ids))
            read = next((n for n, id_ in enumerate(ids) if id_ not in held | damaged), len(ids))
            local = own.tokens(request["tokens"], request.get("salt")) if caches else 0
            reused = max(0, found * CHUNK - local)
            assert answer["params"]["neve"]["reused_tokens"] == reused
            if caches:  # vLLM also counts loads that failed
                assert answer["cached_tokens"] == local + reused
            damaged.difference_update(ids[:read])
            unmissed.difference_update(ids)
            known.update(ids[:found])
            # The last sampled token was never computed.
            everything = request["tokens"] + answer["tokens"][:-1]
            computed.update(store.chain(everything, request.get("salt")))
            own.add(everything, request.get("salt"))
        computed -= damaged | unmissed
        held |= computed
        known |= computed
        store.wait_for(computed - cold)
    if store is not None:
        assert store.keys().keys() | cold == held | damaged | cold  # nothing else was saved
    return outputs


def assert_same(outputs, reference, dtype):
    worst = 0.0
    for (_, out), (_, expected) in zip(outputs, reference, strict=True):
        assert out["tokens"] == expected["tokens"]
        for step, wanted in zip(out["logprobs"], expected["logprobs"], strict=True):
            common = step.keys() & wanted.keys()  # the last of the top three may be a tie
            worst = max(worst, *(abs(step[token] - wanted[token]) for token in common))
    print("logprobs differ by at most", worst)
    assert worst <= LOGPROB_BOUND[dtype]


@pytest.fixture(scope="module")
def engine(fresh_process):
    """One process for all shapes: an engine takes a second to start, its imports ten."""
    with fresh_process("exactness") as process:
        yield process


@pytest.mark.parametrize(
    ("shape", "dtype", "cold"),
    [
        ("llama", "float32", True),
        ("llama", "bfloat16", False),
        ("gemma", "float32", False),
        ("moe", "float32", False),
    ],
)
def test_answers_and_hits_are_as_predicted(platform, engine, models, shape, dtype, cold):
    plain = {"enable_prefix_caching": False, "dtype": dtype, "kv_cache_memory_bytes": 32 << 20}

    engine.start(None, model=str(models / shape), engine=plain)
    reference = run(engine)
    engine.ask("stop")
    store = None

    def check(held, damaged=(), cold=frozenset(), *, caches=False, **more):
        """Runs on a fresh engine. Returns the tokens that were found, and loaded."""
        nonlocal store
        own = plain | {"enable_prefix_caching": caches}
        engine.start(options(platform), model=str(models / shape), engine=own)
        store = store or Store(platform, shape, dtype)
        outputs = run(engine, store, held, damaged, cold, caches=caches, **more)
        assert_same(outputs, reference, dtype)
        hits = engine.ask("counters")["external_prefix_cache_hits"]
        engine.ask("stop")
        return hits, sum(out["params"]["neve"]["reused_tokens"] for _, out in outputs)

    # An empty store, then a full one.
    hits, reused = check(())
    assert hits == reused > 0
    config = json.loads((models / shape / "config.json").read_text())
    assert store.bytes_per_token == model_kv(config, kv_dtype=dtype).bytes_per_token
    everything = store.keys()
    hits, full = check(everything)
    assert hits == full > 2000

    # With the engine's own prefix cache too: Neve loads what that lacks.
    hits, reused = check(everything, caches=True)
    assert 0 < hits == reused < full

    # Some blocks are gone, unknown to the index: found, then missed, then stored again.
    gone = random.Random(1).sample(sorted(everything), len(everything) // 4)
    with platform.hot.client() as client:
        client.delete(*(everything[block_id] for block_id in gone))
    hits, reused = check(set(everything) - set(gone))
    assert hits > reused > 0

    # Blocks are evicted while the engine runs. Those that it does not miss stay away.
    if not cold:
        hits, reused = check(store.keys(), evicts=True)
        assert 0 < hits == reused < full

    # Every block is damaged: all are misses, none becomes tokens.
    damaged = store.keys()
    with platform.hot.client() as client:
        for key in damaged.values():
            client.setrange(key, HEADER_BYTES + 1000, b"damaged")
    hits, reused = check((), damaged)
    assert hits > reused

    if not cold:
        return
    # Only S3 is left.
    platform.manage("flush_blocks")
    platform.hot.wipe()
    platform.manage("rebuild_index")
    assert not store.keys()
    hits, reused = check(everything, cold=everything.keys())
    assert hits == reused > 2000


def test_an_engine_that_cannot_go_on_from_kv_serves_without_neve(platform, engine, models):
    """vLLM's MLA on CPU only computes whole prompts: after a load its tokens would be wrong."""
    asked = ask(words("mla", 200), 8)
    outputs = []
    for neve in (None, {"endpoint": platform.url, "api_key": platform.node_key}):
        engine.start(neve, model=str(models / "mla"))
        outputs += [engine.generate(asked)[0]["tokens"] for _ in range(2)]
        engine.ask("stop")
    assert outputs == outputs[:1] * 4
    assert '["mla"' not in platform.manage("shell", "-v", "0", "-c", SPACES)  # it never connected
    assert "neither chunked prefill nor prefix caching" in engine.log.read_text()


def test_blocks_of_ended_requests_stay_until_they_are_copied(platform, fresh_process, models):
    """With copies that come late (as on a GPU) and memory for two prompts at a time."""
    asked = [ask(words(f"late {n}", 200), 2) for n in range(8)]
    late = options(platform, revision="late")  # a space of its own
    tight = {"kv_cache_memory_bytes": 17 * 32 * 2048, "max_model_len": 256}
    tight["enable_prefix_caching"] = False
    with fresh_process("late") as process:
        process.start(None, engine=tight)
        expected = [process.generate(request)[0]["tokens"] for request in asked]
        process.ask("stop")
        process.ask("defer_copies", s=0.3)
        process.start(late, engine=tight)
        for request, tokens in zip(asked, expected, strict=True):
            assert process.generate(request)[0]["tokens"] == tokens
        process.ask("stop")
        process.start(late, engine=tight)
        for request, tokens in zip(asked, expected, strict=True):
            answer = process.generate(request)[0]
            assert answer["tokens"] == tokens
            assert answer["params"]["neve"]["reused_tokens"] == 192
        process.ask("stop")


def test_blocks_of_preempted_requests_change_hands_once_they_are_copied(platform, fresh_process):
    """With copies that come late, and memory for one and a half of three answers at a time."""
    asked = [ask(words(f"preempted {n}", 201), 150) for n in range(3)]
    late = options(platform, revision="preempted")
    tight = {"kv_cache_memory_bytes": 17 * 32 * 2048, "max_model_len": 400}
    tight |= {"max_num_batched_tokens": 96, "enable_prefix_caching": False}
    with fresh_process("preempted") as process:
        process.start(None, engine=tight)
        expected = [output["tokens"] for output in process.generate(*asked)]
        process.ask("stop")
        process.ask("defer_copies", s=1.0)
        for reused in (0, 3 * 192):
            process.start(late, engine=tight)
            outputs = process.generate(*asked)
            counters = process.ask("counters")
            process.ask("stop")
            assert [output["tokens"] for output in outputs] == expected
            assert counters["num_preemptions"] > 0
            assert counters["external_prefix_cache_hits"] >= reused
