"""Prefill as a service over a slow link: `neve router`, one vLLM behind the link, one before it.

    sudo python benchmarks/prefill_service.py [--mbit 100] [--round-trip-ms 20] [--cut 10]
                                              [--share 0.25] [--rounds 6]

Needs root, since the link is real: the prefill pool's engine lives in a network namespace of its
own, a veth pair leads there, `tc tbf` limits both directions to `--mbit`, and proxies of our own
delay each direction by half of `--round-trip-ms` (`netem` is not in every kernel). Platform,
Valkey, S3, router and decode node are outside of it. Four parts:

1. **local**: the decode node alone answers prompts of several lengths: tokens, first-token times.
2. **link**: the same prompts through the router; then new ones of random lengths. Tokens have to be
   those of part 1, whoever computed the prompt.
3. **cut**: the link drops to `--mbit` ÷ `--cut`. The threshold has to move.
4. **lost**: with the link as before and a new router, which measures it anew, the pool's engine is
   killed. Every prompt has to be answered with the same tokens.

At last `neve plan prfaas`, the published case.

Both engines are vLLM on the CPU of one machine, with one seeded Llama (`--layers`, `--hidden`). So
that one is the slower machine, the decode node's processes run for `--share` of the time only
(SIGSTOP). The machine bounds everything: no figure is one of a GPU.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]

from support.router_server import RouterServer  # noqa: E402
from support.servers import ControlPlane, S3Server, Server, wait_until  # noqa: E402
from support.vllm_engine import engine_environment  # noqa: E402
from support.vllm_server import VllmServer  # noqa: E402

VLLM = Path(os.environ.get("NEVE_TEST_VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
NEAR, FAR = "10.231.77.1", "10.231.77.2"
STEP_TOKENS = 512
MOST_TOKENS = 4096
ANSWER = 12
LENGTHS = (128, 384, 768, 1536, 3072)


class Link:
    """Two hosts with a wire between them: this one, and a network namespace. Needs root."""

    def __init__(self, mbit: float, round_trip_s: float) -> None:
        self.mbit, self._round_trip_s = mbit, round_trip_s
        self.name = f"neve{os.getpid() % 100_000}"
        self._proxies: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        ip("netns", "add", self.name)
        near, far = f"{self.name}a", f"{self.name}b"
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name)
        ip("addr", "add", f"{NEAR}/30", "dev", near)
        ip("link", "set", near, "up")
        self._inside("ip", "addr", "add", f"{FAR}/30", "dev", far)
        for device in (far, "lo"):
            self._inside("ip", "link", "set", device, "up")
        self._near, self._far = near, far
        self._shape("add")
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            proxy.kill()
            proxy.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=False)
        subprocess.run(["ip", "link", "del", self._near], check=False, stderr=subprocess.DEVNULL)

    def set_mbit(self, mbit: float) -> None:
        self.mbit = mbit
        self._shape("change")

    def lead_there(self, port: int) -> None:
        """Makes a loopback port of this host one of the other's loopback, over the wire."""
        self._proxy(f"127.0.0.1:{port}", f"{NEAR}:{port}", 0.0, inside=False)
        self._proxy(f"{NEAR}:{port}", f"127.0.0.1:{port}", self._round_trip_s, inside=True)

    def lead_here(self, port: int) -> None:
        """The other way round."""
        self._proxy(f"127.0.0.1:{port}", f"{FAR}:{port}", 0.0, inside=True)
        self._proxy(f"{FAR}:{port}", f"127.0.0.1:{port}", self._round_trip_s, inside=False)

    def command(self, *command: str) -> list[str]:
        """The command, as run on the other host."""
        return ["ip", "netns", "exec", self.name, *command]

    def _proxy(self, target: str, listen: str, round_trip_s: float, *, inside: bool) -> None:
        script = str(ROOT / "tests/support/distance.py")
        command = [sys.executable, script, target, str(round_trip_s), "0", "0", "0", listen]
        whole = ["setpriv", "--pdeathsig", "KILL", *command]
        proxy = subprocess.Popen(
            self.command(*whole) if inside else whole, stdout=subprocess.PIPE, text=True
        )
        assert proxy.stdout is not None
        assert proxy.stdout.readline()
        self._proxies.append(proxy)

    def _shape(self, verb: str) -> None:
        limit = ["root", "tbf", "rate", f"{self.mbit}mbit", "burst", "64kb", "latency", "200ms"]
        run("tc", "qdisc", verb, "dev", self._near, *limit)
        self._inside("tc", "qdisc", verb, "dev", self._far, *limit)

    def _inside(self, *command: str) -> None:
        run(*self.command(*command))


