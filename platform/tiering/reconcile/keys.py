"""Block keys in Valkey that no entry owns.

A writer's key expires by itself unless it is committed. A key without an expiry gets the usual one,
so that a commit on its way is still in time.
"""

from collections import defaultdict

from catalog.models import Round
from neve.formats.keys import BucketKeys, parse_key
from neve.index.recount import BucketAudit
from storage import hot, hot_servers
from tiering import recovery
from tiering.reconcile import rounds
from tiering.reconcile.report import Report

RUN_KEYS = 500_000
PAGE_KEYS = 1000


def look_at_keys(report: Report, most: int = RUN_KEYS) -> None:
    """A slice of all keys. Raises valkey's errors."""
    with rounds.turn(Round.Side.KEYS) as turn:
        if turn is None:
            return
        run, looked = recovery.run_id().decode(), 0
        place = turn.place if turn.place and turn.place["run"] == run else {"cursor": "0"}
        cursor, number = int(place["cursor"]), int(place.get("primary", 0))
        primaries = hot_servers.primaries()
        while looked < most and not report.is_late:
            cursor, keys = primaries[number].scan(cursor, count=PAGE_KEYS)
            _end_strays(keys, report)
            looked += max(1, len(keys))
            report.looked_at["keys"] += len(keys)
            if cursor == 0:
                number += 1
            if number == len(primaries):
                turn.end_round()
                return
            turn.place = {"run": run, "primary": number, "cursor": str(cursor)}


def _end_strays(keys: list[bytes], report: Report) -> None:
    by_bucket: defaultdict[BucketKeys, list[bytes]] = defaultdict(list)
    for key in keys:
        if (found := parse_key(key)) and found[1].startswith(b"b:"):
            by_bucket[found[0]].append(key)
    for of, members in by_bucket.items():
        with report.apart(f"keys of tenant {of.tenant_id} bucket {of.bucket}"):
            audit = BucketAudit(hot.execute, of.tenant_id, of.bucket)
            report.found("stray_keys", audit.end_strays(members))
