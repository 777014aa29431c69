"""Figures on their way to vLLM's metrics."""

import json
from types import SimpleNamespace

from neve.datapath.status import BreakerState
from neve.engine import telemetry
from neve.engine.telemetry import Telemetry
from neve.errors import MissReason
from neve.node.stats import Stats


class Client:
    def __init__(self):
        self.stats = Stats()
        self.breaker = BreakerState.CLOSED
        self.local = None


def test_only_new_figures_are_taken():
    side = Telemetry()
    assert side.take() is None
    side.count("hit_tokens", 64, "hot")
    side.count("hit_tokens", 0, "cold")
    side.sample("load_seconds", 0.5)
    side.gauge("connected", 1)
    data = side.take()
    assert data["counters"] == {"hit_tokens": {"hot": 64}}
    assert (data["gauges"], data["samples"]) == ({"connected": {"": 1}}, {"load_seconds": [0.5]})
    side.gauge("connected", 1)
    assert side.take() is None
    side.gauge("connected", 0)
    assert side.take()["gauges"] == {"connected": {"": 0}}


def test_what_the_client_counted_is_taken_over_once():
    side, client = Telemetry(), Client()
    for _ in range(2):
        client.stats.count(hot_read_bytes=10, cold_read_bytes=5, hot_write_bytes=7, dropped=2)
        client.stats.count(put_refused=1, corrupt=1, promoted_blocks=4)
        client.stats.drop(MissReason.TIMEOUT, 2)
        client.stats.miss(MissReason.EVICTED, 3)
        side.read(client)
        side.read(client)
        assert side.take()["counters"] == {
            "read_bytes": {"hot": 10, "cold": 5},
            "written_bytes": {"": 7},
            "unsaved_blocks": {"dropped": 2, "refused": 1},
            "dropped_blocks": {"timeout": 2},
            "promoted_blocks": {"": 4},
            "corrupt_blocks": {"": 1},
            "missed_blocks": {"evicted": 3},
        }
    side.read(client)
    assert side.take() is None


def test_breaker_and_connection_are_gauges():
    side, client = Telemetry(), Client()
    side.read(None)
    assert side.take()["gauges"] == {"connected": {"": 0}}
    client.breaker = BreakerState.OPEN
    side.read(client)
    assert side.take()["gauges"] == {"connected": {"": 1}, "breaker": {"": 2}}


def test_a_local_tier_is_counted_as_one_of_its_own():
    side, client = Telemetry(), Client()
    client.local = SimpleNamespace(
        used_bytes=9, read_breaker=SimpleNamespace(state=BreakerState.OPEN.value)
    )
    client.stats.count(local_read_bytes=5, local_write_bytes=7, local_bad_blocks=1)
    side.read(client)
    data = side.take()
    assert data["counters"] == {
        "read_bytes": {"local": 5},
        "local_written_bytes": {"": 7},
        "local_bad_blocks": {"": 1},
    }
    assert data["gauges"]["local_used_bytes"] == {"": 9}
    assert data["gauges"]["local_breaker"] == {"": 2}


def test_second_requests_are_counted_once():
    side, client = Telemetry(), Client()
    for outcome in ("begun", "begun", "won"):
        client.stats.second_request(outcome)
    side.read(client)
    assert side.take()["counters"] == {"second_requests": {"begun": 2, "won": 1}}
    client.stats.second_request("begun")
    side.read(client)
    assert side.take()["counters"] == {"second_requests": {"begun": 1}}


def test_sides_and_steps_add_up_and_survive_the_way_between_processes():
    worker, scheduler = Telemetry(), Telemetry()
    worker.count("read_bytes", 5, "hot")
    scheduler.count("hit_tokens", 64, "hot")
    scheduler.sample("load_seconds", 0.2)
    scheduler.sample("load_seconds", 0.1)
    total = telemetry.empty()
    assert telemetry.is_empty(total)
    for _ in range(2):
        for side in (worker.take(), scheduler.take()):
            telemetry.merge(total, json.loads(json.dumps(side or telemetry.empty())))
        worker.count("read_bytes", 6, "cold")
        scheduler.count("hit_tokens", 1, "hot")
        scheduler.sample("load_seconds", 0.9)
    assert total["counters"] == {"read_bytes": {"hot": 5, "cold": 6}, "hit_tokens": {"hot": 65}}
    assert telemetry.summarize(total) == {
        "read_bytes_hot": 5, "read_bytes_cold": 6, "hit_tokens_hot": 65, "load_p50_ms": 200.0
    }  # fmt: skip


def test_every_figure_has_a_metric():
    """Every counted name is a registered metric; a typo would be lost in /metrics."""
    side, client = Telemetry(), Client()
    client.stats.count(hot_read_bytes=1, hot_write_bytes=1, dropped=1, corrupt=1)
    side.read(client)
    data = side.take()
    assert data["counters"].keys() <= {metric.name for metric in telemetry.COUNTERS}
    assert data["gauges"].keys() <= {metric.name for metric in telemetry.GAUGES}


def test_gauges_of_all_sides_are_one_and_the_worst_counts():
    ranks, scheduler = {"a": Telemetry(), "b": Telemetry()}, Telemetry()

    def taken():
        scheduler.note_others(
            {n: news for n, rank in ranks.items() if (news := rank.take_gauges())}
        )
        data = scheduler.take()
        return {name: by[""] for name, by in data["gauges"].items()} if data else {}

    scheduler.gauge("loads_in_flight", 3)
    for rank in ranks.values():
        rank.gauge("connected", 1)
        rank.gauge("breaker", 2)
        rank.gauge("saves_in_flight", 4)
        assert rank.take(gauges=False) is None
    assert taken() == {"loads_in_flight": 3, "connected": 1, "breaker": 2, "saves_in_flight": 8}
    ranks["a"].gauge("breaker", 0)
    ranks["b"].gauge("connected", 0)
    assert taken() == {"connected": 0}
    ranks["b"].gauge("breaker", 0)
    assert taken() == {"breaker": 0}
    assert taken() == {}