class FarServer(VllmServer):
    """A vLLM on the other host; its port leads here."""

    def __init__(self, link: Link, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._link = link

    def command(self) -> list[str]:
        return self._link.command(*super().command())


class Slowed:
    """Lets a server run for a share of the time."""

    def __init__(self, server: Server, share: float) -> None:
        self._server, self._share = server, share
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        if self._share < 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            self._server.thaw()

    def _run(self) -> None:
        on_s = 0.02
        while not self._stop.wait(on_s):
            self._server.freeze()
            time.sleep(on_s / self._share - on_s)
            self._server.thaw()


@dataclass
class Answer:
    """Of one prompt. `tokens`: ids of the answer."""

    tokens: list[int]
    first_s: float
    whole_s: float
    outcome: str = ""
    threshold: float | None = None


def ask(url: str, prompt: Sequence[int]) -> Answer:
    body = {
        **{"model": "tiny", "prompt": list(prompt), "max_tokens": ANSWER, "temperature": 0},
        **{"stream": True, "return_token_ids": True, "ignore_eos": True},
    }
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    begun, first, tokens = time.monotonic(), 0.0, []
    with urllib.request.urlopen(request, timeout=300) as response:
        said = response.headers.get("x-neve-prefill", "")
        for line in response:
            if line.startswith(b"data: {"):
                first = first or time.monotonic()
                tokens += json.loads(line[6:])["choices"][0].get("token_ids") or []
    parts = dict(part.split("=") for part in said.split("; ")[1:])
    return Answer(
        tokens,
        first - begun,
        time.monotonic() - begun,
        said.partition(";")[0],
        float(parts["threshold"]) if "threshold" in parts else None,
    )


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def ip(*words: str) -> None:
    run("ip", *words)


def make_model(folder: Path, layers: int, hidden: int) -> Path:
    """A seeded Llama with one KV head of 64 numbers, and the byte-level tokenizer of the tests."""
    code = f"""
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
torch.manual_seed(7)
AutoModelForCausalLM.from_config(LlamaConfig(
    vocab_size=256, hidden_size={hidden}, intermediate_size={2 * hidden},
    num_hidden_layers={layers}, num_attention_heads={hidden // 64}, num_key_value_heads=1,
    head_dim=64, max_position_embeddings={2 * MOST_TOKENS}, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, tie_word_embeddings=False, initializer_range=0.2, dtype="float32",
)).save_pretrained({str(folder)!r})
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={{c: i for i, c in enumerate(alphabet)}}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained({str(folder)!r})
"""
    subprocess.run(
        [str(VLLM), "-c", code], check=True, env=engine_environment(), capture_output=True
    )
    return folder


@contextlib.contextmanager
def engines(
    folder: Path, link: Link, platform: ControlPlane, model: Path
) -> Iterator[tuple[FarServer, VllmServer]]:
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        **{"endpoint": platform.url, "load": "always", "canary": 0, "max_chunk_tokens": 64},
        **{"match_deadline_s": 5, "load_deadline_s": 30, "handover_wait_s": 10},
    }
    more = (
        *("--max-num-batched-tokens", str(STEP_TOKENS), "--max-model-len", str(MOST_TOKENS)),
        *("--kv-cache-memory-bytes", str(256 << 20)),
    )

    def server(kind: Any, name: str, role: str) -> Any:
        return kind(
            folder / name,
            VLLM,
            model,
            neve | {"node": name},
            env,
            role=role,
            more=more,
            waits=False,
        )

    with (
        server(lambda *a, **k: FarServer(link, *a, **k), "far", "kv_producer") as far,
        server(VllmServer, "local", "kv_consumer") as local,
    ):
        link.lead_here(far.port)
        for each in (far, local):
            wait_until(each.healthy, timeout_s=600, what=each.folder.name)
        yield far, local


def config(far: FarServer, local: VllmServer) -> str:
    return f"""
model = "tiny"
lookup_deadline_s = 5
[[decode]]
name = "local"
url = "{local.url}"
[[pool]]
name = "far"
urls = ["{far.url}"]
step_tokens = {STEP_TOKENS}
least_tokens = 64
"""


class Report:
    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.wrong: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)

    def expect(self, is_true: bool, words: str) -> None:
        self.say(f"{'ok  ' if is_true else 'FAIL'} {words}")
        if not is_true:
            self.wrong.append(words)


def prompts_of(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(256) for _ in range(length)] for length in lengths]


def play(
    report: Report,
    router: RouterServer,
    local: VllmServer,
    name: str,
    prompts: Sequence[Sequence[int]],
) -> list[Answer]:
    """Each prompt by the decode node alone, which stores nothing, then through the router."""
    alone = [ask(local.url, prompt) for prompt in prompts]
    routed = [ask(router.url, prompt) for prompt in prompts]
    for prompt, one, other in zip(prompts, alone, routed, strict=True):
        threshold = "unknown" if other.threshold is None else f"{other.threshold:,.0f}"
        same = "same" if one.tokens == other.tokens and one.tokens else "OTHER"
        report.say(
            f"  {len(prompt):>5} tokens  {other.outcome:<12} threshold {threshold:>8}   first token"
            f" {other.first_s:6.2f} s, decode node alone {one.first_s:6.2f} s   {same} tokens"
        )
    report.expect(
        all(a.tokens == b.tokens and a.tokens for a, b in zip(alone, routed, strict=True)),
        f"{name}: {len(prompts)} answers have the decode node's own tokens",
    )
    state = {each: router.metric(each) for each in STATES}
    report.rows[name] = {
        "routed": [vars(each) for each in routed],
        "alone": [vars(each) for each in alone],
        "state": state,
    }
    report.say(
        f"  link {(state['link_bytes_per_second'] or 0) * 8e-6:.1f} Mbit/s as measured, threshold"
        f" {state['threshold_tokens']} tokens (sooner {state['threshold_sooner_tokens']})"
    )
    return routed


