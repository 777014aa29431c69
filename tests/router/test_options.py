"""The router's file: each wrong field is named, with the fix, before anything starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from neve.cli.main import main
from neve.errors import Misuse
from neve.gateway.pools import Handover
from neve.router.options import parse_options, read_options
from support.light_engines import LightEngine, LightNeve
from support.servers import answers, free_port, wait_until

NODE = {"url": "http://gpu-01:8000"}
POOL = {"name": "far", "urls": ["http://gpu-11:8000/v1/"]}

WHOLE = """
host = "0.0.0.0"
port = 8200
endpoint = "https://neve.example"
space = "llama-8b"
model = "llama"
engine_key_env = "ENGINE_KEY"
lookup_deadline_s = 0.2
most_body_bytes = 1000000
most_held_bytes = 2000000
most_requests = 10
body_s = 5
metrics_host = "10.0.0.1"
metrics_port = 8201
tells_outcome = true

[[decode]]
url = "http://gpu-01:8000"
name = "gpu-01"

[[decode]]
url = "http://gpu-02:8000"

[[pool]]
name = "far"
urls = ["http://gpu-11:8000", "http://gpu-12:8000"]
model = "llama-far"
key_env = "FAR_KEY"
handover = "cold"
link = "sea"
link_mbit = 100
prefill_tokens_per_s = 20000
step_tokens = 2048
least_tokens = 512
prefill_s = 30
wait_s = 5
most_waiting = 4
"""


def test_a_whole_file_is_read(tmp_path):
    path = tmp_path / "router.toml"
    path.write_text(WHOLE)
    found = read_options(path, {"ENGINE_KEY": "sk-1", "FAR_KEY": "sk-2"})
    assert [(node.name, node.url) for node in found.decode] == [
        ("gpu-01", "http://gpu-01:8000"),
        ("gpu-02:8000", "http://gpu-02:8000"),
    ]
    assert (found.host, found.port, found.space, found.engine_key) == (
        *("0.0.0.0", 8200, "llama-8b", "sk-1"),
    )
    assert (found.most_held_bytes, found.most_requests, found.body_s) == (2_000_000, 10, 5)
    assert (found.metrics_host, found.metrics_port, found.tells_outcome) == (
        *("10.0.0.1", 8201, True),
    )
    (section,) = found.pools
    assert not section.is_registered
    pool = section.options("llama", section.urls)
    assert (pool.model, pool.api_key, pool.handover) == ("llama-far", "sk-2", Handover.COLD)
    assert (pool.link, pool.link_bytes_per_s) == ("sea", 12.5e6)
    assert (pool.step_tokens, pool.least_tokens, pool.most_waiting) == (2048, 512, 4)
    assert "sk-" not in repr(found) + repr(pool)


def test_addresses_lose_their_ends():
    found = parse_options({"decode": [NODE], "pool": [POOL]}, {})
    assert found.pools[0].urls == ("http://gpu-11:8000",)
    assert found.pools[0].options("tiny", found.pools[0].urls).model == "tiny"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "decode: name at least one decode node"),
        ({"decode": [{}]}, "decode 1: url: is missing"),
        ({"decode": [7]}, "decode 1: need a table"),
        ({"decode": [{"url": "gpu-01:8000"}]}, "decode 1: url: 'gpu-01:8000' is no address"),
        ({"decode": [{"url": "http://:80"}]}, "is no address"),
        ({"decode": [{"url": "http://a:b"}]}, "is no address"),
        ({"decode": [{"url": "http://a/?x=1"}]}, "has a query"),
        ({"decode": [{"url": "http://me:sk@a"}]}, "leave the password out"),
        ({"decode": [NODE, NODE]}, "decode.name: gpu-01:8000 is there twice"),
        ({"decode": [NODE | {"name": 7}]}, "decode 1: name: need text in quotes, not 7"),
        ({"decode": [NODE | {"port": 1}]}, "decode 1: port: there is no such field"),
        ({"decode": [NODE], "decoded": 1}, "decoded: there is no such field; there are"),
        ({"decode": [NODE], "port": True}, "port: need a whole number"),
        ({"decode": [NODE], "port": 70000}, "port: 70000 is no port"),
        ({"decode": [NODE], "space": ""}, "space: give the number or the name"),
        ({"decode": [NODE], "lookup_deadline_s": 0}, "lookup_deadline_s: must be above 0"),
        ({"decode": [NODE], "most_body_bytes": 0}, "most_body_bytes: must be above 0"),
        ({"decode": [NODE], "most_requests": 0}, "most_requests: must be above 0"),
        ({"decode": [NODE], "most_held_bytes": 9}, "must not be below most_body_bytes"),
        ({"decode": [NODE], "metrics_port": 8100}, "metrics_port: must be another port"),
        ({"decode": [NODE], "engine_key_env": "NOT_SET"}, "variable NOT_SET is not set"),
        ({"decode": [NODE], "pool": [{"urls": ["http://a"]}]}, "pool 1: name: is missing"),
        ({"decode": [NODE], "pool": [{"name": "far"}]}, "pool far: urls: is missing"),
        ({"decode": [NODE], "pool": [POOL, POOL]}, "pool.name: far is there twice"),
        ({"decode": [NODE], "pool": [POOL | {"urls": [7]}]}, "pool far: urls: need a list"),
        ({"decode": [NODE], "pool": [POOL | {"urls": [NODE["url"]]}]}, "is a decode node as well"),
        ({"decode": [NODE], "pool": [POOL | {"handover": "warm"}]}, "is none of hot, cold"),
        ({"decode": [NODE], "pool": [POOL | {"link_mbit": 0}]}, "link_mbit: must be above 0"),
        ({"decode": [NODE], "pool": [POOL | {"wait_s": -1}]}, "pool far: wait_s: must be above"),
        ({"decode": [NODE], "pool": [POOL | {"key_env": "NOT_SET"}]}, "pool far: key_env"),
        (
            {"decode": [NODE], "pool": [POOL | {"registered": True, "key_env": "K"}]},
            "pool far: key_env: whoever registers an engine would get this key",
        ),
        ({"decode": [NODE], "pool": [POOL | {"sped": 1}]}, "pool 1: sped: there is no such field"),
    ],
)
def test_a_wrong_field_is_named(config, words):
    with pytest.raises(Misuse) as wrong:
        parse_options(config, {})
    assert words in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot read"), ("a = ", "is no TOML"), ("\xff", "is no TOML")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, words):
    path = tmp_path / "router.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Misuse, match=words):
        read_options(path)


# ---- what Neve and the engines say at the start


def toml(config: dict[str, Any]) -> str:
    top = [f"{key} = {json.dumps(value)}" for key, value in config.items()
           if not isinstance(value, list)]  # fmt: skip
    tables = [
        "\n".join([f"[[{name}]]", *(f"{key} = {json.dumps(value)}" for key, value in row.items())])
        for name, rows in config.items()
        if isinstance(rows, list)
        for row in rows
    ]
    return "\n".join([*top, *tables])


def check(tmp_path: Path, neve: LightNeve, config: dict[str, Any], key: str = "") -> Any:
    path = tmp_path / "router.toml"
    path.write_text(toml(config))
    env = {"NEVE_ENDPOINT": neve.url, "NEVE_API_KEY": key or neve.key, "SK": "sk-1"}
    return CliRunner().invoke(main, ["router", "--config", str(path), "--check"], env=env)


def test_check_says_what_a_request_finds(tmp_path, neve, decode, engine):
    config = {"space": "tiny-space", "decode": [{"url": decode.url, "name": "a"}]}
    config["pool"] = [{"name": "far", "urls": [engine.url]}]
    done = check(tmp_path, neve, config)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        **{"status": "ok", "model": "tiny", "neve": True, "space": 3},
        **{"decode": {"a": True}, "pools": {"far": "free"}},
    }


def test_a_pool_may_be_the_prefill_engines_that_neve_knows(tmp_path, neve, decode, engine):
    config: dict[str, Any] = {"decode": [{"url": decode.url}]}
    config["pool"] = [{"name": "far", "registered": True}]
    done = check(tmp_path, neve, config)
    assert "Neve has no prefill engine of this space: register one" in done.output
    neve.engines = [engine_row(engine)]
    assert check(tmp_path, neve, config).exit_code == 0


def engine_row(engine: LightEngine) -> dict[str, Any]:
    return {
        **{"id": 1, "tenant": "demo", "name": "far", "base_url": engine.url, "model": "tiny"},
        **{"spaces": [3], "gpus": None, "has_api_key": False, "is_prefill": True},
        **{"source": "registered", "state": "healthy", "error": "", "checked_at": None},
        **{"created_at": "2026-11-30T00:00:00Z", "updated_at": "2026-11-30T00:00:00Z"},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"space": "other"}, "there is no space 'other'; there are 3 (tiny-space)"),
        ({"space": 9}, "there is no space 9"),
        ({"model": "huge"}, "a does not serve 'huge', but tiny"),
        ({"pool": {"model": "huge"}}, "pool far: model: http"),
    ],
)
def test_what_contradicts_the_options_ends_the_start(tmp_path, neve, decode, engine, change, words):
    pool = {"name": "far", "urls": [engine.url]} | change.pop("pool", {})
    config = {"decode": [{"url": decode.url, "name": "a"}], "pool": [pool]} | change
    done = check(tmp_path, neve, config)
    assert done.exit_code == 1
    assert words in done.output


def test_a_wrong_key_ends_the_start(tmp_path, neve, decode, engine):
    config: dict[str, Any] = {"decode": [{"url": decode.url, "name": "a"}]}
    done = check(tmp_path, neve, config, key="neve_bbbbbbbbbb_" + "x" * 32)
    assert "NEVE_API_KEY: Neve refuses the key" in done.output
    decode.key = "sk-other"
    done = check(tmp_path, neve, config)
    assert "a wants a key: name the model, or give engine_key_env" in done.output
    done = check(tmp_path, neve, config | {"engine_key_env": "SK"})
    assert "engine_key_env: a refuses it" in done.output
    decode.key, engine.key = "", "sk-other"
    config["pool"] = [{"name": "far", "urls": [engine.url]}]
    assert "pool far: key_env" in check(tmp_path, neve, config).output


def test_the_command_serves_until_it_is_ended(tmp_path, neve, decode, engine):
    path, port, watching = tmp_path / "router.toml", free_port(), free_port()
    nodes = [{"url": decode.url, "name": "a"}]
    pools = [{"name": "far", "urls": [engine.url]}]
    path.write_text(toml({"metrics_port": watching, "decode": nodes, "pool": pools}))
    command = [sys.executable, "-m", "neve", "router", "--config", str(path), "--port", str(port)]
    env = os.environ | {"NEVE_ENDPOINT": neve.url, "NEVE_API_KEY": neve.key}
    server = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: answers(port), what="neve router")
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 2}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        metrics = httpx.get(f"http://127.0.0.1:{watching}/metrics").text
        assert "neve_router_answers_total" in metrics
    finally:
        server.terminate()
        _, said = server.communicate(timeout=30)
    assert f"Routing at http://127.0.0.1:{port}: " in said
    assert neve.key not in said
