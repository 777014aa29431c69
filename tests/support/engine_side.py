"""A scheduler side over fake links, and the answers that an engine would get from it."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from neve.engine.groups import KvGroup
from neve.engine.options import Options
from neve.engine.params import RequestParams
from neve.engine.scheduler import SchedulerSide
from neve.engine.step import NewRequest, WorkerReport

CHUNK, ENGINE_BLOCK = 64, 32
TOKENS = [7 * i % 251 for i in range(300)]


class Clock:
    """Stands in for the module `time` of Neve's modules: time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


def pace(monkeypatch: Any, lookups: Any, clock: Clock, takes_s: float) -> Callable[[], None]:
    """What each look-up calls: one goes on in each step of `lookups`, and takes `takes_s`."""
    turns, end_step = threading.Semaphore(0), lookups.end_step

    def end_and_release(**step: Any) -> None:
        turns.release()
        end_step(**step)

    def work() -> None:
        assert turns.acquire(timeout=60)
        clock.sleep(takes_s)

    monkeypatch.setattr(lookups, "end_step", end_and_release)
    return work


def side_over(
    links: Sequence[Any],
    *,
    shards: int = 1,
    parts: int = 1,
    loads: bool = True,
    saves: bool = True,
    groups: Sequence[KvGroup] = (),
    defers: bool = False,
    gpus: int = 1,
    **options: Any,
) -> SchedulerSide:
    """`links`: fakes, each both a link and its client."""
    # Look-ups wait far longer than on nodes: a busy machine is no miss.
    given = {"endpoint": "http://e", "api_key": "k", "match_deadline_s": 30, "canary": 0}
    return SchedulerSide(
        links,
        Options(**given | options),
        engine_block_tokens=ENGINE_BLOCK,
        shards=shards,
        parts=parts,
        loads=loads,
        saves=saves,
        groups=groups,
        defers=defers,
        gpus=gpus,
    )


def begin(
    side: SchedulerSide,
    request_id: str = "r",
    tokens: Sequence[int] = TOKENS,
    params: RequestParams | None = None,
    prompt_tokens: int | None = None,
) -> None:
    count = len(tokens) if prompt_tokens is None else prompt_tokens
    side.begin(NewRequest(request_id, tokens, count, params=params))


def answer(side: SchedulerSide, request_id: str = "r", local_tokens: int = 0) -> int:
    """Ask in every step, as an engine does, until the answer is final; return it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        tokens = side.matched_tokens(request_id, local_tokens)
        side.lookups.end_step(idle=True)
        if tokens is not None:
            return tokens
    raise AssertionError("no answer")


def end(side: SchedulerSide, request_id: str = "r") -> dict[str, Any]:
    """Finish the request; return Neve's part of the response's parameters."""
    _, params = side.end(request_id)
    assert params is not None
    return params["neve"]


def note(
    side: SchedulerSide, *, failed: Sequence[int] = (), loaded: Any = (), **report: Any
) -> None:
    """Report the workers' results of a step."""
    side.note_results(WorkerReport(**report), failed_blocks=failed, loaded=loaded)


def counted(side: SchedulerSide, name: str) -> dict[str, int]:
    """Label → increase of a counter of the engine's metrics since the last call."""
    return side.take_telemetry()["counters"].get(name, {})
