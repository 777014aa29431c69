"""A process with a vLLM engine, driven line by line: a JSON command in, a JSON answer out.

Run by the vLLM interpreter. Commands:
{"do": "start", "model", "neve": {options} | null, "policy"?, "module_path"?, "engine"?: {...},
    "transfer"?: {...}, "listens"?}   `transfer` is a whole kv_transfer_config in place of one made
    of the rest; with `listens` KV events are published, and heard here
{"do": "generate", "requests": [{"tokens", "max_tokens", "params"?, "salt"?, "seed"?,
    "lora"?: [name, id, path], "image"?: colour, "sound"?: hertz, "regex"?}]}
    one batch; greedy without a seed. `embeds` in place of tokens: so many random vectors
{"do": "abort", "request"}   begin a request and leave it as soon as its load has begun
{"do": "counters"}   the engine's own, since its start, and Neve's; of histograms the count
{"do": "describe"}   the KV cache groups as the engine made them, and how much it holds
{"do": "events"}   the KV events since the last time, waiting a moment for more
{"do": "reset"}   the prefix cache, with the connector's
{"do": "forget_prefixes"}   the prefix cache alone
{"do": "store_all"}   wait until all saves are stored or refused
{"do": "violations"}   what the adapter did against its contract (see support.adapter_contract)
{"do": "pause"}   pause and go on, as `pause_generation` does; no request is under way
{"do": "sleep"}   sleep level 1 and wake-up, with the calls that a GPU worker of vLLM 0.33 makes
{"do": "change_weights"}   in place; of two calls the second undoes the first
{"do": "kv"}   by layer, a digest of its whole KV cache: zeros, but for what this engine computed
{"do": "embed", "tokens"}   what a pooling model makes of them
{"do": "defer_copies", "s"}   from now on, copies out of and into the engine's KV come so much later
{"do": "slow_down", "s"}     from now on, a forward takes so much longer for each of its tokens
{"do": "jump", "waves", "chunks", "waits"}   from now on, `load: both` jumps whenever it may; of a
                     rear, so many waves of so many chunks are under way at a time, and with `waits`
                     each step waits for them
{"do": "force_async"}   engines that start from now on schedule a step ahead, as vLLM does on GPUs
{"do": "stop"}       end the engine; another may be started. Fails if the adapter broke its contract
"""

import gc
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.commands import answer_commands


