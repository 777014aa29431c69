"""neve.litellm beside round robin: hit rate and time to the first token, CPU engines, one proxy.

    .venv/bin/python benchmarks/gateway.py [--conversations 5] [--turns 4] [--rounds 3]

Four vLLM engines behind one real proxy of LiteLLM: two with Neve, two without. Agents hold
conversations whose turns begin with all turns before; a turn of each in turn. Three ways, in each
round, in another order each time, each with conversations of its own:

    bare    round robin over the engines without Neve: an engine's own cache alone
    neve    round robin over the engines with Neve: what another one computed is loaded
    plugin  neve.litellm over the same: to the holder, which need not load

The number of conversations is odd, so that round robin brings turns to both engines. Round robin
is a callback that alternates, in the same proxy. Times are the client's, through the proxy, to the
first token of a stream. Hits are counted by vLLM, per prompt token: in the engine's own cache, and
loaded from Neve. Ratios are medians over the rounds of the ratio of a round's medians.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httpx  # noqa: E402

from neve.api import Neve  # noqa: E402
from support.litellm_proxy import LitellmProxy  # noqa: E402
from support.servers import ControlPlane, S3Server, wait_until  # noqa: E402
from support.vllm_engine import SCRIPTS, engine_environment  # noqa: E402
from support.vllm_server import VllmServer  # noqa: E402

WAYS = {"bare": ("bare", "turns"), "neve": ("tiny", "turns"), "plugin": ("tiny", "neve")}
# Each of its requests goes to the next engine of the group.
ROUND_ROBIN = """
from collections import Counter
from litellm.integrations.custom_logger import CustomLogger

class RoundRobin(CustomLogger):
    turns = Counter()

    async def async_filter_deployments(
        self, model, healthy_deployments, messages, request_kwargs=None, parent_otel_span=None
    ):
        metadata = (request_kwargs or {}).get("metadata") or {}
        if metadata.get("user_api_key_team_id") != "turns-team" or not healthy_deployments:
            return healthy_deployments
        self.turns[model] += 1
        found = sorted(healthy_deployments, key=lambda each: each["litellm_params"]["api_base"])
        return [found[self.turns[model] % len(found)]]

plugin = RoundRobin()
"""
# A model that takes seconds for a long prompt on a CPU, with the tokeniser of a tiny one.
MODEL = """
import shutil, sys, torch
from transformers import AutoModelForCausalLM, LlamaConfig
tiny, folder = sys.argv[1:]
shutil.copytree(tiny, folder)
config = LlamaConfig.from_pretrained(
    tiny, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=4, head_dim=64, max_position_embeddings=8192)
