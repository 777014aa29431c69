"""Many settings of simulated tiers on one workload, in parallel processes.

The only module here that starts anything: results do not depend on the number of processes.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from neve.errors import Closed
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.tiers import Result, Setting, run

_ASK_S = 0.2  # seconds between two questions whether the sweep was cancelled


def sweep(
    settings: Sequence[Setting],
    requests: Sequence[BlockRequest],
    *,
    processes: int = 1,
    bucket_s: float | None = None,
    count_from_s: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """Returns the results of `tiers.run` in the order of `settings`.

    `progress(done, total)` and `cancelled()` are called in the caller's thread: `progress` at the
    beginning and after each setting. With more than one process each gets its own copy of the
    requests. A cancelled sweep ends after the settings that are running, at most `processes`.

    Raises: Closed if it was cancelled, Misuse as `run` does.
    """
    total = len(settings)
    progress(0, total)
    if min(processes, total) <= 1:
        results = []
        for setting in settings:
            _stop_if(cancelled)
            results.append(run(setting, requests, bucket_s=bucket_s, count_from_s=count_from_s))
            progress(len(results), total)
        return results
    # Neither threads nor locks of the caller's process are copied into the new ones.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(processes, total),
        mp_context=context,
        initializer=_begin,
        initargs=(list(requests), bucket_s, count_from_s),
    )
    try:
        futures = [pool.submit(_run, setting) for setting in settings]
        running: set[Future[Result]] = set(futures)
        while running:
            _stop_if(cancelled)
            done, running = wait(running, timeout=_ASK_S, return_when=FIRST_COMPLETED)
            if done:
                progress(total - len(running), total)
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Closed("the sweep was cancelled")


_requests: list[BlockRequest] = []
_bucket_s: float | None = None
_count_from_s: float | None = None


def _begin(
    requests: list[BlockRequest], bucket_s: float | None, count_from_s: float | None
) -> None:
    """In a new process. Ctrl-C reaches all processes of a terminal; the caller's one ends them."""
    global _requests, _bucket_s, _count_from_s  # of a process that does only this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _requests, _bucket_s, _count_from_s = requests, bucket_s, count_from_s


def _run(setting: Setting) -> Result:
    return run(setting, _requests, bucket_s=_bucket_s, count_from_s=_count_from_s)
