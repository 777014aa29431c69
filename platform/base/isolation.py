"""Rounds over tenants: an unexpected error of one is logged and counted, and the round goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from structlog.contextvars import bound_contextvars

from base import log_events
from base.counting import TASK_FAILURES


@contextmanager
def isolated(kind: str, tenant_id: int | None) -> Iterator[None]:
    """Swallows every Exception of the block. `kind`: of the work, as in `catalog.kinds`. Not for a
    block inside a transaction, which a database error would have broken."""
    try:
        with bound_contextvars(**({} if tenant_id is None else {"tenant_id": tenant_id})):
            yield
    except Exception:
        log_events.TASK_FAILED.log(kind=kind, tenant_id=tenant_id, exc_info=True)
        TASK_FAILURES.add(kind)
