"""Block keys in Valkey that no entry owns, wherever they come from.

A writer's key ends by itself unless it is committed. One without an end is given the same end, so a
commit that comes yet is in time.
"""

import re
from collections import defaultdict

from catalog.models import Round
from controlplane import hot
from neve.audit import BucketAudit
from workers import recovery
from workers.reconcile import rounds
from workers.reconcile.report import Report

RUN_KEYS = 500_000
PAGE_KEYS = 1000
_BLOCK = re.compile(rb"\{t(\d+)\.(\d+)\}:b:\d+:", re.ASCII)


def look_at_keys(report: Report, most: int = RUN_KEYS) -> None:
    """A slice of all keys. Raises valkey's errors."""
    with rounds.turn(Round.Side.KEYS) as turn:
        if turn is None:
            return
        run, looked = recovery.run_id().decode(), 0
        place = turn.place if turn.place and turn.place["run"] == run else {"cursor": "0"}
        cursor = int(place["cursor"])
        while looked < most and not report.is_late:
            cursor, keys = hot.admin().scan(cursor, count=PAGE_KEYS)
            report.found("stray_keys", _end_strays(keys))
            looked += max(1, len(keys))
            report.looked_at["keys"] += len(keys)
            if cursor == 0:
                turn.end_round()
                return
            turn.place = {"run": run, "cursor": str(cursor)}


def _end_strays(keys: list[bytes]) -> int:
    by_bucket: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
    for key in keys:
        if found := _BLOCK.match(key):
            by_bucket[int(found[1]), int(found[2])].append(key)
    execute = hot.admin().execute_command
    return sum(
        BucketAudit(execute, tenant_id, bucket).end_strays(members)
        for (tenant_id, bucket), members in by_bucket.items()
    )
