"""Compares what-if estimates from samples of a trace with those from all of it, over many keys.

    .venv/bin/python benchmarks/what_if.py [--trace FILE] [--keys 8]

Today: 20,000 hot blocks with 2q, 60,000 cold ones. For each rate and change: the exact hit rate of
the hot tier against today's, the worst distance of the estimates from it in points, the mean half
width of their 95 % interval, and the share of keys whose interval has the exact value. The first
quarter of the trace only fills the tiers.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from neve.formats.samples import KEY_BYTES
from neve.planner.changes import Change
from neve.planner.prices import Prices
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import sample
from neve.planner.simulate.tiers import Setting, TierSetting
from neve.planner.whatif import Comparison, Economics, Traffic, compare
from neve.replay.trace import read_trace

TRACE = Path(__file__).resolve().parents[2] / "shared/traces/conversation_trace.jsonl"
BLOCK = 1 << 20
TODAY = Setting(
    hot=TierSetting(20_000 * BLOCK, "2q"),
    cold=TierSetting(60_000 * BLOCK, "lru"),
    block_bytes=BLOCK,
)
CHANGES = (
    Change(hot="x2"),
    Change(hot="x0.5"),
    Change(eviction="lru"),
    Change(cold_lifetime="10m"),
)
WORTH = Economics(Prices(), 512, 1e-4, {"hot": 1e-6, "cold": 1e-5})
FIGURES = ("hit_rate", "hit_rate.hot")


def measure(requests: list[BlockRequest], exact: Comparison, rate_log: int, keys: int) -> None:
    """Prints a table."""
    from_s = exact.start_s
    asked = sum(len(each.ids) for each in requests if each.at_s >= from_s)
    found, began = [], time.monotonic()
    for key in range(keys):
        samples = sample(requests, rate_log=rate_log, key=key.to_bytes(KEY_BYTES, "little"))
        traffic = Traffic(list(samples.as_requests()), samples.rate, from_s, asked)
        found.append(compare(TODAY, CHANGES, traffic, WORTH))
    took_s = (time.monotonic() - began) / keys
    print(f"\nrate 1/{1 << rate_log}, {keys} keys, {took_s:.1f} s a comparison of 5 settings")
    print(f"  {'change':36}{'figure':16}{'exact':>8}{'worst':>8}{'± mean':>8}{'inside':>8}")
    for place, (name, outcome) in enumerate(
        (name, each) for each in (exact.today, *exact.changes) for name in FIGURES
    ):
        is_today = outcome.change is None
        truth = (outcome.figures if is_today else outcome.against)[name].value
        off, widths = [], []
        for one in found:
            mine = (one.today, *one.changes)[place // len(FIGURES)]
            guess = (mine.figures if is_today else mine.against)[name]
            off.append(abs(guess.value - truth))
            widths.append(guess.error)
        inside = sum(a <= b for a, b in zip(off, widths, strict=True)) / keys
        print(
            f"  {outcome.words[:35]:36}{name:16}{100 * truth:8.2f}{100 * max(off):8.2f}"
            f"{100 * sum(widths) / keys:8.2f}{inside:8.0%}"
        )


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--keys", type=int, default=8)
    options = parser.parse_args(args)
    if not options.trace.exists():
        print(f"{options.trace} is missing", file=sys.stderr)
        return 1
    requests = [
        BlockRequest(row.hash_ids, row.timestamp_ms / 1000) for row in read_trace(options.trace)
    ]
    first_s, last_s = requests[0].at_s, requests[-1].at_s
    whole = Traffic(requests, 1.0, first_s + (last_s - first_s) / 4)
    exact = compare(TODAY, CHANGES, whole, WORTH)
    for rate_log in (4, 6):
        measure(requests, exact, rate_log, options.keys)
    return 0


if __name__ == "__main__":
    sys.exit(main())
