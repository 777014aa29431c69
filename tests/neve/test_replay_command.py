"""`neve replay` and `neve ping` as people run them: against a live platform, and without one."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from neve.cli.main import main
from neve.cli.ping import check_s3, fix_of_refusal
from neve.cli.replay import make_identity
from neve.datapath.client import BlockRef, Client
from neve.node.session import Endpoint, _problem
from neve.replay.generator import Generator, Workload
from neve.replay.payload import Payloads
from neve.replay.trace import tokens_of
from support.chains import ENGINE, IDENTITY
from support.servers import ControlPlane

KV_BYTES = 64
SMALL = ["--kv-bytes-per-token", str(KV_BYTES), "--quiet"]


def neve(*arguments: str) -> Result:
    return CliRunner(env={"NEVE_ENDPOINT": None, "NEVE_API_KEY": None}).invoke(main, arguments)


def at(platform: ControlPlane) -> list[str]:
    return ["--endpoint", platform.url, "--api-key", platform.node_key]


def replay(platform: ControlPlane, path: Path, *arguments: str) -> dict:
    done = neve("replay", *at(platform), *SMALL, "--json", str(path), *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(path.read_text())


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port that nobody listens on, kept from others while the test runs."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class Loop:
    """`neve replay --loop` in a process of its own."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "neve", "replay", "--loop", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
            )

    def wait_for(self, text: str, *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.log.read_text()}"
            time.sleep(0.05)

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def test_version_is_said():
    assert neve("version").output.startswith("neve 0.")


def test_missing_endpoint_and_key_say_what_to_set():
    done = neve("replay")
    assert done.exit_code == 1
    assert "NEVE_ENDPOINT" in done.output
    done = neve("replay", "--endpoint", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert "NEVE_API_KEY" in done.output
    done = neve("ping", "--endpoint", "http://127.0.0.1:1", "--api-key-file", "nowhere/key")
    assert done.exit_code == 1
    assert "nowhere/key" in done.output


def test_a_bad_trace_is_refused_before_anything_is_asked(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"timestamp": 0, "input_length": "9", "output_length": 1, "hash_ids": [1]}\n')
    done = neve("replay", str(path), "--endpoint", "http://127.0.0.1:1", "--api-key", "k")
    assert done.exit_code == 1
    assert "bad.jsonl:1: input_length: expected an integer" in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nonsense"], "No such option"),
        (["--kv-bytes-per-token", "much"], "write it like"),
        (["--speed", "0x"], "write max, 1x or 10x"),
        (["--rate", "1", "--speed", "1x"], "not both"),
        (["a.jsonl", "--generate", "chat"], "not both"),
        (["--models", "2", "--loop"], "give no --loop"),
        (["--local-dir", "/dev/shm/neve"], "--local-bytes: a local tier needs"),
        (["--local-bytes", "1GiB"], "--local-dir: a local tier needs"),
        (["--local-dir", "here", "--local-bytes", "1GiB"], "need an absolute path, got 'here'"),
    ],
)
def test_a_wrong_command_line_exits_with_64(arguments, says):
    done = neve("replay", *arguments, "--endpoint", "http://127.0.0.1:1", "--api-key", "k")
    assert done.exit_code == 64
    assert says in done.output


def test_an_absent_platform_is_named_with_the_fix(nobody):
    done = neve("ping", "--endpoint", nobody, "--api-key", "k")
    assert done.exit_code == 1
    assert "FAIL  endpoint" in done.output
    assert "make up" in done.output
    done = neve("replay", "--endpoint", nobody, "--api-key", "k")
    assert done.exit_code == 6
    assert nobody in done.output
    done = neve("ping", "--endpoint", nobody.removeprefix("http://"), "--api-key", "k")
    assert done.exit_code == 1
    assert "need an address such as http://" in done.output


def test_an_endless_replay_waits_for_an_absent_platform_and_ends_on_sigterm(nobody, tmp_path):
    with Loop(tmp_path / "log", "--endpoint", nobody, "--api-key", "k") as loop:
        loop.wait_for("Neve is away")
        loop.process.send_signal(signal.SIGTERM)
        assert loop.process.wait(60) == 0


@pytest.mark.integration
def test_ping_finds_everything_well_and_a_wrong_key_wrong(control_plane):
    done = neve("ping", *at(control_plane))
    assert done.exit_code == 0, done.output
    checks = [line.split()[1] for line in done.output.splitlines()]
    assert checks == ["endpoint", "key", "valkey", "block", "s3"]
    done = neve("ping", "--endpoint", control_plane.url, "--api-key", "neve_bad_key")
    assert done.exit_code == 1
    assert "FAIL  key" in done.output
    assert "fix:" in done.output


@pytest.mark.unit
def test_ping_tells_a_tenant_that_was_cut_off_from_a_key_of_another_role():
    for kind, fix in (("tenant-cut-off", "lets the tenant in"), ("forbidden", "role node")):
        refusal = _problem("http://x", 403, {"type": f"/neve/problems/{kind}", "detail": "no"})
        assert fix in fix_of_refusal(refusal)


