"""Policies that warm contexts: by the clock (cron), or again whenever blocks are lost ("keep").

`run_due` runs every few seconds. A policy that failed OFF_AFTER times in a row pauses itself and
says why.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from django.db import transaction
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from catalog.kinds import WARM
from catalog.models import Context, Job
from contexts import warming
from contexts.making import residency_in
from engines.models import Engine, WarmPolicy
from tenants.audit import SYSTEM, Actor, record
from tenants.models import Tenant
from tenants.scope import tenant_scope

MOST = 100  # of a tenant
AT_ONCE = 4  # warm jobs of a tenant that policies let wait or run
DUE = 50  # of one tenant and tick
KEEP_EVERY_S = 60
LAST_PAUSE_S = 3600
OFF_AFTER = 5  # failures in a row
_FACTS = ("mode", "cron", "time_zone", "engine_id", "is_paused")


def add_policy(
    *,
    context: Context,
    mode: str,
    cron: str = "",
    time_zone: str = "UTC",
    engine: Engine | None = None,
    is_paused: bool = False,
    actor: Actor,
) -> WarmPolicy:
    """Raises Problem: malformed (cron, time_zone), tokens-unknown, limit-reached."""
    _require_times(mode, cron, time_zone)
    warming.require_tokens(context)
    with tenant_scope(context.tenant_id), transaction.atomic():
        Tenant.objects.select_for_update().get(pk=context.tenant_id)
        there = WarmPolicy.objects.count()
        if there >= MOST:
            raise Problem(
                "limit-reached",
                f"warm_policies: the tenant has {there} and the limit is {MOST}.",
                limit="warm_policies",
                most=MOST,
            )
        policy = WarmPolicy(
            tenant_id=context.tenant_id,
            context=context,
            mode=mode,
            cron=cron,
            time_zone=time_zone,
            engine=engine,
            is_paused=is_paused,
        )
        policy.next_run_at = _next(policy, timezone.now())
        policy.save()
        _audit(policy, "warm_policy.add", actor, after=_facts(policy))
    return policy


def change_policy(*, policy: WarmPolicy, actor: Actor, **fields: Any) -> WarmPolicy:
    """`fields`: cron, time_zone, engine, is_paused; absent ones stay. Forgets earlier failures.

    Raises Problem (malformed, not-found).
    """
    with tenant_scope(policy.tenant_id), transaction.atomic():
        row = WarmPolicy.objects.select_for_update().filter(pk=policy.pk).first()
        if row is None:
            raise Problem("not-found", "This policy was deleted.")
        require_unchanged(row)
        before = _facts(row)
        for name, value in fields.items():
            setattr(row, name, value)
        _require_times(row.mode, row.cron, row.time_zone)
        row.failures, row.error, row.updated_at = 0, "", timezone.now()
        row.next_run_at = _next(row, timezone.now())
        row.save()
        _audit(row, "warm_policy.change", actor, before=before, after=_facts(row))
    return row


@transaction.atomic
def remove_policy(*, policy: WarmPolicy, actor: Actor) -> None:
    with tenant_scope(policy.tenant_id):
        require_unchanged(policy)
        _audit(policy, "warm_policy.remove", actor, before=_facts(policy))
        WarmPolicy.objects.filter(pk=policy.pk).delete()


def run_due(tenant_id: int) -> int:
    """Run due policies. Returns how many jobs were requested. May run twice at once."""
    now = timezone.now()
    with tenant_scope(tenant_id):
        due = WarmPolicy.objects.filter(next_run_at__lte=now, is_paused=False)
        rows = due.select_related("context__space", "engine", "last_job").order_by("next_run_at")
        return sum(_run(policy, now) for policy in list(rows[:DUE]))


def _run(policy: WarmPolicy, now: datetime) -> bool:
    """Whether a job was requested. Inside the tenant's scope."""
    _count_failure(policy)
    if policy.failures >= OFF_AFTER:
        _save(policy, now, is_paused=True, next_run_at=None)
        return False
    under_way = Job.objects.filter(
        kind=WARM.name, state__in=(Job.State.QUEUED, Job.State.RUNNING)
    ).count()
    if under_way >= AT_ONCE:
        _save(policy, now, next_run_at=now + timedelta(seconds=30))
        return False
    if not _save(policy, now, next_run_at=_next(policy, now)):
        return False  # another worker runs it
    context = policy.context
    try:
        if policy.mode == WarmPolicy.Mode.KEEP and not _is_wanting(context):
            return False
        job = warming.request(context=context, engine=policy.engine, actor=SYSTEM)
    except Problem as problem:
        if problem.status < 500:  # a hot tier that is away is no failure of the policy
            policy.failures += 1
            _save(policy, now, error=problem.detail[:300], next_run_at=_next(policy, now))
        return False
    _save(policy, now, last_job=job, last_run_at=now)
    return True


