"""What the page Tiers says of the hot tier's servers is what Valkey says."""

import pytest

from storage import hot_figures, hot_servers
from support.servers import ValkeyServer

pytestmark = [pytest.mark.integration]


def test_figures_of_a_real_server(clean_hot: ValkeyServer):
    with clean_hot.client() as client:
        client.set("a", b"x" * 10_000)
        for _ in range(100):
            client.get("a")
    (found,) = hot_figures.figures()
    told = hot_servers.primaries()[0].info()
    assert found.address.endswith(f":{clean_hot.port}")
    assert found.version == told["valkey_version"]
    assert found.used_bytes == pytest.approx(told["used_memory"], rel=0.5)
    assert found.max_bytes == told["maxmemory"]
    assert found.fragmentation is None  # of a nearly empty server it would mean nothing
    reads = {command.name: command for command in found.commands}.get("get")
    shares = sum(command.share for command in found.commands)
    assert 0 < shares <= 1
    assert reads is None or (reads.calls >= 100 and reads.p99_ms >= reads.p50_ms)


def test_fragmentation_and_the_longest_commands():
    told = {
        **{"valkey_version": "9.1.2", "uptime_in_seconds": 60, "connected_clients": 3},
        **{"used_memory": 1 << 30, "used_memory_rss": 3 << 29, "maxmemory": 2 << 30},
        **{"instantaneous_ops_per_sec": 12},
        **{"instantaneous_input_kbps": 2.0, "instantaneous_output_kbps": 4.0},
        **{f"cmdstat_c{n}": {"calls": n, "usec": 100 * n} for n in range(1, 9)},
        "latency_percentiles_usec_c8": {"p50": 3.007, "p99": 900.0, "p99.9": 1000.0},
    }
    found = hot_figures.primary_of("here:1", told)
    assert found.fragmentation == 1.5
    assert (found.in_bytes_per_s, found.out_bytes_per_s) == (2048, 4096)
    assert [command.name for command in found.commands] == ["c8", "c7", "c6", "c5", "c4"]
    assert found.commands[0].share == pytest.approx(800 / 3600)
    assert (found.commands[0].p50_ms, found.commands[0].p99_ms) == (0.003007, 0.9)
    assert found.commands[1].p99_ms is None
