"""Simulations in a process of their own, so that their time and memory are bounded.

The process is nice to others, ends by itself after LIMIT_CPU_S, and is killed at LIMIT_S or when
the job is cancelled. It gets its task and the sampled requests as JSON Lines on standard input, and
answers lines: progress, then the result.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from neve.errors import Misuse
from neve.planner.simulate.requests import BlockRequest

LIMIT_S: Final = 420.0  # below Celery's time limit of a task
LIMIT_CPU_S: Final = 400
LIMIT_BYTES: Final = 3 << 30  # of address space
NO_MEMORY: Final = 3  # exit code of the process
_CHILD: Final = Path(__file__).with_name("simulate_child.py")


class TooMuch(Exception):
    """The simulation reached its limit of time or memory."""


def simulate(
    task: dict[str, Any],
    requests: Iterable[BlockRequest],
    *,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Any]:
    """Runs `simulate_child` on the task. `progress` gets 0 to 1; what it raises ends the process.

    Raises: Misuse as `neve.planner.whatif.compare` does; TooMuch.
    """
    limits = {"cpu_s": LIMIT_CPU_S, "bytes": LIMIT_BYTES}
    child = subprocess.Popen(
        [sys.executable, "-P", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", ""), "OPENBLAS_NUM_THREADS": "1"},
        text=True,
    )
    timer = threading.Timer(LIMIT_S, child.kill)
    timer.start()
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(BrokenPipeError):  # it ended: the loop finds no result
            child.stdin.write(json.dumps({**task, "limits": limits}) + "\n")
            for each in requests:
                child.stdin.write(f"[{each.at_s!r},{list(each.ids)}]\n")
            child.stdin.close()
        for line in child.stdout:
            said = json.loads(line)
            if "progress" in said:
                progress(said["progress"])
            elif "misuse" in said:
                raise Misuse(said["misuse"], field=said["field"])
            else:
                return dict(said["result"])
        if (code := child.wait()) < 0 or code == NO_MEMORY:
            raise TooMuch(
                f"The simulation took more than {LIMIT_CPU_S} s or {LIMIT_BYTES >> 30} GiB of "
                "memory, and was ended: choose a shorter window or fewer changes."
            )
        raise RuntimeError(f"The simulation ended with {code} and no result; the log has more.")
    finally:
        timer.cancel()
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()