STATES = (
    *("threshold_tokens", "threshold_sooner_tokens", "threshold_sustained_tokens"),
    *("link_bytes_per_second", "sent_bytes_total"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--cut", type=float, default=10, help="factor by which the link is cut")
    parser.add_argument("--share", type=float, default=0.25, help="of time the decode node runs")
    parser.add_argument("--rounds", type=int, default=6, help="further prompts of each part")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write the figures there")
    told = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root: it makes a network namespace and limits a link with tc")
    if not VLLM.exists():
        sys.exit(f"{VLLM} is missing: run `make vllm`")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report, source = Report(), random.Random(11)
    more_lengths = [source.randrange(300, 3500) for _ in range(told.rounds)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neve-prefill-")))
        model = make_model(folder / "model", told.layers, told.hidden)
        s3 = stack.enter_context(S3Server(folder / "s3"))
        platform = stack.enter_context(ControlPlane(folder / "platform", s3, maxmemory="512mb"))
        link = stack.enter_context(Link(told.mbit, told.round_trip_ms / 1000))
        for port in (platform.port, platform.hot.port, s3.port):
            link.lead_there(port)
        far, local = stack.enter_context(engines(folder, link, platform, model))
        stack.enter_context(Slowed(local, told.share))
        kv = 2 * told.layers * 64 * 4
        report.say(
            f"{told.mbit:g} Mbit/s, {told.round_trip_ms:g} ms; {kv:,} bytes of KV a token; the"
            f" decode node runs {told.share:.0%} of the time; load {os.getloadavg()[0]:.1f} on"
            f" {os.cpu_count()} cores"
        )
        for server in (far, local):  # engines compile and allocate; Neve learns the space
            for prompt in prompts_of(1, (700, 1500)):
                ask(server.url, prompt)
        router = stack.enter_context(RouterServer(folder / "router", platform, config(far, local)))
        wait_until(lambda: router.metric("pool_waiting") is not None, what="the router")
        report.say("\nLearning: the first prompts measure decode node, pool and link")
        play(report, router, local, "learning", prompts_of(2, (400, 900, 1800, 900, 2400)))
        report.say(f"\nLink of {told.mbit:g} Mbit/s")
        play(report, router, local, "link", prompts_of(3, (*LENGTHS, *more_lengths)))
        outcomes = [each["outcome"] for each in report.rows["link"]["routed"]]
        report.expect("handed_over" in outcomes, "link: the pool computed prompts")
        report.say(f"\nLink of {told.mbit / told.cut:g} Mbit/s")
        link.set_mbit(told.mbit / told.cut)
        play(report, router, local, "cut", prompts_of(4, (*LENGTHS, *more_lengths)))
        before, after = (
            report.rows[name]["state"]["threshold_sooner_tokens"] for name in ("link", "cut")
        )
        report.expect(after > before, f"cut: the threshold moved from {before:,} to {after:,}")
        report.say(f"\nLink of {told.mbit:g} Mbit/s again, a new router")
        link.set_mbit(told.mbit)
        router.stop()
        router = stack.enter_context(RouterServer(folder / "again", platform, config(far, local)))
        play(report, router, local, "again", prompts_of(5, (1200, 1800, 2400)))
        report.say("\nThe pool is lost")
        far.kill()
        play(report, router, local, "lost", prompts_of(6, (*LENGTHS, *more_lengths)))
        outcomes = [each["outcome"] for each in report.rows["lost"]["routed"]]
        report.expect(
            "handed_over" not in outcomes and bool({"failed", "lost", "slow"} & {*outcomes}),
            f"lost: the decode node computed what the pool was asked for: {sorted({*outcomes})}",
        )
        found = report.rows["link"]
        gains = [
            one["first_s"] / other["first_s"]
            for one, other in zip(found["alone"], found["routed"], strict=True)
            if other["outcome"] == "handed_over"
        ]
        if gains:
            report.say(
                f"\nFirst token of handed over prompts: {statistics.median(gains):.2f} × sooner"
                " (median)"
            )
    report.say("\nThe published case, by the planner (neve plan prfaas):")
    subprocess.run([sys.executable, "-m", "neve", "plan", "prfaas"], check=True)
    if told.json:
        told.json.write_text(json.dumps(report.rows, indent=2))
    if report.wrong:
        sys.exit(f"{len(report.wrong)} expectations failed: {'; '.join(report.wrong)}")


if __name__ == "__main__":
    main()
