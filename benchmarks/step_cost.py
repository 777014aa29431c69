"""The time that Neve adds to a scheduler step: `.venv/bin/python benchmarks/step_cost.py`.

A real engine on CPU with a tiny model, in one process, over a platform of its own. For 0, 1 and 64
decoding requests: time in the connector's hooks per step, and time of the whole step with and
without Neve. With 0 requests there is no step: the benchmark calls the hooks as an idle step would.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# All hooks of a step, of scheduler and worker.
HOOKS = (
    *("get_num_new_matched_tokens", "update_state_after_alloc", "build_connector_meta"),
    *("update_connector_output", "request_finished", "on_new_request", "start_load_kv"),
    *("handle_preemptions", "wait_for_layer_load", "save_kv_layer", "wait_for_save"),
    "get_finished",
    *("get_block_ids_with_load_errors", "build_connector_worker_meta", "get_kv_connector_stats"),
    "take_events",
)
STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=ROOT / ".venv-vllm/bin/python", help="has vLLM")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from support.servers import ControlPlane, S3Server

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "llama")
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        make = [arguments.python, ROOT / "tests/vllm/make_model.py", model.parent, "7"]
        subprocess.run(make, check=True, env=environment, capture_output=True)
        with (
            S3Server(Path(folder, "s3")) as s3,
            ControlPlane(Path(folder, "platform"), s3) as platform,
        ):
            neve = {"endpoint": platform.url, "api_key": platform.node_key}
            figures = {}
            for name, options in (("without", None), ("with", neve)):
                done = subprocess.run(
                    [arguments.python, __file__, "--inside", model, json.dumps(options)],
                    env=environment,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                figures[name] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'running':>8} {'hooks, µs':>10} {'p99':>8} {'step without':>14} {'step with':>11}")
    for running in ("0", "1", "64"):
        ours, plain = figures["with"][running], figures["without"].get(running, {})
        steps = [f"{x:.0f} µs" if x else "—" for x in (plain.get("step"), ours.get("step"))]
        print(
            f"{running:>8} {ours['hooks']:>10.1f} {ours['hooks_p99']:>8.1f}"
            f" {steps[0]:>14} {steps[1]:>11}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(model: str, options: dict | None) -> dict[str, dict[str, float]]:
    """Run in a process with vLLM. Number of running requests → medians in µs."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    from vllm import LLM, SamplingParams  # type: ignore[attr-defined]  # not tests/vllm

    transfer = options and {
        "kv_connector": "NeveConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": options,
    }
    llm = LLM(
        model=model, kv_transfer_config=transfer, block_size=32, enforce_eager=True,
        kv_cache_memory_bytes=64 << 20, max_model_len=1024, dtype="float32",
        disable_log_stats=False,
    )  # fmt: skip
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    spent = [0.0]
    if has_kv_transfer_group():
        for connector in (scheduler.connector, get_kv_transfer_group()):
            for hook in HOOKS:
                setattr(connector, hook, _timed(getattr(connector, hook), spent))
    found: dict[str, dict[str, float]] = {}
    if transfer:
        found["0"] = _hooks_when_idle(scheduler.connector, get_kv_transfer_group())
    for running in (1, 64):
        params = SamplingParams(max_tokens=STEPS + 40, ignore_eos=True, detokenize=False)
        for number in range(running):
            tokens = [(number * 7 + i) % 256 for i in range(40)]
            engine.add_request(f"{running}-{number}", {"prompt_token_ids": tokens}, params)
        while len(scheduler.running) < running:
            engine.step()
        for _ in range(20):
            engine.step()
        steps, hooks = [], []
        for _ in range(STEPS):
            spent[0], begin = 0.0, time.perf_counter()
            engine.step()
            steps.append(1e6 * (time.perf_counter() - begin))
            hooks.append(1e6 * spent[0])
        engine.abort_request([f"{running}-{number}" for number in range(running)])
        engine.step()
        found[str(running)] = _summary(hooks) | {"step": statistics.median(steps)}
    return found


def _hooks_when_idle(scheduler_side, worker_side) -> dict[str, float]:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput

    hooks = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        told = scheduler_side.build_connector_meta(SchedulerOutput.make_empty())
        worker_side.handle_preemptions(told)
        worker_side.bind_connector_metadata(told)
        worker_side.start_load_kv(None)
        worker_side.wait_for_save()
        worker_side.get_finished(set())
        worker_side.get_block_ids_with_load_errors()
        worker_side.get_kv_connector_stats()
        worker_side.build_connector_worker_meta()
        scheduler_side.update_connector_output(KVConnectorOutput())
        scheduler_side.get_kv_connector_stats()
        hooks.append(1e6 * (time.perf_counter() - begin))
    return _summary(hooks)


def _timed(hook, spent):
    def call(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return hook(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - begin

    return call


def _summary(hooks: list[float]) -> dict[str, float]:
    return {"hooks": statistics.median(hooks), "hooks_p99": sorted(hooks)[len(hooks) * 99 // 100]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        answer = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # vLLM's output must not look like an answer
        print(json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]))), file=answer, flush=True)
    else:
        main()