def _is_wanting(context: Context) -> bool:
    """Whether a kept context lacks blocks. One that was expired on purpose does not."""
    if context.expired_at is not None:
        return False
    return residency_in(context.space, context.ids(), context.tokens).usable_tokens < context.tokens


def _count_failure(policy: WarmPolicy) -> None:
    """The outcome of the last job, once: `updated_at` moves with each run."""
    job = policy.last_job
    if job is None or job.finished_at is None or job.finished_at < policy.updated_at:
        return
    if job.state == Job.State.FAILED and job.retry_at is None:
        policy.failures += 1
        policy.error = job.error[:300]
    elif job.state == Job.State.DONE:
        policy.failures, policy.error = 0, ""


def _save(policy: WarmPolicy, now: datetime, **fields: Any) -> bool:
    """Write if nobody else did meanwhile."""
    values = {"failures": policy.failures, "error": policy.error, "updated_at": now, **fields}
    mine = WarmPolicy.objects.filter(pk=policy.pk, updated_at=policy.updated_at)
    if not mine.update(**values):
        return False
    for name, value in values.items():
        setattr(policy, name, value)
    return True


def _next(policy: WarmPolicy, now: datetime) -> datetime | None:
    if policy.is_paused:
        return None
    if policy.mode == WarmPolicy.Mode.KEEP:
        pause_s = min(KEEP_EVERY_S * 2 ** min(policy.failures, 10), LAST_PAUSE_S)
        return now + timedelta(seconds=pause_s) if policy.pk else now
    return next_moment(policy.cron, policy.time_zone, now)


def next_moment(cron: str, time_zone: str, after: datetime) -> datetime:
    """Raises Problem (malformed) for an expression that cannot be read or never comes."""
    from cronsim import CronSim, CronSimError

    try:
        found = next(CronSim(cron, after.astimezone(ZoneInfo(time_zone))))
    except (CronSimError, StopIteration) as error:
        raise Problem(
            "malformed",
            f"cron: {cron!r} is no moment that comes ({error or 'never'}); write five fields such "
            "as 30 7 * * 1-5",
            field="cron",
        ) from error
    return found.astimezone(ZoneInfo("UTC"))


def _require_times(mode: str, cron: str, time_zone: str) -> None:
    if time_zone not in available_timezones():
        raise Problem(
            "malformed", "time_zone: unknown; write such as Europe/Berlin.", field="time_zone"
        )
    if (mode == WarmPolicy.Mode.SCHEDULE) != bool(cron):
        words = "a schedule needs it" if not cron else "only a schedule has it"
        raise Problem("malformed", f"cron: {words}.", field="cron")
    if cron:
        if len(cron.split()) != 5:
            raise Problem("malformed", "cron: write five fields: 30 7 * * 1-5", field="cron")
        next_moment(cron, time_zone, timezone.now())


def _facts(policy: WarmPolicy) -> dict[str, Any]:
    return {"context": str(policy.context_id)} | {n: getattr(policy, n) for n in _FACTS}


def _audit(
    policy: WarmPolicy,
    action: str,
    actor: Actor,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    record(
        actor=actor,
        tenant_id=policy.tenant_id,
        action=action,
        obj=policy,
        before=None if before is None else dict(before),
        after=None if after is None else dict(after),
    )
