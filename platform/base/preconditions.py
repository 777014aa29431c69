"""Changes that apply only to a row as the caller saw it (`If-Match` of RFC 9110).

The API says which row must be unchanged; the service that changes it calls `require_unchanged` in
its transaction, before the first write. A check outside of it would miss a change that another
request commits between the check and the write.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction

from base.problems import Problem


@dataclass
class Expected:
    """`is_current` locks the row for the transaction under way, reads it and compares."""

    model: type[models.Model]
    pk: Any
    is_current: Callable[[], bool]
    is_checked: bool = False


_expected: ContextVar[Expected | None] = ContextVar("neve_expected", default=None)


@contextmanager
def expecting(expected: Expected) -> Iterator[None]:
    """For the changes inside, on this thread or in this coroutine."""
    token = _expected.set(expected)
    try:
        yield
    finally:
        _expected.reset(token)


def require_unchanged(row: models.Model) -> None:
    """Call in the transaction of a change, before its first write. Nothing without `If-Match`.

    Checks once: later transactions of the same request meet the request's own change.
    Raises Problem (precondition-failed), RuntimeError outside of a transaction.
    """
    expected = _expected.get()
    if expected is None or expected.is_checked:
        return
    if expected.model is not type(row) or expected.pk != row.pk:
        return
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("a precondition holds only inside the transaction of the change")
    expected.is_checked = True
    if not expected.is_current():
        raise changed()


def changed() -> Problem:
    return Problem(
        "precondition-failed",
        "If-Match: the object has changed since you read it.",
        field="If-Match",
    )