@pytest.mark.integration
def test_ping_reads_s3_as_nodes_do_and_says_why_that_fails(control_plane):
    endpoint = Endpoint(control_plane.url, control_plane.node_key)
    session = endpoint.open_session(IDENTITY, node="n", engine=ENGINE)
    endpoint.end_session(session.id)
    assert check_s3(session).ok
    signed = re.search(r"X-Amz-Date=(\w+)", session.s3["probe"])[1]
    for old, new, reason, fix in (
        ("X-Amz-Signature=", "X-Amz-Signature=0", "denied", "NEVE_S3_SECRET_KEY"),
        (signed, "20200101T000000Z", "clock", "by NTP"),
    ):
        probe = session.s3["probe"].replace(old, new)
        check = check_s3(replace(session, s3={**session.s3, "probe": probe}))
        assert f"reason {reason}" in check.detail
        assert fix in check.fix


@pytest.mark.integration
def test_a_replay_in_an_unlimited_cache_hits_what_the_ideal_one_hits(control_plane, tmp_path):
    # One at a time, so that a request never overlaps the one that stores its prefix.
    once = ["--requests", "50", "--salt", "ideal", "--concurrency", "1"]
    first = replay(control_plane, tmp_path / "1.json", *once)
    blocks, read, write = first["blocks"], first["read"], first["write"]
    assert first["requests"] == 50
    assert blocks["hit_rate"] == first["ideal_lru"]["unbounded_hit_rate"]
    assert blocks["missed"] == {"never_stored": blocks["asked"] - blocks["hit"]}
    assert read["verified_blocks"] == blocks["hit"] == blocks["hit_hot"]
    assert read["wrong_blocks"] == 0
    assert read["bytes"] == blocks["hit"] * blocks["chunk_tokens"] * KV_BYTES
    assert write["stored_blocks"] == blocks["asked"] - blocks["hit"]
    assert first["load_ms"]["p50"] > 0

    # Another process finds all of it; another salt nothing of the first pass's.
    again = replay(control_plane, tmp_path / "2.json", *once)
    assert again["blocks"]["hit_rate"] == 1
    assert again["write"]["stored_blocks"] == 0
    other = replay(control_plane, tmp_path / "3.json", *once, "--salt", "other")
    assert other["blocks"]["hit"] == blocks["hit"]


@pytest.mark.integration
def test_a_replay_reads_what_it_used_before_from_its_local_tier(control_plane, tmp_path):
    local = ("--local-dir", str(tmp_path / "local"), "--local-bytes", "64MiB")
    once = ["--requests", "30", "--salt", "local", "--concurrency", "1", *local]
    for turn in range(4):  # a block is kept at its second use
        found = replay(control_plane, tmp_path / f"{turn}.json", *once)
    assert found["blocks"]["hit_local"] > 0
    assert found["read"]["local_bytes"] == found["blocks"]["hit_local"] * (
        found["read"]["bytes"] // found["blocks"]["hit"]
    )
    assert found["read"]["wrong_blocks"] == 0