torch.manual_seed(7)
AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)
"""
COUNTS = {
    "prompt": "prompt_tokens_total",
    "own": "prefix_cache_hits_total",
    "loaded": "external_prefix_cache_hits_total",
}


class BareServer(VllmServer):
    """Without Neve."""

    def command(self) -> list[str]:
        command = super().command()
        at = command.index("--kv-transfer-config")
        return command[:at] + command[at + 2 :]


@dataclass
class Result:
    """Of a way: seconds to the first token of a round's turns behind the first, and counts."""

    seconds: list[list[float]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0.0))

    @property
    def medians(self) -> list[float]:
        return [statistics.median(each) for each in self.seconds]

    def share(self, name: str) -> float:
        return self.counts[name] / max(1.0, self.counts["prompt"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=5, help="odd")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first-tokens", type=int, default=1024, help="of a conversation")
    parser.add_argument("--turn-tokens", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=1, help="conversations at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench/gateway.json")
    options = parser.parse_args()
    if options.conversations % 2 == 0:
        parser.error("--conversations: an even number pins each to an engine under round robin")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neve-gateway-")))
        proxy, engines = start(stack, folder)
        results = {way: Result() for way in WAYS}
        for number in range(options.rounds):
            ways = list(WAYS)
            for way in ways[number % 3 :] + ways[: number % 3]:
                run(way, number, results[way], proxy, engines[WAYS[way][0]], options)
        told = spend_rows(proxy)
    report(results, told, options)


def start(stack: ExitStack, folder: Path) -> tuple[LitellmProxy, dict[str, list[VllmServer]]]:
    python = ROOT / ".venv-vllm/bin/python"
    for command in (
        [str(python), str(SCRIPTS / "make_model.py"), str(folder / "shapes"), "7"],
        [str(python), "-c", MODEL, str(folder / "shapes/llama"), str(folder / "model")],
    ):
        subprocess.run(command, check=True, env=engine_environment(), capture_output=True)
    s3 = stack.enter_context(S3Server(folder / "s3"))
    platform = ControlPlane(folder / "web", s3, maxmemory="2gb")
    stack.enter_context(platform)
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    more = (
        *("--enable-prefix-caching", "--max-model-len", "8192"),
        *("--kv-cache-memory-bytes", str(512 << 20), "--enable-prompt-tokens-details"),
    )
    engines: dict[str, list[VllmServer]] = {"bare": [], "tiny": []}
    for name, kind in (("bare", BareServer), ("tiny", VllmServer)):
        for n in range(2):
            engine = kind(
                folder / f"{name}-{n}",
                python,
                folder / "model",
                {"endpoint": platform.url, "node": f"node-{n}", "match_deadline_s": 2},
                env,
                more=more,
                waits=False,
            )
            engines[name].append(stack.enter_context(engine))
    for engine in (*engines["bare"], *engines["tiny"]):
        wait_until(engine.healthy, timeout_s=900, what="an engine")
    with Neve(platform.url, platform.team_key) as neve:
        [space] = list(neve.spaces.list())
        for engine in engines["tiny"]:  # checked at once, so that look-ups can tokenise
            name = f"engine-{engine.port}"
            neve.engines.create(name=name, base_url=engine.url, model="tiny", spaces=[space.id])
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": "hosted_vllm/tiny", "api_base": f"{engine.url}/v1", "api_key": "none",
            },
        }
        for name, group in engines.items()
        for engine in group
    ]  # fmt: skip
    tenant = {"name": "demo", "api_key": platform.team_key, "teams": ["neve-team"]}
    proxy = LitellmProxy(
        folder / "proxy",
        ROOT / ".venv-litellm/bin/python",
        models,
        {"endpoint": platform.url, "tenants": [tenant]},
        modules={"round_robin": ROUND_ROBIN},
    )
    stack.enter_context(proxy)
    for engine in (*engines["bare"], *engines["tiny"]):  # compiled, and measured by Neve
        for n in range(2):
            engine.complete(prompt=f"warming {n} {engine.port} " + "x" * 600)
    wait_until(lambda: is_routed(proxy), what="the plug-in to know the engines")
    return proxy, engines


def is_routed(proxy: LitellmProxy) -> bool:
    _, headers = ask(proxy, "tiny", "neve", [{"role": "user", "content": "x"}])
    return "x-neve-node" in headers


