"""The web process itself: concurrent heartbeats lose nothing, a dead bus hurts nobody."""

import copy
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.servers import ControlPlane

pytestmark = pytest.mark.integration

NODES, BEATS = 8, 12


def call(control_plane: ControlPlane, method: str, path: str, body=None):
    request = urllib.request.Request(
        control_plane.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {control_plane.node_key}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        raw = response.read()
        return json.loads(raw) if raw else None


@pytest.fixture
def sessions(control_plane, handshake):
    def open_one(n):
        body = copy.deepcopy(handshake) | {"node": f"node-{n}"}
        return call(control_plane, "POST", "/cache/v1/sessions", body)["session"]

    with ThreadPoolExecutor(NODES) as pool:
        ids = list(pool.map(open_one, range(NODES)))
    yield ids
    for id_ in ids:
        call(control_plane, "DELETE", f"/cache/v1/sessions/{id_}")


def counted(control_plane) -> int:
    code = (
        "from catalog.models import UsageRollup as U; "
        "print(sum(U.unscoped.filter(resolution_s=3600).values_list('put_blocks', flat=True)))"
    )
    return int(control_plane.manage("shell", "--no-imports", "-v0", "-c", code).split()[-1])


def test_concurrent_heartbeats_are_all_counted(control_plane, sessions):
    before = counted(control_plane)

    def beat(job):
        id_, seq = job
        body = {"seq": seq, "counters": {"put_blocks": 1}, "misses": {"evicted": 1}}
        call(control_plane, "POST", f"/cache/v1/sessions/{id_}/heartbeat", body)

    with ThreadPoolExecutor(NODES) as pool:
        for seq in range(1, BEATS + 1):
            list(pool.map(beat, [(id_, seq) for id_ in sessions]))
    assert counted(control_plane) - before == NODES * BEATS


def test_without_the_bus_handshake_and_heartbeat_go_on(control_plane, sessions, handshake):
    control_plane.bus.kill()
    try:
        body = copy.deepcopy(handshake) | {"node": "late"}
        id_ = call(control_plane, "POST", "/cache/v1/sessions", body)["session"]
        beat = {"seq": 1, "counters": {"put_blocks": 1}}
        assert call(control_plane, "POST", f"/cache/v1/sessions/{id_}/heartbeat", beat)
        call(control_plane, "DELETE", f"/cache/v1/sessions/{id_}")
    finally:
        control_plane.bus.restart()
