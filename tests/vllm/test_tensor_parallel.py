"""One model on one rank and on two: they share no block by accident, and all when told to."""

import json
import random
import time

import pytest

from support.servers import ControlPlane

pytestmark = pytest.mark.vllm

_random = random.Random(9)
FIRST, SECOND = ([_random.randrange(256) for _ in range(length)] for length in (280, 200))
TWO = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
SPACES = """
from catalog.models import Space
import json
for s in Space.unscoped.all():
    i = s.identity
    print(json.dumps([s.pk, i["layout"][:10], i["tp_size"], i["tp_rank"], i["bytes_per_token"]]))
"""


def asked(tokens):
    return {"tokens": tokens, "max_tokens": 12, "params": {"neve": {}}}


def options(platform: ControlPlane, layout: str) -> dict[str, object]:
    return {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "layout": layout,
        "load": "always",
        "canary": 0,
        "revision": "tensor parallel",  # spaces of their own
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }


def blocks_in(platform: ControlPlane) -> int:
    with platform.hot.client() as client:
        return sum(b":b:" in key for key in client.scan_iter(count=1000))


def until_stored(platform: ControlPlane, more: int, before: int) -> None:
    """Saves come behind the step."""
    deadline = time.monotonic() + 60
    while (now := blocks_in(platform) - before) != more:
        assert time.monotonic() < deadline, f"{now} blocks are stored, not {more}"
        time.sleep(0.05)


def test_blocks_go_from_one_rank_to_two_and_back_only_where_heads_are_blocks(
    platform, fresh_process
):
    before = blocks_in(platform)

    with fresh_process("parallel") as process:

        def start(layout, **more):
            neve = options(platform, layout) if layout else None
            process.start(neve, engine={"enable_prefix_caching": False} | more)

        def ask(tokens, reused, stored):
            nonlocal before
            answer = process.generate(asked(tokens))[0]
            assert answer["params"]["neve"]["reused_tokens"] == reused
            until_stored(platform, stored, before)
            before += stored
            return answer["tokens"]

        start(None)
        first, second = (process.generate(asked(t))[0]["tokens"] for t in (FIRST, SECOND))
        process.ask("stop")

        start("canonical")  # 2 KV heads: 2 blocks a chunk
        assert ask(FIRST, 0, 8) == first
        process.ask("stop")
        start("canonical", **TWO)
        assert ask(FIRST, 256, 0) == first
        assert ask(SECOND, 0, 6) == second
        process.ask("stop")
        start("canonical")
        assert ask(SECOND, 192, 0) == second
        process.ask("stop")

        start("rank")
        assert ask(FIRST, 0, 4) == first
        process.ask("stop")
        start("rank", **TWO)
        assert ask(FIRST, 0, 8) == first  # not what one rank stored
        assert ask(FIRST, 256, 0) == first
        process.ask("stop")

    rows = [json.loads(r) for r in platform.manage("shell", "-v", "0", "-c", SPACES).splitlines()]
    canonical = [row[2:] for row in rows if row[1] == "by KV head"]
    assert canonical == [[1, 0, 1024]]  # one space, of half the bytes
