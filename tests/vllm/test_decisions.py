"""Load or recompute in a real engine, by what it measured itself."""

import json
import random

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(31)
PROMPTS = [[_random.randrange(256) for _ in range(700)] for _ in range(4)]
REUSED = 700 // 64 * 64
TOTALS = """
import json
from catalog.models import NodeSession
print("TOLD", json.dumps(NodeSession.unscoped.latest("opened_at").totals))
"""

SAMPLE_ALL = "from tenants.models import Tenant; Tenant.objects.update(sample_rate_log=0)"
SAMPLED = """
import json
from base.counting import bus
from catalog.models import NodeSession
from neve.formats.samples import decode
from planning import samples
session = NodeSession.unscoped.latest("opened_at")
entries = bus().lrange(f"neve:samples:{session.tenant_id}:waiting", 0, -1)
found = [
    decode(batch)
    for entry in entries
    for _, space, batch in samples._entries(entry)
    if space == session.space_id
]
ids = [id_ for batch in found for each in batch.requests for id_ in each.ids]
asked = sum(batch.totals.asked_blocks for batch in found)
print("SAMPLED", json.dumps([asked, len(ids), len(set(ids))]))
"""


def ask(process, tokens):
    asked = {"tokens": tokens, "max_tokens": 1, "params": {"neve": {}}}
    return process.generate(asked)[0]["params"]["neve"]["reused_tokens"]


def test_what_takes_a_second_to_compute_is_loaded(platform, fresh_process):
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "revision": "decisions",  # a space of its own
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    platform.manage("shell", "-v0", "-c", SAMPLE_ALL)
    with fresh_process("decisions") as process:
        process.ask("slow_down", s=0.004)
        process.start(options, engine={"enable_prefix_caching": False})
        for prompt in PROMPTS:  # teaches how long computing takes
            assert ask(process, prompt) == 0
        # And then how long loading takes, which is tried with little first.
        trials = 1
        while (reused := ask(process, PROMPTS[0])) < REUSED:
            assert reused <= 128
            assert trials < 20
            trials += 1
        assert trials > 1
        assert [ask(process, prompt) for prompt in PROMPTS[1:]] == [REUSED] * 3
        counters = process.ask("counters")
        process.ask("stop")
    assert counters["neve_decisions.load_all"] == 4
    assert not counters.get("neve_decisions.recompute")
    told = platform.manage("shell", "-v0", "-c", TOTALS).partition("TOLD ")[2].splitlines()[0]
    totals = json.loads(told)
    assert totals["decided_all"] == 4
    assert totals["spared_tokens"] + totals.get("slower_tokens", 0) >= 4 * REUSED
    assert not totals.get("unpriced_tokens")
    loads = totals["spared_tokens"] // REUSED
    assert totals["spared_gpu_us"] > loads * 2e6  # 640 tokens, two seconds or more each
    assert totals["load_gpu_us"] < totals["spared_gpu_us"]
    # Each prompt was asked for twice, the first one more often, block by block, and reported so.
    told = platform.manage("shell", "-v0", "-c", SAMPLED).partition("SAMPLED ")[2].splitlines()[0]
    blocks = 700 // 64
    asked = (2 * 4 + trials - 1) * blocks
    assert json.loads(told) == [asked, asked, 4 * blocks]
