"""SQLite's one write lock. PostgreSQL has none, so nothing happens there.

Who waits for it in SQLite only asks again and again, up to ten times a second: of dozens of
waiting heartbeats some asked at no free moment for two seconds, although each took milliseconds.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection

_TURN = threading.Lock()


@contextmanager
def in_turn() -> Iterator[None]:
    """Around a transaction: threads of this process wait for each other in a queue. Raises
    OperationalError after NEVE_DATABASE_WAIT_S."""
    if connection.vendor != "sqlite":
        yield
        return
    if not _TURN.acquire(timeout=connection.settings_dict["OPTIONS"]["timeout"]):
        raise OperationalError("database is locked")
    try:
        yield
    finally:
        _TURN.release()


@contextmanager
def or_never() -> Iterator[None]:
    """Around a transaction that is no reason to wait: it raises OperationalError at once."""
    if connection.vendor != "sqlite":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        wait_ms = int(1000 * connection.settings_dict["OPTIONS"]["timeout"])
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {wait_ms}")
