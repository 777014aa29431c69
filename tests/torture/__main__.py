"""`python -m torture --trials N --seed S [--only kind,kind]`: exit code 1 when anything failed."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from torture.plan import FAULTS, plan_trial

HOME = "NEVE_TORTURE_FOLDER"
KEPT_COMPLAINTS = 12  # lines printed of one trial
SLOW_S = 60  # trials that take longer are shown, though they did not fail


def main() -> int:
    options = _options()
    folder = os.environ.get(HOME)
    if folder is None:
        return _again_with_clock()
    from torture.world import World

    logging.disable(logging.CRITICAL)
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    started = time.monotonic()
    try:
        with World(Path(folder)) as world:
            from torture import tuning
            from torture.trial import Trial

            tuning.hurry()
            for n in range(options.trials):
                seed = options.seed + n
                plan = plan_trial(seed, kinds=options.only)
                result = Trial(world, plan).run()
                totals.update(
                    trials=1,
                    bad=int(not result.is_good),
                    wrong=result.wrong,
                    lost=result.lost,
                    drift_bytes=result.drift_bytes,
                    orphans=result.orphans,
                    stored=result.stored,
                    durable=result.durable,
                    served=result.served,
                    local=result.local,
                    encoded=result.encoded,
                    moved=result.moved,
                )
                faults.update(result.faults)
                is_slow = sum(result.seconds.values()) > SLOW_S
                if options.verbose or is_slow or not result.is_good:
                    _show(plan, result)
                elif n % 10 == 9:
                    print(f"{n + 1} trials, {time.monotonic() - started:.0f} s", flush=True)
            hits = sum((proxy.hits for proxy in world.proxies), Counter[str]())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{'fault':<18}{'times':>7}{'requests hit':>14}")
    for kind in FAULTS:
        print(f"{kind:<18}{faults[kind]:>7}{hits.get(kind, ''):>14}")
    print(
        f"\nblocks stored={totals['stored']} durable={totals['durable']} served={totals['served']}"
        f" local={totals['local']} encoded={totals['encoded']} segments moved={totals['moved']}"
        f" seed={options.seed} seconds={time.monotonic() - started:.0f}"
        f" failed_trials={totals['bad']} orphans={totals['orphans']}"
    )
    print(
        f"torture trials={totals['trials']} wrong={totals['wrong']} lost={totals['lost']}"
        f" drift_bytes={totals['drift_bytes']}"
    )
    return 1 if totals["bad"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first trial; the next have the next"
    )
    parser.add_argument("--only", help="kinds of faults, with commas", default=",".join(FAULTS))
    parser.add_argument("--verbose", action="store_true", help="show every trial")
    options = parser.parse_args()
    options.only = tuple(options.only.split(","))
    return options


def _again_with_clock() -> int:
    """This process too follows the clock of the workers, which must be set before it starts."""
    from torture.clock import Clock

    folder = Path(tempfile.mkdtemp(prefix="neve-torture-"))
    os.environ.update(Clock(folder, "python").environment, **{HOME: str(folder)})
    os.execv(sys.executable, [sys.executable, "-m", "torture", *sys.argv[1:]])


def _show(plan, result) -> None:
    faults = " ".join(f"{f.kind}@{f.at_s:.2f}+{f.for_s:.2f}" for f in plan.faults)
    took = " ".join(f"{name}={s:.1f}s" for name, s in result.seconds.items())
    state = "ok" if result.is_good else "FAILED"
    print(
        f"seed={plan.seed} {state} persistence={plan.persistence} tenants={plan.tenants} "
        f"hot={plan.hot_blocks} cold={plan.cold_blocks} flush={plan.flush_after_s} "
        f"ttl={plan.ttl_s} moves={plan.moves} codec={plan.cold_codec} lossy={plan.has_lossy}: "
        f"{faults}\n"
        f"    stored={result.stored} durable={result.durable} served={result.served} "
        f"local={result.local} "
        f"rounds={result.rounds} {took} misses={dict(result.misses)}",
    )
    for line in result.complaints[:KEPT_COMPLAINTS]:
        print(f"    {line}")
    if len(result.complaints) > KEPT_COMPLAINTS:
        print(f"    … and {len(result.complaints) - KEPT_COMPLAINTS} more")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
