"""Whether the platform's servers answer, probed in the background so that no page waits.

A page reads the last answer; an old one starts a new probe. Unknown until the first answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Lock, Thread
from time import monotonic

from django.conf import settings

from base import log_events
from controlplane.celery import app as celery_app
from storage import hot_servers, s3


@dataclass(frozen=True)
class Answer:
    """`is_well` is None until known; `since` is when it became so."""

    is_well: bool | None = None
    words: str = ""
    since: datetime | None = None


class Probe:
    """One server. `ask` returns words that say it is well, or raises."""

    def __init__(self, name: str, ask: Callable[[], str], *, every_s: float) -> None:
        self.name = name
        self._ask = ask
        self._every_s = every_s
        self._lock = Lock()
        self._answer = Answer()
        self._asked_at = float("-inf")

    def read(self) -> Answer:
        with self._lock:
            if monotonic() - self._asked_at >= self._every_s:
                self._asked_at = monotonic()
                Thread(target=self.ask, name=f"probe-{self.name}", daemon=True).start()
            return self._answer

    def ask(self) -> Answer:
        """Asks now and waits for the answer."""
        try:
            answer = Answer(True, self._ask(), datetime.now(UTC))
        except Exception as error:  # whatever it is, the page says "does not answer"
            log_events.PROBE_FAILED.log(probe=self.name, exc_info=True)
            answer = Answer(False, type(error).__name__, datetime.now(UTC))
        with self._lock:
            if answer.is_well is self._answer.is_well:
                answer = replace(answer, since=self._answer.since)
            self._answer = answer
        return answer


def _ask_hot() -> str:
    for client in hot_servers.primaries():
        client.ping()
    return "ok"


def _ask_cold() -> str:
    s3.client().head_bucket(Bucket=settings.ENV.s3_bucket)
    return "ok"


def _ask_workers() -> str:
    workers = celery_app.control.inspect(timeout=1.0).ping()
    if not workers:
        raise LookupError("no worker answers")
    return str(len(workers))


HOT = Probe("valkey-hot", _ask_hot, every_s=5)
COLD = Probe("s3", _ask_cold, every_s=15)
WORKERS = Probe("workers", _ask_workers, every_s=15)
ALL = (HOT, COLD, WORKERS)
