"""One fresh engine process: a job from stdin, a JSON report as the last line of stdout.

Run by the vLLM interpreter. The job: {"model", "neve": {options} | null, "rounds": [[request]],
"engine"?: {LLM arguments}}; a request: {"tokens", "max_tokens", "params"?, "salt"?}. Rounds run
one after the other in the same engine.
"""

import json
import logging
import sys
import time

job = json.loads(sys.stdin.read())
logging.basicConfig(level=logging.INFO, stream=sys.stderr)


def main() -> None:
    from vllm import LLM, SamplingParams

    config = None
    if job["neve"] is not None:
        config = {
            "kv_connector": "NeveConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": job.get("policy", "recompute"),
            "kv_connector_extra_config": job["neve"],
        }
        if job.get("module_path"):
            config["kv_connector_module_path"] = job["module_path"]
    begin = time.monotonic()
    llm = LLM(
        model=job["model"],
        **{
            "block_size": 32,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 16 << 20,
            "max_model_len": 1024,
            "dtype": "float32",
            "seed": 0,
            "disable_log_stats": False,
            "kv_transfer_config": config,
            **job.get("engine", {}),
        },
    )
    boot_s = time.monotonic() - begin
    rounds = []
    for requests in job["rounds"]:
        params = [
            SamplingParams(
                max_tokens=r["max_tokens"],
                temperature=0,
                logprobs=3,
                ignore_eos=True,
                extra_args={"kv_transfer_params": r["params"]} if "params" in r else None,
            )
            for r in requests
        ]
        prompts = [
            {"prompt_token_ids": r["tokens"]} | ({"cache_salt": r["salt"]} if "salt" in r else {})
            for r in requests
        ]
        begin = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        rounds.append(
            {
                "took_s": time.monotonic() - begin,
                "outputs": [
                    {
                        "tokens": list(out.outputs[0].token_ids),
                        "logprobs": [
                            {str(token): value.logprob for token, value in sorted(step.items())}
                            for step in out.outputs[0].logprobs
                        ],
                        "cached_tokens": out.num_cached_tokens,
                        "params": out.kv_transfer_params,
                    }
                    for out in outputs
                ],
            }
        )
    report = {"boot_s": boot_s, "rounds": rounds, "counters": counters(llm)}
    llm.llm_engine.engine_core.shutdown()
    print(json.dumps(report))


def counters(llm) -> dict[str, float]:
    """The engine's own: external prefix cache, and prompt tokens by source."""
    found = {}
    for metric in llm.get_metrics():
        name = metric.name.removeprefix("vllm:")
        if name in ("external_prefix_cache_queries", "external_prefix_cache_hits"):
            found[name] = metric.value
        elif name == "prompt_tokens_by_source":
            found[f"{name}.{metric.labels['source']}"] = metric.value
        elif name == "num_preemptions":
            found[name] = metric.value
    return found


if __name__ == "__main__":
    main()
