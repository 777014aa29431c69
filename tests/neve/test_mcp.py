"""`neve mcp`: the SDK's own client over stdio and HTTP, against a live platform."""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from neve.cli.main import main
from support.chains import ENGINE, IDENTITY, Chain, PatientClient
from support.servers import ControlPlane, free_port, wait_until

pytestmark = pytest.mark.integration

READING = {
    "whoami", "list_spaces", "list_contexts", "get_context", "residency", "lookup", "diff",
    "get_job",
}  # fmt: skip
WRITING = {"create_context", "pin", "unpin", "extend", "warm", "expire"}

ISSUE_KEYS = """
from tenants.models import Tenant
from tenants.services import create_tenant, issue_key
other = Tenant.objects.filter(slug="mcp-other").first() or create_tenant(
    slug="mcp-other", name="Other", hot_bytes=0, overcommit=True)
print(issue_key(tenant=Tenant.objects.get(slug="demo"), role="team", name="mcp")[1])
print(issue_key(tenant=other, role="team", name="mcp-other")[1])
"""


@pytest.fixture(scope="module")
def keys(control_plane: ControlPlane) -> dict[str, str]:
    team, other = control_plane.manage("shell", "-v", "0", "-c", ISSUE_KEYS).split()
    return {"team": team, "other": other}


@pytest.fixture
def context(control_plane: ControlPlane) -> str:
    """Name of a stored context of two chunks."""
    with PatientClient.connect(
        control_plane.url, control_plane.node_key, IDENTITY, node="mcp-1", engine=ENGINE
    ) as node:
        chain = Chain(node, 2, seed=81)
        assert chain.put() == [None] * 2
        assert node.report_context("mcp-repo", chain.ids, tokens=32, label="agent")
    return "mcp-repo"


def environment(control_plane: ControlPlane, key: str | None) -> dict[str, str]:
    own = {"NEVE_ENDPOINT": control_plane.url, "XDG_CONFIG_HOME": str(control_plane.folder)}
    others = {name: value for name, value in os.environ.items() if not name.startswith("NEVE_")}
    return others | own | ({"NEVE_API_KEY": key} if key else {})


@asynccontextmanager
async def over_stdio(control_plane: ControlPlane, key: str, *options: str) -> AsyncIterator[Client]:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "neve", "mcp", *options],
        env=environment(control_plane, key),
    )
    async with Client(server) as client:
        yield client