@pytest.mark.integration
def test_models_of_one_family_compute_a_context_once_and_others_each(control_plane, tmp_path):
    once = ["--requests", "40", "--salt", "models", "--concurrency", "1"]
    alone = replay(control_plane, tmp_path / "alone.json", *once, "--model", "alone")
    done = neve(
        "replay", *at(control_plane), *SMALL, *once, "--models", "4",
        "--prefill-tokens-per-s", "1e9", "--json", str(tmp_path / "both.json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    both = json.loads((tmp_path / "both.json").read_text())
    family, apart = both["family"], both["apart"]
    # Who asks makes no difference in a family; apart, a model finds only what it computed itself.
    assert family["tokens"] == alone["tokens"]
    assert apart["tokens"]["asked"] == family["tokens"]["asked"]
    assert apart["tokens"]["computed"] > 1.5 * family["tokens"]["computed"]
    for each in (family, apart):
        assert each["blocks"]["hit_rate"] == each["ideal_lru"]["unbounded_hit_rate"] > 0
        assert each["tokens"]["computed"] == each["tokens"]["asked"] - each["tokens"]["hit"]
        assert each["first_token_ms"]["count"] == 40
        assert each["write"]["stored_blocks"] == each["blocks"]["asked"] - each["blocks"]["hit"]
    table = [re.split("  +", line.strip()) for line in done.output.splitlines()]
    assert ["4 models, in turns", "one family", "a space each"] in table
    computed = [f"{each['tokens']['computed']:,}" for each in (family, apart)]
    assert ["prefill tokens", *computed] in table


@pytest.mark.integration
def test_client_and_dashboard_agree_on_the_hit_rate(control_plane, tmp_path):
    """Both of all prompt tokens, also of those after a prompt's last whole block."""
    once = ["--requests", "30", "--salt", "agree", "--node", "agree", "--concurrency", "1"]
    told = replay(control_plane, tmp_path / "agree.json", *once)
    code = (
        "import json; from catalog.models import NodeSession as N; "
        "from dashboard.pages.nodes.selector import node_rows; from datetime import datetime, UTC; "
        "rows = node_rows(list(N.unscoped.filter(node='agree')), live_since=datetime.now(UTC)); "
        "print(json.dumps([rows[0].prompt_tokens, rows[0].totals, rows[0].hit_ratio]))"
    )
    shell = control_plane.manage("shell", "--no-imports", "-v0", "-c", code)
    prompt_tokens, totals, hit_ratio = json.loads(shell.splitlines()[-1])
    assert totals["tail_tokens"] > 0
    assert prompt_tokens == told["tokens"]["asked"]
    assert hit_ratio == told["tokens"]["hit_rate"] > 0


@pytest.mark.integration
def test_a_replay_samples_its_look_ups_as_an_engine_does(control_plane, tmp_path):
    told = replay(control_plane, tmp_path / "sampled.json", "--requests", "30", "--salt", "sampled")
    code = (
        "import json; from base.counting import bus; from neve.formats.samples import decode; "
        "from planning.samples import _ENTRY, _waiting; from tenants.models import Tenant; "
        "names = [_waiting(tenant.pk) for tenant in Tenant.objects.all()]; "
        "batches = [decode(each[_ENTRY.size:]) for name in names "
        "for each in bus().lrange(name, 0, -1)]; "
        "print(json.dumps(sum(each.totals.asked_blocks for each in batches)))"
    )
    shell = control_plane.manage("shell", "--no-imports", "-v0", "-c", code)
    assert json.loads(shell.splitlines()[-1]) >= told["blocks"]["asked"] > 0


@pytest.mark.integration
def test_conversations_become_contexts_and_traces_are_replayed(control_plane, tmp_path):
    replay(control_plane, tmp_path / "g.json", "--requests", "30", "--generate", "agents")
    code = (
        "from catalog.models import Context;"
        "rows = list(Context.unscoped.order_by('name'));"
        "print([(row.name, row.label) for row in rows]);"
        "print('asked', all(row.prompt_tokens >= row.hit_tokens for row in rows),"
        " sum(row.prompt_tokens for row in rows) > 0, sum(row.hit_tokens for row in rows) > 0);"
        "from catalog.models import KeptRequest;"
        "print('kept', KeptRequest.unscoped.filter(base__startswith='replay-').exists())"
    )
    told = control_plane.manage("shell", "-c", code)
    assert "('demo-agent-" in told
    assert "asked True True True" in told
    assert "kept True" in told

    path = tmp_path / "trace.jsonl"
    requests = itertools.islice(Generator(Workload.CHAT, seed=9), 20)
    path.write_text(
        "".join(
            json.dumps(
                {
                    "timestamp": request.timestamp_ms,
                    "input_length": request.input_tokens,
                    "output_length": request.output_tokens,
                    "hash_ids": request.hash_ids,
                }
            )
            + "\n"
            for request in requests
        )
    )
    played = replay(control_plane, tmp_path / "t.json", str(path), "--speed", "100x")
    assert played["requests"] == 20
    assert played["blocks"]["hit"] > 0


@pytest.mark.integration
def test_a_wrong_block_is_a_loud_failure(control_plane):
    """Another payload stands, with a true checksum, under an id that the replay asks for."""
    salt = "wrong"
    identity = make_identity("replay", KV_BYTES)
    engine = {"name": "test", "version": "1"}
    request = next(iter(Generator(Workload.MIXED, seed=1)))
    with Client.connect(
        control_plane.url, control_plane.node_key, identity, node="liar", engine=engine
    ) as client:
        chunk_tokens = client.session.chunk_tokens
        root = client.hasher.root(salt=salt.encode())
        block_id = client.hasher.chain(tokens_of(request).tolist(), parent=root)[0]
        payload = np.empty(chunk_tokens * KV_BYTES, dtype=np.uint8)
        Payloads(payload.size).write(block_id, payload)
        payload[-1] ^= 1
        block = BlockRef(block_id, root, chunk_tokens)
        assert client.put_many([block], [payload]).wait() == [None]
    done = neve("replay", *at(control_plane), *SMALL, "--salt", salt, "--requests", "5")
    assert done.exit_code == 2
    assert "WRONG BLOCK" in done.output
    assert block_id.hex() in done.output


@pytest.mark.integration
def test_an_endless_replay_survives_a_stuck_valkey_and_sums_up_on_sigint(control_plane, tmp_path):
    hot = control_plane.hot.process
    assert hot is not None
    where = [*at(control_plane), "--kv-bytes-per-token", str(KV_BYTES), "--rate", "20"]
    with Loop(tmp_path / "log", *where, "--json", str(tmp_path / "loop.json")) as loop:
        loop.wait_for("tenant demo")
        hot.send_signal(signal.SIGSTOP)
        try:
            loop.wait_for("Neve is away")
        finally:
            hot.send_signal(signal.SIGCONT)
        loop.wait_for("Neve is back")
        loop.process.send_signal(signal.SIGINT)
        assert loop.process.wait(60) == 0
    summary = json.loads((tmp_path / "loop.json").read_text())
    assert summary["requests"] > 0
    assert summary["read"]["wrong_blocks"] == 0
    assert {"breaker", "timeout"} & summary["blocks"]["missed"].keys()
