"""Whether what a hot Valkey counts is what it holds: 0 bytes and 0 blocks of drift."""

import re
from collections import defaultdict

from valkey import Valkey

from neve.hot import HotTier
from neve.index import recount

COUNTED = [
    f"{what}_{unit}" for what in ("hot", "cold", "dirty", "pinned") for unit in ("bytes", "blocks")
]
BUCKET = re.compile(rb"\{t(\d+)\.(\d+)\}:[iu]")


def assert_no_drift(client: Valkey) -> None:
    """Recounts every tenant that the server knows; nothing may write meanwhile."""
    buckets: defaultdict[int, int] = defaultdict(int)
    for key in client.scan_iter(match="{t*}:[iu]", count=1000):
        if found := BUCKET.fullmatch(key):
            tenant_id, bucket = map(int, found.groups())
            buckets[tenant_id] = max(buckets[tenant_id], bucket + 1)
    for tenant_id, count in buckets.items():
        counted = HotTier(client.execute_command, tenant_id, count).usage()
        held = recount(client.execute_command, tenant_id, count)
        drift = {name: getattr(counted, name) - getattr(held, name) for name in COUNTED}
        assert not any(drift.values()), f"tenant {tenant_id} counts wrong by {drift}"
