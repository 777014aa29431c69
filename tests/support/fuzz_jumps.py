"""Fuzzes `load: both`: random batches in an engine that jumps and in one without Neve.

    make fuzz-jumps [ROUNDS=30] [SEED=1] [ASYNC=1]

Prompts share prefixes of random lengths, some are stored; the engine's pool is small, so requests
are preempted; rears come at random speeds; the prefix cache is emptied at times. Every answer must
have the tokens of the engine without Neve. The last line is `jumps=… requests=… preemptions=…
different=0`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from neve.index.library import load_functions
from neve.index.tier import BlockTerms, HotTier
from support.cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint
from support.servers import ROOT, ValkeyServer
from support.vllm_engine import SCRIPTS, EngineProcess, engine_environment

LONGEST = 900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    parser.add_argument("--async", dest="ahead", action="store_true", help="schedule a step ahead")
    parser.add_argument(
        "--room", type=float, default=1.1, help="longest prompts that the engine holds"
    )
    options = parser.parse_args()
    draw = random.Random(options.seed)
    batches = list(make_batches(draw, options.rounds))
    engine: dict[str, Any] = {
        "max_num_batched_tokens": 128, "max_num_seqs": 4, "scheduling_policy": "priority",
        "scheduler_reserve_full_isl": False,
        # Room for so many prompts of greatest length: requests are preempted.
        "kv_cache_memory_bytes": int(options.room * (LONGEST + 100) * 2048),
    }  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [str(options.python), str(SCRIPTS / "make_model.py"), str(folder), "7"]
        subprocess.run(command, check=True, env=engine_environment(), capture_output=True)
        valkey = stack.enter_context(ValkeyServer(folder))
        client = valkey.client()
        load_functions(client)
        hot = HotTier(client.execute_command, TENANT_ID, 1)
        hot.set_policy(hot_bytes=1 << 30, cold_bytes=0, terms=BlockTerms(flush_after_s=None))
        endpoint = stack.enter_context(CacheEndpoint(f"127.0.0.1:{valkey.port}"))
        process = stack.enter_context(
            EngineProcess(options.python, folder / "llama", folder / "engine.log")
        )
        process.start(None, engine=engine)
        expected = [process.generate(*batch) for batch in batches]
        process.ask("stop")
        neve = {
            "endpoint": endpoint.url, "api_key": API_KEY, "max_chunk_tokens": 64, "canary": 0,
            "match_deadline_s": 5, "load_deadline_s": 60, "load": "both",
        }  # fmt: skip
        if options.ahead:
            process.ask("force_async")
        process.start(neve, engine=engine)
        different = 0
        for number, (batch, right) in enumerate(zip(batches, expected, strict=True)):
            process.ask("jump", waves=draw.choice((1, 1, 2, 32)), chunks=draw.choice((1, 2, 8)))
            if draw.random() < 0.7:
                process.ask("store_all")
                process.ask("forget_prefixes")
            answers = process.generate(*batch)
            for request, answer, wanted in zip(batch, answers, right, strict=True):
                if answer["tokens"] != wanted["tokens"]:
                    different += 1
                    print(f"round {number}: {len(request['tokens'])} tokens answer differently")
        counters = process.ask("counters")
        process.ask("stop")
    preempted = int(counters.get("num_preemptions", 0))
    jumps = int(counters.get("neve_decisions.both", 0))
    requests = sum(map(len, batches))
    found = f"jumps={jumps} requests={requests} preemptions={preempted} different={different}"
    print(found, f"seed={options.seed}")
    sys.exit(1 if different or not jumps else 0)


def make_batches(draw: random.Random, rounds: int) -> Any:
    """Batches of one to four requests over a few prefixes."""
    prefixes = [[draw.randrange(256) for _ in range(LONGEST - 60)] for _ in range(3)]
    for _ in range(rounds):
        batch = []
        for _ in range(draw.choice((1, 1, 2, 3, 4))):
            shared = draw.choice(prefixes)[: draw.choice((200, 500, 700, LONGEST - 60))]
            tail = [draw.randrange(256) for _ in range(draw.randrange(1, 60))]
            batch.append(
                {
                    "tokens": shared + tail,
                    "max_tokens": draw.choice((1, 8, 40)),
                    "params": {"neve": {}},
                    "priority": draw.randrange(3),
                }
            )
        yield batch


if __name__ == "__main__":
    main()
