"""Time to the first token of a stored prompt: computed, from vLLM's CPU tier, from Neve.

    python benchmarks/ttft.py [--valkeys 4 8] [--tokens 2048 ...] [--kv-cache-dtype fp8]

On a host with one GPU, vLLM (0.26 or later), neve, valkey-py and valkey-server; it needs no
network. The model has Llama-3-8B's shape and dummy weights, so the answers mean nothing and the
times do. Each mode is an engine in a process of its own; Valkey runs on the same host, so GPU,
client and servers share its memory and cores. For every length and mode: the median of `--repeat`
prompts, the least and the most, and where a load's time went (look-up, load; the rest is the
engine's). Then the throughput of prompts that nobody stored: what writing behind costs.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "head_dim": 32,
}  # fmt: skip
LENGTHS = (2048, 8192, 16384, 32768, 65536)
THROUGHPUT = {"prompts": 48, "tokens": 4096, "answer": 64, "rounds": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="has vLLM, torch and neve")
    parser.add_argument("--tokens", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--valkeys", type=int, nargs="*", default=(4, 8))
    parser.add_argument("--modes", nargs="*", default=("recompute", "cpu_tier", "hot"))
    parser.add_argument("--connections", type=int, default=2, help="to each Valkey")
    parser.add_argument(
        "--valkey-options", nargs="*", default=[], metavar="NAME=VALUE", help="such as io-threads=3"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--hot-gib", type=int, default=40, help="quota: of memory for Valkey")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--no-throughput", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: does the script work?")
    parser.add_argument("--out", type=Path, default=Path("var/bench"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"kv_cache_dtype": options.kv_cache_dtype, "modes": {}}
    for mode in options.modes:
        for count in options.valkeys if mode == "hot" else (0,):
            name = f"hot, {count} Valkeys" if count else mode
            result["modes"][name] = run_mode(mode, count, options)
            (options.out / "ttft.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def run_mode(mode: str, valkeys: int, options: argparse.Namespace) -> dict[str, Any]:
    """One engine's figures. Its own output goes to a log in the output folder."""
    plan = {
        "mode": mode,
        "tokens": list(options.tokens),
        "repeat": options.repeat,
        "kv_cache_dtype": options.kv_cache_dtype,
        "throughput": None if options.no_throughput else THROUGHPUT,
        "tiny": options.tiny,
    }
    if options.tiny and plan["throughput"]:
        plan["throughput"] = {"prompts": 4, "tokens": 300, "answer": 8, "rounds": 1}
    if mode != "hot":
        return _engine(plan, options)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    from valkey import Valkey, ValkeyCluster
    from valkeys import Valkeys

    from cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint
    from neve.hot import BlockTerms, HotTier, load_functions

    options_of_valkey = dict(word.split("=", 1) for word in options.valkey_options)
    with (
        Valkeys(valkeys, options=options_of_valkey) as servers,
        CacheEndpoint(f"127.0.0.1:{servers.ports[0]}") as endpoint,
    ):
        for client in servers.clients:
            load_functions(client)
        endpoint.buckets = 1 if valkeys == 1 else 4 * valkeys  # as the platform does
        kind = ValkeyCluster if servers.is_cluster else Valkey
        with kind(host="127.0.0.1", port=servers.ports[0]) as admin:
            hot = HotTier(admin.execute_command, TENANT_ID, endpoint.buckets)
            terms = BlockTerms(flush_after_s=None)
            hot.set_policy(hot_bytes=options.hot_gib << 30, cold_bytes=1 << 40, terms=terms)
        plan["neve"] = {
            "endpoint": endpoint.url,
            "api_key": API_KEY,
            "connections": options.connections,
        }
        return _engine(plan, options)


