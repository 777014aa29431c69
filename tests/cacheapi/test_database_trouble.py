"""A database that another process holds: reads go on, writes are told to come again, in time."""

import json
import sqlite3
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager

import pytest

from support import testsettings

pytestmark = [
    pytest.mark.sqlite,
    pytest.mark.integration,
    pytest.mark.skipif(bool(testsettings.POSTGRES_URL), reason="PostgreSQL has no such lock"),
]

LATE_S = 15.0  # web processes wait 2 s for the lock, others 20 s


def ask(control_plane, method, path, key, body=None):
    """(status, headers, body, seconds)."""
    request = urllib.request.Request(
        control_plane.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    began = time.monotonic()
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with closing(answer):
        raw = answer.read()
    return answer.status, answer.headers, json.loads(raw or "null"), time.monotonic() - began


@contextmanager
def write_lock(control_plane):
    database = sqlite3.connect(control_plane.folder / "neve.sqlite3", isolation_level=None)
    with closing(database):
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


def test_who_reads_needs_no_write_lock_and_who_writes_is_told_when_to_come_again(
    control_plane, handshake
):
    issue = (
        "from tenants import services; from tenants.models import Tenant; "
        "demo = Tenant.objects.get(slug='demo'); "
        "print(services.issue_key(tenant=demo, role='team', name='t')[1])"
    )
    team_key = control_plane.manage("shell", "-v0", "-c", issue).split()[-1]
    node_key = control_plane.node_key
    _, _, session, _ = ask(control_plane, "POST", "/cache/v1/sessions", node_key, handshake)
    beat = f"/cache/v1/sessions/{session['session']}/heartbeat"
    body = {"seq": 1, "counters": {}, "misses": {}, "load_ms": {}, "breaker": "closed"}
    with write_lock(control_plane):
        status, _, _, took_s = ask(control_plane, "GET", "/api/v1/contexts", team_key)
        assert (status, took_s < LATE_S) == (200, True)
        status, headers, problem, took_s = ask(control_plane, "POST", beat, node_key, body)
        assert (status, problem["type"]) == (503, "/problems/database-unavailable")
        assert headers["Retry-After"] == "2"
        assert took_s < LATE_S
    assert ask(control_plane, "POST", beat, node_key, body)[0] == 200
