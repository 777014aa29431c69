"""vLLM's OpenAI-compatible server: requests name contexts, responses say what was reused."""

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from support.servers import ROOT, wait_until
from support.vllm_server import VllmServer

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(platform, vllm_python, model, engine_environment, tmp_path_factory):
    # The key comes from the environment, the endpoint from the configuration.
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        "endpoint": platform.url,
        "node": "gpu-07",
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
        "match_deadline_s": 5,
        "load_deadline_s": 20,
    }
    folder = tmp_path_factory.mktemp("server")
    more = ("--enable-prompt-tokens-details",)
    with VllmServer(folder, vllm_python, model, neve, env, more=more, announces=True) as running:
        yield running


def test_a_request_names_its_context_and_hears_what_was_reused(server):
    with pytest.raises(AssertionError, match="no metric"):
        server.metric("neve_connected")  # unknown so far, which is not zero
    asked = {"neve": {"context": "repo-7", "label": "agent"}}
    first = server.complete(kv_transfer_params=asked)
    assert first["kv_transfer_params"]["neve"]["reused_tokens"] == 0
    again = server.complete(kv_transfer_params=asked)
    told = again["kv_transfer_params"]["neve"]
    assert told == told | {
        "context": "repo-7", "reused_tokens": 256, "hot": 256, "cold": 0, "stored_tokens": 256
    }  # fmt: skip
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert server.metric("external_prefix_cache_hits_total") == 256


def test_what_neve_did_is_among_the_metrics_of_vllm(server):
    """Figures travel with the engine's steps, so those of a save come with the next request."""
    server.complete()
    assert server.metric("neve_connected") == 1
    assert server.metric("neve_breaker") == 0
    assert server.metric("neve_hit_tokens_total", tier="hot") >= 256
    assert server.metric("neve_read_bytes_total", tier="hot") > 256 * 1024
    assert server.metric("neve_written_bytes_total") > 256 * 1024
    assert server.metric("neve_decisions_total", decision="load_all") >= 1
    assert server.metric("neve_missed_blocks_total", reason="never_stored") >= 4
    assert server.metric("neve_load_seconds_count") >= 1
    assert server.metric("neve_match_seconds_count") >= 2
    assert server.metric("neve_loads_in_flight") == 0
    # Counters of events that never happened show 0: alerts on rates need it.
    assert server.metric("neve_hit_tokens_total", tier="cold") == 0
    assert server.metric("neve_missed_blocks_total", reason="fingerprint") == 0
    assert server.metric("neve_handovers_total", outcome="late") == 0


def test_malformed_wishes_change_nothing(server):
    plain = server.complete()
    assert plain.get("kv_transfer_params") is None
    deep = {"neve": {"context": {"a": [{}]}, "pin": -1, "label": "x" * 10_000, "unknown": None}}
    for params in (
        {"neve": 7},
        {"neve": {"context": ["x"], "pin": {}, "label": 5}},
        {"x": 1},
        deep,
    ):
        answer = server.complete(kv_transfer_params=params)
        assert answer["choices"][0]["text"] == plain["choices"][0]["text"]


@pytest.mark.parametrize("params", ["neve", 7, ["neve"]])
def test_what_is_no_object_is_refused_by_vllm_itself(server, params):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.complete(kv_transfer_params=params)


def test_a_streamed_request_names_its_context_as_well(server, platform):
    """vLLM's stream can't carry Neve's parameters, but its usage counts the reused tokens."""
    asked = {"neve": {"context": "streamed"}}
    events = server.stream(kv_transfer_params=asked, stream_options={"include_usage": True})
    assert not any(event.get("kv_transfer_params") for event in events)
    assert events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
    text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
    assert text == server.complete()["choices"][0]["text"]
    deadline = time.monotonic() + 60
    while "streamed" not in platform.manage("shell", "-v", "0", "-c", SHOW_CONTEXTS):
        assert time.monotonic() < deadline


def test_a_streamed_response_hears_what_was_reused(server):
    asked = {"kv_transfer_params": {"neve": {"context": "response"}}}
    for _ in range(2):
        last = server.respond(**asked)[-1]
    told = last["response"]["kv_transfer_params"]["neve"]
    assert (told["context"], told["reused_tokens"]) == ("response", 256)


def test_a_chat_hears_what_was_reused(server):
    asked = {"neve": {"context": "chat"}}
    server.chat(kv_transfer_params=asked)
    told = server.chat(kv_transfer_params=asked)["kv_transfer_params"]["neve"]
    assert (told["context"], told["reused_tokens"]) == ("chat", 256)


@pytest.fixture(scope="module")
def team(platform):
    return Team(platform)


@pytest.fixture(scope="module")
def engine(server, team):
    return checked_engine(server, team)


def checked_engine(server, team):
    """As the node's handshake announced it, checked."""
    (found,) = [each for each in team.get("engines")["results"] if each["base_url"] == server.url]
    checked = team.post(f"engines/{found['id']}/check")
    assert (checked["state"], checked["source"]) == ("healthy", "announced"), checked
    return checked


