"""Models that share a producer's KV: attested by their own first requests, never by name."""

import json
import random
import time
import urllib.request

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(13)
CHUNK, WHOLE = 64, 640
FIRST, SECOND, THIRD, FOURTH = ([_random.randrange(256) for _ in range(700)] for _ in range(4))
SHORT = [1, 2, 3]  # an idle engine hears of no comparison before its next step
OPERATOR = """
from tenants.services import issue_key
print(issue_key(tenant=None, role="operator", name="families")[1])
"""


@pytest.fixture(scope="module")
def api(platform):
    """Calls of the REST API as an operator."""
    key = platform.manage("shell", "-v", "0", "-c", OPERATOR).strip().splitlines()[-1]

    def call(method, path, body=None):
        request = urllib.request.Request(
            f"{platform.url}/api/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    return call


@pytest.fixture(scope="module")
def process(fresh_process):
    with fresh_process("families") as process:
        yield process


@pytest.fixture
def serving(platform, process):
    """Starts an engine, which ends the one before."""

    def start(model, family="one", **engine):
        neve = {
            "endpoint": platform.url,
            "api_key": platform.node_key,
            "load": "always",
            "max_chunk_tokens": CHUNK,
            "match_deadline_s": 5,
            "load_deadline_s": 20,
            "canary": 0,
            "node": "gpu-13",
        }
        if family is not None:
            neve["family"] = family
        options = {
            "kv_cache_memory_bytes": 32 << 20,
            "max_model_len": 2048,
            "enable_prefix_caching": False,
        }
        process.start(neve, model=str(model), engine=options | engine)

    yield start
    process.ask("stop")


def answer(process, tokens, **more):
    """Tokens, and how many of the prompt's were reused. All saves have ended."""
    asked = {"tokens": tokens, "max_tokens": 8, "params": {"neve": {}}} | more
    said = process.generate(asked)[0]
    process.ask("store_all")
    return said["tokens"], said["params"]["neve"]["reused_tokens"]


def until(read):
    """What `read` returns, once it returns something."""
    deadline = time.monotonic() + 30
    while not (found := read()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_models_of_a_family(process, serving, api, model, pairs):
    """One story in few engines: each start costs seconds."""

    def member(name, *states):
        rows = api("GET", "family-members")["results"]
        return next((row for row in rows if row["model"] == name and row["state"] in states), None)

    # The producer: its space becomes the family.
    serving(model, None)
    own = {n: answer(process, prompt)[0] for n, prompt in enumerate((FIRST, SECOND))}
    own_third = answer(process, THIRD, salt="elsewhere")[0]
    # Its last session says which space: other tests' engines of this model have others.
    of = {name: api("GET", "nodes?node=gpu-13")["results"][0][name] for name in ("tenant", "space")}
    api("POST", "families", {"name": "one"} | of)

    # A model that differs behind the last K and V. Until it has proven that, it shares nothing.
    serving(pairs / "twin", enable_lora=True, max_lora_rank=8)
    assert member("twin", "attesting")
    alone = {}
    for n, prompt in enumerate((FIRST, SECOND)):
        alone[n], reused = answer(process, prompt)
        assert reused == 0
        assert alone[n] != own[n]
    found = until(lambda: answer(process, THIRD) and member("twin", "attached"))
    assert found["blocks"] >= 8
    assert (found["near"], found["layer"]) == (0, "")
    for n, prompt in enumerate((FIRST, SECOND)):
        assert answer(process, prompt) == (alone[n], WHOLE)
    until(lambda: answer(process, FOURTH)[1] == WHOLE)  # what it computes is the family's now
    until(lambda: member("twin", "attached")["hit_tokens"] >= 2 * WHOLE)
    # An adapter changes what the engine computes, and no proof covers it.
    adapted = {"lora": ["a", 1, str(pairs / "adapter")]}
    assert answer(process, FIRST, **adapted)[1] == 0

    # The producer loads what the twin stored.
    serving(model)
    assert answer(process, FOURTH)[1] == WHOLE
    until(lambda: member(model.name, "producer")["hit_tokens"] >= WHOLE)
    assert answer(process, THIRD, salt="elsewhere") == (own_third, WHOLE)

    # One bit of one weight of the last layer's keys.
    for attempt in ("attesting", "refused"):
        serving(pairs / "nudged")
        assert member("nudged", attempt)
        _, reused = answer(process, FIRST)
        # Refused once, it is refused after a restart too: it finds its own KV alone.
        assert reused == 0
        refused = until(lambda: answer(process, SHORT) and member("nudged", "refused"))
        assert refused["layer"] == "model.layers.3.self_attn.attn"
        assert 0 <= refused["first_token"] < refused["end_token"] <= WHOLE
        assert "neve.family.differs" in process.log.read_text()
        assert answer(process, SECOND)[1] == (0 if attempt == "attesting" else WHOLE)
        assert answer(process, SECOND)[1] == WHOLE


def test_a_fine_tune_and_a_tampered_producer(process, serving, api, model, pairs):
    def refused(name):
        rows = api("GET", "family-members?state=refused")["results"]
        return next((row for row in rows if row["model"] == name), None)

    serving(pairs / "tuned")
    expected, reused = answer(process, FIRST)
    assert reused == 0
    found = until(lambda: answer(process, SHORT) and refused("tuned"))
    assert found["layer"] == "model.layers.1.self_attn.attn"
    assert 0 <= found["first_token"] < found["end_token"] <= WHOLE
    assert (answer(process, FIRST)[1], answer(process, FIRST)) == (0, (expected, WHOLE))

    # Blocks of other weights under the producer's name, with checksums that are right.
    serving(model)
    process.ask("change_weights")
    tampered = [_random.randrange(256) for _ in range(700)]
    answer(process, tampered)
    serving(pairs / "second")
    assert answer(process, tampered)[1] == 0
    found = until(lambda: answer(process, SHORT) and refused("second"))
    assert found["layer"] == "model.layers.0.self_attn.attn"
    assert 0 <= found["first_token"] < found["end_token"] <= WHOLE
    assert answer(process, FIRST)[1] == 0
    # An operator lets it try again: the engine asks anew without a restart.
    api("POST", f"family-members/{found['id']}/try-again", {})
    assert refused("second") is None
    until(lambda: answer(process, FIRST) and answer(process, SECOND)[1])
    assert api("GET", "family-members?state=attached")["results"]
