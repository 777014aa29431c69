"""Counters of web and worker processes for GET /metrics, summed on valkey-bus.

Each process adds up in memory, and a thread sends the sums once a second: counting never blocks,
and any web process can report the sums of all processes on all hosts. While the bus is down, a
process keeps its sums. A killed process loses its last second; a send whose reply was lost counts
twice; a bus that lost its memory restarts at 0, which Prometheus reads as a counter reset.

(prometheus_client's multiprocess mode shares files, so it covers only one host.)

Cardinality is bounded by code: routes of the URL conf, kinds of work, registered events. Labels
never hold text from requests.
"""

import logging
import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import uuid4

from django.conf import settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from base import log_events, tracing
from base.once import once
from neve.log_events import LogLine

SEND_EVERY_S = 1.0
ALIVE_S = 10  # a process that sends nothing for so long counts as gone, with its sockets
KEPT_S = 90 * 86_400
TIMEOUT_S = 1.0
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)
OTHER = "other"  # log lines of libraries

SUMS = "neve:counts"  # HASH: metric, part, values of labels → sum
PROCESSES = "neve:counts:processes"  # SET of ids; `neve:counts:process:<id>` → its open sockets

Values = tuple[str, ...]


@dataclass(frozen=True)
class Counted:
    """A counter with labels."""

    name: str
    by: tuple[str, ...]

    def add(self, *values: str) -> None:
        PROCESS.add(_field(self.name, "", values), 1)


@dataclass(frozen=True)
class Timed:
    """A histogram of seconds with labels, in `BUCKETS_S`."""

    name: str
    by: tuple[str, ...]

    def add(self, seconds: float, *values: str) -> None:
        bucket = bisect_left(BUCKETS_S, seconds)
        PROCESS.add(_field(self.name, str(bucket), values), 1)
        PROCESS.add(_field(self.name, "sum", values), seconds)


WEB_REQUESTS = Counted("neve_web_requests", ("route", "status"))
WEB_SECONDS = Timed("neve_web_request_seconds", ("route",))
TASK_SECONDS = Timed("neve_task_seconds", ("kind",))
TASK_FAILURES = Counted("neve_task_failures", ("kind",))
LOG_EVENTS = Counted("neve_log_events", ("event",))
SAMPLES_DROPPED = Counted("neve_samples_dropped", ("reason",))
REQUESTS_DROPPED = Counted("neve_requests_dropped", ("reason",))


def _field(name: str, part: str, values: Iterable[str]) -> str:
    return "\n".join((name, part, *values))


@dataclass(frozen=True)
class Timing:
    """`buckets[i]`: number of durations up to `BUCKETS_S[i]` seconds; the last: of all."""

    buckets: tuple[float, ...]
    sum_s: float


@dataclass(frozen=True)
class BusFacts:
    """Sums of all processes. `queues`: number of waiting messages by queue."""

    sums: Mapping[str, float]
    sockets: int
    queues: Mapping[str, int]

    def counted(self, counted: Counted) -> dict[Values, float]:
        return {values: sum_ for _, values, sum_ in self._of(counted.name)}

    def timed(self, timed: Timed) -> dict[Values, Timing]:
        found: defaultdict[Values, Counter[str]] = defaultdict(Counter)
        for part, values, sum_ in self._of(timed.name):
            found[values][part] = sum_  # type: ignore[assignment]  # a float
        return {values: _timing(parts) for values, parts in found.items()}

    def _of(self, name: str) -> Iterable[tuple[str, Values, float]]:
        for field, sum_ in self.sums.items():
            metric, part, *values = field.split("\n")
            if metric == name:
                yield part, tuple(values), sum_


def _timing(parts: Mapping[str, float]) -> Timing:
    buckets, so_far = [], 0.0
    for number in range(len(BUCKETS_S) + 1):
        so_far += parts.get(str(number), 0.0)
        buckets.append(so_far)
    return Timing(tuple(buckets), parts.get("sum", 0.0))


class Process:
    """Sums of this process since its last send, and its open sockets."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start at zero, also after a fork: the parent sends its own sums."""
        self._lock = threading.Lock()
        self._sums: Counter[tuple[str, str]] = Counter()
        self._id = uuid4().hex
        self._is_away = self._is_started = False
        self.sockets = self._told_sockets = 0

    def add(self, field: str, amount: float, key: str = SUMS) -> None:
        """Adds to a field of the HASH `key`; one other than SUMS expires `KEPT_S` after its last
        count."""
        with self._lock:
            self._sums[key, field] += amount  # type: ignore[assignment]  # a float

    def start(self) -> None:
        """Start the thread that sends the sums every `SEND_EVERY_S`."""
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._run, name="neve-counting", daemon=True).start()

    def _run(self) -> None:
        with tracing.untraced():
            while True:
                time.sleep(SEND_EVERY_S)
                self.send()

    def send(self) -> None:
        """Send the sums now; keep them if the bus does not answer."""
        with self._lock:
            sums, self._sums = self._sums, Counter()
        sockets = self.sockets
        if not (sums or sockets or self._told_sockets):
            return
        try:
            pipe = bus().pipeline(transaction=True)
            for (key, field), amount in sums.items():
                pipe.hincrbyfloat(key, field, amount)
            for key in {key for key, _ in sums} - {SUMS}:
                pipe.expire(key, KEPT_S)
            pipe.sadd(PROCESSES, self._id)
            pipe.set(_sockets_of(self._id), sockets, ex=ALIVE_S)
            pipe.execute()
        except RedisError as error:
            with self._lock:
                self._sums.update(sums)
            if not self._is_away:
                self._is_away = True
                log_events.COUNTS_WAIT.log(error=type(error).__name__)
        else:
            self._is_away, self._told_sockets = False, sockets


PROCESS = Process()
os.register_at_fork(after_in_child=PROCESS.begin)


def read(queues: Iterable[str]) -> BusFacts | None:
    """Send this process's sums, then read those of all. None: the bus does not answer."""
    PROCESS.send()
    names = list(queues)
    try:
        pipe = bus().pipeline(transaction=False)
        pipe.hgetall(SUMS)
        pipe.smembers(PROCESSES)
        for name in names:
            pipe.llen(name)
        sums, ids, *waiting = pipe.execute()
        return BusFacts(
            sums={field.decode(): float(sum_) for field, sum_ in sums.items()},
            sockets=_open_sockets([id_.decode() for id_ in ids]),
            queues=dict(zip(names, waiting, strict=True)),
        )
    except RedisError:
        return None


def _open_sockets(ids: list[str]) -> int:
    if not ids:
        return 0
    told = bus().mget([_sockets_of(id_) for id_ in ids])
    if gone := [id_ for id_, sockets in zip(ids, told, strict=True) if sockets is None]:
        bus().srem(PROCESSES, *gone)
    return sum(int(sockets or 0) for sockets in told)


def _sockets_of(id_: str) -> str:
    return f"neve:counts:process:{id_}"


@once
def bus() -> Redis:
    """A client without retries: a repeated HINCRBYFLOAT would count twice."""
    return Redis.from_url(
        settings.ENV.bus_url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


class CountEvents(logging.Filter):
    """Counts warnings and errors by event; drops no line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            match record.args:
                case (LogLine() as line,):
                    LOG_EVENTS.add(line.event.name)
                case _:
                    LOG_EVENTS.add(OTHER)
        return True