class Engine:
    def __init__(self):
        from support.adapter_contract import ContractWatch

        self.llm = None
        self.is_ahead = False
        self.watch = ContractWatch().install()

    def start(
        self,
        model,
        neve,
        policy="recompute",
        module_path=None,
        engine=None,
        transfer=None,
        listens=False,
    ):
        from vllm import LLM  # type: ignore[attr-defined]  # mypy takes tests/vllm for it

        if self.llm is not None:  # A test failed before it stopped its engine.
            self.stop()
        config = transfer
        if neve is not None:
            config = {
                "kv_connector": "NeveConnector",
                "kv_role": "kv_both",
                "kv_load_failure_policy": policy,
                "kv_connector_extra_config": neve,
                "kv_connector_module_path": module_path,
            }
        options = {
            "block_size": 32,
            "enforce_eager": True,
            "kv_cache_memory_bytes": 16 << 20,
            "max_model_len": 1024,
            "dtype": "float32",
            "seed": 0,
            "disable_log_stats": False,
        }
        if listens:
            options["kv_events_config"] = self._listen()
        begin = time.monotonic()
        self.llm = LLM(model=model, kv_transfer_config=config, **options | (engine or {}))
        if self.is_ahead:
            assert self.llm.llm_engine.vllm_config.scheduler_config.async_scheduling
        return {"took_s": time.monotonic() - begin}

    def _listen(self):
        import zmq
        from vllm.config import KVEventsConfig

        self._events = zmq.Context.instance().socket(zmq.SUB)
        self._events.subscribe("")
        self._events.connect("inproc://router")
        return KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint="inproc://router"
        )

    def generate(self, requests):
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import StructuredOutputsParams

        from vllm import SamplingParams  # type: ignore[attr-defined]  # it is not tests/vllm

        params = [
            SamplingParams(
                max_tokens=request["max_tokens"],
                temperature=0.8 if "seed" in request else 0,
                seed=request.get("seed"),
                logprobs=3,
                ignore_eos=True,
                detokenize=False,
                structured_outputs=StructuredOutputsParams(regex=request["regex"])
                if "regex" in request
                else None,
                extra_args={"kv_transfer_params": request["params"]}
                if "params" in request
                else None,
            )
            for request in requests
        ]
        prompts = [_prompt(request) for request in requests]
        loras = [LoRARequest(*r["lora"]) if "lora" in r else None for r in requests]
        begin = time.monotonic()
        outputs = self.llm.generate(
            prompts,
            params,
            use_tqdm=False,
            lora_request=loras if any(loras) else None,
            priority=[request.get("priority", 0) for request in requests],
        )
        took_s = time.monotonic() - begin
        return {"took_s": took_s, "outputs": [_plain(output) for output in outputs]}

    def kv(self):
        from hashlib import blake2b

        import torch

        return {
            name: blake2b(layer.kv_cache[1:].contiguous().view(torch.uint8).numpy()).hexdigest()
            for name, layer in self._layers().items()
        }

    def _layers(self):
        """Layers that have KV of their own."""
        runner = self.llm.llm_engine.model_executor.driver_worker.worker.model_runner
        return {
            name: layer
            for name, layer in runner.compilation_config.static_forward_context.items()
            if getattr(layer, "kv_sharing_target_layer_name", None) is None
        }

    def abort(self, request):
        """`waited`: it had no token yet."""
        engine = self.llm.llm_engine
        answered = self._begin(request)
        engine.abort_request(["0"])
        return {"waited": not answered}

    def _begin(self, request):
        """Steps until the request's load has begun; True if it was answered without."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        from vllm import SamplingParams  # type: ignore[attr-defined]  # it is not tests/vllm

        engine = self.llm.llm_engine
        params = SamplingParams(max_tokens=request["max_tokens"], temperature=0, ignore_eos=True)
        engine.add_request("0", _prompt(request), params)
        worker = get_kv_transfer_group()._worker
        answered = False
        while not (answered or (worker._transfers is not None and worker._transfers._open)):
            answered = any(output.outputs[0].token_ids for output in engine.step())
        return answered

    def counters(self):
        found = {}
        for metric in self.llm.get_metrics():
            name = metric.name.removeprefix("vllm:")
            if name in ("external_prefix_cache_queries", "external_prefix_cache_hits"):
                found[name] = metric.value
            elif name == "prompt_tokens_by_source":
                found[f"{name}.{metric.labels['source']}"] = metric.value
            elif name == "num_preemptions":
                found[name] = metric.value
            elif name == "kv_offload_tiering_read_bytes":
                found[f"{name}.{metric.labels['tier']}"] = metric.value
            elif name.startswith("neve_"):
                own = [v for k, v in metric.labels.items() if k not in ("model_name", "engine")]
                value = metric.value if hasattr(metric, "value") else metric.count
                found[".".join((name, *own))] = value
        return found

    def describe(self):
        from support.kv_memory import describe

        core = self.llm.llm_engine.engine_core.engine_core
        return describe(core.vllm_config, core.scheduler.kv_cache_config)

    def events(self):
        """From vLLM's publisher, as a router hears them: of Neve's medium only."""
        import msgspec
        from vllm.distributed.kv_events import KVEventBatch

        decoder = msgspec.msgpack.Decoder(KVEventBatch)
        found = []
        while self._events.poll(100):
            _topic, _sequence, batch = self._events.recv_multipart()
            events = decoder.decode(batch).events
            found += [event for event in events if event.medium == "STORAGE"]
        return [
            {"kind": type(event).__name__}
            | {
                name: len(value) if name == "block_hashes" else value
                for name, value in msgspec.structs.asdict(event).items()
                if name in ("block_hashes", "token_ids", "block_size", "locality")
            }
            for event in found
        ]

    def reset(self):
        return self.llm.reset_prefix_cache(reset_connector=True)

    def forget_prefixes(self):
        """The prefix cache alone. Blocks that are still copied out are freed in a step, so requests
        are made until none is left."""
        end = time.monotonic() + 60
        while not self.llm.reset_prefix_cache():
            assert time.monotonic() < end, "blocks stay in use"
            self.generate([{"tokens": [1, 2, 3], "max_tokens": 1}])
        return {}

    def store_all(self):
        """Waits until all saves are stored or refused."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        saver = get_kv_transfer_group()._worker._transfers
        return {"stored": saver is None or saver.drain(20)}

    def violations(self):
        """What the adapter did against its contract; of copies under way the next step tells."""
        self.forget_prefixes()
        found, self.watch.violations = self.watch.violations, []
        return found + self.watch.unfinished()

    def pause(self):
        core = self.llm.llm_engine.engine_core.engine_core
        core.pause_scheduler()
        core.resume_scheduler()
        return {}

    def sleep(self):
        """As `EngineCore.sleep` and `wake_up` do around a GPU worker's: KV memory comes back with
        other content, and the ranks describe themselves again. Weights stay where they are."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        core = self.llm.llm_engine.engine_core.engine_core
        connector = get_kv_transfer_group()
        core.pause_scheduler()
        connector.unregister_kv_caches()
        for layer in self._layers().values():
            layer.kv_cache.fill_(7)
        connector.restore_kv_caches()
        ranks = core.model_executor.get_kv_connector_handshake_metadata()
        described = {place: rank for each in ranks for place, rank in each.items()}
        core.scheduler.get_kv_connector().set_xfer_handshake_metadata_pp_aware(described)
        core.resume_scheduler()
        return {}

    def change_weights(self):
        def negate(model):
            for name, weights in model.named_parameters():
                if name.endswith("embed_tokens.weight"):
                    weights.data.neg_()

        self.llm.apply_model(negate)
        return {}

    def embed(self, tokens):
        found = self.llm.embed({"prompt_token_ids": tokens}, use_tqdm=False)
        return {"vector": list(found[0].outputs.embedding)}

    def defer_copies(self, s):
        """As on a GPU: saves read and loads write engine blocks after the step, and only a fence
        makes the computation wait for those reads."""
        import threading

        import torch

        from neve.engine.device.tensors import KvTensors, _WallMark

        class Ticket:
            def __init__(self, copy):
                self._copy = copy
                self._over = threading.Event()
                threading.Timer(s, self._run).start()

            def _run(self):
                with torch.inference_mode():  # as the engine's thread is
                    self._copy()
                self._over.set()

            def done(self):
                return self._over.is_set()

            def wait(self):
                self._over.wait()

        make, move_out, move_in = KvTensors.__init__, KvTensors.move_out, KvTensors.move_in
        reading = []

        def deferring(self, *args, **kwargs):
            make(self, *args, **kwargs)
            self.defers = True

        def late_out(*args):
            reading.append(Ticket(lambda: move_out(*args)))
            return reading[-1]

        def fence(_):
            while reading:
                reading.pop().wait()

        KvTensors.__init__ = deferring
        KvTensors.move_out = late_out
        KvTensors.move_in = lambda *args: Ticket(lambda: move_in(*args))
        KvTensors.fence = fence
        KvTensors.mark = lambda _: _WallMark()
        return {}

    def slow_down(self, s):
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        forward = GPUModelRunner._model_forward

        def slowly(self, input_ids, positions, *args, **kwargs):
            time.sleep(s * positions.shape[-1])
            return forward(self, input_ids, positions, *args, **kwargs)

        GPUModelRunner._model_forward = slowly
        return {}

    def force_async(self):
        """vLLM turns it off on the CPU, where nothing runs on streams: they become no-ops here.
        What it plans, and with which placeholders, is as on a GPU; the order of streams is not."""
        import contextlib

        import torch
        from vllm.platforms.cpu import CpuPlatform

        class Nothing:
            def __init__(self, *args, **kwargs):
                pass

            def __getattr__(self, name):
                return lambda *args, **kwargs: None

        torch.cuda.Event = torch.cuda.Stream = torch.Event = Nothing
        torch.cuda.current_stream = lambda *args, **kwargs: Nothing()
        torch.cuda.stream = lambda stream: contextlib.nullcontext()
        check = CpuPlatform.check_and_update_config.__func__

        def check_and_schedule_ahead(cls, config):
            check(cls, config)
            config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = classmethod(check_and_schedule_ahead)
        self.is_ahead = True
        return {}

    def jump(self, waves, chunks, waits=False):
        from neve.engine import rear_loader
        from neve.engine.load_policy import LoadPolicy

        LoadPolicy._gains_by_both = lambda *_: True
        rear_loader._WAVES, rear_loader._WAVE_CHUNKS = waves, chunks
        poll = rear_loader.RearLoader.poll

        def wait_and_poll(loader):
            for rear in loader._rears.values():
                for wave in rear.waves:
                    wave.transfer.wait(20)
            poll(loader)

        if waits and poll.__name__ == "poll":
            rear_loader.RearLoader.poll = wait_and_poll
        return {}

    def stop(self):
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        cleanup_dist_env_and_memory()
        gc.collect()
        violations, self.watch.violations = self.watch.violations, []
        if violations:
            raise AssertionError("; ".join(violations))
        return {}


def _prompt(request):
    import numpy
    import torch
    from PIL import Image

    if "embeds" in request:
        return {"prompt_embeds": torch.randn(request["embeds"], 64)}
    prompt = {"prompt_token_ids": request["tokens"]}
    if "salt" in request:
        prompt["cache_salt"] = request["salt"]
    if "image" in request:
        prompt["multi_modal_data"] = {"image": Image.new("RGB", (56, 56), request["image"])}
    if "sound" in request:
        second = 2 * numpy.pi * request["sound"] * numpy.arange(16000) / 16000
        prompt["multi_modal_data"] = {"audio": (numpy.sin(second).astype("float32"), 16000)}
    return prompt


def _plain(output):
    completion = output.outputs[0]
    return {
        "tokens": list(completion.token_ids),
        "logprobs": [
            {str(token): value.logprob for token, value in sorted(step.items())}
            for step in completion.logprobs
        ],
        "cached_tokens": output.num_cached_tokens,
        "params": output.kv_transfer_params,
    }


if __name__ == "__main__":
    answer_commands(Engine())