class TestMadeContexts:
    """Contexts made over REST from this server's tokeniser: their blocks are its own."""

    MESSAGES = [{"role": "user", "content": "A context that nobody asked for yet. " * 9}]

    def test_a_context_is_made_warmed_looked_up_and_reused(self, server, team, engine, platform):
        (space,) = engine["spaces"]
        assert (engine["model"], engine["gpus"]) == ("tiny", 1)
        prompt = {"space": space, "messages": self.MESSAGES}
        made = team.post("contexts", name="made", **prompt)
        assert made["state"] == "expected"
        whole = made["tokens"]
        assert whole >= 256
        found = team.post("lookup", **prompt)
        assert (found["usable_tokens"], found["lost_tokens"]) == (0, whole)
        job = team.post(f"contexts/{made['id']}/warm")
        with platform.workers():
            path, over = f"jobs/{job['id']}", ("done", "failed", "cancelled")
            wait_until(
                lambda: team.get(path)["state"] in over, timeout_s=180, what="the end of the job"
            )
        job = team.get(path)
        assert job["state"] == "done", job
        assert job["detail"]["stored_tokens"] == job["detail"]["tokens"] == whole
        assert job["detail"]["gpu_s"] == job["detail"]["engine_s"] > 0
        found = team.post("lookup", **prompt)
        assert (found["usable_hot_tokens"], found["lost_tokens"]) == (whole, 0)
        assert {each["name"]: each["shared_tokens"] for each in found["contexts"]}["made"] == whole
        answer = server.chat(
            messages=self.MESSAGES, kv_transfer_params={"neve": {"context": "chatted"}}
        )
        assert answer["kv_transfer_params"]["neve"]["reused_tokens"] == whole
        self.require_equal(team, made, "chatted")

    def test_text_and_salt_lead_to_the_ids_of_the_node(self, server, team, engine):
        (space,) = engine["spaces"]
        text = "Salted, and of another team. " * 12
        made = team.post("contexts", name="salted", space=space, text=text, salt="s-1")
        asked = {"neve": {"context": "salted-too"}}
        server.complete(prompt=text, cache_salt="s-1", kv_transfer_params=asked)
        self.require_equal(team, made, "salted-too")

    def require_equal(self, team, made, name):
        """The chain that the platform computed is the one that the node reported as `name`."""
        path = f"contexts?name={name}"
        wait_until(lambda: team.get(path)["results"], what="the node's report")
        found = team.get(path)["results"]
        diff = team.get(f"contexts/{made['id']}/diff?with={found[0]['id']}")
        assert (diff["shared_tokens"], diff["parts_at_token"]) == (made["tokens"], None)


@pytest.fixture(scope="module")
def run_example(platform, team, engine, vllm_python, tmp_path_factory):
    """Call it with a program of examples/ and its arguments for its output."""
    home = str(tmp_path_factory.mktemp("home"))
    own = {"HOME": home, "NEVE_ENDPOINT": platform.url, "NEVE_API_KEY": team.key}

    def run(program, *arguments):
        done = subprocess.run(
            [str(vllm_python), str(ROOT / "examples" / program), *map(str, arguments)],
            env=os.environ | own, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def reused_tokens(said):
    return int(said.partition("reused tokens: ")[2].split()[0])


def test_the_openai_client_answers_with_a_warmed_context(run_example, platform):
    with platform.workers():
        said = run_example("openai_client/answer.py")
    assert "warm: done" in said
    assert reused_tokens(said) >= 256


def test_a_langgraph_agent_keeps_its_context_across_a_tool(run_example, team):
    said = run_example("langgraph_agent/agent.py")
    before, after = re.search(r"reused tokens: (\d+) before the tool, (\d+) after", said).groups()
    assert int(after) > int(before) == 0
    assert "pinned until" in said
    (context,) = team.get("contexts?name=agent-7")["results"]
    assert context["pinned_until"] is None


FACTS = ["likes green tea and no coffee", "lives in Graz and works in Vienna", "owns two old cats"]


@pytest.fixture(scope="module")
def memory(run_example, tmp_path_factory):
    """The folder of a memory whose prefix an engine computed once."""
    folder = tmp_path_factory.mktemp("memory")
    said = run_example("mem0_memory/remember.py", "--folder", folder, *FACTS)
    assert reused_tokens(said) == 0
    assert "pinned until" in said
    return folder


def test_a_memory_layer_names_and_pins_its_prefix(memory, team):
    (context,) = team.get("contexts?name=memory-of-ada")["results"]
    assert context["pinned_until"]


class Team:
    """/api/v1 with a team's key of the demo tenant."""

    def __init__(self, platform):
        self.url = f"{platform.url}/api/v1"
        self.key = platform.manage("shell", "-v", "0", "-c", MAKE_KEY).split()[-1]

    def get(self, path):
        return self._send(path, None)

    def post(self, path, **body):
        return self._send(path, json.dumps(body).encode())

    def _send(self, path, body):
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error


def test_a_terminated_server_ends_its_session(server, platform):
    assert "gpu-07 live" in platform.manage("shell", "-v", "0", "-c", SHOW_SESSIONS)
    server.terminate()
    assert "gpu-07 ended" in platform.manage("shell", "-v", "0", "-c", SHOW_SESSIONS)


def test_a_memory_is_loaded_after_a_restart(memory, server, team, run_example):
    server.restart()
    wait_until(
        lambda: any(each["base_url"] == server.url for each in team.get("engines")["results"]),
        what="the announcement",
    )
    checked_engine(server, team)
    assert reused_tokens(run_example("mem0_memory/remember.py", "--folder", memory)) >= 128


SHOW_CONTEXTS = """
from catalog.models import Context
print([context.name for context in Context.unscoped.all()])
"""
SHOW_SESSIONS = """
from catalog.models import NodeSession
for session in NodeSession.unscoped.all():
    print(session.node, "ended" if session.ended_at else "live")
"""
MAKE_KEY = """
from tenants.models import Tenant
from tenants.services import issue_key
print(issue_key(tenant=Tenant.objects.get(slug="demo"), role="team", name="made")[1])
"""
