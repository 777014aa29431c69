"""Streams of a real web process: nothing is missed over its death, and waiting costs little."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import urllib3

from events.feed import MOST_OF_READER
from support.event_stream import EventStream, take
from support.servers import ROOT, ControlPlane, SecondWeb, wait_until

pytestmark = pytest.mark.integration

MAKE_KEYS = """
from tenants.models import Tenant
from tenants.services import create_tenant, issue_key
other = Tenant.objects.filter(slug="other").first() or create_tenant(
    slug="other", name="Other", hot_bytes=0, overcommit=True)
demo = Tenant.objects.get(slug="demo")
keys = [issue_key(tenant=each, role="team", name="stream") for each in [demo] * 4 + [other]]
print(*(text for key, text in keys))
"""
# Transactions of several threads overlap; a fifth of them is undone and tried again.
EMIT = """
import random, time
from concurrent.futures import ThreadPoolExecutor
from django.db import connections, transaction
from events.services import emit
from tenants.models import Tenant
ids = dict(Tenant.objects.values_list("slug", "pk"))
def write(writer):
    chance = random.Random(writer)
    for n in range({each}):
        subject = {{"type": "node", "id": f"{{writer}}-{{n}}", "name": "n"}}
        with transaction.atomic():
            emit("webhook.test", tenant_id=ids["demo"], subject=subject)
            emit("webhook.test", tenant_id=ids["other"], subject=subject)
            time.sleep(chance.random() / 50)
    connections.close_all()
with ThreadPoolExecutor() as pool:
    list(pool.map(write, {writers}))
"""


def shell(platform: ControlPlane, code: str) -> str:
    return platform.manage("shell", "--no-imports", "-v0", "-c", code)


@pytest.fixture(scope="module")
def web(control_plane) -> Iterator[SecondWeb]:
    with SecondWeb(control_plane) as second:
        yield second


@pytest.fixture(scope="module")
def keys(control_plane) -> list[str]:
    return shell(control_plane, MAKE_KEYS).split()[-5:]


@pytest.fixture
def opened(web) -> Iterator[list[EventStream]]:
    streams: list[EventStream] = []
    yield streams
    for stream in streams:
        stream.close()


def test_a_killed_web_process_makes_nobody_miss_or_repeat_an_event(
    control_plane, web, keys, opened
):
    stream = EventStream(keys[0], query="?types=webhook.*")
    opened.append(stream.connect(web.url))
    code = EMIT.format(writers=[0, 1, 2], each=30)
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-v0", "-c", code]
    emitter = subprocess.Popen(command, cwd=ROOT, env=control_plane.environment())
    seen = take(stream, 20)
    web.kill()
    seen += [data for _, data in stream.events()]  # what was on its way
    assert emitter.wait(60) == 0
    shell(control_plane, EMIT.format(writers=[3], each=30))  # nobody streams these yet
    web.restart()
    stream.connect(web.url)
    seen += take(stream, 120 - len(seen))
    expected = {f"{writer}-{n}" for writer in range(4) for n in range(30)}
    assert sorted(each["subject"]["id"] for each in seen) == sorted(expected)
    assert {each["tenant"] for each in seen} == {"demo"}
    numbers = [each["sequence"] for each in seen]
    assert numbers == sorted(numbers)


def test_a_stream_ends_with_its_key(control_plane, web, keys, opened):
    stream = EventStream(keys[4])
    opened.append(stream.connect(web.url))
    prefix = keys[4].split("_")[1]
    shell(
        control_plane,
        "from tenants.models import ApiKey; from tenants.audit import SYSTEM; "
        "from tenants.services import revoke_key; "
        f"revoke_key(key=ApiKey.unscoped.get(prefix='{prefix}'), actor=SYSTEM)",
    )
    last = list(stream.events())[-1]
    assert last[0] == "end"
    assert last[1]["type"] == "/problems/unauthorized"
    again = EventStream(keys[4], last_id=stream.last_id)
    opened.append(again.connect(web.url))
    assert again.status == 401


def test_waiting_streams_hold_neither_threads_nor_connections(control_plane, web, keys, opened):
    def one(key: str) -> None:
        opened.append(EventStream(key).connect(web.url))
        assert opened[-1].status == 200

    process = psutil.Process(web.process.pid)

    port = urllib3.util.parse_url(control_plane.database_url).port  # None: SQLite

    def connections() -> int:
        files = [file.path for file in process.open_files() if "neve.sqlite3" in file.path]
        peers = [each.raddr.port for each in process.net_connections() if each.raddr]
        return len(files) + (peers.count(port) if port else 0)

    one(keys[1])
    assert urllib3.request("GET", f"{web.url}/healthz", retries=False).status == 200
    threads, held = process.num_threads(), connections()
    for key in keys[1:4]:
        for _ in range(MOST_OF_READER - 1):
            one(key)
    wait_until(
        lambda: process.num_threads() <= threads + 6 and connections() <= held + 3,
        what=f"{process.num_threads()} threads instead of {threads}, {connections()} connections",
    )
    refused = EventStream(keys[1])
    opened.append(refused.connect(web.url))
    assert refused.status == 429
