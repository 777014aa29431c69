"""Models that Neve can't serve start and answer as without it; the log names Neve and the reason.

Further refusals, of what this build does not run, are in test_compat.py.
"""

import random

import pytest

pytestmark = pytest.mark.vllm

PROMPT = random.Random(47).choices(range(256), k=300)
SPOKEN = {"tokens": [257, 5, 6, 7], "max_tokens": 8, "sound": 440}


@pytest.fixture(scope="module")
def process(fresh_process):
    with fresh_process("refusals") as process:
        yield process


@pytest.fixture
def neve(platform):
    return {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }


def test_an_encoder_decoder_model_starts_and_is_said_to_be_one(process, neve, models):
    """vLLM's scheduler asserts that such a model has no connector."""
    whisper = {"model": str(models / "whisper"), "engine": {"max_model_len": 448}}
    heard = []
    for options in (None, neve):
        process.start(options, **whisper)
        heard += [process.generate(SPOKEN)[0]["tokens"] for _ in range(2)]
        process.ask("stop")
    assert heard == heard[:1] * 4
    said = process.log.read_text()
    assert said.count("neve.unsupported") == 1
    assert "the model's decoder reads an encoder (cross attention)" in said


def test_embeddings_of_the_last_token_are_served_and_of_all_tokens_refused(process, neve, models):
    """A pooler of the mean raises, and ends the engine, if it gets only a prompt's last tokens; so
    it does where somebody switches chunked prefill on, as here."""
    vectors, reused = {}, {}
    for pooling, options in (("LAST", None), ("LAST", neve), ("MEAN", None), ("MEAN", neve)):
        engine = {"runner": "pooling", "pooler_config": {"seq_pooling_type": pooling}}
        engine |= {"enable_prefix_caching": False, "enable_chunked_prefill": True}
        process.start(options, model=str(models / "llama"), engine=engine)
        found = [process.ask("embed", tokens=PROMPT)["vector"]]
        if options is not None:
            if pooling == "LAST":
                process.ask("store_all")
            found.append(process.ask("embed", tokens=[*PROMPT[:-1], 1])["vector"])
            found.append(process.ask("embed", tokens=PROMPT)["vector"])
            reused[pooling] = process.ask("counters").get("external_prefix_cache_hits", 0)
            vectors[pooling] = (found[0], found[2], vectors[pooling][0])
            assert found[1] != found[0]
        else:
            vectors[pooling] = found
        process.ask("stop")
    assert reused == {"LAST": 2 * 256, "MEAN": 0}
    for first, again, alone in vectors.values():
        assert first == pytest.approx(alone, abs=1e-5)
        assert again == pytest.approx(alone, abs=1e-5)
    assert "pooled of all tokens" in process.log.read_text()
