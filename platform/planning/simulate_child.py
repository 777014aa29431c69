"""The process of `planning.simulating`: reads a task and requests, plays them, answers."""

import json
import os
import resource
import sys
from decimal import Decimal
from typing import Any

from neve.errors import Misuse
from neve.planner import whatif
from neve.planner.changes import Change, candidates
from neve.planner.prices import PRICE_NAMES, Prices
from neve.planner.simulate.requests import BlockRequest


def main() -> None:
    task = json.loads(sys.stdin.readline())
    limits = task["limits"]
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_AS, (limits["bytes"], limits["bytes"]))
    requests = []
    for line in sys.stdin:
        at_s, ids = json.loads(line)
        requests.append(BlockRequest(tuple(ids), at_s))
    try:
        say(result=run(task, requests))
    except Misuse as error:
        say(misuse=error.detail, field=error.field)


def run(task: dict[str, Any], requests: list[BlockRequest]) -> dict[str, Any]:
    today = whatif.setting_of(task["setting"])
    traffic = whatif.Traffic(requests, task["rate"], task["count_from_s"], task["asked_blocks"])
    given = task["changes"]
    changes = candidates(today) if given is None else [Change.of(each) for each in given]
    money = task["economics"].pop("prices")
    prices = Prices(
        **{name: Decimal(money[name]) for name in PRICE_NAMES}, currency=money["currency"]
    )
    measured = task["measured"]
    comparison = whatif.compare(
        today,
        changes,
        traffic.thinned(task["most_reads"]),
        whatif.Economics(prices=prices, **task["economics"]),
        measured=whatif.Measured(**measured) if measured else None,
        curve=whatif.CURVE if task["with_curve"] else (),
        progress=lambda fraction: say(progress=fraction),
    )
    found = whatif.as_dict(comparison)
    if given is None:
        advice = whatif.recommend(comparison)
        found["recommendation"] = {
            "change": advice.change,
            "reason": advice.reason,
            "words": advice.words,
        }
    return found


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(3)  # NO_MEMORY of planning.simulating
