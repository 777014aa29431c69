"""Ticks of beat reach a worker whatever its clock says, and do not pile up without one."""

import sys
from contextlib import contextmanager

import pytest

from support.servers import Server, wait_until
from torture.clock import Clock

pytestmark = pytest.mark.integration


class Part(Server):
    """`celery beat` or `celery worker` over a platform's environment, with a clock of its own."""

    def __init__(self, platform, name, options, clock=None):
        super().__init__(platform.folder)
        self.platform, self.clock = platform, clock
        self.name = name
        self.log = platform.folder / f"{name}.log"
        self.options = options

    def environment(self):
        own = {} if self.clock is None else self.clock.environment
        return self.platform.environment() | own

    def command(self):
        return [sys.executable, "-m", "celery", "-A", "controlplane", *self.options]

    def ready(self):
        return b"ready." in self.said or b"beat: Starting" in self.said

    @property
    def said(self):
        return self.log.read_bytes()


@contextmanager
def beat(platform):
    schedule = str(platform.folder / "ticks-schedule")
    options = ["beat", "--schedule", schedule, "--pidfile=", "--loglevel", "DEBUG"]
    with Part(platform, "beat", options) as part:
        yield part


@contextmanager
def worker(platform, clock):
    options = ["worker", "--concurrency", "1", "--loglevel", "DEBUG"]
    with Part(platform, "ticked", options, clock) as part:
        yield part


def waiting(platform):
    """The tasks of the messages in all queues."""
    with platform.bus.client() as bus:
        queues = [key for key in bus.keys("*at-risk") if bus.type(key) == b"list"]
        return [message for queue in queues for message in bus.lrange(queue, 0, -1)]


def test_ticks_wait_once_and_run_on_a_worker_whose_clock_is_ahead(control_plane, tmp_path):
    clock = Clock(tmp_path, "worker")
    clock.offset_s = 3600
    with beat(control_plane) as ticking:
        done = b"Sending due task flush"
        wait_until(lambda: ticking.said.count(done) >= 4, what="ticks")
        messages = waiting(control_plane)
        assert sum(b'"workers.flush"' in message for message in messages) == 1
        with worker(control_plane, clock) as ahead:
            ran = b"Task workers.flush"
            wait_until(lambda: ahead.said.count(ran) >= 6, what="flushes")
            assert b"revoked" not in ahead.said
