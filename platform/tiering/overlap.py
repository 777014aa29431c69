"""Overlaps calls that wait for S3; results come in order, and their number is bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def overlapped(
    act: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, act(item)), with up to `at_once` calls ahead. Raises what `act` raises."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="overlap") as pool:
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                ahead.append((item, pool.submit(act, item)))
                if len(ahead) > at_once:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
