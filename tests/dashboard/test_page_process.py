"""Pages are rendered by a child of the web process; its end costs no page."""

import os
import re
import signal
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing import Pipe

import pytest
import urllib3

from controlplane.page_process import PageProcess
from support.servers import ControlPlane

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
READY_S = 60


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
