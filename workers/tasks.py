"""The Celery tasks. Each finds its own work, may run twice at once, does one call a tenant.

One tenant's trouble does not stop the others: it is logged and the tenant's Job row says failed.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from celery import shared_task
from django.db.models import F
from django.utils import timezone

from catalog import jobs, sessions, usage
from catalog.models import NodeSession, Space
from controlplane import hot, live
from neve.hot import Usage
from retention.models import RetentionPolicy
from retention.stored import Walk
from tenants.models import Tenant
from workers import recovery, removal
from workers import retain as claims
from workers.compaction import sweep
from workers.compaction.merge import CompactReport
from workers.compaction.run import Compactor
from workers.flush import Flusher, FlushReport, is_worth_a_segment
from workers.reconcile import run as repairs
from workers.reconcile.report import Report

log = logging.getLogger("neve.tasks")

EXPIRE_BLOCKS = 1000  # of one function call: others get their turn in between


def active_tenants() -> list[int]:
    return list(Tenant.objects.filter(is_active=True).values_list("pk", flat=True))


@contextmanager
def tenant_job(kind: str, tenant_id: int | None) -> Iterator[jobs.JobRun]:
    """A Job row for work that beat found; errors end in the row and in the log, not in the task."""
    try:
        with jobs.attempt(kind, tenant_id) as run:
            yield run
    except Exception:
        log.exception("job_failed kind=%s tenant=%s", kind, tenant_id)


def for_each_tenant(task: str, act: Callable[[int], object]) -> None:
    for tenant_id in active_tenants():
        try:
            act(tenant_id)
        except Exception:
            log.exception("task_failed task=%s tenant=%s", task, tenant_id)


@shared_task(name="workers.flush")
def flush() -> None:
    """Dirty blocks that are due go to S3. No Job row when there is nothing to do.

    An index that does not know what stands in S3 cannot say whether the cold quota has room.
    """
    if recovery.index_is_whole():
        for_each_tenant("flush", flush_tenant)


def flush_tenant(tenant_id: int) -> None:
    held = hot.hot_tier(tenant_id).usage()
    if not is_worth_a_segment(held, timezone.now().timestamp()):
        return
    flusher = Flusher(tenant_id)
    if jobs.is_waiting("flush", tenant_id) or not (leases := flusher.lease()):
        return
    with tenant_job("flush", tenant_id) as run:

        def show(report: FlushReport) -> None:
            share = report.bytes / max(held.dirty_bytes, report.bytes)
            run.progress(share, blocks=report.blocks, bytes_=report.bytes)
            run.detail(vars(report))

        flusher.run(leases, progress=show)


@shared_task(name="workers.compact")
def compact() -> None:
    """Segments are merged, and those that nobody names are deleted. No Job row without a merge."""
    if recovery.index_is_whole():
        for_each_tenant("compact", compact_tenant)


def sweep_tenant(tenant_id: int) -> None:
    if jobs.is_waiting("sweep", tenant_id) or not sweep.has_work(tenant_id):
        return
    with tenant_job("sweep", tenant_id) as run:
        report = sweep.sweep(hot.hot_tier(tenant_id), tenant_id)
        run.progress(1.0, bytes_=report.bytes)
        run.detail(vars(report))


def compact_tenant(tenant_id: int) -> None:
    sweep_tenant(tenant_id)
    compactor = Compactor(tenant_id)
    if jobs.is_waiting("compact", tenant_id) or not (claimed := compactor.find()):
        return
    with tenant_job("compact", tenant_id) as run:

        def show(report: CompactReport) -> None:
            run.progress(0.5, blocks=report.blocks, bytes_=report.bytes)
            run.detail(vars(report))

        compactor.run(claimed, progress=show)


@shared_task(name="workers.expire")
def expire() -> None:
    """Blocks past their lifetime go from both tiers, idle ones from the hot tier."""
    for_each_tenant("expire", expire_tenant)


def expire_tenant(tenant_id: int) -> None:
    """No Job row when one call is enough: that comes every few seconds."""
    tier = hot.hot_tier(tenant_id)
    looks = tier.expire_due(EXPIRE_BLOCKS)
    if looks < EXPIRE_BLOCKS or jobs.is_waiting("expire", tenant_id):
        return
    with tenant_job("expire", tenant_id) as run:
        total = looks
        while looks >= EXPIRE_BLOCKS:
            looks = tier.expire_due(EXPIRE_BLOCKS)
            total += looks
            run.progress(0.5, blocks=total)


@shared_task(name="workers.remove")
def remove() -> None:
    """What people gave up goes, with all that it holds. No Job row when there is nothing."""
    if not jobs.is_waiting("remove_tenant", None):
        for tenant_id in Tenant.objects.filter(is_leaving=True).values_list("pk", flat=True):
            # Without a tenant: the row would go with it.
            with tenant_job("remove_tenant", None) as run:
                run.progress(1.0, blocks=removal.remove_tenant(tenant_id))
    spaces = Space.unscoped.filter(is_leaving=True).values_list("tenant_id", "pk")
    for tenant_id, space_id in spaces:
        if not jobs.is_waiting("remove_space", tenant_id):
            with tenant_job("remove_space", tenant_id) as run:
                run.progress(1.0, blocks=removal.remove_space(tenant_id, space_id))


@shared_task(name="workers.retain")
def retain() -> None:
    """Stored blocks follow a policy or rules that changed. No Job row when none did."""
    changed = RetentionPolicy.unscoped.filter(
        applied_generation__lt=F("generation"), tenant__is_active=True
    )
    for tenant_id in changed.values_list("tenant_id", flat=True):
        if jobs.is_waiting("retain", tenant_id):
            continue
        if (claimed := claims.claim(tenant_id)) is not None:
            with tenant_job("retain", tenant_id) as run:
                claims.apply(tenant_id, *claimed, progress=partial(_show_walk, run))
                _show_walk(run, claimed[1])


def _show_walk(run: jobs.JobRun, walk: Walk) -> None:
    run.progress(0.5, blocks=walk.changed)
    run.detail({"blocks": walk.blocks, "changed": walk.changed, "is_done": walk.next is None})


@shared_task(name="workers.provision")
def provision() -> None:
    """A hot Valkey that lost its memory gets functions, users, quotas and the whole index back.

    Users and sessions of keys that have expired, or whose user a revocation could not remove, end.
    """
    end_unusable()
    if recovery.index_is_whole() or not recovery.claim():
        return
    with tenant_job("rebuild_index", None) as run:
        report = recovery.rebuild_all(progress=partial(recovery.show_in_job, run))
        run.progress(1.0, blocks=report.blocks)
        run.detail(vars(report))


def end_unusable() -> None:
    hot.remove_stale_users()
    expired = NodeSession.unscoped.filter(ended_at=None, key__expires_at__lte=timezone.now())
    for tenant_id, key_id in set(expired.values_list("tenant_id", "key_id")):
        sessions.end_all(tenant_id=tenant_id, key_id=key_id)


@shared_task(name="workers.sample")
def sample() -> None:
    """What each tenant holds goes into the usage roll-ups; old fine-grained ones are deleted."""
    for_each_tenant("sample", sample_tenant)
    usage.prune()


def sample_tenant(tenant_id: int) -> None:
    now = timezone.now()
    held = hot.hot_tier(tenant_id).usage()
    usage.record_gauges(tenant_id=tenant_id, at=now, gauges=gauges(held, now.timestamp()))
    live.announce_usage_on_commit(tenant_id)


def gauges(held: Usage, now_s: float) -> dict[str, int]:
    """The gauges of a usage roll-up. A flush that is not yet due counts as 0 s old."""
    oldest_s = 0 if held.oldest_due_s is None else max(0, int(now_s - held.oldest_due_s))
    return {
        "hot_used_bytes": held.hot_bytes,
        "cold_used_bytes": held.cold_bytes,
        "dirty_bytes": held.dirty_bytes,
        "dirty_blocks": held.dirty_blocks,
        "dirty_oldest_s": oldest_s,
    }


@shared_task(name="workers.reconcile")
def reconcile() -> None:
    """What crashes left behind, or hands changed in Valkey or S3, is found and put right."""
    if jobs.is_waiting("reconcile", None):
        return
    with tenant_job("reconcile", None) as run:

        def show(share: float, report: Report) -> None:
            run.progress(share, blocks=report.looked_at["blocks"])
            run.detail(report.as_dict())

        hot.provision()
        repairs.reconcile(active_tenants(), progress=show)
