"""Work that keeps the platform's rows true and small: access that ended, usage, old rows.

The rules of `tiering.work` hold here, too.
"""

from django.utils import timezone

from base import live
from base.isolation import isolated
from catalog import hot_access, jobs, kept_requests, kinds, nodes, sessions, slicing, stores, usage
from catalog.models import TIER_COUNTERS, NodeSession
from catalog.occupancy import Occupancy, occupancy
from catalog.targets import Opener, active_ids
from events import deliveries, quotas
from neve.index.tier import Usage
from storage import hot
from tenants import key_use
from tiering import pruning


def end_access(job: Opener, tenant_id: None) -> None:
    """End sessions and Valkey users of expired keys, users that a revocation could not remove, and
    sessions of engines that crashed and came back. Tell of nodes that went silent. No Job row."""
    hot_access.align_users()
    expired = NodeSession.unscoped.filter(ended_at=None, key__expires_at__lte=timezone.now())
    for owner_id, key_id in set(expired.values_list("tenant_id", "key_id")):
        with isolated(kinds.END_ACCESS.name, owner_id):
            sessions.end_all(tenant_id=owner_id, key_id=key_id)
    for owner_id in active_ids():
        with isolated(kinds.END_ACCESS.name, owner_id):
            sessions.end_replaced(tenant_id=owner_id)
            nodes.tell(owner_id, reason="silent")


def sample(job: Opener, tenant_id: int) -> None:
    """Sample what a tenant has in both tiers into its usage roll-ups. No Job row."""
    now = timezone.now()
    tiers, segments = hot.hot_tier(tenant_id).usage(), occupancy(tenant_id)
    usage.record_gauges(
        tenant_id=tenant_id, at=now, gauges=gauges(tiers, segments, now.timestamp())
    )
    totals = {name: getattr(tiers, name) for name in TIER_COUNTERS}
    usage.record_tier_totals(tenant_id=tenant_id, at=now, totals=totals)
    live.hint_on_commit(tenant_id)
    in_segments = segments.dead_bytes + segments.waiting_bytes + segments.copy_bytes
    quotas.tell_use(
        tenant_id=tenant_id,
        hot_bytes=tiers.hot_bytes,
        cold_bytes=tiers.cold_bytes + in_segments,  # what the quota bounds together
    )


def gauges(tiers: Usage, segments: Occupancy, now_s: float) -> dict[str, int]:
    """The gauges of a usage roll-up. A flush that is not yet due counts as 0 s old."""
    return {
        "hot_used_bytes": tiers.hot_bytes,
        "cold_used_bytes": tiers.cold_bytes,
        "cold_dead_bytes": segments.dead_bytes,
        "cold_waiting_bytes": segments.waiting_bytes,
        "dirty_bytes": tiers.dirty_bytes,
        "dirty_blocks": tiers.dirty_blocks,
        "dirty_oldest_s": int(tiers.flush_late_s(now_s) or 0),
        "unstored_blocks": tiers.unstored_blocks,
    }


def prune(job: Opener, tenant_id: None) -> None:
    """Delete rows that are older than the settings keep them. No Job row if there are none."""
    if job.is_waiting() or not pruning.has_work():
        return
    with job() as run:
        run.detail(pruning.prune())
        run.progress(1.0)


def housekeeping(job: Opener, tenant_id: None) -> None:
    """Send requests again whose message or worker was lost, write keys' last uses, delete old
    roll-ups and requests. No Job row."""
    jobs.fail_lost()
    jobs.send_again()
    usage.prune()
    slicing.prune()
    kept_requests.prune()
    key_use.write_down()


def deliver(job: Opener, tenant_id: None) -> None:
    """Number new events and deliver those that are due to webhooks. No Job row."""
    deliveries.deliver()


def check_stores(job: Opener, tenant_id: None) -> None:
    """Note which stores do not answer: readers take other copies, moves wait. No Job row."""
    stores.check()
