"""vLLM's connector keeps the contract of engine adapters (docs/engine-adapters.md)."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from support.adapter_suite import CHUNK, AdapterSuite, Answer, Prompt, ValkeyStore
from support.servers import ControlPlane

pytestmark = pytest.mark.vllm

# Memory for 20 engine blocks of 32 tokens, so that the suite's crowded tests preempt.
ENGINE = {"kv_cache_memory_bytes": 20 * 32 * 2048, "max_model_len": 512}
_salts = count()


class VllmServing:
    def __init__(self, process: Any, salt: str, *, neve: bool) -> None:
        self._process = process
        self._salt = salt
        self._neve = neve

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "tokens": list(prompt.tokens),
            "max_tokens": prompt.max_tokens,
            "salt": self._salt + prompt.salt,
            "params": {"neve": {}},
        }

    def answer(self, *prompts: Prompt) -> list[Answer]:
        outputs = self._process.generate(*map(self._request, prompts))
        reused = [(output["params"] or {}).get("neve", {}) for output in outputs]
        return [
            Answer(output["tokens"], each.get("reused_tokens", 0))
            for output, each in zip(outputs, reused, strict=True)
        ]

    def store_all(self) -> None:
        self._process.ask("store_all")

    def abort(self, prompt: Prompt) -> None:
        """Copies are late, so the load has not landed yet."""
        assert self._process.ask("abort", request=self._request(prompt))["waited"]

    def violations(self) -> list[str]:
        return self._process.ask("violations") if self._neve else []


class VllmLab(ValkeyStore):
    """One engine without Neve and one with it, whose copies are always late. An engine is fresh
    when it forgot its prefix cache. Each test has a salt, so the store is empty for it."""

    def __init__(self, platform: ControlPlane, alone: Any, process: Any) -> None:
        super().__init__(platform.hot)
        self._alone = alone
        self._process = process
        self._salt = f"{next(_salts)}-"

    @contextmanager
    def serve(
        self, *, neve: bool = True, crowded: bool = False, defers: bool = False
    ) -> Iterator[VllmServing]:
        process = self._process if neve else self._alone
        process.ask("forget_prefixes")
        yield VllmServing(process, self._salt, neve=neve)


@pytest.fixture(scope="module")
def engines(platform, fresh_process):
    options = {
        "endpoint": platform.url,
        "api_key": platform.node_key,
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": CHUNK,
        "match_deadline_s": 3,
        "load_deadline_s": 20,
        "revision": "conformance",  # a space of its own
    }
    with fresh_process("alone") as alone, fresh_process("conformance") as process:
        alone.start(None, engine=ENGINE)
        process.ask("defer_copies", s=0.2)
        process.start(options, engine=ENGINE)
        yield alone, process
        process.ask("stop")
        alone.ask("stop")


class TestVllm(AdapterSuite):
    @pytest.fixture
    def lab(self, platform, engines):
        return VllmLab(platform, *engines)
