"""Real engines: what one process computed, another reads, from Valkey and from S3.

The tests run in order; each continues with what the one before left in the store.
"""

import random
import time
from uuid import UUID

import pytest

from support.servers import ControlPlane, wait_until

pytestmark = pytest.mark.vllm

CHUNK = 64  # tokens of a block: two of the engine's blocks
HEADER_BYTES = 64
_random = random.Random(2)
# LONG and FORK end so that Neve's chunks and the engine's own prefix cache cover the same tokens.
LONG = [_random.randrange(256) for _ in range(280)]
ALIGNED = [_random.randrange(256) for _ in range(256)]
FORK = LONG[:130] + [_random.randrange(256) for _ in range(80)]
CONTEXT = {"neve": {"context": "repo-42", "pin": "2h", "label": "agent"}}
REQUESTS = [
    {"tokens": LONG, "max_tokens": 44, "params": CONTEXT},
    {"tokens": ALIGNED, "max_tokens": 8, "params": {"neve": {}}},
    {"tokens": FORK, "max_tokens": 8},
]
PROMPT_TOKENS = 280 + 256 + 210
HIT_TOKENS = 256 + 256 + 192


def options(platform: ControlPlane) -> dict[str, object]:
    """Neither a busy test machine nor a tiny model's speed turns these hits into misses."""
    return {
        "load": "always",
        "canary": 0,
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "max_chunk_tokens": CHUNK,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }


def ask_each(process):
    """One request after the other: no batch, so equal work has equal rounding."""
    return [process.generate(request)[0] for request in REQUESTS]


def differences(outputs, reference):
    """Asserts that tokens are equal; the largest difference of a logprob, by request."""
    found = []
    for out, expected in zip(outputs, reference, strict=True):
        assert out["tokens"] == expected["tokens"]
        worst = 0.0
        for step, wanted in zip(out["logprobs"], expected["logprobs"], strict=True):
            assert step.keys() == wanted.keys()
            worst = max(worst, *(abs(step[token] - wanted[token]) for token in step))
        found.append(worst)
    print("logprobs differ by", found)
    return found


def blocks_in(platform: ControlPlane) -> list[bytes]:
    with platform.hot.client() as client:
        return [key for key in client.scan_iter(count=1000) if b":b:" in key]


@pytest.fixture(scope="module")
def reference(fresh_process):
    """What the engine says without Neve: computing all, and then from its own prefix cache."""
    with fresh_process("reference") as process:
        process.start(None)
        computed = ask_each(process)
        cached = ask_each(process)
        follow_up = {"tokens": LONG + computed[0]["tokens"] + [1, 2, 3], "max_tokens": 8}
        more = process.generate(follow_up)
        process.ask("stop")
        yield {
            "computed": computed,
            "cached": cached,
            "follow_up": follow_up,
            "more": more,
            "process": process,
        }


def again(process) -> dict[str, object]:
    """What the answer of the first request says of Neve, asked once more."""
    return process.generate(REQUESTS[0])[0]["params"]["neve"]


def assert_hit_as_if_local(outputs, reference):
    """Bit-equal to the engine reusing its own KV, and the same tokens as computing everything.

    ALIGNED is loaded including its last block, which vLLM's own cache would compute: other shapes,
    so the last bits may differ.
    """
    long, aligned, fork = differences(outputs, reference["cached"])
    assert (long, fork) == (0, 0)
    assert aligned < 1e-5
    assert max(differences(outputs, reference["computed"])) < 1e-5


def test_a_wrong_configuration_stops_the_start_and_says_what_to_set(reference):
    process = reference["process"]
    with pytest.raises(RuntimeError, match='"kv_load_failure_policy": "recompute"'):
        process.start({"endpoint": "http://127.0.0.1:9", "api_key": "neve_x_y"}, policy="fail")
    with pytest.raises(RuntimeError, match="NEVE_API_KEY"):
        process.start({"endpoint": "http://127.0.0.1:9"})


def test_without_a_platform_the_engine_serves_as_if_neve_were_not_there(reference):
    process = reference["process"]
    process.start({"endpoint": "http://127.0.0.1:9", "api_key": "neve_x_y"})
    outputs = ask_each(process)
    assert differences(outputs, reference["computed"]) == [0, 0, 0]
    assert outputs[0]["params"]["neve"]["reused_tokens"] == 0
    process.ask("stop")


