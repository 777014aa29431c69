"""A real engine that stores KV with loss: allowed by an operator, marked, apart from exact KV."""

import random

import pytest

from neve.formats.block import HEADER_BYTES, decode_header
from neve.formats.keys import parse_key

pytestmark = pytest.mark.vllm

PROMPT = random.Random(41).choices(range(256), k=200)
REUSED = 192
ALLOW = """
from retention.services import set_policy
from tenants.audit import SYSTEM
from tenants.models import Tenant
set_policy(tenant=Tenant.objects.get(slug="demo"), actor=SYSTEM, lossy_codecs="{list}")
"""


def allow(platform, models):
    platform.manage("shell", "-v0", "-c", ALLOW.format(list=models))


def payload_bytes(platform):
    with platform.hot.client() as client:
        keys = [key for key in client.scan_iter() if parse_key(key)]
        heads = [client.getrange(key, 0, HEADER_BYTES - 1) for key in keys]
    return {decode_header(head).payload_bytes for head in heads}


def test_kv_is_encoded_before_it_is_stored_and_decoded_when_it_is_loaded(platform, fresh_process):
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "revision": "lossy",  # spaces of their own
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    asked = {"tokens": PROMPT, "max_tokens": 4, "params": {"neve": {}}}
    allow(platform, "*=int8")
    with fresh_process("lossy") as process:
        process.start(options, engine={"enable_prefix_caching": False})
        exact = process.generate(asked)[0]
        assert process.generate(asked)[0]["params"]["neve"] == {
            "reused_tokens": REUSED,
            "hot": REUSED,
            "cold": 0,
        }
        process.ask("stop")
        process.start(options | {"codec": "int8"}, engine={"enable_prefix_caching": False})
        first = process.generate(asked)[0]
        assert first["params"]["neve"]["reused_tokens"] == 0  # exact blocks are of another space
        second = process.generate(asked)[0]
        assert second["params"]["neve"] == {
            "reused_tokens": REUSED,
            "hot": REUSED,
            "cold": 0,
            "codec": "int8",
        }
        process.ask("stop")
    assert first["tokens"] == exact["tokens"]
    assert len(second["tokens"]) == 4
    allow(platform, "")