def run(
    way: str,
    number: int,
    result: Result,
    proxy: LitellmProxy,
    engines: list[VllmServer],
    options: argparse.Namespace,
) -> None:
    """A round of a way: a turn of each conversation, then the next turn of each."""
    model, team = WAYS[way]
    words = random.Random(f"{way} {number}")
    spoken = [
        [{"role": "user", "content": text(words, options.first_tokens)}]
        for _ in range(options.conversations)
    ]
    before = counted(engines)
    seconds: list[float] = []
    with ThreadPoolExecutor(options.concurrency) as threads:
        for turn in range(options.turns):
            asked = list(threads.map(lambda said: ask(proxy, model, team, said)[0], spoken))
            if turn:
                seconds += asked
            for said in spoken:
                said += [
                    {"role": "assistant", "content": "So it is."},
                    {"role": "user", "content": text(words, options.turn_tokens)},
                ]
    result.seconds.append(seconds)
    for name, count in counted(engines).items():
        result.counts[name] += count - before[name]
    print(
        f"round {number + 1} {way:6} median {statistics.median(seconds) * 1000:6.0f} ms, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def text(words: random.Random, tokens: int) -> str:
    """The tokeniser's tokens are bytes."""
    return "".join(words.choice("abcdefghij klmno") for _ in range(tokens))


def ask(
    proxy: LitellmProxy, model: str, team: str, messages: list[dict[str, str]]
) -> tuple[float, dict[str, str]]:
    """Seconds to the first token, and the answer's headers; reads the whole answer."""
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0, "stream": True}
    begun, first = time.perf_counter(), None
    with httpx.stream(
        "POST",
        f"{proxy.url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer sk-{team}-0123456789"},
        timeout=300,
    ) as answer:
        if answer.status_code != 200:
            answer.read()
            raise SystemExit(f"{answer.status_code}: {answer.text[:500]}")
        for line in answer.iter_lines():
            if first is None and line.startswith("data: {"):
                first = time.perf_counter() - begun
        if first is None:
            raise SystemExit("an answer without a token")
        return first, dict(answer.headers)


def counted(engines: list[VllmServer]) -> dict[str, float]:
    found = dict.fromkeys(COUNTS, 0.0)
    for engine in engines:
        with urllib.request.urlopen(f"{engine.url}/metrics", timeout=30) as response:
            lines = response.read().decode()
        for name, metric in COUNTS.items():
            for match in re.finditer(rf"^vllm:{metric}{{[^}}]*}} (\S+)$", lines, re.M):
                found[name] += float(match[1])
    return found


def spend_rows(proxy: LitellmProxy) -> dict[str, int]:
    """Of the plug-in's requests: how many rows of spend logs tell what."""
    told = [row["metadata"]["spend_logs_metadata"] or {} for row in proxy.rows()]
    told = [each for each in told if "neve_node" in each]
    names = ("neve_found_tokens", "neve_cached_tokens", "neve_saved")
    return {"rows": len(told)} | {name: sum(name in each for each in told) for name in names}


def report(results: dict[str, Result], told: dict[str, int], options: argparse.Namespace) -> None:
    print(
        f"\n{options.conversations} conversations of {options.turns} turns, "
        f"{options.first_tokens} tokens and {options.turn_tokens} more each turn, "
        f"{options.concurrency} at a time, {options.rounds} rounds; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':8}{'first token':>12}{'p90':>9}{'own cache':>11}{'from Neve':>11}{'hits':>7}")
    rows: dict[str, Any] = {}
    for way, result in results.items():
        every = sorted(second for each in result.seconds for second in each)
        row = {
            "median_s": statistics.median(every),
            "p90_s": every[int(0.9 * (len(every) - 1))],
            "own": result.share("own"),
            "loaded": result.share("loaded"),
            "seconds": result.seconds,
            "counts": result.counts,
        }
        rows[way] = row
        print(
            f"{way:8}{row['median_s'] * 1000:9.0f} ms{row['p90_s'] * 1000:6.0f} ms"
            f"{row['own']:11.1%}{row['loaded']:11.1%}{row['own'] + row['loaded']:7.1%}"
        )
    ratios = {
        other: statistics.median(
            theirs / mine
            for theirs, mine in zip(results[other].medians, results["plugin"].medians, strict=True)
        )
        for other in ("bare", "neve")
    }
    for other, ratio in ratios.items():
        print(f"first token of {other} / of plugin: {ratio:.2f}")
    print("spend rows of the plug-in's requests: " + json.dumps(told))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"rows": rows, "ratios": ratios, "spend_rows": told, "options": {
            name: value for name, value in vars(options).items() if name != "out"
        }, "cores": os.cpu_count(), "load": os.getloadavg()}, indent=1)
    )  # fmt: skip


if __name__ == "__main__":
    main()
