"""One client under measurement, in a process of its own: `contestant.py NAME PLAN-AS-JSON`.

Answers each line of stdin with one line of JSON. Commands:
    get SECONDS IN_FLIGHT   batches round robin over the data set, until the time is over
    put 0 IN_FLIGHT         the whole data set once
    check                   loads everything once and compares it
    match COUNT             so many calls of `match` with 512 ids; seconds of each
    spin 0|1                whether a Python thread of this process computes without end
Times are of this process alone: a contestant that is not asked sleeps.
"""

import ctypes
import json
import random
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

MATCH_IDS: Final = 512
MATCH_PAYLOAD_BYTES: Final = 1024
MOST_IN_FLIGHT: Final = 4


@dataclass(frozen=True)
class Plan:
    """What all contestants of one cell have in common.

    `homes` and `tags`: of each bucket the number of its primary and its hash tag.
    """

    block_bytes: int
    batch_blocks: int
    batches: int
    ports: list[int]
    homes: list[int]
    tags: list[str]
    connections: int  # to each primary
    endpoint_url: str
    tenant_id: int
    space_id: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def blocks(self) -> int:
        return self.batch_blocks * self.batches

    def ids(self, count: int, seed: int = 1) -> list[bytes]:
        """As evenly spread as hashes are; printable, for a client that takes only text keys."""
        numbers = random.Random(seed)
        letters = [bytes([0x30 + n]) for n in range(64)]
        return [b"".join(numbers.choices(letters, k=16)) for _ in range(count)]

    def bucket(self, block_id: bytes) -> int:
        """As neve.formats.keys.bucket_of; a test compares them."""
        return int.from_bytes(block_id[:4], "big") % len(self.homes)

    def key(self, block_id: bytes) -> bytes:
        """As neve.formats.keys.BucketKeys.block; a test compares them."""
        tag = self.tags[self.bucket(block_id)]
        return b"%b:b:%d:%b" % (tag.encode(), self.space_id, block_id)

    def data(self) -> np.ndarray:
        """Incompressible; (blocks, block_bytes)."""
        shape = (self.blocks, self.block_bytes)
        return np.random.default_rng(self.block_bytes).integers(0, 256, shape, dtype=np.uint8)

    def buffers(self) -> np.ndarray:
        """Touched memory for each batch in flight: (MOST_IN_FLIGHT, batch_blocks, block_bytes)."""
        shape = (MOST_IN_FLIGHT, self.batch_blocks, self.block_bytes)
        return np.full(shape, 1, dtype=np.uint8)


class Contestant:
    """What a client has to offer. A synchronous one does the work in `start_*`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ids = plan.ids(plan.blocks)

    def batch(self, number: int) -> range:
        first = number % self.plan.batches * self.plan.batch_blocks
        return range(first, first + self.plan.batch_blocks)

    def start_get(self, number: int, slot: int) -> Any:
        """Begins to load a batch into the buffers of a slot."""
        raise NotImplementedError

    def start_put(self, number: int) -> Any:
        raise NotImplementedError

    def finish(self, started: Any) -> None:
        """Waits; raises when a block is not there. A synchronous client has nothing to do."""

    def loaded(self, slot: int) -> np.ndarray | None:
        """Payloads that the last load of a slot brought; None when the client keeps none."""
        return None

    def match(self, ids: list[bytes]) -> None:
        raise NotImplementedError

    def store_match_blocks(self, ids: list[bytes]) -> None:
        raise NotImplementedError


def make(name: str, plan: Plan) -> Contestant:
    if name in ("neve", "python"):
        import ours

        return ours.CONTESTANTS[name](plan)
    import peers

    return peers.CONTESTANTS[name](plan)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Process:
    def __init__(self, plan: Plan, contestant: Contestant) -> None:
        self.plan = plan
        self.contestant = contestant
        self._number = 0
        self._spinning = threading.Event()
        self._match_ids: list[bytes] = []

    def answer(self, words: list[str]) -> dict[str, Any]:
        match words:
            case ["get", seconds, in_flight]:
                return self._get(float(seconds), int(in_flight))
            case ["put", _, in_flight]:
                return self._put(int(in_flight))
            case ["check"]:
                return self._check()
            case ["match", count]:
                return self._match(int(count))
            case ["spin", on]:
                return self._spin(on == "1")
        raise ValueError(f"unknown command {words}")

    def _get(self, seconds: float, in_flight: int) -> dict[str, Any]:
        def start(n: int) -> Any:
            return self.contestant.start_get(self._number + n, n % in_flight)

        end = time.perf_counter() + seconds
        result = self._run(start, in_flight, lambda n: time.perf_counter() < end)
        self._number += len(result["batch_s"])
        return result

    def _put(self, in_flight: int) -> dict[str, Any]:
        return self._run(self.contestant.start_put, in_flight, lambda n: n < self.plan.batches)

    def _run(
        self, start: Callable[[int], Any], in_flight: int, more: Callable[[int], bool]
    ) -> dict[str, Any]:
        """At least one batch, and then as many as there are `more` of."""
        open_: deque[tuple[float, Any]] = deque()
        batch_s: list[float] = []
        cpu_before, began = cpu_s(), time.perf_counter()
        started = 0
        while open_ or started == 0 or more(started):
            if len(open_) < in_flight and (started == 0 or more(started)):
                open_.append((time.perf_counter(), start(started)))
                started += 1
                continue
            at, handle = open_.popleft()
            self.contestant.finish(handle)
            batch_s.append(time.perf_counter() - at)
        wall_s = time.perf_counter() - began
        moved = started * self.plan.batch_blocks * self.plan.block_bytes
        return {
            "bytes": moved, "wall_s": wall_s, "cpu_s": cpu_s() - cpu_before, "batch_s": batch_s,
        }  # fmt: skip

    def _check(self) -> dict[str, Any]:
        expected, good = self.plan.data(), True
        for number in range(self.plan.batches):
            self.contestant.finish(self.contestant.start_get(number, 0))
            loaded = self.contestant.loaded(0)
            if loaded is None:
                return {"same": None}
            good = good and bool((loaded == expected[self.contestant.batch(number)]).all())
            loaded[:] = 0
        return {"same": good}

    def _match(self, count: int) -> dict[str, Any]:
        if not self._match_ids:
            self._match_ids = self.plan.ids(MATCH_IDS, seed=2)
        self.contestant.store_match_blocks(self._match_ids)
        call_s = []
        for _ in range(count):
            began = time.perf_counter()
            self.contestant.match(self._match_ids)
            call_s.append(time.perf_counter() - began)
        return {"call_s": call_s}

    def _spin(self, on: bool) -> dict[str, Any]:
        if not on:
            self._spinning.clear()
            return {}
        self._spinning.set()

        def spin() -> None:
            n = 0
            while self._spinning.is_set():
                for _ in range(10_000):
                    n += 1

        threading.Thread(target=spin, daemon=True).start()
        return {}


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with who started us
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not look like an answer
    name, plan = sys.argv[1], Plan(**json.loads(sys.argv[2]))
    process = Process(plan, make(name, plan))
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(process.answer(line.split())), file=out, flush=True)


if __name__ == "__main__":
    main()
