"""One engine of benchmarks/ttft.py, in a process of its own. Reads its plan as JSON from stdin.

Runs in the interpreter that has vLLM. Needs neve and, where the plan names Valkeys, valkey-py.
"""

import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from shapes import SHAPES, TINY, use_random_weights  # noqa: E402

# A prompt is so many tokens longer than its length says, and all prompts end alike: what is stored
# or cached of it ends in front of them, and only the KV makes answers differ.
QUESTION = 8
ANSWER = 16
# Stores of the mode `both`, as fast as this many times the speed of computing.
BOTH_STORES = {"a third": 1 / 3, "as fast": 1.0, "three times": 3.0}


@dataclass
class Answer:
    """Of one prompt or, with `tokens` and `reused` of the first, of several."""

    first_token_s: float
    took_s: float
    tokens: list[int]
    logprob: float  # of the first token
    reused: int


class Passes:
    """Duration of forward passes: by CUDA events on a GPU, else by the worker's clock."""

    def __init__(self) -> None:
        import torch
        from vllm.v1.worker.gpu_worker import Worker

        self._torch, self._has_gpu = torch, torch.cuda.is_available()
        self._marks: list[tuple[Any, Any]] = []
        execute = Worker.execute_model

        def timed(worker: Any, scheduled: Any) -> Any:
            if not scheduled.total_num_scheduled_tokens:  # waits for a load, for example
                return execute(worker, scheduled)
            begin = self._mark()
            try:
                return execute(worker, scheduled)
            finally:
                self._marks.append((begin, self._mark()))

        Worker.execute_model = timed

    def _mark(self) -> Any:
        if not self._has_gpu:
            return time.perf_counter()
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> float:
        """Seconds of the passes since the last call."""
        marks, self._marks = self._marks, []
        if not self._has_gpu:
            return float(sum(end - begin for begin, end in marks))
        self._torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in marks)) / 1000


