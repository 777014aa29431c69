"""Asserts that a hot Valkey's usage counters equal a recount."""

from collections import defaultdict

from valkey import Valkey

from neve.formats.keys import parse_key
from neve.index.scan import recount
from neve.index.tier import HotTier

COUNTED = [
    f"{what}_{unit}"
    for what in ("hot", "cold", "dirty", "pinned", "unstored")
    for unit in ("bytes", "blocks")
]


def assert_no_drift(client: Valkey) -> None:
    """Recount every tenant on the server. No writes may happen meanwhile."""
    buckets: defaultdict[int, int] = defaultdict(int)
    for key in client.scan_iter(match="{t*}:*[iu]", count=1000):
        if (found := parse_key(key)) and key in found[0].bookkeeping:
            of = found[0]
            buckets[of.tenant_id] = max(buckets[of.tenant_id], of.bucket + 1)
    for tenant_id, count in buckets.items():
        counted = HotTier(client.execute_command, tenant_id, count).usage()
        held = recount(client.execute_command, tenant_id, count)
        drift = {name: getattr(counted, name) - getattr(held, name) for name in COUNTED}
        assert not any(drift.values()), f"tenant {tenant_id} counts wrong by {drift}"
