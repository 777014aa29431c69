"""Pages are rendered by a child of the web process; its end costs no page."""

import asyncio
import os
import re
import signal
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing import Pipe
from typing import Any

import pytest
import urllib3
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory

from controlplane.handler import PooledHandler
from controlplane.page_process import PageProcess
from support.servers import ControlPlane, wait_until

pytestmark = pytest.mark.integration

SIGN_IN = """
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
browser = Client()
browser.force_login(User.objects.get(username="operator"))
print("TOLD", settings.SESSION_COOKIE_NAME, browser.cookies[settings.SESSION_COOKIE_NAME].value)
"""
SHORT_S = 0.5
READY_S = 240


def test_a_page_of_a_child_that_dies_is_answered(control_plane: ControlPlane):
    told = re.search(r"TOLD (\S+) (\S+)", control_plane.manage("shell", "-v0", "-c", SIGN_IN))
    assert told
    http = urllib3.PoolManager(headers={"Cookie": f"{told[1]}={told[2]}"}, retries=False)
    pool = ThreadPoolExecutor()

    def page() -> Future[urllib3.BaseHTTPResponse]:
        return pool.submit(http.request, "GET", f"{control_plane.url}/jobs/", timeout=60)

    assert page().result().status == 200  # starts the child
    deadline = time.monotonic() + READY_S
    while True:  # until a page waits for the child
        (child,) = control_plane.children()
        os.kill(child, signal.SIGSTOP)
        asked = page()
        if wait([asked], timeout=SHORT_S).not_done:
            break
        os.kill(child, signal.SIGCONT)
        assert time.monotonic() < deadline, "the child renders no page"
    assert http.request("GET", f"{control_plane.url}/healthz").status == 200
    os.kill(child, signal.SIGKILL)
    assert asked.result().status == 200
    assert page().result().status == 200


def test_a_child_that_hangs_is_killed_and_the_page_answered_without_it():
    pages = PageProcess(1, patience_s=0.1)
    pages._child = hanging = subprocess.Popen(["sleep", "600"])
    ours, theirs = Pipe()
    pages._free, pages._start_at = [ours], float("inf")
    assert pages.render({"type": "http", "path": "/"}) is None
    assert theirs.recv() == {"type": "http", "path": "/"}  # it was asked
    assert hanging.returncode == -signal.SIGKILL
    assert pages.render({}) is None  # without waiting again


class SlowPages(PooledHandler):
    """Pages are made once `go` is set; `begun`: their numbers. A session is named by its viewer."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[str] = []
        self.go = asyncio.Event()
        self.answers.viewer = self.viewer

    async def viewer(self, session: str) -> Any:
        role, _, tenant = session.partition("-")[0].partition(":")
        return (role, tenant) if role else None

    async def _page(self, request: HttpRequest) -> HttpResponse:
        self.begun.append(request.GET["page"])
        await self.go.wait()
        return HttpResponse()

    async def asked(self, page: str, session: str) -> "asyncio.Task[Any]":
        """A browser has asked, and everything has happened that can."""
        request = AsyncRequestFactory().get("/jobs/", {"page": page})
        request.COOKIES[settings.SESSION_COOKIE_NAME] = session
        task = asyncio.create_task(self.get_response_async(request))
        for _ in range(20):
            await asyncio.sleep(0)
        return task


def test_who_asks_and_leaves_waits_for_the_page_of_before():
    async def scenario() -> None:
        pages = SlowPages()
        left = await pages.asked("1", "team:acme-1")
        left.cancel()
        asked = await pages.asked("2", "team:acme-1")
        assert pages.begun == ["1"]
        pages.go.set()
        await asked
        assert left.cancelled()
        assert pages.begun == ["1", "2"]

    asyncio.run(scenario())


def test_many_sessions_of_one_tenant_leave_turns_to_others():
    async def scenario() -> None:
        pages = SlowPages()
        asked = [await pages.asked(f"{n}", f"team:acme-{n}") for n in range(5)]
        asked.append(await pages.asked("other", "team:globex-1"))
        assert pages.begun == ["0", "other"]
        pages.go.set()
        await asyncio.gather(*asked)

    asyncio.run(scenario())


def test_operators_wait_for_pages_of_their_own_session_only():
    async def scenario() -> None:
        pages = SlowPages()
        asked = [await pages.asked(f"{n}", f"operator:-{n}") for n in (1, 1, 2)]
        assert pages.begun == ["1", "2"]
        pages.go.set()
        await asyncio.gather(*asked)

    asyncio.run(scenario())


def test_a_process_whose_child_ended_takes_nothing_till_the_next_one_starts():
    pages = PageProcess(1)
    assert pages.free == 2  # comes first, to start its child
    assert pages.render({}) is None
    wait_until(lambda: pages.free == 1, what="the child")
    child = pages._child
    child.kill()
    child.wait()
    assert pages.render({}) is None  # notices it
    assert pages.free == 0
