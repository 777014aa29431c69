"""`load: both` beside computing and loading: the time to the first token, on a CPU engine.

    python benchmarks/both.py [--tokens 1920] [--repeat 3] [--token-ms 2.0]

A tiny model with a store behind a proxy that limits its speed. Computing is made to take
`--token-ms` for each token (the engine sleeps), and the store is as fast as computing, a third of
that, and three times that. So the times show how the two work together, not this machine. The
decision is taken for granted; `neve.engine.load_policy` takes it on nodes. Every answer is compared
with the computed one, token by token.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from valkeys import Valkeys  # noqa: E402

from neve.index.library import load_functions  # noqa: E402
from neve.index.tier import BlockTerms, HotTier  # noqa: E402
from support.cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint  # noqa: E402
from support.proxy import Proxy  # noqa: E402
from support.vllm_engine import SCRIPTS, EngineProcess, engine_environment  # noqa: E402

STORES = {"a third": 1 / 3, "equal": 1.0, "three times": 3.0}
TOKEN_BYTES = 2048  # KV of the model
CHUNK_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--tokens", type=int, default=1920)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--token-ms", type=float, default=2.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [str(options.python), str(SCRIPTS / "make_model.py"), str(folder), "7"]
        subprocess.run(command, check=True, env=engine_environment(), capture_output=True)
        servers = stack.enter_context(Valkeys(1))
        load_functions(servers.clients[0])
        hot = HotTier(servers.clients[0].execute_command, TENANT_ID, 1)
        hot.set_policy(hot_bytes=1 << 30, cold_bytes=0, terms=BlockTerms(flush_after_s=None))
        proxy = stack.enter_context(Proxy(servers.ports[0]))
        endpoint = stack.enter_context(CacheEndpoint(f"127.0.0.1:{proxy.port}"))
        engine = stack.enter_context(
            EngineProcess(options.python, folder / "llama", folder / "engine.log")
        )
        engine.ask("slow_down", s=options.token_ms / 1000)
        engine.ask("jump", waves=32, chunks=2)
        took = measure(engine, endpoint, proxy, options)
    compute_s = statistics.median(took["computed"])
    print(
        f"{options.tokens} tokens, computed in {compute_s:.2f} s; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}\n{'store':12} {'loaded':>8} {'both':>8} {'of the sooner':>14}"
    )
    gains = []
    for store in STORES:
        load_s, both_s = (statistics.median(took[f"{load} {store}"]) for load in ("always", "both"))
        gains.append(both_s / min(load_s, compute_s))
        print(f"{store:12} {load_s:8.2f} {both_s:8.2f} {gains[-1]:14.2f}")
    third, equal, triple = gains
    print(f"both of_sooner_third={third:.2f} equal={equal:.2f} three_times={triple:.2f}")


def measure(
    engine: EngineProcess, endpoint: CacheEndpoint, proxy: Proxy, options: argparse.Namespace
) -> dict[str, list[float]]:
    draw = random.Random(3)
    prompts = [
        [draw.randrange(256) for _ in range(options.tokens + 8)] for _ in range(options.repeat)
    ]
    settings: dict[str, Any] = {
        "max_model_len": options.tokens + 64, "max_num_batched_tokens": 128,
        "kv_cache_memory_bytes": 64 << 20,
    }  # fmt: skip
    neve = {
        "endpoint": endpoint.url, "api_key": API_KEY, "max_chunk_tokens": CHUNK_TOKENS,
        "load_deadline_s": 600, "match_deadline_s": 5, "canary": 0,
    }  # fmt: skip
    took: dict[str, list[float]] = {"computed": []}
    expected: list[list[int]] = []
    for load in ("always", "both"):
        proxy.release()
        engine.start(neve | {"load": load}, engine=settings)
        # Shows how long computing takes: nothing is decided before.
        ask(engine, [draw.randrange(256) for _ in range(options.tokens + 8)])
        for prompt in prompts if load == "always" else ():  # nothing is stored yet
            answer = ask(engine, prompt)
            took["computed"].append(answer["took_s"])
            expected.append(answer["tokens"])
        engine.ask("store_all")
        for store, ratio in STORES.items():
            proxy.bytes_per_s = ratio * TOKEN_BYTES / (options.token_ms / 1000)
            for prompt, right in zip(prompts, expected, strict=True):
                engine.ask("forget_prefixes")
                answer = ask(engine, prompt)
                took.setdefault(f"{load} {store}", []).append(answer["took_s"])
                if answer["tokens"] != right:
                    raise SystemExit(f"{load}, {store}: another answer than the computed one")
                print(json.dumps({"load": load, "store": store} | answer), flush=True)
        engine.ask("stop")
    return took


def ask(engine: EngineProcess, prompt: list[int]) -> dict[str, Any]:
    request = {"tokens": prompt, "max_tokens": 1, "params": {"neve": {}}}
    answer = engine.ask("generate", requests=[request])
    (output,) = answer["outputs"]
    return {
        "took_s": answer["took_s"],
        "tokens": output["tokens"],
        "reused": output["params"]["neve"]["reused_tokens"],
    }


if __name__ == "__main__":
    main()
