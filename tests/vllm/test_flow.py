"""A context's life with the official `openai` client: made before any request, warmed, looked up,
reused, pushed out of Valkey by other traffic, reused after a restart, expired, and a miss.

Three times: with `neve.api`, with the command `neve`, and with the tools of `neve mcp`.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters

from neve.api import Neve
from neve.cli.main import main
from support.servers import wait_until
from support.vllm_server import VllmServer

pytestmark = pytest.mark.vllm

ASK = """
import json, sys
from openai import OpenAI
url, content = sys.argv[1:]
answer = OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create(
    model="tiny", max_tokens=4, temperature=0, messages=[{"role": "user", "content": content}],
    extra_body={"kv_transfer_params": {"neve": {}}},
)
print(json.dumps(answer.kv_transfer_params["neve"]))
"""
SET_HOT_BYTES = """
from tenants.audit import SYSTEM
from tenants.models import Tenant
from tenants.services import set_quota
demo = Tenant.objects.get(slug="demo")
print(demo.quota.hot_bytes)
set_quota(tenant=demo, actor=SYSTEM, hot_bytes={hot_bytes})
"""
HOT_BYTES = 2 << 20  # of the demo tenant here: some 30 blocks


def messages(tool):
    return [{"role": "user", "content": f"What the tool {tool} asked for. " * 9}]


class ByApi:
    def __init__(self, platform):
        self.neve = Neve(platform.url, platform.team_key)

    def make(self, space, name, messages):
        return self.neve.contexts.create(space=space, name=name, messages=messages).raw

    def warm(self, name):
        context = self.neve.contexts.list(name=name).first()
        return self.neve.jobs.wait(self.neve.contexts.warm(context.id).id).raw

    def look_up(self, space, messages):
        return self.neve.lookup(space=space, messages=messages).raw

    def expire(self, name):
        return self.neve.contexts.expire(self.neve.contexts.list(name=name).first().id).raw


class ByCommand:
    def __init__(self, platform):
        env = {"NEVE_ENDPOINT": platform.url, "NEVE_API_KEY": platform.team_key}
        self.runner = CliRunner(env=env | {"XDG_CONFIG_HOME": str(platform.folder)})

    def _run(self, *arguments, messages=None):
        given = ["contexts", *arguments, "--json"]
        said = None if messages is None else json.dumps(messages)
        done = self.runner.invoke(main, given, input=said)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def make(self, space, name, messages):
        where = ("--space", str(space), "--messages", "-")
        return self._run("create", name, *where, messages=messages)

    def warm(self, name):
        return self._run("warm", name)

    def look_up(self, space, messages):
        return self._run("lookup", "--space", str(space), "--messages", "-", messages=messages)

    def expire(self, name):
        (expired,) = self._run("expire", name, "--yes")
        return expired["answer"]


class ByAgent:
    def __init__(self, platform):
        own = {"NEVE_ENDPOINT": platform.url, "NEVE_API_KEY": platform.team_key}
        self.server = StdioServerParameters(
            command=sys.executable, args=["-m", "neve", "mcp", "--write"], env=os.environ | own
        )

    def _call(self, tool, **arguments):
        async def call():
            async with Client(self.server) as client:
                answer = await client.call_tool(tool, arguments)
                assert not answer.is_error, answer.content
                return answer.structured_content

        return asyncio.run(call())

    def make(self, space, name, messages):
        return self._call("create_context", space=space, name=name, messages=messages)

    def warm(self, name):
        return self._call("warm", context=name, wait_s=60)

    def look_up(self, space, messages):
        return self._call("lookup", space=space, messages=messages)

    def expire(self, name):
        return self._call("expire", context=name, dry_run=False)


TOOLS: dict[str, Any] = {"api": ByApi, "command": ByCommand, "agent": ByAgent}
each_tool = pytest.mark.parametrize("tool", TOOLS)


@pytest.fixture(scope="module")
def server(platform, vllm_python, model, engine_environment, tmp_path_factory):
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        "endpoint": platform.url,
        "node": "gpu-flow",
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    folder = tmp_path_factory.mktemp("flow")
    quota = platform.manage("shell", "-v", "0", "-c", SET_HOT_BYTES.format(hot_bytes=HOT_BYTES))
    before = quota.split()[-1]
    try:
        with platform.workers():
            with VllmServer(folder, vllm_python, model, neve, env, announces=True) as running:
                yield running
    finally:  # other files share the platform
        platform.manage("shell", "-v", "0", "-c", SET_HOT_BYTES.format(hot_bytes=before))


@pytest.fixture(scope="module")
def ask(server, vllm_python):
    """What Neve did for a chat of the official client."""

    def ask(messages):
        command = [str(vllm_python), "-c", ASK, server.url, messages[0]["content"]]
        return json.loads(subprocess.check_output(command, text=True, timeout=120))

    return ask


@pytest.fixture(scope="module")
def space(server, platform):
    """Number of the server's space, once the platform has found its engine healthy."""
    with Neve(platform.url, platform.team_key) as neve:
        wait_until(lambda: engine_of(neve, server), what="a healthy engine")
        return engine_of(neve, server).spaces[0]


def engine_of(neve, server):
    found = neve.engines.list(state="healthy")
    return next((each for each in found if each.base_url == server.url), None)


@each_tool
def test_a_context_is_made_warmed_looked_up_and_reused(platform, space, ask, tool):
    by = TOOLS[tool](platform)
    made = by.make(space, f"flow-{tool}", messages(tool))
    assert made["state"] == "expected"
    assert by.look_up(space, messages(tool))["usable_tokens"] == 0
    job = by.warm(f"flow-{tool}")
    assert (job["state"], job["detail"]["stored_tokens"]) == ("done", made["tokens"])
    assert by.look_up(space, messages(tool))["usable_tokens"] == made["tokens"] > 0
    assert ask(messages(tool))["reused_tokens"] == made["tokens"]


def test_other_traffic_pushes_the_contexts_out_of_valkey(platform, server, space):
    rng = random.Random(7)
    by = ByApi(platform)

    def is_cold():
        server.complete(prompt=[rng.randrange(3, 200) for _ in range(900)])
        found = [by.look_up(space, messages(tool)) for tool in TOOLS]
        return all(each["usable_hot_tokens"] == 0 < each["usable_tokens"] for each in found)

    wait_until(is_cold, timeout_s=300, what="contexts in S3 only")


def test_after_a_restart_the_contexts_are_loaded_from_s3(server, ask):
    server.restart()
    for tool in TOOLS:
        told = ask(messages(tool))
        assert told["reused_tokens"] >= told["cold"] > 0


@each_tool
def test_an_expired_context_is_a_miss_that_says_so(platform, server, ask, tool):
    assert TOOLS[tool](platform).expire(f"flow-{tool}")["removed"] > 0

    def expired():
        server.complete(prompt="Another prompt. " * 20)  # figures travel with the engine's steps
        return server.metric("neve_missed_blocks_total", reason="expired")

    before = expired()
    assert ask(messages(tool))["reused_tokens"] == 0
    wait_until(lambda: expired() > before, what="misses of expired blocks")
