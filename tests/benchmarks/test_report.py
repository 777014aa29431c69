"""The headline is built from the rounds' ratios of the right cell."""

from typing import Any

from benchmarks.report import headline, percentile, table


def row(primaries: int, operation: str, contestant: str, *speeds: float) -> dict[str, Any]:
    return {
        "primaries": primaries,
        "block_kib": 2048,
        "operation": operation,
        "contestant": contestant,
        "streams": 2,
        "gb_per_s": list(speeds),
        "cpu_s_per_gb": [0.1] * len(speeds),
        "server_cpu_s_per_gb": [0.1] * len(speeds),
        "batch_ms": [],
    }


def result(cores: int) -> dict[str, Any]:
    rows = []
    for primaries, scale in ((1, 1.0), (4, 3.0)):
        rows += [
            row(primaries, "get", "raw", 4 * scale, 5 * scale, 4 * scale),
            row(primaries, "get", "neve", 3 * scale, 5 * scale, 4 * scale),
            row(primaries, "get", "naive", 0.5, 0.5, 0.5),
            row(primaries, "put_warm", "raw", 4.0, 4.0, 4.0),
            row(primaries, "put_warm", "neve", 3.0, 3.0, 2.0),
        ]
    return {
        "host": {
            **{"cores": cores, "kernel": "6", "python": "3.11", "valkey": "8"},
            **{"congestion": "cubic", "load_before": [0.0]},
        },
        "options": {"rounds": 3, "in_flight": 2, "connections": 1},
        "rows": rows,
        "match512_ms": {"1/neve": [0.5] * 99 + [0.9], "4/neve": [0.25]},
    }


def test_headline_of_few_cores_is_of_one_primary():
    assert headline(result(2)) == (
        "datapath get_vs_naive=8.0 get_vs_raw=1.00 put_vs_raw=0.75 match512_p99_ms=0.90"
    )


def test_headline_of_many_cores_is_of_four_primaries():
    assert headline(result(16)) == (
        "datapath get_vs_naive=24.0 get_vs_raw=1.00 put_vs_raw=0.75 match512_p99_ms=0.25"
    )


def test_what_was_not_measured_is_a_dash():
    empty = result(2) | {"rows": [], "match512_ms": {}}
    assert headline(empty) == "datapath get_vs_naive=— get_vs_raw=— put_vs_raw=— match512_p99_ms=—"
    assert "match" not in table(empty)


def test_percentile_is_the_nearest_rank():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    assert percentile([], 0.5) is None
