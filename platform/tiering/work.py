"""What each kind of work on the tiers does for one target, from looking for work to its report.

Every function may run twice at once, and be killed at any line. It looks for work first and opens
its job's row only if there is some (`catalog.targets.Opener`). Celery's side is `workers.tasks`.
"""

from functools import partial

from django.db.models import F
from django.utils import timezone

from catalog import jobs
from catalog.models import Space
from catalog.targets import Opener, Target, active_ids, active_tenants
from contexts.stored import Walk
from retention import provisioning
from retention.models import RetentionPolicy
from storage import hot
from tenants.models import Tenant
from tiering import rebuild, recovery, removal
from tiering import retain as claims
from tiering.compaction import sweep as sweeping
from tiering.compaction.merge import CompactReport
from tiering.compaction.room import room_of
from tiering.compaction.run import Compactor
from tiering.flush import Flusher, FlushReport, is_worth_a_segment
from tiering.reconcile import run as repairs
from tiering.reconcile.report import Report
from tiering.watch import run as watching

EXPIRE_BLOCKS = 1000  # of one function call: others get their turn in between


def tenants_of_a_whole_index() -> list[Target]:
    """Active tenants, except those whose index is lost; none at all until the index is rebuilt.

    Before, the index shows too much free room in the cold quota and too few live blocks.
    """
    if not recovery.index_is_whole():
        return []
    lost = set(recovery.lost_tenants())
    return [target for target in active_tenants() if target[0] not in lost]


def flush(job: Opener, tenant_id: int) -> None:
    """Flush due dirty blocks to S3. No Job row if there are none."""
    usage = hot.hot_tier(tenant_id).usage()
    if not (job.is_requested or is_worth_a_segment(usage, timezone.now().timestamp())):
        return
    flusher = Flusher(tenant_id)
    if job.is_waiting() or not (leases := flusher.lease()):
        return
    with job() as run:

        def show(report: FlushReport) -> None:
            share = report.bytes / max(usage.dirty_bytes, report.bytes)
            run.progress(share, blocks=report.blocks, bytes_=report.bytes)
            run.detail(vars(report))

        flusher.run(leases, progress=show)


def sweep(job: Opener, tenant_id: int) -> None:
    """Delete segments that no entry of the index names."""
    if job.is_waiting():
        return
    tier = hot.hot_tier(tenant_id)
    is_pressed = room_of(tier).is_pressed
    if not sweeping.has_work(tenant_id, is_pressed=is_pressed):
        return
    with job() as run:
        report = sweeping.sweep(tier, tenant_id, is_pressed=is_pressed)
        run.progress(1.0, bytes_=report.bytes)
        run.detail(vars(report))


def compact(job: Opener, tenant_id: int) -> None:
    """Merge segments. No Job row without a merge."""
    compactor = Compactor(tenant_id)
    if job.is_waiting() or not (claimed := compactor.find()):
        return
    with job() as run:

        def show(report: CompactReport) -> None:
            run.progress(0.5, blocks=report.blocks, bytes_=report.bytes)
            run.detail(vars(report))

        compactor.run(claimed, progress=show)


def expire(job: Opener, tenant_id: int) -> None:
    """Remove expired blocks from both tiers, idle ones from the hot tier.

    No Job row if one call is enough, as every few seconds. Mends books that the tenant's nodes
    damaged.
    """
    hot.mend_tenant(tenant_id)
    tier = hot.hot_tier(tenant_id)
    looks = tier.expire_due(EXPIRE_BLOCKS)
    if looks < EXPIRE_BLOCKS or job.is_waiting():
        return
    with job() as run:
        total = looks
        while looks >= EXPIRE_BLOCKS:
            looks = tier.expire_due(EXPIRE_BLOCKS)
            total += looks
            run.progress(0.5, blocks=total)


def leaving_tenants() -> list[Target]:
    leaving = Tenant.objects.filter(is_leaving=True).values_list("pk", flat=True)
    return [(None, {"leaving_id": id_}) for id_ in leaving]


def remove_tenant(job: Opener, tenant_id: None, leaving_id: int) -> None:
    """Delete a tenant marked for removal, with its data."""
    if not job.is_waiting():
        with job() as run:
            run.progress(1.0, blocks=removal.remove_tenant(leaving_id))


def leaving_spaces() -> list[Target]:
    leaving = Space.unscoped.filter(is_leaving=True).values_list("tenant_id", "pk")
    return [(tenant_id, {"space_id": space_id}) for tenant_id, space_id in leaving]


def remove_space(job: Opener, tenant_id: int, space_id: int) -> None:
    """Delete a space marked for removal, with its data."""
    if not job.is_waiting():
        with job() as run:
            run.progress(1.0, blocks=removal.remove_space(tenant_id, space_id))


def changed_tenants() -> list[Target]:
    changed = RetentionPolicy.unscoped.filter(
        applied_generation__lt=F("generation"), tenant__is_active=True
    )
    return [(id_, {}) for id_ in changed.values_list("tenant_id", flat=True)]


def retain(job: Opener, tenant_id: int) -> None:
    """Apply changed policies and rules to stored blocks. No Job row if none changed."""
    if not job.is_waiting() and (claimed := claims.claim(tenant_id)) is not None:
        with job() as run:
            claims.apply(tenant_id, *claimed, progress=partial(_show_walk, run))
            _show_walk(run, claimed[1])


def _show_walk(run: jobs.JobRun, walk: Walk) -> None:
    run.progress(0.5, blocks=walk.changed)
    run.detail({"blocks": walk.blocks, "changed": walk.changed, "is_done": walk.next is None})


def rebuild_index(job: Opener, tenant_id: None) -> None:
    """Restore functions, users, quotas and the whole index of a Valkey that lost its memory, or the
    index of a tenant that lost its own."""
    rebuild = recovery.rebuild_lost if recovery.index_is_whole() else recovery.rebuild_all
    if rebuild is recovery.rebuild_lost and (job.is_waiting() or not recovery.lost_tenants()):
        return
    if not recovery.claim():
        return
    with job() as run:
        report = rebuild(progress=partial(recovery.show_in_job, run))
        run.progress(1.0, blocks=report.blocks)
        run.detail(vars(report))


def rebuild_tenant(job: Opener, tenant_id: int) -> None:
    """Only on request. Blocks that the index knows stay as they are."""
    with job() as run:
        report = rebuild.rebuild_tenant(tenant_id)
        run.progress(1.0, blocks=report.blocks)
        run.detail(vars(report))


def watch(job: Opener, tenant_id: None) -> None:
    """Cut off tenants that take the hot tier from others. No Job row: the audit trail shows it."""
    watching.look()


def reconcile(job: Opener, tenant_id: None) -> None:
    """Find and repair leftovers of crashes, and changes by hand in Valkey and S3."""
    if job.is_waiting():
        return
    with job() as run:

        def show(share: float, report: Report) -> None:
            run.progress(share, blocks=report.looked_at["blocks"])
            run.detail(report.as_dict())

        provisioning.provision()
        repairs.reconcile(active_ids(), progress=show)
