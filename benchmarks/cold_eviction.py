"""Compares eviction policies of a full cold tier on the conversation trace: hits, and cost in S3.

    .venv/bin/python benchmarks/cold_eviction.py [--trace FILE] [--hot 3000] [--cold 10000,30000]

Simulated by `neve.planner.simulate.cold`. Columns: hits per requested block; blocks that compaction
rewrote per flushed block; peak of blocks in S3, live and dead, per block of the quota.
"""

import argparse
import sys
import time
from pathlib import Path

from neve.planner.simulate.cold import POLICIES, Tiers, simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.policies import TRACE, conversations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--hot", type=int, default=3_000, help="blocks of the hot tier")
    parser.add_argument("--cold", default="10000,30000,100000", help="quotas of the cold tier")
    parser.add_argument("--only", help="a policy", choices=POLICIES)
    options = parser.parse_args()
    quotas = [int(size) for size in options.cold.split(",")]
    requests = conversations(options.trace)
    started = time.monotonic()
    print(f"hits / rewritten / most stored, by quota in blocks; {options.hot:,} hot blocks")
    print(f"  {'':36}" + "".join(f"{quota:>21,}" for quota in quotas))
    for name in [options.only] if options.only else POLICIES:
        make = POLICIES[name]
        row = f"  {name:36}"
        for quota in quotas:
            tiers = Tiers(make(quota), options.hot)
            hits = simulate(tiers, requests)
            cold = tiers.cold
            row += f"   {hits:.4f} / {cold.rewritten / cold.flushed:.2f} / {cold.peak / quota:.2f}"
        print(row)
    print(f"\ncold_eviction seconds={time.monotonic() - started:.0f}")


if __name__ == "__main__":
    main()
