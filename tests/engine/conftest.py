"""A lab for the conformance suite: reference engines over a real Valkey."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from neve.engine.options import Options
from support.adapter_contract import ContractWatch
from support.adapter_suite import CHUNK, Answer, Prompt, ValkeyStore
from support.cache_endpoint import API_KEY, CacheEndpoint
from support.chains import provision
from support.grouped_engine import GroupedAdapter, GroupedEngine
from support.reference_engine import EngineFault, ReferenceAdapter, ReferenceEngine
from support.servers import ValkeyServer

_MOST_STEPS = 20_000  # far more than any prompt of the suite takes
# Engine blocks: of a crowded engine, and of one with room.
BLOCKS = {ReferenceEngine: (30, 400), GroupedEngine: (50, 600)}


class ReferenceServing:
    def __init__(self, engine: ReferenceEngine | GroupedEngine, watch: ContractWatch) -> None:
        self._engine = engine
        self._watch = watch

    def answer(self, *prompts: Prompt) -> list[Answer]:
        requests = [
            self._engine.submit(each.tokens, max_tokens=each.max_tokens, salt=each.salt.encode())
            for each in prompts
        ]
        self._run()
        answers = []
        for request in requests:
            neve = (request.answer or {"neve": {"reused_tokens": 0}})["neve"]
            tokens = request.tokens[request.prompt_tokens :]
            answers.append(Answer(tokens, neve["reused_tokens"]))
        return answers

    def abort(self, prompt: Prompt) -> None:
        request = self._engine.submit(prompt.tokens)
        for _ in range(_MOST_STEPS):
            self._engine.step()
            if request.state == "loading":
                self._engine.abort(request)
                return
        raise AssertionError("no load began")

    def violations(self) -> list[str]:
        self._run()
        return self._watch.violations + self._watch.unfinished()

    def _run(self) -> None:
        """Until the engine is idle."""
        for _ in range(_MOST_STEPS):
            if self._engine.is_idle:
                break
            self._engine.step()
        else:
            raise EngineFault("requests wait for ever")

    def store_all(self) -> None:
        self._engine.store_all()


class ReferenceLab(ValkeyStore):
    def __init__(
        self,
        endpoint: CacheEndpoint,
        valkey: ValkeyServer,
        adapter: type[ReferenceAdapter] | type[GroupedAdapter],
        options: dict[str, Any],
    ) -> None:
        self._endpoint = endpoint
        super().__init__(valkey)
        self._adapter = adapter
        self._options = options
        self.preemptions = 0

    @contextmanager
    def serve(
        self, *, neve: bool = True, crowded: bool = False, defers: bool = False
    ) -> Iterator[ReferenceServing]:
        options = Options(
            endpoint=self._endpoint.url,
            api_key=API_KEY,
            load="always",
            canary=0,
            max_chunk_tokens=CHUNK,
            load_budget_bytes=1 << 20,
            save_budget_bytes=1 << 20,
            **self._options,
        )
        watch = ContractWatch().install()
        kind: Any = ReferenceEngine
        if issubclass(self._adapter, GroupedAdapter):
            kind = GroupedEngine
        engine = kind(
            options if neve else None,
            adapter=self._adapter,
            blocks=BLOCKS[kind][0 if crowded else 1],
            defers=defers,
        )
        try:
            yield ReferenceServing(engine, watch)
        finally:
            engine.close()
            watch.uninstall()
            self.preemptions += engine.preemptions


@pytest.fixture
def lab_of(valkey_hot: ValkeyServer) -> Iterator[Any]:
    """`lab_of(adapter)`: a lab of reference engines with this adapter, over an empty store."""
    valkey_hot.wipe()
    provision(valkey_hot)
    with CacheEndpoint(f"127.0.0.1:{valkey_hot.port}") as endpoint:
        yield lambda adapter, **options: ReferenceLab(endpoint, valkey_hot, adapter, options)
