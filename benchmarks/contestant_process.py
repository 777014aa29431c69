"""One client under measurement, in a process of its own: `contestant_process.py NAME PLAN-AS-JSON`.

Answers each line of stdin with one line of JSON. Commands:
    get SECONDS IN_FLIGHT   loads batches round robin over the data set for SECONDS
    put 0 IN_FLIGHT         stores the whole data set once
    check                   loads the whole data set once and compares it
    match COUNT             calls `match` with 512 ids COUNT times; seconds of each call
    spin 0|1                stops or starts a Python thread that computes without end
Processor times are of this process alone; it sleeps between commands.
"""

import ctypes
import json
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from contestant import Contestant, Plan

MATCH_IDS: Final = 512


def make(name: str, plan: Plan) -> Contestant:
    """Import only the named client's module: the others' packages may be missing."""
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
        """Run at least one batch, then further ones while `more` says so."""
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
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    out = sys.stdout
    sys.stdout = sys.stderr  # output of libraries must not look like an answer
    name, plan = sys.argv[1], Plan(**json.loads(sys.argv[2]))
    process = Process(plan, make(name, plan))
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(process.answer(line.split())), file=out, flush=True)


if __name__ == "__main__":
    main()