class Engine:
    def __init__(self, plan: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[attr-defined]  # not tests/vllm

        self.mode, self._plan = plan["mode"], plan
        self._spent: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self.passes = Passes()
        self._tiers = None
        if "neve" in plan:
            self._watch()
            self._tiers = Tiers(**plan["neve"]["hot"], puts=plan["neve"].get("puts", ()))
        shape = plan["shape"]
        self._model = SHAPES[shape] | (TINY[shape] if plan["tiny"] else {})
        use_random_weights()
        folder = Path(tempfile.mkdtemp())
        (folder / "config.json").write_text(json.dumps(self._model))
        longest = max(plan["tokens"])
        more: dict[str, Any] = {
            "max_num_batched_tokens": 16384, "max_num_seqs": 64, "gpu_memory_utilization": 0.88
        }  # fmt: skip
        if plan["tiny"]:
            more = {"kv_cache_memory_bytes": 256 << 20, "block_size": 32, "enforce_eager": True}
        more |= plan["engine"]
        self.llm = LLM(
            str(folder), load_format="dummy", skip_tokenizer_init=True, disable_log_stats=False,
            max_model_len=longest + 4096, kv_cache_dtype=plan["kv_cache_dtype"],
            enable_prefix_caching=True,
            disable_hybrid_kv_cache_manager=None if plan["hybrid"] else True,
            kv_transfer_config=self._transfer(plan), **more,
        )  # fmt: skip
        self._params = SamplingParams
        self._numbers = itertools.count()

    def _transfer(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        dram: dict[str, Any] = {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"cpu_bytes_to_use": plan["save_bytes"], "block_size": 16},
        }
        if self.mode == "cpu_tier":
            return dram
        if "neve" not in plan:
            return None
        if self.mode == "under":
            tier = {"type": "neve", "revision": "random"} | plan["neve"]["options"]
            dram["kv_connector_extra_config"] |= {
                "spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]
            }  # fmt: skip
            return dram
        budget = 64 << 20 if plan["tiny"] else plan["save_bytes"]
        neve = {
            "kv_connector": "NeveConnector",
            "kv_connector_module_path": "neve.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            # Large enough to store a whole prompt before it is asked again.
            "kv_connector_extra_config": plan["neve"]["options"] | {"save_budget_bytes": budget},
        }
        if self.mode != "beside":
            return neve
        return dram | {
            "kv_connector": "MultiConnector",
            "kv_connector_extra_config": {"connectors": [dram, neve]},
        }

    def prompt(self, tokens: int, seed: str) -> dict[str, list[int]]:
        draw, last = random.Random(seed), random.Random("question")
        highest = self._model["vocab_size"] - 10
        ids = [draw.randrange(10, highest) for _ in range(tokens)]
        return {"prompt_token_ids": ids + [last.randrange(10, highest) for _ in range(QUESTION)]}

    def ask(self, prompts: list[dict[str, list[int]]], max_tokens: int = 1) -> Answer:
        params = self._params(
            max_tokens=max_tokens, ignore_eos=True, detokenize=False, temperature=0.0, logprobs=0
        )
        core = self.llm.llm_engine
        names = [f"ask {next(self._numbers)}" for _ in prompts]
        begin = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            core.add_request(name, dict(prompt), params)
        first_token_s, asked = 0.0, None
        while core.has_unfinished_requests():
            for output in core.step():
                if output.request_id == names[0]:
                    first_token_s = first_token_s or time.perf_counter() - begin
                    asked = output
        took_s = time.perf_counter() - begin
        answered = asked.outputs[0]
        first = answered.token_ids[0]
        return Answer(
            first_token_s=first_token_s, took_s=took_s, tokens=list(answered.token_ids),
            logprob=float(answered.logprobs[0][first].logprob), reused=asked.num_cached_tokens or 0,
        )  # fmt: skip

    def forget(self) -> None:
        """Wait until all blocks are stored, then free the GPU's blocks."""
        if self._tiers is not None and self.mode != "under":
            transfers = self.worker()._transfers
            if transfers is not None and not transfers.drain(120):
                raise RuntimeError("blocks are not stored after two minutes")
            self.ask([self.prompt(1, "a step")])  # workers release copied blocks in a step
            self._tiers.check_room()
            if self.mode in ("cold", "both_cold"):
                self._tiers.move_to_s3()
        else:
            time.sleep(1.0)
        self.forget_prefixes()

    def forget_prefixes(self, *, everywhere: bool = False) -> None:
        """Free the GPU's blocks. `everywhere`: empty vLLM's CPU tier as well."""
        more = {"reset_connector": True} if everywhere else {}
        for number in range(20):
            if self.llm.reset_prefix_cache(**more):
                return
            self.ask([self.prompt(1, f"a step {number}")])  # releases what was still being copied
        raise RuntimeError("vLLM did not reset its prefix cache")

    def worker(self) -> Any:
        """Neve's worker side."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return _neve(get_kv_transfer_group())._worker

    def side(self) -> Any:
        """Neve's scheduler side."""
        connector = self.llm.llm_engine.engine_core.engine_core.scheduler.connector
        return _neve(connector)._scheduler.side

    def policy(self) -> Any:
        """Neve's load policy."""
        return self.side()._policy

    def load_all(self, prompt: list[dict[str, list[int]]]) -> Answer:
        """As `ask`, of a stored prompt that the engine forgot. Loads what is stored, also what is
        faster to compute: then the engine computes what it does behind its own prefix cache, and
        equal KV gives equal answers, to the bit."""
        policy = self.policy()
        before, policy._always = policy._always, True
        self.forget_prefixes()
        try:
            return self.ask(prompt, ANSWER)
        finally:
            policy._always = before

    def fill_local(self, prompt: list[dict[str, list[int]]]) -> None:
        """Load a stored prompt until the local tier has as much of it as it takes."""
        local = self.worker()._link.client.local
        before = -1
        while local.used_bytes > before:  # each load fills its queue once
            before = local.used_bytes
            for _ in range(3):
                self.load_all(prompt)
                local.flush(60.0)
        self.forget()

    def begin_anew(self) -> None:
        """Empty the store for the next measurement."""
        self.forget()
        if self._tiers is not None:
            self._tiers.clear()

    def kv_memory(self) -> dict[str, float]:
        """How many prompts of the greatest length the engine's KV memory holds, and its bytes."""
        from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

        held = self.llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
        config = self.llm.llm_engine.vllm_config
        group = held.kv_cache_groups[0]  # groups share all memory, each with as many layers
        layers = 1 if hasattr(group.kv_cache_spec, "kv_cache_specs") else len(group.layer_names)
        return {
            "bytes": held.num_blocks * group.kv_cache_spec.page_size_bytes * layers,
            "groups": len(held.kv_cache_groups),
            "longest": config.model_config.max_model_len,
            "prompts": get_max_concurrency_for_kv_cache_config(config, held),
        }

    def stored_bytes(self) -> int:
        return self._tiers.stored_bytes() if self._tiers is not None else 0

    def hold(self, tokens: int, stored_tokens: int) -> None:
        """Set the quota to what `tokens` need, as those that are stored show."""
        if self._tiers is not None and stored_tokens:
            self._tiers.hold(self.stored_bytes() * tokens // stored_tokens)

    def spent(self) -> dict[str, float]:
        """Neve's activity → seconds so far."""
        return dict(self._spent)

    def shown(self) -> dict[str, float]:
        """What the engine's thread does for loads → seconds so far, and the number of calls."""
        return dict(self._shown)

    def _watch(self) -> None:
        """Intercept Neve's samples, since vLLM's `LLM` before 0.28 drops the metrics of most steps.

        A load counts as "receiving" until its last blocks arrive, then as "copying"."""
        from neve.engine.loader import BlockLoader
        from neve.engine.telemetry import Telemetry

        self._spent |= dict.fromkeys(("look-up", "receive", "copy"), 0.0)
        sample, land = Telemetry.sample, BlockLoader._land
        landed_at = 0.0

        def landing(loader: Any, wave: Any) -> Any:
            nonlocal landed_at
            landed_at = time.monotonic()
            return land(loader, wave)

        def noting(telemetry: Telemetry, name: str, value: float) -> None:
            if name == "match_seconds":
                self._spent["look-up"] += value
            if name == "load_seconds":
                copying_s = min(value, time.monotonic() - landed_at)
                self._spent["receive"] += value - copying_s
                self._spent["copy"] += copying_s
            sample(telemetry, name, value)

        Telemetry.sample = noting  # type: ignore[method-assign]
        BlockLoader._land = landing  # type: ignore[method-assign]
        for name in ("poll", "_land", "_send_waves"):
            setattr(BlockLoader, name, self._timed(name, getattr(BlockLoader, name)))

    def _timed(self, name: str, call: Any) -> Any:
        self._shown |= {name: 0.0, f"{name} calls": 0.0}

        def timed(*args: Any, **more: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args, **more)
            finally:
                self._shown[name] += time.perf_counter() - begin
                self._shown[f"{name} calls"] += 1

        return timed


def _neve(connector: Any) -> Any:
    """Neve's connector; it may be one of several."""
    several = getattr(connector, "_connectors", [connector])
    return next(each for each in several if type(each).__name__ == "NeveConnector")


class Tiers:
    """Moves blocks between the tiers that the engine writes to, as the platform's workers do."""

    def __init__(
        self,
        ports: list[int],
        tenant_id: int,
        buckets: int,
        puts: Sequence[str],
        flush_after_s: int | str | None = "",
    ) -> None:
        """`flush_after_s`: of stored blocks, if `hold` may set the quota; else a text."""
        from valkey import Valkey, ValkeyCluster

        from neve.index.tier import HotTier

        kind = ValkeyCluster if len(ports) > 1 else Valkey
        self._valkey = kind(host="127.0.0.1", port=ports[0])
        self._hot = HotTier(self._valkey.execute_command, tenant_id, buckets)
        self._ports, self._tenant_id, self._buckets = ports, tenant_id, buckets
        self._puts = zip(itertools.count(1), puts, strict=False)
        self._flush_after_s = flush_after_s
        self._gone = 0  # blocks that `clear` removed

    def configure(self, settings: dict[str, str]) -> None:
        """Change settings of every Valkey."""
        from valkey import Valkey

        for port in self._ports:
            with Valkey(host="127.0.0.1", port=port) as one:
                for name, value in settings.items():
                    one.config_set(name, value)

    def stored_bytes(self) -> int:
        usage = self._hot.usage()
        return int(max(usage.hot_bytes, usage.cold_bytes))

    def hold(self, size_bytes: int) -> None:
        """Set the hot quota to `size_bytes` and a quarter. Raises if this host has not so much."""
        from neve.index.tier import BlockTerms

        if isinstance(self._flush_after_s, str):
            return
        hot_bytes = max(1 << 30, size_bytes * 5 // 4)
        if hot_bytes > (free_bytes := _free_bytes()):
            raise RuntimeError(
                f"the measurements write {hot_bytes >> 30} GiB, {free_bytes >> 30} GiB are free: "
                "fewer --tokens, --repeat or --users"
            )
        terms = BlockTerms(flush_after_s=self._flush_after_s)
        self._hot.set_policy(
            hot_bytes=hot_bytes, cold_bytes=1 << 40, terms=terms, promote_window_s=0
        )

    def check_room(self) -> None:
        """Raise if the quota made blocks leave, or refused some: loads would be misses."""
        usage = self._hot.usage()
        if gone := usage.evicted_blocks + usage.refused_blocks - self._gone:
            raise RuntimeError(
                f"the quota of {usage.quota_hot_bytes >> 30} GiB held {gone} blocks too few: "
                "raise --hot-gib"
            )

    def clear(self) -> None:
        self._hot.evict(1 << 50)
        usage = self._hot.usage()
        self._gone = usage.evicted_blocks + usage.refused_blocks

    def move_to_s3(self) -> None:
        """Move blocks as flush workers do, but without footers: loads never read them."""
        with ThreadPoolExecutor(8) as pool:
            moving = []
            while blocks := self._hot.lease_dirty(
                lease_s=600, most_blocks=512, most_bytes=64 << 20
            ):
                moving.append(pool.submit(self._move, blocks, *next(self._puts)))
            for moved in moving:
                number, places = moved.result()
                self._hot.open_segment(number)
                self._hot.flushed(number, places)
        self.clear()

    def _move(self, blocks: Sequence[Any], number: int, address: str) -> Any:
        """Write one segment. Returns its number and the blocks' places in it."""
        from neve.formats.keys import BucketKeys, bucket_of

        body, places = bytearray(64), []
        for block in blocks:
            bucket = BucketKeys(self._tenant_id, bucket_of(block.id, self._buckets))
            places.append((block.id, len(body)))
            body += self._valkey.get(bucket.block(block.space_id, block.id))
        plain = {"Content-Type": ""}  # the URL is signed without a Content-Type
        put = urllib.request.Request(address, bytes(body), plain, method="PUT")
        urllib.request.urlopen(put, timeout=60).close()
        return number, places


def start(plan: dict[str, Any]) -> Engine:
    engine = Engine(plan)
    for number in range(4):  # warm up: compilation, tuning, first pinned memory
        engine.ask([engine.prompt(min(2048, max(plan["tokens"])), f"warm {number}")], 2)
    for thread in threading.enumerate():  # the thread that pins staging in the first seconds
        if thread.name == "neve-pin":
            thread.join()
    return engine


def measure(engine: Engine, plan: dict[str, Any]) -> dict[str, Any]:
    for number in range(4 if engine.mode != "recompute" else 0):  # first loads: measure speed
        engine.forget()
        engine.ask([engine.prompt(min(2048, max(plan["tokens"])), f"warm {number}")], 2)
    engine.forget()
    engine.hold(most_tokens(plan), 4 * (min(2048, max(plan["tokens"])) + QUESTION))
    if engine.mode.startswith("both"):
        return {
            "kv_memory": engine.kv_memory(),
            "ttft": [],
            "both": [row for tokens in plan["tokens"] for row in _both(engine, tokens, plan)],
            "decode_tokens_per_s": None, "tokens_per_s": None, "turns": None, "device": _device(),
        }  # fmt: skip
    return {
        "kv_memory": engine.kv_memory(),
        "ttft": [_first_tokens(engine, tokens, plan["repeat"]) for tokens in plan["tokens"]],
        "again": [_again(engine, each, plan) for each in plan["settings"]],
        "decode_tokens_per_s": _decode(engine, plan["decode"]),
        "tokens_per_s": _throughput(engine, plan["throughput"]),
        "turns": plan["turns"] and _turns(engine, **plan["turns"]),
        "device": _device(),
    }


def most_tokens(plan: dict[str, Any]) -> int:
    """Of prompts and answers that are stored before the store is emptied next."""
    tokens = plan["repeat"] * (max(plan["tokens"]) + QUESTION + ANSWER)
    for name, more in ("decode", 1), ("throughput", 0):
        if each := plan[name]:
            rounds = each["rounds"] + more
            tokens += rounds * each["prompts"] * (each["tokens"] + QUESTION + each["answer"])
    if each := plan["turns"]:
        later = (each["turns"] - 1) * (each["more"] + QUESTION)
        longest = each["first"] + QUESTION + later + each["turns"] * each["answer"]
        tokens = max(tokens, each["users"] * longest)
    return tokens


def _free_bytes() -> int:
    """Memory that this host can give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) << 10


def _first_tokens(engine: Engine, tokens: int, repeat: int) -> dict[str, Any]:
    """Prompts of one length: computed, from the engine's own prefix cache, and as stored."""
    engine.begin_anew()
    before_bytes = engine.stored_bytes()
    computed, cached, stored, whole, dram = [], [], [], [], []
    details: list[dict[str, float]] = []
    spent: list[dict[str, float]] = []
    for number in range(repeat):
        prompt = [engine.prompt(tokens, f"{tokens} {number}")]
        computed.append(engine.ask(prompt, ANSWER))
        cached.append(engine.ask(prompt, ANSWER))
        if engine.mode == "recompute":
            continue
        engine.forget()
        if engine.mode == "local":
            engine.fill_local(prompt)
        if engine.mode in ("beside", "under"):
            dram.append(engine.ask(prompt, ANSWER))
            engine.forget()
            engine.forget_prefixes(everywhere=True)
        before, seen = engine.spent(), engine.shown()
        stored.append(engine.ask(prompt, ANSWER))
        after = engine.spent()
        shown = engine.shown()
        whole.append(
            stored[-1] if engine.mode in ("cpu_tier", "under") else engine.load_all(prompt)
        )
        details.append({k: each - seen[k] for k, each in shown.items()})
        parts = {part: after[part] - before[part] for part in after}
        spent.append(parts | {"engine": stored[-1].first_token_s - sum(parts.values())})
    row = {
        "tokens": tokens,
        "computed": _times(computed),
        "cached": _times(cached),
        "stored": stored and _times(stored),
        "from_cpu_tier": dram and _times(dram),
        "answers": repeat,
        "different_answers": len({tuple(each.tokens) for each in computed}),
    }
    if stored:
        row |= {
            "timeline": {k: statistics.median(each[k] for each in spent) for k in spent[0]},
            "whole": _times(whole),
            "details": details,
            # Wrong: other than the engine answers from the KV that it kept itself.
            "wrong_tokens": sum(
                one != other
                for a, b in zip(whole, cached, strict=True)
                for one, other in zip(a.tokens, b.tokens, strict=True)
            ),
            "logprob_off": max(
                abs(a.logprob - b.logprob) for a, b in zip(whole, cached, strict=True)
            ),
            "stored_bytes_per_token": (engine.stored_bytes() - before_bytes) / (repeat * tokens),
        }
    print(json.dumps(row), flush=True)
    return row


def _again(engine: Engine, settings: dict[str, str], plan: dict[str, Any]) -> dict[str, Any]:
    """Loads the longest prompts again, which are stored already, with other settings of Valkey."""
    from neve.engine import loader

    tokens = max(plan["tokens"])
    found: dict[str, Any] = {"tokens": tokens, "settings": settings, "s": [], "receive_s": []}
    try:
        if "waves" in settings:
            loader._WAVE_BLOCKS, loader._WAVES = map(int, settings["waves"].split("x"))
        engine._tiers.configure({k: v for k, v in settings.items() if k != "waves"})
    except Exception as error:
        return found | {"settings": f"{settings}: {error}"}
    for number in range(plan["repeat"]):
        prompt = [engine.prompt(tokens, f"{tokens} {number % plan['repeat']}")]
        engine.forget_prefixes()
        before = engine.spent()
        found["s"].append(engine.ask(prompt).first_token_s)
        if engine._spent:
            found["receive_s"].append(engine.spent()["receive"] - before["receive"])
    print(json.dumps(found), flush=True)
    return found


def _both(engine: Engine, tokens: int, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Prompts computed, loaded, and both at once, from stores as fast as computing, a third and
    three times of that. As decided: what `load: both` does with these speeds by itself."""
    from deploy.congestion import pace
    from neve.engine.load_policy import LoadPolicy
    from neve.engine.rears import Rears

    engine.begin_anew()
    before_bytes = engine.stored_bytes()
    prompts = [[engine.prompt(tokens, f"both {tokens} {n}")] for n in range(plan["repeat"])]
    computed = [engine.ask(prompt, ANSWER) for prompt in prompts]
    engine.forget()
    size_bytes = (engine.stored_bytes() - before_bytes) / len(prompts)
    compute_s = statistics.median(each.first_token_s for each in computed)
    policy, jumps, decisions = engine.policy(), [0], []
    land, note = Rears.land, LoadPolicy.note_decision

    def landing(rears: Any, *more: Any) -> Any:
        jumps[0] += 1
        return land(rears, *more)

    def noting(each: Any, choice: Any) -> None:
        decisions.append(str(choice.decision))
        note(each, choice)

    Rears.land, LoadPolicy.note_decision = landing, noting  # type: ignore[method-assign]
    pids = plan["neve"]["pids"]
    lanes = len(pids) * plan["neve"]["options"]["connections"]
    stores = {"S3": None} if engine.mode == "both_cold" else BOTH_STORES
    for store, ratio in stores.items():
        rate = None if ratio is None else int(ratio * size_bytes / compute_s)
        for pid in pids:
            pace(pid, None if rate is None else rate // lanes)
        row: dict[str, Any] = {"tokens": tokens, "store": store, "computed_s": compute_s}
        wrong = jumps[0] = 0
        for how in ("loaded", "both", "decided"):
            policy._always = how == "loaded"
            if how == "both":
                policy._gains_by_both = lambda *_: True
            else:
                vars(policy).pop("_gains_by_both", None)
            took = []
            for prompt, right in zip(prompts, computed, strict=True):
                engine.forget_prefixes()
                answer = engine.ask(prompt, ANSWER)
                took.append(answer.first_token_s)
                wrong += sum(a != b for a, b in zip(answer.tokens, right.tokens, strict=True))
            row |= {f"{how}_s": statistics.median(took), f"{how}_all_s": took}
        row |= {
            "decision": decisions[-1], "wrong_tokens": wrong, "jumps": jumps[0],
            "gb_per_s": (size_bytes / row["loaded_s"] if rate is None else rate) / 1e9,
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        yield row
    for pid in pids:
        pace(pid, None)
    Rears.land, LoadPolicy.note_decision = land, note  # type: ignore[method-assign]


def _times(answers: Sequence[Answer]) -> dict[str, float]:
    times = [each.first_token_s for each in answers]
    return {
        "s": statistics.median(times), "least_s": min(times), "most_s": max(times),
        "reused": min(each.reused for each in answers),
    }  # fmt: skip


def _decode(engine: Engine, plan: dict[str, int] | None) -> dict[str, Any] | None:
    """Answer tokens per second of many running requests: with Neve's fences as they are, with one
    in every step, and with none, which would not be safe.
    """
    if plan is None:
        return None
    found = {}
    for name, fences in ("as is", None), ("always", True), ("never", False):
        if fences is not None and engine.mode != "hot":
            continue
        rates: list[float] = []
        with _fencing(fences) as fenced:
            for number in range(plan["rounds"] + 1):
                prompts = [
                    engine.prompt(plan["tokens"], f"decode {name} {number} {n}")
                    for n in range(plan["prompts"])
                ]
                fenced.clear()
                answer = engine.ask(prompts, plan["answer"])
                decoding_s = answer.took_s - answer.first_token_s
                rates.append(plan["prompts"] * (plan["answer"] - 1) / decoding_s)
        engine.begin_anew()
        counted = rates[1:]  # the first round warms up
        found[name] = {
            "median": statistics.median(counted), "least": min(counted), "most": max(counted),
            "steps": len(fenced), "fenced_steps": sum(each > 0 for each in fenced),
            "fence_s": sum(fenced),
        }  # fmt: skip
        print(json.dumps({"decode": name} | found[name]), flush=True)
    return found


@contextmanager
def _fencing(fences: bool | None) -> Iterator[list[float]]:
    """Every plan fences, or none, or (None) as planned. Yields each step's seconds in fences."""
    waited: list[float] = []
    try:
        from neve.engine.worker import WorkerSide
    except ImportError:  # an engine alone
        yield waited
        return
    begin_step = WorkerSide.begin_step

    def begin(worker: Any, plan: Any) -> None:
        if fences is not None:
            plan.fences, plan.handed_on = fences, frozenset()
        began = time.perf_counter()
        begin_step(worker, plan)
        waits = plan.fences or plan.handed_on
        waited.append(time.perf_counter() - began if waits else 0.0)

    WorkerSide.begin_step = begin  # type: ignore[method-assign]
    try:
        yield waited
    finally:
        WorkerSide.begin_step = begin_step  # type: ignore[method-assign]


def _throughput(engine: Engine, plan: dict[str, int] | None) -> dict[str, Any] | None:
    """Prompt and answer tokens per second of new prompts, over the rounds. With Neve, also while it
    stores nothing, in turns: the difference is what storing costs."""
    if plan is None:
        return None
    engine.begin_anew()
    stores = (True, False) if engine._tiers is not None and engine.mode != "under" else (True,)
    found: dict[bool, list[float]] = {each: [] for each in stores}
    for number, storing in itertools.product(range(plan["rounds"]), stores):
        prompts = [
            engine.prompt(plan["tokens"], f"throughput {number} {storing} {n}")
            for n in range(plan["prompts"])
        ]
        if len(stores) > 1:
            engine.side().saves._saves = storing
        took_s = engine.ask(prompts, plan["answer"]).took_s
        found[storing].append(plan["prompts"] * (plan["tokens"] + plan["answer"]) / took_s)
        engine.begin_anew()
    if len(stores) > 1:
        engine.side().saves._saves = True
    speeds = found[True]
    answer = {"median": statistics.median(speeds), "least": min(speeds), "most": max(speeds)}
    if len(stores) > 1:
        answer |= {
            "without_storing": statistics.median(found[False]),
            "rounds": list(found.values()),
        }
    print(json.dumps({"throughput": answer}), flush=True)
    return answer


def _turns(
    engine: Engine, users: int, turns: int, first: int, more: int, answer: int, per_s: float
) -> dict[str, float]:
    """Conversations: every turn of a user begins with all earlier turns.

    Users take turns in a fixed order at a fixed rate; a turn waits for the user's previous one.
    """
    engine.begin_anew()
    core = engine.llm.llm_engine
    params = engine._params(max_tokens=answer, ignore_eos=True, detokenize=False)
    prompts = [engine.prompt(first, f"user {user}")["prompt_token_ids"] for user in range(users)]
    waiting = deque(
        (number / per_s, number % users, number // users) for number in range(users * turns)
    )
    asked: dict[str, tuple[float, int]] = {}
    is_busy = [False] * users
    seen: set[str] = set()
    first_token_s: list[float] = []
    prompt_tokens = reused = 0
    engine.passes.take()
    began = time.perf_counter()
    while waiting or asked:
        now = time.perf_counter() - began
        while waiting and waiting[0][0] <= now and not is_busy[waiting[0][1]]:
            due_s, user, turn = waiting.popleft()
            name = f"turn {turn} of {user}"
            asked[name], is_busy[user] = (due_s, user), True
            core.add_request(name, {"prompt_token_ids": list(prompts[user])}, params)
        if not asked:
            time.sleep(max(0.0, waiting[0][0] - now))
            continue
        for output in core.step():
            due_s, user = asked[output.request_id]
            tokens = output.outputs[0].token_ids
            if tokens and output.request_id not in seen:
                seen.add(output.request_id)
                first_token_s.append(time.perf_counter() - began - due_s)
            if output.finished:
                prompt_tokens += len(prompts[user])
                reused += output.num_cached_tokens or 0
                prompts[user] += [*tokens]
                prompts[user] += engine.prompt(more, output.request_id)["prompt_token_ids"]
                is_busy[user] = False
                del asked[output.request_id]
    ordered = sorted(first_token_s)
    return {
        "turns": len(ordered),
        "p50_s": statistics.median(ordered),
        "p99_s": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))],
        "reused": reused / prompt_tokens,
        "gpu_s": engine.passes.take(),
    }


def _device() -> str:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, torch {torch.__version__}"


if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's output must not look like an answer
    plan = json.loads(sys.stdin.readline())
    engine = start(plan)
    sys.stdin.readline()  # until it is this engine's turn
    print(json.dumps(measure(engine, plan)), file=answer, flush=True)
