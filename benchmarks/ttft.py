"""Time to the first token of a stored prompt: computed, from vLLM's CPU tier, from Neve.

    python benchmarks/ttft.py [--shape gemma-12b] [--modes hot] [--valkeys 4 8] [--tokens 2048 …]

Needs a host with one GPU, vLLM (0.26 or later), neve, valkey-py and valkey-server; the mode `cold`
also needs weed and boto3. Needs no network. The model has the sizes of a real one (shapes.py) and
random weights: the answers are meaningless, but depend on the KV; the times are real. Each mode
runs an engine in a process of its own (ttft_engine.py), with the servers on the same host, so they
share its memory and cores. Prints:

- how many prompts of the greatest length the engine's KV memory holds (`--no-hybrid`: without
  vLLM's manager of several KV cache groups);
- for every length and mode: median, least and most of `--repeat` prompts: computed, from the
  engine's own prefix cache, and loaded; and the parts of a load: look-up, receiving, copying the
  last blocks to the GPU, and the engine's own time (scheduling, hashing, computing the remaining
  tokens);
- answer tokens per second of many running requests, and what Neve's fences cost of them;
- throughput of new prompts: the cost of writing behind;
- of every load, how many of its answer's tokens differ from those of the engine's own prefix cache;
  it fails if one does (not with `--inexact`), or if all prompts of a length have one answer: then
  answers would not show a wrong load;
- with `--settings`: the same prompts loaded again while Valkeys run with other settings;
- with `both`: prompts computed and loaded at once, from stores that are paced to a third of the
  speed of computing, the same and three times of it, beside loading alone;
- conversations with turns at a fixed rate: time to the first token over all turns, fraction of
  prompt tokens reused, and GPU seconds in forward passes.

Modes: `recompute` (no connector), `cpu_tier` (vLLM's own), `hot`, `cold` (S3), `int8` and `fp8`
(hot, stored with loss), `local` (hot, then from `--local-dir`), `both`, `both_cold`, `beside` (Neve
beside vLLM's CPU tier) and `under` (as its second tier); and those that `--variants` names: each a
mode with other options of this command, such as {"cross": {"mode": "hot", "neve":
{"cross_layer_blocks": true}}}.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
MODES = (
    *("recompute", "cpu_tier", "hot", "cold", "int8", "fp8", "local"),
    *("both", "both_cold", "beside", "under"),
)
LENGTHS = (2048, 8192, 16384, 32768, 65536)
THROUGHPUT = {"prompts": 48, "tokens": 4096, "answer": 64, "rounds": 5}
DECODE = {"prompts": 64, "tokens": 512, "answer": 256, "rounds": 3}
# More conversations than the GPU's memory holds (some 360 thousand tokens of 8B's KV in bf16).
USERS = 32
TURNS = {"users": USERS, "turns": 4, "first": 12288, "more": 1024, "answer": 32, "per_s": 2.0}
TINY = {
    "decode": {"prompts": 3, "tokens": 300, "answer": 8, "rounds": 1},
    "throughput": {"prompts": 4, "tokens": 300, "answer": 8, "rounds": 1},
    "turns": {"users": 3, "turns": 3, "first": 300, "more": 64, "answer": 4, "per_s": 10.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="has vLLM, torch and neve")
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b", help="of the model")
    parser.add_argument("--tokens", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--valkeys", type=int, nargs="*", default=(4, 8))
    parser.add_argument("--modes", nargs="*", default=MODES[:3])
    parser.add_argument("--variants", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--connections", type=int, default=2, help="to each Valkey")
    parser.add_argument(
        "--valkey-options", nargs="*", default=[], metavar="NAME=VALUE", help="such as io-threads=3"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--load", default="auto", help="always: also what is faster to compute")
    parser.add_argument(
        "--hot-gib", type=int, help="quota of the hot tier; by default what the measurements write"
    )
    parser.add_argument("--inexact", action="store_true", help="loads may answer differently")
    parser.add_argument(
        "--settings",
        nargs="*",
        default=[],
        metavar="NAME=VALUE,…",
        help="load once more with these settings of Valkey, one set after another",
    )
    parser.add_argument("--local-dir", default="/dev/shm", help="of the mode local")
    parser.add_argument(
        "--at-once",
        type=int,
        default=1,
        help="engines that start together and are measured in turn; give each a part of the GPU "
        "(--engine '{\"kv_cache_memory_bytes\": …}')",
    )
    parser.add_argument("--save-gib", type=int, default=16, help="staging of stores")
    parser.add_argument(
        "--neve", type=json.loads, default={}, metavar="JSON", help="more options of the connector"
    )
    parser.add_argument("--limit-s", type=float, default=1800, help="for one engine's measurements")
    parser.add_argument("--users", type=int, default=USERS, help="of the conversations")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument(
        "--engine", type=json.loads, default={}, metavar="JSON", help="more arguments of vLLM's LLM"
    )
    parser.add_argument("--no-hybrid", action="store_true", help="one KV cache group")
    parser.add_argument("--no-decode", action="store_true")
    parser.add_argument("--no-throughput", action="store_true")
    parser.add_argument("--rounds", type=int, help="of the throughput")
    parser.add_argument("--no-turns", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does the script work?")
    parser.add_argument("--out", type=Path, default=Path("var/bench"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "shape": options.shape,
        "kv_cache_dtype": options.kv_cache_dtype,
        "hybrid": not options.no_hybrid,
        "modes": {},
    }
    runs: list[tuple[str, argparse.Namespace, int]] = []
    failed: list[str] = []
    for mode in options.modes:
        of_mode = varied(options, mode)
        counts = (0,) if of_mode.mode in ("recompute", "cpu_tier") else of_mode.valkeys
        runs += [(f"{mode}, {n} Valkeys" if n else mode, of_mode, n) for n in counts]
    while runs:
        with ExitStack() as stack:
            engines = []
            for name, of_mode, count in runs[: options.at_once]:
                own = stack.enter_context(ExitStack())
                engines.append((name, own, start_mode(of_mode.mode, count, of_mode, own)))
            del runs[: options.at_once]
            for name, own, engine in engines:
                try:
                    result["modes"][name] = engine.measure()
                except RuntimeError as error:  # the others go on
                    print(f"{name} failed:\n{error}", file=sys.stderr, flush=True)
                    failed.append(name)
                own.close()
                (options.out / f"ttft-{options.shape}.json").write_text(
                    json.dumps(result, indent=1) + "\n"
                )
    print(table(result))
    if wrong := wrong_loads(result):
        print("\n".join(wrong), file=sys.stderr)
        raise SystemExit(0 if options.inexact and not failed else 1)
    if failed:
        raise SystemExit(1)


def varied(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """The options of one mode or variant."""
    more = options.variants.get(name, {})
    found = argparse.Namespace(**vars(options) | {"mode": name, "name": name} | more)
    if found.mode not in MODES:
        raise SystemExit(f"--modes: {name!r} is none of {', '.join((*MODES, *options.variants))}")
    for each in ("neve", "engine"):
        setattr(found, each, getattr(options, each) | more.get(each, {}))
    return found


def wrong_loads(result: dict[str, Any]) -> list[str]:
    """What shows that a load brought other KV than the engine computed, or could not show it."""
    found = []
    for name, figures in result["modes"].items():
        for row in figures["ttft"]:
            where = f"{name}, {row['tokens']} tokens"
            if row["answers"] > 1 and row["different_answers"] == 1:
                found.append(f"{where}: all prompts have one answer, so answers show no wrong load")
            if row["stored"] and row["wrong_tokens"]:
                found.append(
                    f"{where}: {row['wrong_tokens']} tokens of {row['answers']} answers differ "
                    "from those that the engine's own KV gives"
                )
    return found


def start_mode(
    mode: str, valkeys: int, options: argparse.Namespace, stack: ExitStack
) -> "EngineProcess":
    """Start one engine. Its output goes to a log in the output folder."""
    plan: dict[str, Any] = {
        "mode": mode,
        "shape": options.shape,
        "hybrid": not options.no_hybrid,
        "engine": options.engine,
        "tokens": list(options.tokens),
        "repeat": options.repeat,
        "kv_cache_dtype": options.kv_cache_dtype,
        "decode": None if options.no_decode else DECODE,
        "throughput": None
        if options.no_throughput
        else THROUGHPUT | {"rounds": options.rounds or THROUGHPUT["rounds"]},
        "turns": None if options.no_turns else TURNS | {"users": options.users},
        "tiny": options.tiny,
        "settings": [dict(w.split("=", 1) for w in each.split(",")) for each in options.settings],
        "save_bytes": options.save_gib << 30,
    }
    if options.tiny:
        plan |= {name: plan[name] and small for name, small in TINY.items()}
    if valkeys:
        plan["neve"] = start_servers(mode, valkeys, options, stack)
    return stack.enter_context(EngineProcess(plan, options))


def start_servers(
    mode: str, valkeys: int, options: argparse.Namespace, stack: ExitStack
) -> dict[str, Any]:
    """Start Valkeys, S3 and a small cache endpoint; return their part of the engine's plan."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    from valkey import Valkey, ValkeyCluster
    from valkeys import Valkeys

    from neve.index.library import load_functions
    from neve.index.tier import BlockTerms, HotTier
    from support.cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint

    of_valkey = dict(word.split("=", 1) for word in options.valkey_options)
    servers = stack.enter_context(Valkeys(valkeys, options=of_valkey))
    for client in servers.clients:
        load_functions(client)
    endpoint = stack.enter_context(CacheEndpoint(f"127.0.0.1:{servers.ports[0]}"))
    endpoint.buckets = 1 if valkeys == 1 else 4 * valkeys  # as the platform does
    known: dict[str, Any] = {
        "hot": {"ports": servers.ports, "tenant_id": TENANT_ID, "buckets": endpoint.buckets},
        "options": {
            "endpoint": endpoint.url,
            "api_key": API_KEY,
            "connections": options.connections,
            "load": options.load,
            "load_deadline_s": 60.0,
            **options.neve,
        },
    }
    is_cold = mode in ("cold", "both_cold")
    if mode in ("int8", "fp8"):
        known["options"]["codec"] = mode
    if mode == "local":
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=options.local_dir))
        known["options"] |= {"local_dir": folder, "local_bytes": 40 << 30}
    if mode.startswith("both"):  # a whole rear waits in staging
        known["options"] |= {"load": "both", "load_budget_bytes": options.save_gib << 30}
        known["pids"] = [process.pid for process in servers.processes]
    if is_cold:
        from support.servers import S3Server

        s3 = stack.enter_context(S3Server(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        bucket, signer = s3.bucket(), s3.client()

        def address(number: int, method: str = "get_object") -> str:
            where = {"Bucket": bucket, "Key": f"segment-{number}"}
            return str(signer.generate_presigned_url(method, Params=where, ExpiresIn=7200))

        endpoint.segment_url = address
        known["puts"] = [address(number, "put_object") for number in range(1, 1001)]
    kind = ValkeyCluster if servers.is_cluster else Valkey
    with kind(host="127.0.0.1", port=servers.ports[0]) as admin:
        hot = HotTier(admin.execute_command, TENANT_ID, endpoint.buckets)
        terms = BlockTerms(flush_after_s=0 if is_cold else None)
        hot.set_policy(
            hot_bytes=(options.hot_gib or 40) << 30,
            cold_bytes=1 << 40,
            terms=terms,
            promote_window_s=0,
        )
    if options.hot_gib is None:
        known["hot"]["flush_after_s"] = terms.flush_after_s
    return known


class EngineProcess:
    """Context manager: one engine in a process of its own, which starts at once and measures when
    it is told to."""

    def __init__(self, plan: dict[str, Any], options: argparse.Namespace) -> None:
        environment = os.environ | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "HF_HUB_OFFLINE": "1",
        }
        if options.at_once > 1:  # engines that compile the same model would share its files
            environment["VLLM_CACHE_ROOT"] = f"{options.out.absolute()}/cache-{options.name}"
        self._name, self._limit_s = options.name, options.limit_s
        self._log = options.out / f"ttft-{plan['shape']}-{options.name}.log"
        program = str(ROOT / "benchmarks/ttft_engine.py")
        with self._log.open("ab") as errors:
            self._process = subprocess.Popen(
                [options.python, program],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def measure(self) -> dict[str, Any]:
        """The figures. Afterwards the engine is gone. Raises RuntimeError with the log's end."""
        try:
            answer, _ = self._process.communicate("measure\n", timeout=self._limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            answer, _ = self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(self._log.read_text(errors="replace")[-3000:])
        print(f"{self._name} is measured", flush=True)
        figures: dict[str, Any] = json.loads(answer.splitlines()[-1])
        return figures


def table(result: dict[str, Any]) -> str:
    """Seconds, and the speed-up over computing in the same engine."""
    lines = [f"{result['shape']}{'' if result['hybrid'] else ', one KV cache group'}"]
    for name, figures in result["modes"].items():
        memory = figures["kv_memory"]
        lines.append(
            f"{name} ({figures['device']}): {memory['bytes'] / 1e9:.1f} GB of KV memory in "
            f"{memory['groups']} groups hold {memory['prompts']:.2f} prompts of "
            f"{memory['longest']} tokens"
        )
        for row in figures["ttft"]:
            computed, cached, stored = row["computed"], row["cached"], row["stored"]
            line = f"  {row['tokens']:>6} tokens: computed {_spread(computed)}"
            line += f", cached {_spread(cached)}, {cached['reused']} reused"
            if stored:
                line += (
                    f", stored {_spread(stored)}, {computed['s'] / stored['s']:.1f}x,"
                    f" {stored['reused']} reused, {row['wrong_tokens']} wrong tokens in"
                    f" {row['answers']} answers, logprob off by"
                    f" {row['logprob_off']:.4f}, {row['stored_bytes_per_token']:.0f} bytes a token"
                )
                line += "".join(f", {k} {v:.3f} s" for k, v in row["timeline"].items())
            lines.append(f"{line}; {row['different_answers']} different answers")
        for again in figures.get("again", ()):
            times = " ".join(f"{took_s:.3f}" for took_s in again["s"])
            lines.append(f"  {again['tokens']:>6} tokens, {again['settings']}: {times}")
        lines += [
            f"  {row['tokens']:>6} tokens, store {row['store']} ({row['gb_per_s']:.2f} GB/s): "
            f"computed {row['computed_s']:.3f} s, loaded {row['loaded_s']:.3f}, both "
            f"{row['both_s']:.3f}, as decided {row['decided_s']:.3f} ({row['decision']}), "
            f"{row['wrong_tokens']} wrong tokens, {row['jumps']} jumps"
            for row in figures.get("both", ())
        ]
        for fences, speed in (figures["decode_tokens_per_s"] or {}).items():
            lines.append(
                f"  decoding, fences {fences}: {speed['median']:.0f} tokens/s "
                f"({speed['least']:.0f} … {speed['most']:.0f}), {speed['fenced_steps']} of "
                f"{speed['steps']} steps fenced, {speed['fence_s']:.3f} s"
            )
        if speed := figures["tokens_per_s"]:
            lines.append(
                f"  new prompts: {speed['median']:.0f} tokens/s "
                f"({speed['least']:.0f} … {speed['most']:.0f})"
                + (
                    f", {speed['without_storing']:.0f} while nothing is stored: storing costs "
                    f"{1 - speed['median'] / speed['without_storing']:.1%}"
                    if "without_storing" in speed
                    else ""
                )
            )
        if turns := figures["turns"]:
            lines.append(
                f"  {turns['turns']} turns: first token p50 {turns['p50_s']:.3f} s, "
                f"p99 {turns['p99_s']:.3f} s; {turns['reused']:.0%} of prompt tokens reused; "
                f"{turns['gpu_s']:.1f} s of forward passes"
            )
    return "\n".join(lines)


def _spread(times: dict[str, float]) -> str:
    return f"{times['s']:.3f} s ({times['least_s']:.3f} … {times['most_s']:.3f})"


if __name__ == "__main__":
    main()