def test_the_first_process_computes_and_saves(platform, fresh_process, reference):
    before = blocks_in(platform)
    with fresh_process("first") as process:
        process.start(options(platform))
        outputs = ask_each(process)
        counters = process.ask("counters")
        process.ask("stop")
    print(counters)
    assert differences(outputs, reference["computed"]) == [0, 0, 0]
    assert counters["external_prefix_cache_hits"] == 0
    assert counters["prompt_tokens_by_source.external_kv_transfer"] == 0
    # LONG and its output: 5 blocks; ALIGNED: 4; FORK: 1 of its own after the 2 it shares.
    assert len(blocks_in(platform)) == len(before) + 10


def test_the_context_named_by_a_request_is_on_the_platform(platform):
    listed = platform.manage("shell", "-v", "0", "-c", SHOW_CONTEXTS)
    assert "repo-42|agent|5|True" in listed


def test_an_engine_that_is_just_dropped_reports_its_contexts(platform, fresh_process):
    with fresh_process("dropped") as process:
        process.start(options(platform))
        dropped = {"neve": {"context": "dropped"}}
        process.generate({"tokens": ALIGNED, "max_tokens": 1, "params": dropped})
    assert "dropped||4|False" in platform.manage("shell", "-v", "0", "-c", SHOW_CONTEXTS)


SHOW_CONTEXTS = """
from catalog.models import Context
for c in Context.unscoped.all():
    print(c.name, c.label, len(c.chain) // 16, c.pinned_until is not None, sep="|")
"""


def test_a_fresh_process_hits_the_hot_tier(platform, fresh_process, reference):
    before = blocks_in(platform)
    with fresh_process("hot") as process:
        # The CPU's kernels cannot have the layers of a block side by side: all is as before.
        asking = options(platform) | {"cross_layer_blocks": True}
        process.start(asking, module_path="neve.vllm")
        outputs = ask_each(process)
        counters = process.ask("counters")
        salted = process.generate({"tokens": LONG, "max_tokens": 44, "salt": "another user"})
        # The platform names the context after the first answer: a later one says its id.
        wait_until(lambda: "context_id" in again(process), what="the id of a reported context")
        context_id = again(process)["context_id"]
        process.ask("stop")
    print(counters)
    assert str(UUID(context_id)) == context_id
    assert_hit_as_if_local(outputs, reference)
    # FORK's first 128 tokens are already in the engine, loaded for LONG.
    assert [out["cached_tokens"] for out in outputs] == [256, 256, 192]
    assert counters["external_prefix_cache_hits"] == HIT_TOKENS - 128
    assert counters["prompt_tokens_by_source.external_kv_transfer"] == HIT_TOKENS - 128
    assert counters["prompt_tokens_by_source.local_cache_hit"] == 128
    assert counters["prompt_tokens_by_source.local_compute"] == PROMPT_TOKENS - HIT_TOKENS
    assert counters["neve_hit_tokens.hot"] == HIT_TOKENS - 128
    assert counters["neve_decisions.load_all"] == counters["neve_load_seconds"] == 3
    assert (counters["neve_connected"], counters["neve_breaker"]) == (1, 0)
    told = {"reused_tokens": 256, "hot": 256, "cold": 0}
    stored = {"context": "repo-42", "stored_tokens": 5 * CHUNK}
    assert outputs[0]["params"] == {"neve": stored | told}
    assert outputs[1]["params"] == {"neve": told}
    assert outputs[2]["params"] is None
    assert salted[0]["cached_tokens"] == 0
    assert len(blocks_in(platform)) == len(before) + 5  # the salted request's own


def test_what_is_read_from_the_nodes_own_tier_is_as_if_local(
    platform, fresh_process, reference, tmp_path
):
    local = {"local_dir": str(tmp_path / "local"), "local_bytes": 1 << 28}
    with fresh_process("local") as process:
        process.start(options(platform) | local)
        for _ in range(2):  # the second use of a block here admits it
            ask_each(process)
            process.ask("forget_prefixes")
        wait_until(
            lambda: len(list(tmp_path.glob("local/*/*/??/" + "?" * 32))) == HIT_TOKENS // CHUNK - 2,
            what="files of all blocks",
        )
        outputs = ask_each(process)
        counters = process.ask("counters")
        process.ask("stop")
    assert_hit_as_if_local(outputs, reference)
    assert [out["cached_tokens"] for out in outputs] == [256, 256, 192]
    assert counters["neve_hit_tokens.local"] == HIT_TOKENS - 128
    assert counters["neve_hit_tokens.hot"] >= HIT_TOKENS - 128
    assert counters["neve_local_used_bytes"] == counters["neve_local_written_bytes"] > 0
    told = {"reused_tokens": 256, "hot": 0, "cold": 0, "local": 256}
    assert outputs[1]["params"] == {"neve": told}


