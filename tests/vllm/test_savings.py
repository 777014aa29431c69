"""Savings of a real engine: only tokens that its own prefix cache did not have count."""

import json
import random

import pytest

pytestmark = pytest.mark.vllm

_random = random.Random(32)
PROMPTS = [[_random.randrange(256) for _ in range(700)] for _ in range(3)]
REUSED = 700 // 64 * 64
FOLDED = """
import json
from catalog.models import NodeSession
from planning import account, savings
session = NodeSession.unscoped.latest("opened_at")
account.fold(session.tenant_id)
rows = savings.rows([session.tenant_id], month=savings.this_month(), by="space")
row = next(row for row in rows if row.space_id == session.space_id)
print("TOLD", json.dumps({**vars(row.used), "hits": row.hit_tokens, "gross": str(row.gross)}))
"""


def test_what_the_gpus_own_cache_has_is_no_saving(platform, fresh_process):
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "revision": "savings",  # a space of its own
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }

    def ask(prompt):
        process.generate({"tokens": prompt, "max_tokens": 1})

    with fresh_process("savings") as process:
        process.ask("slow_down", s=0.004)
        process.start(options)
        for prompt in PROMPTS:  # computed and stored, and in the engine's own cache
            ask(prompt)
        for prompt in PROMPTS:  # the engine has them: no load
            ask(prompt)
        between = process.ask("counters")
        assert not between.get("neve_hit_tokens.hot"), between
        process.ask("store_all")
        process.ask("forget_prefixes")
        for prompt in PROMPTS[:2]:  # now the store alone has them
            ask(prompt)
        loaded = process.ask("counters")
        assert loaded.get("neve_hit_tokens.hot"), loaded
        process.ask("stop")
    told = platform.manage("shell", "-v0", "-c", FOLDED).partition("TOLD ")[2].splitlines()[0]
    found = json.loads(told)
    assert found["hits"] == loaded["neve_hit_tokens.hot"] <= 2 * REUSED
    assert found["spared_tokens"] + found["slower_tokens"] == found["hits"]
    assert found["unpriced_tokens"] == 0
    assert found["spared_gpu_us"] > 0
    assert float(found["gross"]) > 0
