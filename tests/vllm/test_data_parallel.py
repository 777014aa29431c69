"""Two data-parallel engines behind one server: sessions of their own, one store."""

import pytest

from support.servers import wait_until
from support.vllm_server import VllmServer

pytestmark = pytest.mark.vllm

SHOW_SESSIONS = """
from catalog.models import NodeSession
for session in NodeSession.unscoped.filter(node__startswith="gpu-08", ended_at=None):
    print(session.node)
"""


def test_engines_of_one_server_do_not_replace_each_other(
    platform, vllm_python, model, engine_environment, tmp_path_factory
):
    env = engine_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", NEVE_API_KEY=platform.node_key)
    neve = {
        "endpoint": platform.url,
        "node": "gpu-08",
        "load": "always",
        "canary": 0,
        "max_chunk_tokens": 64,
    }
    neve |= {"match_deadline_s": 5, "load_deadline_s": 20, "revision": "data parallel"}
    folder = tmp_path_factory.mktemp("replicas")
    with VllmServer(
        folder, vllm_python, model, neve, env, more=("--data-parallel-size", "2")
    ) as server:

        def sessions():
            return set(platform.manage("shell", "-v", "0", "-c", SHOW_SESSIONS).split())

        # Here every engine has its worker in a process of its own.
        every = {node + part for node in ("gpu-08", "gpu-08/dp1") for part in ("", "/scheduler")}
        wait_until(lambda: sessions() == every, what="sessions")
        first = server.complete()["choices"][0]["text"]
        for _ in range(4):  # whichever engine answers
            assert server.complete()["choices"][0]["text"] == first
        assert sessions() == every