def damage(platform, keys):
    with platform.hot.client() as client:
        for key in keys:
            client.setrange(key, HEADER_BYTES + 5000, b"damaged")


def test_damaged_blocks_are_misses_and_are_saved_again(platform, reference):
    """From the third block of LONG's chain on, and then every block of all requests."""
    third = bytes.fromhex(platform.manage("shell", "-v", "0", "-c", SHOW_THIRD_BLOCK).strip())
    process = reference["process"]
    process.start(options(platform), engine={"enable_prefix_caching": False})
    for damaged, reused in (
        ([key for key in blocks_in(platform) if key.endswith(third)], [128, 256]),
        (blocks_in(platform), [0, 0]),
    ):
        assert damaged
        damage(platform, damaged)
        outputs = ask_each(process)
        outputs += process.generate(reference["follow_up"])
        wanted = reference["computed"] + reference["more"]
        assert max(differences(outputs, wanted)) < 1e-5
        assert [out["params"]["neve"]["reused_tokens"] for out in outputs[:2]] == reused
    counters = process.ask("counters")
    process.ask("stop")
    assert counters["neve_corrupt_blocks"] > 3
    assert counters["neve_missed_blocks.corrupt"] > 3


SHOW_THIRD_BLOCK = """
from catalog.models import Context
print(bytes(Context.unscoped.get(name="repo-42").chain)[32:48].hex())
"""


SET_CODEC = """
from retention.services import set_policy
from tenants.audit import SYSTEM
from tenants.models import Tenant
set_policy(tenant=Tenant.objects.get(slug="demo"), actor=SYSTEM, cold_codec="{codec}")
"""
SHOW_CODECS = """
from catalog.models import Segment
from storage import s3
from tiering.objects import footer_of
keys = [each.object_key for each in Segment.unscoped.filter(state="live")]
footers = [footer_of(s3.default().object(key)) for key in keys]
print("codecs", sorted({row.codec for footer in footers for row in footer.rows}))
"""


def test_after_a_wipe_of_valkey_a_fresh_process_hits_s3(platform, fresh_process, reference):
    """Of blocks that are encoded there without loss: the answers are the same."""
    platform.manage("shell", "-v0", "-c", SET_CODEC.format(codec="always"))
    platform.manage("flush_blocks")
    shown = platform.manage("shell", "-v0", "-c", SHOW_CODECS + SET_CODEC.format(codec="none"))
    assert "1]" in shown  # those of other tests are plain
    platform.hot.wipe()
    assert not blocks_in(platform)
    print(platform.manage("rebuild_index"))
    with fresh_process("cold") as process:
        process.start(options(platform), engine={"enable_prefix_caching": False})
        outputs = ask_each(process)
        counters = process.ask("counters")
        # A conversation goes on: the answer's tokens are found as well.
        more = process.generate(reference["follow_up"])
        process.ask("stop")
    print(counters)
    assert_hit_as_if_local(outputs, reference)
    assert counters["external_prefix_cache_hits"] == HIT_TOKENS
    assert counters["prompt_tokens_by_source.external_kv_transfer"] == HIT_TOKENS
    assert counters["neve_hit_tokens.cold"] == HIT_TOKENS
    assert counters["neve_read_bytes.cold"] > HIT_TOKENS * 2048
    told = outputs[0]["params"]["neve"]
    assert (told["reused_tokens"], told["hot"], told["cold"]) == (256, 0, 256)
    assert more[0]["cached_tokens"] == 320
    assert max(differences(more, reference["more"])) < 1e-5


def test_adapters_share_nothing_and_embeddings_are_left_alone(platform, reference, models):
    """Not even adapters of one name: their files decide what they compute."""
    process = reference["process"]
    adapted = {
        "enable_prefix_caching": False,
        "enable_lora": True,
        "max_lora_rank": 8,
        "enable_prompt_embeds": True,
    }
    plain, one, other = (
        {"tokens": [11, *LONG[:200]], "max_tokens": 6, "params": {"neve": {}}} | more
        for more in (
            {},
            {"lora": ["tuned", 1, str(models / "lora-a")]},
            {"lora": ["tuned", 2, str(models / "lora-b")]},
        )
    )
    process.start(None, engine=adapted)
    expected = [process.generate(request)[0]["tokens"] for request in (plain, one, other)]
    process.ask("stop")
    assert len({tuple(tokens) for tokens in expected}) == 3

    process.start(options(platform), engine=adapted)
    for request, tokens in zip((plain, one, other), expected, strict=True):
        answer = process.generate(request)[0]
        assert (answer["tokens"], answer["params"]["neve"]["reused_tokens"]) == (tokens, 0)
    for request, tokens in zip((other, one, plain), reversed(expected), strict=True):
        assert process.generate(request)[0]["tokens"] == tokens
        until_reused(process, request, 192)
        assert process.generate(request)[0]["tokens"] == tokens
    before = blocks_in(platform)
    for _ in range(2):
        vectors = process.generate({"embeds": 150, "max_tokens": 100, "params": {"neve": {}}})[0]
        assert vectors["cached_tokens"] == 0
    process.ask("stop")
    assert len(blocks_in(platform)) == len(before)


