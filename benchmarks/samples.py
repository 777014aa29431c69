"""Compares LRU curves estimated from samples of a trace with the exact curve, over many keys.

    .venv/bin/python benchmarks/samples.py [--trace FILE] [--keys 64] [--errors]

For each rate and capacity: worst, 95th percentile and median of the distance between estimate and
exact hit rate in points, over keys 0, 1, … (a key chooses the sampled ids), and the share of keys
within the allowed distance at every capacity. `--errors` also checks the estimates' own standard
errors: the share of keys whose exact hit rate lies within two of them (slow: 17 simulations a key).
"""

import argparse
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np

from neve.formats.ids import ID_BYTES
from neve.formats.samples import KEY_BYTES
from neve.node.sampling import SampleTerms, Sampling
from neve.planner.simulate.curve import lru_curve
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.sampled import curve
from neve.planner.simulate.samples import Samples, sample
from neve.replay.trace import read_trace

TRACE = Path(__file__).resolve().parents[2] / "shared/traces/conversation_trace.jsonl"
CAPACITIES = (1_000, 10_000, 30_000, 50_000, 100_000, None)
ALLOWED = {4: 1.0, 6: 2.0}  # rate 2⁻ⁿ → points


def measure(
    requests: list[BlockRequest], exact: list[float], rate_log: int, keys: int, *, errors: bool
) -> float:
    """Prints a table. Returns the share of keys within the allowed distance everywhere."""
    off, within, taken_s, accesses = [], [], [], []
    for key in range(keys):
        samples = sample(requests, rate_log=rate_log, key=key.to_bytes(KEY_BYTES, "little"))
        accesses.append(_accesses(samples))
        started = time.monotonic()
        found = curve(samples)
        rates = [found.hit_rate(capacity) for capacity in CAPACITIES]
        off.append([100 * abs(a - b) for a, b in zip(rates, exact, strict=True)])
        if errors:
            allowed = [2 * 100 * found.error(capacity) for capacity in CAPACITIES]
            within.append([a <= b for a, b in zip(off[-1], allowed, strict=True)])
        taken_s.append(time.monotonic() - started)
    table = np.array(off)
    good = float((table.max(axis=1) <= ALLOWED[rate_log]).mean())
    print(
        f"\nrate 1/{1 << rate_log}, {keys} keys, {np.mean(accesses):,.0f} sampled accesses each, "
        f"{np.median(taken_s):.2f} s an estimate; {good:.1%} of keys within "
        f"{ALLOWED[rate_log]} points at every capacity"
    )
    names = ["unlimited" if each is None else f"{each:,}" for each in CAPACITIES]
    print(f"  {'blocks':22}" + "".join(f"{name:>11}" for name in names))
    print(f"  {'exact hit rate':22}" + "".join(f"{value:11.4f}" for value in exact))
    for name, row in (
        ("worst, points", table.max(axis=0)),
        ("95th percentile", np.quantile(table, 0.95, axis=0)),
        ("median", np.median(table, axis=0)),
    ):
        print(f"  {name:22}" + "".join(f"{value:11.2f}" for value in row))
    if errors:
        share = np.array(within).mean(axis=0)
        print(f"  {'within 2 own errors':22}" + "".join(f"{value:11.1%}" for value in share))
    return good


def cost_us(blocks: int, *, looks: int = 2000) -> float:
    """Median time that sampling adds to a node's look-up of so many blocks, at 1/16."""
    sampling = Sampling()
    sampling.set_terms(SampleTerms(4, bytes(KEY_BYTES)))
    ids = [n.to_bytes(ID_BYTES, "little") for n in range(blocks)]
    rows = [(blake2b(id_, digest_size=ID_BYTES).digest(),) for id_ in ids]
    taken_us = []
    for number in range(looks):
        started = time.perf_counter()
        sampling.add(b"".join([row[0] for row in rows]))
        taken_us.append((time.perf_counter() - started) * 1e6)
        if number % 20 == 0:
            sampling.take()
    return float(np.median(taken_us))


def _accesses(samples: Samples) -> int:
    return sum(len(each.ids) for each in samples.requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--keys", type=int, default=64)
    parser.add_argument("--errors", action="store_true")
    options = parser.parse_args()
    if not options.trace.exists():
        sys.exit(f"{options.trace} is missing: give --trace FILE in Mooncake's format")
    rows = read_trace(options.trace)
    requests = [BlockRequest(row.hash_ids, row.timestamp_ms / 1000) for row in rows]
    whole = lru_curve(request.ids for request in requests)
    exact = [whole.hit_rate(capacity) or 0.0 for capacity in CAPACITIES]
    good = {
        rate_log: measure(requests, exact, rate_log, options.keys, errors=options.errors)
        for rate_log in ALLOWED
    }
    costs = ", ".join(f"{blocks}: {cost_us(blocks):.1f}" for blocks in (24, 100, 512))
    print(f"\nµs that sampling at 1/16 adds to a look-up, by its blocks: {costs}")
    facts = " ".join(f"within_1/{1 << log}={share:.3f}" for log, share in good.items())
    print(f"\nsamples keys={options.keys} {facts}")


if __name__ == "__main__":
    main()
