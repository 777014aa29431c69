"""A real engine that stores KV with loss: allowed by an operator, marked, apart from exact KV."""

import json
import random

import pytest

from neve.formats.block import HEADER_BYTES, decode_header
from neve.formats.keys import parse_key
from support.servers import wait_until

pytestmark = pytest.mark.vllm

PROMPT = random.Random(41).choices(range(256), k=200)
REUSED = 192
ALLOW = """
from retention.services import set_policy
from tenants.audit import SYSTEM
from tenants.models import Tenant
set_policy(tenant=Tenant.objects.get(slug="demo"), actor=SYSTEM, lossy_codecs="{list}")
"""

SHOW = """
import json
from dataclasses import asdict
from catalog.models import Space
found = [space.loss for space in Space.unscoped.all() if space.loss]
print(json.dumps({loss.codec: asdict(loss) for loss in found}))
"""


def allow(platform, models):
    platform.manage("shell", "-v0", "-c", ALLOW.format(list=models))


def payload_bytes(platform):
    with platform.hot.client() as client:
        keys = [key for key in client.scan_iter() if parse_key(key)]
        heads = [client.getrange(key, 0, HEADER_BYTES - 1) for key in keys]
    return {decode_header(head).payload_bytes for head in heads}


def loss_of_spaces(platform):
    """By codec, what the platform shows."""
    return json.loads(platform.manage("shell", "-v0", "-c", SHOW).splitlines()[-1])


def wait_for_error(platform, codec):
    wait_until(
        lambda: loss_of_spaces(platform).get(codec, {}).get("error") is not None,
        every_s=0.5,
        what=f"the error of {codec}",
    )


def test_kv_is_encoded_before_it_is_stored_and_decoded_when_it_is_loaded(
    platform, fresh_process, tmp_path
):
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
        process.ask("store_all")
        assert process.generate(asked)[0]["params"]["neve"] == {
            "reused_tokens": REUSED,
            "hot": REUSED,
            "cold": 0,
        }
        process.ask("stop")
        process.start(options | {"codec": "int8"}, engine={"enable_prefix_caching": False})
        first = process.generate(asked)[0]
        process.ask("store_all")
        assert first["params"]["neve"]["reused_tokens"] == 0  # exact blocks are of another space
        second = process.generate(asked)[0]
        assert second["params"]["neve"] == {
            "reused_tokens": REUSED,
            "hot": REUSED,
            "cold": 0,
            "codec": "int8",
        }
        wait_for_error(platform, "int8")
        process.ask("stop")
        # With int4, and what `neve codec-check` found.
        allow(platform, "*=int4")
        report = tmp_path / "report.json"
        report.write_text('{"losses": [{"codec": "int4", "kl": 0.25, "argmax": 0.5}]}')
        options |= {"codec": "int4", "codec_report": str(report)}
        process.start(options, engine={"enable_prefix_caching": False})
        third = process.generate(asked)[0]
        process.ask("store_all")
        assert third["params"]["neve"]["reused_tokens"] == 0  # nor is int8 read as int4
        fourth = process.generate(asked)[0]
        assert (fourth["params"]["neve"]["reused_tokens"], fourth["params"]["neve"]["codec"]) == (
            *(REUSED, "int4"),
        )
        wait_for_error(platform, "int4")
        process.ask("stop")
    assert first["tokens"] == third["tokens"] == exact["tokens"]
    assert len(second["tokens"]) == len(fourth["tokens"]) == 4
    shown = loss_of_spaces(platform)
    assert 0 < shown["int8"]["error"] < 0.02 < shown["int4"]["error"] < 0.2
    assert (shown["int8"]["kl"], shown["int4"]["kl"], shown["int4"]["argmax"]) == (None, 0.25, 0.5)
    allow(platform, "")