def test_the_same_words_under_another_image_are_another_prompt(platform, reference, models):
    """One token stands for every image, so only the image's own id tells two prompts apart."""
    process = reference["process"]
    seeing = {"model": str(models / "blip"), "engine": {"enable_prefix_caching": False}}
    red, blue = (
        {"tokens": LONG[:200], "max_tokens": 6, "params": {"neve": {}}, "image": colour}
        for colour in ("red", "blue")
    )
    process.start(None, **seeing)
    expected = [process.generate(request)[0]["tokens"] for request in (red, blue)]
    process.ask("stop")
    assert expected[0] != expected[1]

    process.start(options(platform), **seeing)
    for request, tokens in zip((red, blue), expected, strict=True):
        answer = process.generate(request)[0]
        assert (answer["tokens"], answer["params"]["neve"]["reused_tokens"]) == (tokens, 0)
    for request, tokens in zip((red, blue), expected, strict=True):
        until_reused(process, request, 192)
        assert process.generate(request)[0]["tokens"] == tokens
    process.ask("stop")


def test_images_that_the_engine_only_counts_are_left_alone(platform, reference, models):
    """Without a cache for images, vLLM gives the first image of every process the same id."""
    process = reference["process"]
    uncached = {"enable_prefix_caching": False, "mm_processor_cache_gb": 0}
    seeing = {"model": str(models / "blip"), "engine": uncached}
    red, blue = (
        {"tokens": [3, *LONG[:200]], "max_tokens": 6, "params": {"neve": {}}, "image": colour}
        for colour in ("red", "blue")
    )
    process.start(None, **seeing)
    expected = [process.generate(request)[0]["tokens"] for request in (red, blue)]
    process.ask("stop")
    assert expected[0] != expected[1]
    for request, tokens in zip((red, blue), expected, strict=True):
        process.start(options(platform), **seeing)
        assert process.generate(request)[0]["tokens"] == tokens
        process.ask("stop")


def until_reused(process, request, tokens):
    """What is computed is stored behind the step."""
    deadline = time.monotonic() + 60
    while process.generate(request)[0]["params"]["neve"]["reused_tokens"] != tokens:
        assert time.monotonic() < deadline


def test_structured_answers_and_drafts_leave_the_same_kv(platform, fresh_process, reference):
    """Drafts that were rejected and tokens that a grammar forbade are in no block."""
    process = reference["process"]
    own = options(platform) | {"revision": "drafts"}
    plain = {"enable_prefix_caching": False}
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    asked = [
        {"tokens": LONG[:200], "max_tokens": 70, "params": {"neve": {}}, "regex": "[a-f]{500}"},
        {"tokens": LONG[:7] * 30, "max_tokens": 70, "params": {"neve": {}}},
    ]
    process.start(None, engine=plain)
    expected = [output["tokens"] for output in process.generate(*asked)]
    process.ask("stop")
    assert len(set(expected[0])) <= 6
    # vLLM 0.32 starts no other engine in a process that has loaded numba.
    with fresh_process("drafts") as drafting:
        drafting.start(own, engine=plain | {"speculative_config": drafts})
        assert [output["tokens"] for output in drafting.generate(*asked)] == expected
        for request, tokens in zip(asked, expected, strict=True):
            # The answer's tokens are found as well: a conversation goes on.
            more = {"tokens": request["tokens"] + tokens, "max_tokens": 1, "params": {"neve": {}}}
            until_reused(drafting, more, 256)
        drafting.ask("stop")
    process.start(own, engine=plain)
    for request, tokens in zip(asked, expected, strict=True):
        answer = process.generate(request)[0]
        assert (answer["tokens"], answer["params"]["neve"]["reused_tokens"]) == (tokens, 192)
        more = {"tokens": request["tokens"] + tokens, "max_tokens": 20, "params": {"neve": {}}}
        loaded = process.generate(more)[0]["tokens"]
        assert process.generate(more | {"salt": "computed"})[0]["tokens"] == loaded
    process.ask("stop")


