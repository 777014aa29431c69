"""How many SQL statements a request costs."""

from collections.abc import Callable
from typing import TypeVar

from django.db import connection
from django.test.utils import CaptureQueriesContext

T = TypeVar("T")


def least_statements(ask: Callable[[], T]) -> tuple[T, int]:
    """Asks three times, since some things are read once, or again after seconds. Returns the last
    answer, and the statements of the cheapest one."""
    counts = []
    for _ in range(3):
        with CaptureQueriesContext(connection) as statements:
            answer = ask()
        counts.append(len(statements))
    return answer, min(counts)