def is_listening(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


@contextmanager
def http_server(control_plane: ControlPlane, *options: str, key: str | None) -> Iterator[str]:
    """`neve mcp --http`; its address."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "neve", "mcp", "--http", "--port", str(port), *options],
        env=environment(control_plane, key),
    )
    url = f"http://127.0.0.1:{port}/mcp"
    try:
        wait_until(lambda: is_listening(port), what="neve mcp")
        yield url
    finally:
        server.terminate()
        server.wait(30)


@asynccontextmanager
async def over_http(url: str, key: str | None) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            yield client


async def call(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    assert answer.structured_content is not None
    return answer.structured_content


async def refusal(client: Client, tool: str, **arguments: object) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    return answer.content[0].text


async def test_without_write_no_tool_changes_anything(control_plane, keys, context):
    async with over_stdio(control_plane, keys["team"]) as agent:
        tools = (await agent.list_tools()).tools
        assert {tool.name for tool in tools} == READING
        assert all(tool.annotations.read_only_hint for tool in tools)
        assert all(tool.description for tool in tools)
        found = await call(agent, "list_contexts", search="mcp", label="agent")
        assert [one["name"] for one in found["results"]] == [context]
        assert (await call(agent, "get_context", context=context))["tokens"] == 32
        assert (await call(agent, "residency", context=context))["hot"] == 2
        assert (await call(agent, "diff", context=context, other=context))["same_space"] is True
        space = found["results"][0]["space"]
        assert "usable_tokens" in await call(agent, "lookup", space=space, tokens=[1] * 600)
        assert (await call(agent, "whoami"))["role"] == "team"
        assert space in [one["id"] for one in (await call(agent, "list_spaces"))["results"]]
        assert "Unknown tool" in await refusal(agent, "expire", context=context)


async def test_with_write_an_agent_keeps_and_expires_a_context(control_plane, keys, context):
    async with over_stdio(control_plane, keys["team"], "--write") as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert set(tools) == READING | WRITING
        assert [name for name, tool in tools.items() if tool.annotations.destructive_hint] == [
            "expire"
        ]
        pinned = await call(agent, "pin", context=context, duration="2h", reason="tool gap")
        assert pinned["pin"]["reason"] == "tool gap"
        assert (await call(agent, "extend", context=context, duration="1d"))["extended"] == 2
        assert "pinned_until" not in await call(agent, "unpin", context=context)
        assert (await call(agent, "expire", context=context))["dry_run"] is True
        assert (await call(agent, "expire", context=context, dry_run=False))["removed"] == 2
        told = await refusal(agent, "pin", context=context, duration="2h")
        assert "context-gone" in told
        assert "What to do:" in told


async def test_an_agent_hears_what_to_do(control_plane, keys, context):
    async with over_stdio(control_plane, keys["team"], "--write") as agent:
        told = await refusal(agent, "get_context", context="no such context")
        assert "list_contexts" in told
        told = await refusal(agent, "pin", context=context, duration="soon")
        assert "malformed" in told
        assert "limit" in await refusal(agent, "list_contexts", limit=100_000)


async def test_over_http_each_caller_acts_with_a_key_of_its_own(control_plane, keys, context):
    with http_server(control_plane, key=keys["team"]) as url:
        async with over_http(url, keys["team"]) as mine, over_http(url, keys["other"]) as theirs:
            assert (await call(mine, "list_contexts"))["results"]
            assert (await call(theirs, "list_contexts"))["results"] == []
            assert "No context" in await refusal(theirs, "get_context", context=context)
        async with over_http(url, "neve_unknown_key") as stranger:
            assert "unauthorized" in await refusal(stranger, "list_contexts")
        assert httpx2.post(url, json={}).status_code == 401  # never the server's own key


async def test_a_lent_key_serves_callers_that_have_none_but_no_page_in_a_browser(
    control_plane, keys, context
):
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}

    def status(**headers: str) -> int:
        accept = {"Accept": "application/json, text/event-stream"}
        return httpx2.post(url, json=request, headers=accept | headers).status_code

    with http_server(
        control_plane, "--lend-key", "--allow-host", "mcp.example",
        "--allow-origin", "https://app.example", key=keys["team"],
    ) as url:  # fmt: skip
        async with over_http(url, None) as agent:
            assert (await call(agent, "list_contexts"))["results"]
            assert {tool.name for tool in (await agent.list_tools()).tools} == READING
        assert status() == 200
        assert status(Host="mcp.example") == 200
        assert status(Host="evil.example") == 421  # DNS rebinding
        assert status(Origin="https://app.example") == 200
        assert status(Origin="https://evil.example") == 403
        assert status(Origin="null") == 403


@pytest.mark.parametrize(
    ("options", "key", "told"),
    [
        (["--http", "--host", "0.0.0.0"], None, "--allow-host"),
        (["--lend-key"], "neve_a_b", "--http"),
        ([], None, "NEVE_API_KEY"),
        (["--http", "--lend-key"], None, "NEVE_API_KEY"),
    ],
)
def test_a_wrong_command_line_says_what_to_give(monkeypatch, tmp_path, options, key, told):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("NEVE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NEVE_API_KEY", key or "")
    done = CliRunner().invoke(main, ["mcp", *options])
    assert done.exit_code != 0
    assert told in done.output


def test_without_the_sdk_it_says_what_to_install(control_plane):
    code = "import sys; sys.modules['mcp'] = None\nfrom neve.cli.main import main; main(['mcp'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(control_plane, "neve_a_b"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert "pip install 'neve[mcp]'" in done.stderr
