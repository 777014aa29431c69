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
from support.kv_sizes import engine_sizes, planned_sizes
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

    def __init__(
        self, platform: ControlPlane, model: str, dtype: str, *, chunk: int = CHUNK
    ) -> None:
        self._platform = platform
        self.chunk = chunk
        self.windows = WINDOWS.get(model, (None,))
        self.is_split = self.windows != (None,)
        rows = map(json.loads, platform.manage("shell", "-v", "0", "-c", SPACES).splitlines())
        ((space, fingerprint, self.bytes_per_token),) = [
            row[2:] for row in rows if row[:2] == [model, f"torch.{dtype}"]
        ]
        self._mark = f":b:{space}:".encode()
        self._hasher = BlockHasher(bytes.fromhex(fingerprint), chunk)

    def keys(self) -> dict[bytes, bytes]:
        """Block id → key."""
        with self._platform.hot.client() as client:
            keys = [key for key in client.scan_iter(count=1000) if self._mark in key]
        return {key[-16:]: key for key in keys}

    def chain(self, tokens, salt=None) -> list[list[bytes]]:
        """For each whole chunk the ids of its blocks, one for each KV cache group."""
        ids = self._hasher.chain(tokens, parent=self._hasher.root(salt=(salt or "").encode()))
        return [self._hasher.of_groups(id_, len(self.windows)) for id_ in ids]

    def needed(self, chain, chunks, local=0) -> set[bytes]:
        """What a request reads of Neve to go on after `chunks`, if it has `local` tokens itself."""
        end = chunks * self.chunk
        kv = {
            chain[token // self.chunk][group]
            for group, window in enumerate(self.windows)
            if window != STATE
            for token in range(max(local, 0 if window is None else end - window + 1), end)
        }
        return kv | {self.state(chain, chunks) for _ in range(STATE in self.windows and chunks > 0)}

    def state(self, chain, chunks) -> bytes:
        """The block with the state after so many chunks, of a model that has states."""
        return chain[chunks - 1][self.windows.index(STATE)]

    def prefix(self, chain, there, tokens, local=0) -> int:
        """The most chunks that a request of so many tokens can go on after."""
        if not self.is_split:
            return next((n for n, (id_,) in enumerate(chain) if id_ not in there), len(chain))
        most = (tokens - 1) // self.chunk  # the last token is computed: its window may be gone
        return max(n for n in range(most + 1) if self.needed(chain, n, local) <= there)

    def listed(self, chain, there) -> set[bytes]:
        """What a look-up finds: the prefix of full attention, and the windows of its chunks."""
        full = [n for n, window in enumerate(self.windows) if window is None]
        whole = (all(ids[group] in there for group in full) for ids in chain)
        chunks = next((n for n, is_whole in enumerate(whole) if not is_whole), len(chain))
        return {id_ for ids in chain[:chunks] for id_ in ids if id_ in there}

    def saved(self, chain, found) -> set[bytes]:
        """What is stored of a request that went on after `found` chunks: of windows only what was
        computed, since of the others the engine has no block."""
        return {
            id_
            for n, ids in enumerate(chain)
            for id_, window in zip(ids, self.windows, strict=True)
            if window is None or n >= found
        }

    def evict(self, ids: set[bytes]) -> None:
        """Removes blocks as the hot tier itself does, index and all."""
        keys = self.keys()
        bucket, _ = parse_key(keys[min(ids)])
        with self._platform.hot.client() as client:
            removed, _ = HotTier(client.execute_command, bucket.tenant_id).expire(sorted(ids))
        assert removed == len(ids)

    def wait_for(self, ids: set[bytes]) -> None:
        """Waits until all are stored and undamaged: saves end after the step."""
        deadline = time.monotonic() + 60
        keys = self.keys()
        with self._platform.hot.client() as client:
            while ids:
                assert time.monotonic() < deadline, "not all was saved"
                ids = {i for i in ids if i not in keys or not _is_whole(client.get(keys[i]), i)}
                keys = self.keys() if ids else {}


# By shape: of each KV cache group the tokens that a layer sees, or that it keeps a state.
STATE = "state"
WINDOWS = {
    "gemma": (None, 128),
    "gptoss": (None, 128),
    "cohere2": (None, 97),
    "window": (128,),
    "qwen3next": (None, STATE),
}


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
    damaged=(),
    cold=frozenset(),
    *,
    gone=(),
    evicts=False,
    caches=False,
):
    """The script's outputs. With `store`: asserts every hit.

    `held` can be loaded at first, `damaged` is there and bad: a block that is never read stays so,
    because storing it again finds one of its name. `gone` are in the index only. Both sets lose
    what is stored again. `cold` are in S3, and hot again only if they are read twice. With `evicts`
    the hot tier loses every fourth block between two batches; those that this engine stored or
    found are stored again only once it has missed them. With `caches` the engine has a prefix cache
    of its own, which comes first.
    """
    own = PrefixCache()
    damaged, gone = damaged or set(), gone or set()
    held, unmissed, known = set(held), set(), set()
    outputs = []
    for number, batch in enumerate(SCRIPT):
        if evicts and number:
            evicted = set(random.Random(number).sample(sorted(held), len(held) // 4))
            store.evict(evicted)
            held -= evicted
            unmissed |= evicted & known
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
        computed, there = set(), held | damaged | gone
        for request, answer in zip(requests, answers, strict=True):
            tokens, salt = request["tokens"], request.get("salt")
            chain = store.chain(tokens, salt)
            said = answer["params"]["neve"]["reused_tokens"]
            local = own.tokens(tokens, salt) if caches else 0
            if caches and store.is_split:  # vLLM's own cache of windows has rules of its own
                local = answer["cached_tokens"] - said
            hoped = store.prefix(chain, there, len(tokens), local)
            read = store.needed(chain, hoped, local)
            found = store.prefix(chain, held, len(tokens), local)
            if store.is_split and not read <= held:  # a load of several groups fails as a whole
                found = 0
            assert said == max(0, found * CHUNK - local)
            if caches and not store.is_split:  # vLLM also counts what it had hoped to load
                assert answer["cached_tokens"] == local + said
            damaged -= read
            gone -= read
            ids = {id_ for each in chain for id_ in each}
            unmissed -= ids
            known -= ids
            known |= store.listed(chain, there) - (set() if read <= held else read)
            # The last sampled token was never computed.
            everything = tokens + answer["tokens"][:-1]
            computed |= store.saved(store.chain(everything, salt), max(found, local // CHUNK))
            own.add(everything, salt)
        computed -= damaged | unmissed | gone & known
        gone -= computed
        held |= computed
        known |= computed
        store.wait_for(computed - cold)
    if store is not None:
        assert store.keys().keys() | cold == held | damaged | cold  # nothing else was saved
    return outputs


def assert_same(outputs, reference, dtype, *, most=None):
    """`most`: allowed difference of logprobs, in place of rounding's."""
    worst = 0.0
    for (_, out), (_, expected) in zip(outputs, reference, strict=True):
        assert out["tokens"] == expected["tokens"]
        for step, wanted in zip(out["logprobs"], expected["logprobs"], strict=True):
            common = step.keys() & wanted.keys()  # the last of the top three may be a tie
            worst = max(worst, *(abs(step[token] - wanted[token]) for token in common))
    print("logprobs differ by at most", worst)
    assert worst <= (LOGPROB_BOUND[dtype] if most is None else most)


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
        ("gemma", "float32", True),
        ("gptoss", "float32", False),
        ("cohere2", "float32", False),
        ("window", "float32", False),
        ("moe", "float32", False),
    ],
)
def test_answers_and_hits_are_as_predicted(platform, engine, models, shape, dtype, cold):
    plain = {"enable_prefix_caching": False, "dtype": dtype, "kv_cache_memory_bytes": 32 << 20}

    engine.start(None, model=str(models / shape), engine=plain)
    config = json.loads((models / shape / "config.json").read_text())
    described = engine.ask("describe")
    planned = planned_sizes(config, described, dtype=dtype)
    assert planned == engine_sizes(described)
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
    assert store.bytes_per_token == sum(planned.values())
    everything = store.keys()
    hits, full = check(everything)
    assert hits == full > 2000

    # With the engine's own prefix cache too: Neve loads what that lacks.
    hits, reused = check(everything, caches=True)
    assert 0 < hits == reused < full

    # Some blocks are gone, unknown to the index: found, then missed, then stored again.
    gone = set(random.Random(1).sample(sorted(everything), len(everything) // 4))
    with platform.hot.client() as client:
        client.delete(*(everything[block_id] for block_id in gone))
    hits, reused = check(set(everything) - gone, gone=gone)
    assert hits > reused > 0

    # Blocks are evicted while the engine runs. Those that it does not miss stay away.
    if not cold:
        hits, reused = check(store.keys(), gone=gone, evicts=True)
        assert 0 < reused <= hits < full  # less if windows that nobody missed are still gone

    # Every block is damaged: all are misses, none becomes tokens.
    keys = store.keys()
    damaged = set(keys)
    with platform.hot.client() as client:
        for key in keys.values():
            client.setrange(key, HEADER_BYTES + 1000, b"damaged")
    hits, reused = check((), damaged, gone=gone)
    assert hits > reused

    if not cold:
        return
    # Only S3 is left.
    platform.manage("flush_blocks")
    platform.hot.wipe()
    platform.manage("rebuild_index")
    assert not store.keys()
    cold = set(everything) - damaged - gone
    hits, reused = check(cold, cold=cold)
    assert hits == reused > 2000


# Of two layers: the state in float32, and the last inputs of the convolution in bfloat16.
STATE_BYTES = 2 * (4 * 128 * 128 * 4 + 3 * (2 * 2 + 4) * 128 * 2)
STATE_CHUNK = 96  # vLLM's block of this shape, which holds a state
# None stands for the answer before, as in a conversation. Prompts that end with a chunk, or a token
# behind it; prompts that are computed in several steps; prompts with a prefix in common.
PROMPTS = [
    *(words(f"states {length}", length) for length in (95, 96, 97, 192, 300)),
    words("states", 500),
    words("states", 400) + words("other", 70),
    words("states talk", 110),
    [None, *words("states turn 2", 130)],
    [None, *words("states turn 3", 5)],
]


def test_a_model_with_states_answers_as_without_neve(platform, engine, models):
    """Linear attention in every other layer. vLLM keeps such states with its prefix cache on only,
    which forgets between requests: all reuse is Neve's. Without Neve, it does so between
    conversations. Then the steps that compute a prompt are the same with and without Neve, and
    answers are equal bit by bit."""
    more = {"dtype": "bfloat16", "kv_cache_memory_bytes": 48 << 20, "max_num_batched_tokens": 256}
    shape = {"model": str(models / "qwen3next"), "engine": more}

    def talk(neve, store=None, held=()):
        """Outputs and reused tokens. With `store` and what it has: asserts every hit."""
        engine.start(neve, **shape)
        described = engine.ask("describe")
        config = json.loads((models / "qwen3next/config.json").read_text())
        assert planned_sizes(config, described, dtype="bfloat16") == engine_sizes(described)
        held, outputs, reused = set(held), [], []
        for tokens in PROMPTS:
            if tokens[0] is None:
                request, said = outputs[-1]
                tokens = request["tokens"] + said["tokens"] + tokens[1:]
            if neve is not None or tokens in PROMPTS:
                engine.ask("forget_prefixes")
            (answer,) = engine.generate(ask(tokens, 12))
            outputs.append((ask(tokens, 12), answer))
            if neve is None:
                continue
            engine.ask("store_all")
            reused.append(answer["params"]["neve"]["reused_tokens"])
            if store is None:
                continue
            chain = store.chain(tokens + answer["tokens"][:-1])
            assert reused[-1] == store.prefix(chain, held, len(tokens)) * STATE_CHUNK
            held |= {full for full, _ in chain}
            if ends := (len(tokens) - 1) // STATE_CHUNK:
                held.add(store.state(chain, ends))
        counters = engine.ask("counters")
        engine.ask("stop")
        return outputs, reused, counters

    reference, _, _ = talk(None)
    always = options(platform)
    outputs, _, counters = talk(always)
    assert_same(outputs, reference, "bfloat16", most=0.0)
    assert "neve.weights.unreadable" not in engine.log.read_text()
    # Two prompts are too short, and one goes on from its own last state.
    assert counters["neve_states.stored"] == len(PROMPTS) - 3
    assert counters["neve_state_bytes.stored"] == (len(PROMPTS) - 3) * STATE_BYTES
    store = Store(platform, "qwen3next", "bfloat16", chunk=STATE_CHUNK)
    assert store.bytes_per_token == 2 * 4 * (256 + 256) * 2  # of the layers that keep KV
    everything = set(store.keys())

    outputs, full, counters = talk(always, store, everything)
    assert_same(outputs, reference, "bfloat16", most=0.0)
    assert full == [0, 0, 96, 96, 288, 480, 384, 96, 192, 192]
    assert counters["external_prefix_cache_hits"] == sum(full)
    assert counters["neve_states.loaded"] == sum(tokens > 0 for tokens in full)
    assert counters["neve_state_bytes.loaded"] == counters["neve_states.loaded"] * STATE_BYTES

    # A state is lost: the request goes on from an earlier one, or computes all.
    chains = [store.chain(request["tokens"]) for request, _ in reference]
    lost = {store.state(chains[n], full[n] // STATE_CHUNK) for n in (4, 8)}
    store.evict(lost)
    outputs, reused, _ = talk(always, store, everything - lost)
    assert_same(outputs, reference, "bfloat16", most=0.0)
    assert (reused[4], reused[8]) == (0, 96)

    # A state of one prompt and KV of another are damaged: both are computed.
    keys = store.keys()
    with platform.hot.client() as client:
        for block_id in (store.state(chains[4], 3), chains[5][2][0]):
            client.setrange(keys[block_id], HEADER_BYTES + 1000, b"damaged")
    outputs, reused, _ = talk(always)
    assert_same(outputs, reference, "bfloat16", most=0.0)
    assert (reused[4], reused[5]) == (0, 0)

    # By measured speeds some prompts are loaded, others computed.
    outputs, reused, _ = talk(always | {"load": "auto"})
    alone = len(PROMPTS) - 3  # a conversation's steps depend on what is loaded
    assert_same(outputs[:alone], reference[:alone], "bfloat16", most=0.0)

    # Only S3 is left.
    platform.manage("flush_blocks")
    platform.hot.wipe()
    platform.manage("rebuild_index")
    outputs, reused, _ = talk(always)
    assert_same(outputs, reference, "bfloat16", most=0.0)
    assert reused == full


def test_an_engine_that_cannot_go_on_from_kv_serves_without_neve(platform, engine, models):
    """vLLM's MLA on CPU only computes whole prompts: after a load its tokens would be wrong.

    Where the processor has AMX, vLLM prefers another MLA, which takes bfloat16 alone.
    """
    asked = ask(words("mla", 200), 8)
    outputs = []
    plain = {"attention_backend": "CPU_MLA"}
    for neve in (None, {"endpoint": platform.url, "api_key": platform.node_key}):
        engine.start(neve, model=str(models / "mla"), engine=plain)
        outputs += [engine.generate(asked)[0]["tokens"] for _ in range(2)]
        engine.ask("stop")
    assert outputs == outputs[:1] * 4
    assert '["mla"' not in platform.manage("shell", "-v", "0", "-c", SPACES)  # it never connected
    assert "neither chunked prefill nor prefix caching" in engine.log.read_text()


@pytest.mark.parametrize("shape", ["llama", "gptoss", "qwen3next"])
def test_blocks_of_ended_requests_stay_until_they_are_copied(
    platform, fresh_process, models, shape
):
    """With copies that come late (as on a GPU) and memory for two prompts at a time.

    Blocks with states of qwen3next change hands while their request runs.
    """
    asked = [ask(words(f"late {n}", 200), 2) for n in range(8)]
    late = options(platform, revision="late")  # a space of its own
    model = str(models / shape)
    tight = {"kv_cache_memory_bytes": 17 * 32 * 2048, "max_model_len": 256}
    tight["enable_prefix_caching"] = False
    if shape == "qwen3next":  # a block has 96 tokens of two layers
        tight |= {"dtype": "bfloat16", "enable_prefix_caching": True}
        tight["kv_cache_memory_bytes"] = 13 * 96 * 8192
    with fresh_process("late") as process:
        process.start(None, model=model, engine=tight)
        expected = [process.generate(request)[0]["tokens"] for request in asked]
        process.ask("stop")
        process.ask("defer_copies", s=0.3)
        process.start(late, model=model, engine=tight)
        for request, tokens in zip(asked, expected, strict=True):
            assert process.generate(request)[0]["tokens"] == tokens
        process.ask("stop")
        process.start(late, model=model, engine=tight)
        for request, tokens in zip(asked, expected, strict=True):
            answer = process.generate(request)[0]
            assert answer["tokens"] == tokens
            assert answer["params"]["neve"]["reused_tokens"] == 192
        process.ask("stop")


@pytest.mark.parametrize("shape", ["llama", "gptoss"])
def test_blocks_of_preempted_requests_change_hands_once_they_are_copied(
    platform, fresh_process, models, shape
):
    """With copies that come late, and memory for one and a half of three answers at a time.

    Blocks of gptoss' windows change hands without preemptions.
    """
    model = str(models / shape)
    asked = [ask(words(f"preempted {n}", 201), 150) for n in range(3)]
    late = options(platform, revision="preempted")
    tight = {"kv_cache_memory_bytes": 17 * 32 * 2048, "max_model_len": 400}
    tight |= {"max_num_batched_tokens": 96, "enable_prefix_caching": False}
    with fresh_process("preempted") as process:
        process.start(None, model=model, engine=tight)
        expected = [output["tokens"] for output in process.generate(*asked)]
        process.ask("stop")
        process.ask("defer_copies", s=1.0)
        for reused in (0, 3 * 192):
            process.start(late, model=model, engine=tight)
            outputs = process.generate(*asked)
            counters = process.ask("counters")
            process.ask("stop")
            assert [output["tokens"] for output in outputs] == expected
            assert counters["num_preemptions"] > 0 or shape == "gptoss"
            assert counters["external_prefix_cache_hits"] >= reused
