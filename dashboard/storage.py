"""How full each tenant's tiers are, by the hot tier's own counters.

While Valkey does not answer: the gauges of the newest roll-up, or unknown.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from valkey.exceptions import ValkeyError

from base import log_events
from dashboard.usage import Tenants, last_gauges
from retention.models import ColdFull, EvictionPolicy, RetentionPolicy
from storage import hot, hot_servers
from tenants.models import Quota
from tenants.principal import rows_of
from tenants.room import scarce_room_bytes

LEAVES_FIRST = {
    EvictionPolicy.LRU: "the least recently used first",
    EvictionPolicy.TWO_QUEUES: "first those that nobody used again",
}
LEAVES_BY_TENANT = "in the order that each tenant's policy sets"


@dataclass(frozen=True)
class StorageUse:
    """Bytes and blocks that one tenant (or several, summed) holds against its quota.

    `hot_room_bytes`: memory that the servers have left for all tenants, if quotas promise more than
    there is; else None. `unstored_blocks`: hot blocks that the cold tier refused. `mended`: damaged
    index entries removed since Valkey's start. `cold_full`: the policy of a full cold tier, a
    ColdFull or "mixed". `is_current`: from Valkey, just now; False: from the newest roll-up.
    Dead and waiting bytes of segments always are of that, and of one tenant.
    """

    hot_bytes: int | None
    cold_bytes: int | None
    dirty_bytes: int | None
    dirty_blocks: int | None
    dirty_oldest_s: float | None
    hot_quota_bytes: int | None
    cold_quota_bytes: int | None
    hot_room_bytes: int | None = None
    unstored_blocks: int | None = None
    cold_full: str = ColdFull.EVICT
    mended: int = 0
    is_current: bool = False
    cold_dead_bytes: int = 0
    cold_waiting_bytes: int = 0

    @property
    def hot_limit_bytes(self) -> int | None:
        """The quota, or less where memory ends before it."""
        if self.hot_room_bytes is None or self.hot_bytes is None or self.hot_quota_bytes is None:
            return self.hot_quota_bytes
        return min(self.hot_quota_bytes, self.hot_bytes + self.hot_room_bytes)

    @property
    def is_short(self) -> bool:
        """Whether memory ends before the quota does."""
        return self.hot_limit_bytes != self.hot_quota_bytes

    @property
    def hot_ratio(self) -> float | None:
        return _ratio(self.hot_bytes, self.hot_limit_bytes)

    @property
    def cold_ratio(self) -> float | None:
        return _ratio(self.cold_bytes, self.cold_quota_bytes)

    @property
    def dirty_ratio(self) -> float | None:
        """Not yet in S3, as a share of the hot limit."""
        return _ratio(self.dirty_bytes, self.hot_limit_bytes)

    @property
    def clean_ratio(self) -> float | None:
        if self.hot_ratio is None:
            return None
        return max(self.hot_ratio - (self.dirty_ratio or 0), 0)

    @property
    def held_bytes(self) -> int:
        return (self.hot_bytes or 0) + (self.cold_bytes or 0)


def storage_use(
    tenants: Tenants,
    now_s: float,
    *,
    hot_answers: bool = True,
    policies: Iterable[RetentionPolicy] | None = None,
) -> dict[int, StorageUse]:
    """By tenant id. One round trip a tenant; none to a Valkey that is known to be down.

    `policies`: of the tenants, if they are read already.
    """
    quotas = {quota.tenant_id: quota for quota in rows_of(Quota, tenants)}
    gauges = last_gauges(tenants, now_s)
    if policies is None:
        policies = rows_of(RetentionPolicy, tenants)
    when_full = {policy.tenant_id: policy.cold_full for policy in policies}
    used: dict[int, StorageUse] = {}
    answers, room_bytes = hot_answers, None
    try:
        room_bytes = scarce_room_bytes() if answers else None
    except (ValkeyError, OSError):
        answers = False
    for tenant in tenants:
        quota, gauge = quotas.get(tenant.pk), gauges.get(tenant.pk, {})
        hot_quota, cold_quota = (quota.hot_bytes, quota.cold_bytes) if quota else (None, None)
        usage = None
        if answers:
            try:
                usage = hot.hot_tier(tenant.pk).usage()
            except (ValkeyError, OSError):
                log_events.HOT_USAGE_UNKNOWN.log(tenant_id=tenant.pk, exc_info=True)
                answers = False
            except ValueError:  # the tenant wrote other things there: the others' stand
                log_events.HOT_USAGE_UNREADABLE.log(tenant_id=tenant.pk, exc_info=True)
        oldest_s = gauge.get("dirty_oldest_s")
        dead_bytes = gauge.get("cold_dead_bytes") or 0
        waiting_bytes = gauge.get("cold_waiting_bytes") or 0
        if usage is None:
            used[tenant.pk] = StorageUse(
                gauge.get("hot_used_bytes"),
                gauge.get("cold_used_bytes"),
                None,
                gauge.get("dirty_blocks"),
                oldest_s,
                hot_quota,
                cold_quota,
                unstored_blocks=gauge.get("unstored_blocks"),
                cold_full=when_full.get(tenant.pk, ColdFull.EVICT),
                cold_dead_bytes=dead_bytes,
                cold_waiting_bytes=waiting_bytes,
            )
        else:
            used[tenant.pk] = StorageUse(
                usage.hot_bytes,
                usage.cold_bytes,
                usage.dirty_bytes,
                usage.dirty_blocks,
                usage.flush_late_s(now_s),
                hot_quota,
                cold_quota,
                hot_room_bytes=room_bytes,
                unstored_blocks=usage.unstored_blocks,
                cold_full=when_full.get(tenant.pk, ColdFull.EVICT),
                cold_dead_bytes=dead_bytes,
                cold_waiting_bytes=waiting_bytes,
                mended=usage.mended,
                is_current=True,
            )
    return used


@dataclass(frozen=True)
class HotServer:
    """What Valkey tells of itself, all primaries summed. `max_bytes` 0 is no limit."""

    version: str
    used_bytes: int
    max_bytes: int
    policy: str


def hot_server() -> HotServer | None:
    """None when it does not answer."""
    try:
        told = [client.info() for client in hot_servers.primaries()]
    except (ValkeyError, OSError):
        return None
    memory = hot_servers.memory_of(told)
    return HotServer(
        str(told[0].get("valkey_version", told[0].get("redis_version", ""))),
        memory.used_bytes,
        memory.max_bytes,
        str(told[0]["maxmemory_policy"]),
    )


def leaves_first(policies: Iterable[RetentionPolicy]) -> str:
    """Which clean blocks new ones push out of a full hot tier, in words."""
    orders = {policy.eviction for policy in policies}
    return LEAVES_FIRST[EvictionPolicy(orders.pop())] if len(orders) == 1 else LEAVES_BY_TENANT


def summed(uses: list[StorageUse]) -> StorageUse:
    """Unknown only where all are unknown; the oldest dirty block is the oldest of all."""

    def add(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    kinds = {use.cold_full for use in uses} or {ColdFull.EVICT}
    return StorageUse(
        add([use.hot_bytes for use in uses]),
        add([use.cold_bytes for use in uses]),
        add([use.dirty_bytes for use in uses]),
        add([use.dirty_blocks for use in uses]),
        max((use.dirty_oldest_s for use in uses if use.dirty_oldest_s is not None), default=None),
        add([use.hot_quota_bytes for use in uses]),
        add([use.cold_quota_bytes for use in uses]),
        min((use.hot_room_bytes for use in uses if use.hot_room_bytes is not None), default=None),
        add([use.unstored_blocks for use in uses]),
        kinds.pop() if len(kinds) == 1 else "mixed",
        sum(use.mended for use in uses),
    )


def _ratio(used: int | None, limit: int | None) -> float | None:
    return used / limit if used is not None and limit else None