def _engine(plan: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "HF_HUB_OFFLINE": "1",
    }
    log = options.out / f"ttft-{plan['mode']}.log"
    with log.open("ab") as errors:
        done = subprocess.run(
            [options.python, __file__, "--inside", json.dumps(plan)],
            env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{plan['mode']} failed:\n{log.read_text()[-3000:]}")
    print(f"{plan['mode']} is measured", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(result: dict[str, Any]) -> str:
    """Seconds, and how much faster than computing in the same engine's cold run."""
    lines = []
    for name, figures in result["modes"].items():
        lines.append(f"{name} ({figures['device']})")
        for row in figures["ttft"]:
            line = f"  {row['tokens']:>6} tokens: computed {row['computed_s']:.3f} s"
            if row["stored"]:
                stored = row["stored"]
                line += (
                    f", stored {stored['s']:.3f} s "
                    f"({stored['least_s']:.3f} … {stored['most_s']:.3f}),"
                    f" {row['computed_s'] / stored['s']:.1f}x, {stored['cached_tokens']} reused"
                )
                line += "".join(f", {k} {v:.3f} s" for k, v in stored["timeline"].items())
            lines.append(line)
        if figures["tokens_per_s"]:
            lines.append(f"  nothing stored: {figures['tokens_per_s']:.0f} tokens/s")
    return "\n".join(lines)


# ---- inside a process with vLLM


class Engine:
    def __init__(self, plan: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.mode = plan["mode"]
        self._spent = {"match": 0.0, "load": 0.0}
        if self.mode == "hot":
            self._watch()
        self._model = TINY if plan["tiny"] else {}
        folder = Path(tempfile.mkdtemp())
        (folder / "config.json").write_text(json.dumps(MODEL | self._model))
        longest = max(plan["tokens"])
        more: dict[str, Any] = {"max_num_batched_tokens": 16384, "gpu_memory_utilization": 0.88}
        if plan["tiny"]:
            more = {"kv_cache_memory_bytes": 256 << 20, "block_size": 32, "enforce_eager": True}
        self.llm = LLM(
            str(folder), load_format="dummy", skip_tokenizer_init=True, disable_log_stats=False,
            max_model_len=longest + 4096, kv_cache_dtype=plan["kv_cache_dtype"],
            enable_prefix_caching=self.mode != "recompute",
            kv_transfer_config=self._transfer(plan), **more,
        )  # fmt: skip
        self._params = SamplingParams

    def _transfer(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        if self.mode == "cpu_tier":
            extra: dict[str, Any] = {"cpu_bytes_to_use": 24 << 30, "block_size": 16}
            return {
                "kv_connector": "OffloadingConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": extra | {"num_cpu_blocks": 8192},
            }
        if self.mode != "hot":
            return None
        return {
            "kv_connector": "NeveConnector",
            "kv_connector_module_path": "neve.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            # All of a prompt is stored before it is asked for again.
            "kv_connector_extra_config": plan["neve"] | {"save_budget_bytes": 12 << 30},
        }

    def prompt(self, tokens: int, seed: str) -> dict[str, list[int]]:
        vocabulary = self._model.get("vocab_size", MODEL["vocab_size"])
        rng = random.Random(seed)
        return {"prompt_token_ids": [rng.randrange(10, vocabulary - 10) for _ in range(tokens)]}

    def ask(self, prompts: list[dict[str, list[int]]], max_tokens: int = 1) -> tuple[float, int]:
        """(seconds, tokens that the first one reused)."""
        params = self._params(max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin, outputs[0].num_cached_tokens or 0

    def forget(self) -> None:
        """Waits until all is stored; then the GPU holds nothing of it."""
        if self.mode == "hot":
            from vllm.distributed.kv_transfer import get_kv_transfer_group

            saver = get_kv_transfer_group()._worker._saver
            if saver is not None and not saver.drain(120):
                raise RuntimeError("blocks are not stored after two minutes")
            self.ask([self.prompt(1, "a step")])  # workers let go of copied blocks in a step
        else:
            time.sleep(1.0)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")

    def spent(self) -> dict[str, float]:
        """Seconds of look-ups and loads so far."""
        return dict(self._spent)

    def _watch(self) -> None:
        """Notes what Neve samples: vLLM's `LLM` before 0.28 drops the metrics of most steps."""
        from neve.vllm.telemetry import Telemetry

        sample = Telemetry.sample

        def noting(telemetry: Telemetry, name: str, value: float) -> None:
            if name.endswith("_seconds"):
                self._spent[name.removesuffix("_seconds")] += value
            sample(telemetry, name, value)

        Telemetry.sample = noting  # type: ignore[method-assign]


def measure(plan: dict[str, Any]) -> dict[str, Any]:
    engine = Engine(plan)
    for number in range(4):  # compiling, tuning, first pinned memory
        engine.ask([engine.prompt(min(2048, max(plan["tokens"])), f"warm {number}")])
    rows = []
    for tokens in plan["tokens"]:
        computed, stored, spent, reused = [], [], [], []
        for number in range(plan["repeat"]):
            prompt = engine.prompt(tokens, f"{tokens} {number}")
            computed.append(engine.ask([prompt])[0])
            if engine.mode == "recompute":
                continue
            engine.forget()
            before = engine.spent()
            took_s, cached = engine.ask([prompt])
            after = engine.spent()
            stored.append(took_s)
            reused.append(cached)
            spent.append({k: after[k] - before.get(k, 0.0) for k in after})
        rows.append(
            {
                "tokens": tokens,
                "computed_s": statistics.median(computed),
                "stored": stored
                and {
                    "s": statistics.median(stored),
                    "least_s": min(stored),
                    "most_s": max(stored),
                    "cached_tokens": min(reused),
                    "timeline": {k: statistics.median(each[k] for each in spent) for k in spent[0]},
                },
            }
        )
    return {
        "ttft": rows,
        "tokens_per_s": _throughput(engine, plan["throughput"]),
        "device": _device(),
    }


def _throughput(engine: Engine, plan: dict[str, int] | None) -> float | None:
    """Prompt and answer tokens a second, of prompts that nobody has seen; median of the rounds."""
    if plan is None:
        return None
    found = []
    for number in range(plan["rounds"]):
        prompts = [
            engine.prompt(plan["tokens"], f"throughput {number} {n}")
            for n in range(plan["prompts"])
        ]
        took_s, _ = engine.ask(prompts, plan["answer"])
        found.append(plan["prompts"] * (plan["tokens"] + plan["answer"]) / took_s)
    return statistics.median(found)


def _device() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, torch {torch.__version__}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what vLLM prints is no answer
        print(json.dumps(measure(json.loads(sys.argv[2]))), file=answer, flush=True)
    else:
        main()