def test_what_does_not_fit_the_save_budget_is_dropped_counted_and_saved_later(platform, reference):
    process = reference["process"]
    one_chunk = options(platform) | {"save_budget_bytes": CHUNK * 2048}
    process.start(one_chunk, engine={"enable_prefix_caching": False})
    asked = {"tokens": [12, *LONG[:200]], "max_tokens": 1, "params": {"neve": {}}}
    tokens = process.generate(asked)[0]["tokens"]
    until_reused(process, asked, 192)
    assert process.generate(asked)[0]["tokens"] == tokens
    counters = process.ask("counters")
    process.ask("stop")
    assert counters["neve_unsaved_blocks.dropped"] >= 2
    assert counters["neve_saves_in_flight"] == counters["neve_loads_in_flight"] == 0


def until_heard(process):
    """Events published before the subscription took effect are lost, so other prompts go first
    until one of their events is heard."""
    for n in range(10, 60):
        process.generate({"tokens": [n, *LONG[:100]], "max_tokens": 1, "params": {"neve": {}}})
        if process.ask("events"):
            return


def test_routers_hear_what_is_stored_and_a_reset_changes_nothing_while_weights_stay(
    platform, reference
):
    process = reference["process"]
    process.start(options(platform), listens=True, engine={"enable_prefix_caching": False})
    until_heard(process)
    fresh = {"tokens": [9, *LONG[:200]], "max_tokens": 1, "params": {"neve": {}}}
    tokens = process.generate(fresh)[0]["tokens"]
    until_reused(process, fresh, 192)
    chunks = [fresh["tokens"][start : start + CHUNK] for start in (0, 64, 128)]
    heard = []
    deadline = time.monotonic() + 60
    while len(heard) < 3 and time.monotonic() < deadline:
        process.generate(fresh)  # events travel with the steps
        heard += [event for event in process.ask("events") if event["token_ids"] in chunks]
    assert [event.pop("token_ids") for event in heard] == chunks
    stored = {"kind": "BlockStored", "block_hashes": 2, "block_size": 32, "locality": None}
    assert heard == [stored] * 3
    assert process.ask("reset") is True
    answer = process.generate(fresh)[0]
    assert (answer["tokens"], answer["params"]["neve"]["reused_tokens"]) == (tokens, 192)
    process.ask("stop")


def test_preemption_and_chunked_prefill_keep_the_answers(platform, reference):
    """Three long answers in a KV memory for one and a half, prefill in pieces of 96 tokens."""
    process = reference["process"]
    tight = {
        "kv_cache_memory_bytes": 17 * 32 * 2048,
        "max_model_len": 400,
        "max_num_batched_tokens": 96,
    }
    asked = [{"tokens": [n, *LONG[:200]], "max_tokens": 150} for n in range(3)]
    process.start(None, engine=tight)
    expected = process.generate(*asked)
    process.ask("stop")
    for caching in (True, False):
        process.start(options(platform), engine=tight | {"enable_prefix_caching": caching})
        outputs = process.generate(*asked)
        counters = process.ask("counters")
        process.ask("stop")
        print(counters)
        assert counters["num_preemptions"] > 0
        assert max(differences(outputs, expected)) < 1e-4
    # What the first engine saved.
    assert counters["external_prefix_cache_hits"] >= 3 * 192


def test_when_valkey_dies_the_engine_goes_on_without_it(platform, reference):
    process = reference["process"]
    default = options(platform) | {"match_deadline_s": 0.2, "load_deadline_s": 2}
    process.start(default, engine={"enable_prefix_caching": False})
    ask_each(process)
    platform.hot.kill()
    before = process.ask("counters")
    try:
        for _ in range(3):
            outputs = ask_each(process)
            assert max(differences(outputs, reference["computed"])) < 1e-5
            assert outputs[0]["params"]["neve"]["reused_tokens"] == 0
        after = process.ask("counters")
        waited = {k: after[k] - before[k] for k in ("neve_match_seconds", "neve_load_seconds")}
        assert waited == {"neve_match_seconds": 9, "neve_load_seconds": 0}
        assert after["neve_missed_blocks.breaker"] > 0
        assert after["neve_breaker"] in (1, 2)
        process.ask("stop")
    finally:
        platform.hot.restart()
        platform.manage("provision")
