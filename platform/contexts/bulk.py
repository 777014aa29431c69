"""One action on many contexts: a preview chooses them, its token starts a job that acts on each.

The preview freezes the set: the job acts on these contexts and no others, also if more match the
filter by then. Contexts that were deleted meanwhile are skipped, and so are those to be expired or
deleted that changed since: a request used them, or somebody extended or labelled them. Each context
goes through the service of the single action: its checks, audit events, pins and budgets.

A job works in slices of SLICE_S and notes how far it is, so that it goes on after a crash. The
services may be repeated: a context of the last AT_ONCE may be acted on twice.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from base.problems import Problem
from catalog import jobs
from catalog.kinds import BULK
from catalog.models import BulkAction, Context, Job, Pin, Space
from catalog.targets import Opener
from contexts import expiry, pins, services, warming
from contexts.weighing import Weight, weigh
from engines import services as engines
from tenants.audit import Actor, record
from tenants.scope import tenant_scope

MOST_CONTEXTS = 200_000  # of one action
VALID = timedelta(minutes=15)  # a preview
MOST_PREVIEWS = 10  # of one owner; a new one replaces the oldest
MOST_JOBS = 10  # of one tenant, unfinished
AT_ONCE = 50
SLICE_S = 60.0
MOST_LINES = 50  # of a job's log, about refused contexts

MOST_BLOCKS = 100_000  # of contexts that expire together

Act = Callable[[Context, Actor, Mapping[str, Any]], object]
Refuse = Callable[[Context, Problem], None]


def _pin(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> object:
    until = datetime.fromisoformat(arguments["until"])
    rest = {name: arguments[name] for name in ("reason", "tier") if name in arguments}
    return pins.pin(context=context, until=until, actor=actor, **rest)


def _unpin(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> object:
    return pins.unpin(context=context, actor=actor, everybody=arguments.get("all", False))


def _extend(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> object:
    return services.extend(context=context, for_s=arguments["for_s"], actor=actor)


def _expire(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> object:
    if "at" in arguments:
        at = datetime.fromisoformat(arguments["at"])
        return expiry.expire_at(context=context, at=at, actor=actor)
    return expiry.expire(context=context, actor=actor)


def _delete(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> None:
    services.delete(context=context, actor=actor)


def _label(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> object:
    return services.change(context=context, actor=actor, **arguments)


def _warm(context: Context, actor: Actor, arguments: Mapping[str, Any]) -> object:
    return warming.request(context=context, actor=actor)


ACTIONS: dict[str, Act] = {
    **{"pin": _pin, "unpin": _unpin, "extend": _extend, "warm": _warm},
    **{"expire": _expire, "label": _label, "delete": _delete},
}
REMOVING = ("expire", "delete")  # spare contexts that changed since the preview


@dataclass(frozen=True)
class Preview:
    """`pinned_by_others`: chosen contexts with a pin of somebody else. If it keeps the actor from
    expiring them, `weight` is of the other ones: what is freed is what really leaves. `refused`: of
    a warm, contexts that would be refused now, by kind of the problem; `weight` leaves them out."""

    bulk: BulkAction
    weight: Weight
    pinned_by_others: int
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def refused_count(self) -> int:
        return sum(self.refused.values())

    @property
    def freed_blocks(self) -> int:
        """That leave both tiers: only an expiry frees any."""
        return self.weight.blocks - self.weight.shared_blocks if self._frees else 0

    @property
    def freed_bytes(self) -> int:
        return self.weight.bytes - self.weight.shared_bytes if self._frees else 0

    @property
    def freed_hot_bytes(self) -> int:
        """In Valkey, where they are free at once."""
        return self.weight.own_hot_bytes if self._frees else 0

    @property
    def freed_cold_bytes(self) -> int:
        """In S3, where compaction removes them from segments."""
        return self.weight.own_cold_bytes if self._frees else 0

    @property
    def _frees(self) -> bool:
        return self.bulk.action == "expire"


def preview(
    *,
    tenant_id: int,
    found: QuerySet[Context],
    action: str,
    arguments: Mapping[str, Any],
    filter_: Mapping[str, Any],
    actor: Actor,
) -> Preview:
    """Freezes the set `found`, contexts of one tenant, for `take`. Changes no context.

    `arguments`: of the action, JSON values. `filter_`: how they were found, for the audit.
    Raises Problem: limit-reached (too many contexts), hot-tier-unavailable.
    """
    chosen = list(found.order_by("space_id", "root", "pk").values_list("pk", flat=True))
    if len(chosen) > MOST_CONTEXTS:
        raise Problem(
            "limit-reached",
            f"The filter matches {len(chosen)} contexts and the limit is {MOST_CONTEXTS}.",
            limit="bulk_contexts",
            most=MOST_CONTEXTS,
        )
    now = timezone.now()
    with tenant_scope(tenant_id):
        others = Pin.objects.filter(until__gt=now, context__in=found.order_by().values("pk"))
        foreign = set(others.exclude(owner=actor.owner).values_list("context_id", flat=True))
    spared = foreign if action in REMOVING and not actor.is_operator else set()
    refused = _not_warmable(tenant_id, found) if action == "warm" else {}
    spared = spared | refused.keys()
    weight = weigh(tenant_id, (uuid for uuid in chosen if uuid not in spared))
    with tenant_scope(tenant_id), transaction.atomic():
        _make_room(actor, now)
        bulk = BulkAction.objects.create(
            action=action,
            arguments=dict(arguments),
            filter=dict(filter_),
            chosen=b"".join(uuid.bytes for uuid in chosen),
            contexts=len(chosen),
            owner=actor.owner,
            owner_name=actor.name[:200],
            made_at=now,
            expires_at=now + VALID,
        )
        return Preview(bulk, weight, len(foreign), dict(Counter(refused.values())))


def _not_warmable(tenant_id: int, found: QuerySet[Context]) -> dict[UUID, str]:
    """Contexts whose tokens are not known, or whose space has no healthy engine: the kind of the
    problem. Tokens that are older than the chain are only met by the job."""
    with tenant_scope(tenant_id):
        rows = list(found.order_by().values_list("pk", "space_id", "prompt"))
        spaces = Space.objects.filter(pk__in={space_id for _, space_id, _ in rows})
        served = {space.pk for space in spaces if engines.serving(space)}
    refused = {}
    for uuid, space_id, prompt in rows:
        if prompt is None:
            refused[uuid] = "tokens-unknown"
        elif space_id not in served:
            refused[uuid] = "no-engine"
    return refused


def _make_room(actor: Actor, now: datetime) -> None:
    """Deletes previews that are over, and the owner's oldest. Inside the tenant's scope."""
    waiting = BulkAction.objects.filter(job=None)
    waiting.filter(expires_at__lte=now).delete()
    own = waiting.filter(owner=actor.owner).order_by("-made_at")
    oldest = list(own.values_list("pk", flat=True)[MOST_PREVIEWS - 1 :])
    waiting.filter(pk__in=oldest).delete()


def take(*, bulk: BulkAction, actor: Actor) -> Job:
    """Requests the job of a preview; a preview that was taken has its job already.

    The caller has checked that the actor may change contexts of this tenant. Raises Problem:
    not-found (another's preview), preview-expired, limit-reached (jobs of the tenant).
    """
    with tenant_scope(bulk.tenant_id), transaction.atomic():
        rows = BulkAction.objects.select_for_update(of=("self",)).defer("chosen")
        row = rows.filter(pk=bulk.pk).first()
        if row is None or row.owner != actor.owner:
            raise unknown_token()
        if row.job is not None:
            return row.job
        if row.expires_at <= timezone.now():
            raise Problem("preview-expired", f"The preview ended at {row.expires_at.isoformat()}.")
        running = Job.objects.filter(
            kind=BULK.name, state__in=(Job.State.QUEUED, Job.State.RUNNING)
        )
        if running.count() >= MOST_JOBS:
            raise Problem(
                "limit-reached",
                f"The tenant has {MOST_JOBS} unfinished bulk jobs.",
                limit="bulk_jobs",
                most=MOST_JOBS,
            )
        row.job = jobs.enqueue(
            BULK.name, tenant_id=row.tenant_id, by=actor.name, bulk_id=str(row.pk)
        )
        row.is_operator, row.request_id = actor.is_operator, actor.request_id
        row.save(update_fields=["job", "is_operator", "request_id"])
        facts = {name: getattr(row, name) for name in ("action", "arguments", "filter", "contexts")}
        record(
            actor=actor,
            tenant_id=row.tenant_id,
            action="context.bulk",
            obj=row.job,
            after=facts,
        )
        return row.job


def unknown_token() -> Problem:
    return Problem("not-found", "token: there is no such preview of yours.", field="token")


def work(job: Opener, tenant_id: int, bulk_id: str) -> None:
    """Does the action to the contexts that are left. Only on request."""
    with job() as run, tenant_scope(tenant_id):
        bulk = BulkAction.objects.filter(pk=bulk_id).first()
        if bulk is None:
            run.log("Its preview is gone.")
            return
        began = time.monotonic()
        while bulk.place < bulk.contexts:
            _do_some(bulk, run)
            if bulk.place < bulk.contexts and time.monotonic() - began > SLICE_S:
                raise jobs.JobContinues
        bulk.chosen = b""
        bulk.save(update_fields=["chosen"])


def _do_some(bulk: BulkAction, run: jobs.JobRun) -> None:
    """The next AT_ONCE contexts. Raises Problem (hot-tier-unavailable): the job is repeated."""
    uuids = bulk.ids(bulk.place, bulk.place + AT_ONCE)
    rows = Context.objects.filter(pk__in=uuids).select_related("space").defer("chain")
    found = {context.pk: context for context in rows}
    actor = Actor(bulk.owner_name, bulk.request_id, id=bulk.owner, is_operator=bulk.is_operator)
    counts = Counter(bulk.counts)
    refuse = partial(_note_refusal, run, counts)
    if bulk.action == "expire" and "at" not in bulk.arguments:
        counts += _expire_some(bulk, [found.get(uuid) for uuid in uuids], actor, refuse)
    else:
        for uuid in uuids:
            counts[_outcome(bulk, found.get(uuid), actor, refuse)] += 1
    bulk.place += len(uuids)
    bulk.counts = dict(counts)
    bulk.save(update_fields=["place", "counts"])
    run.detail(result(bulk))
    run.progress(bulk.place / bulk.contexts)


def _outcome(bulk: BulkAction, context: Context | None, actor: Actor, refuse: Refuse) -> str:
    """`done`, or why nothing was done: `deleted`, `changed`, `unchanged` or a problem's kind."""
    if context is None:
        return "deleted"
    if (reason := _spared(bulk, context)) is not None:
        return reason
    try:
        ACTIONS[bulk.action](context, actor, bulk.arguments)
    except Problem as problem:
        return _refused(context, problem, refuse)
    return "done"


def _expire_some(
    bulk: BulkAction, contexts: Sequence[Context | None], actor: Actor, refuse: Refuse
) -> Counter[str]:
    """`_outcome` of several, counted. Those with a common root go together, up to MOST_BLOCKS."""
    counts, together = Counter[str](), defaultdict[Any, list[Context]](list)
    for context in contexts:
        reason = "deleted" if context is None else _spared(bulk, context)
        if context is None or reason is not None:
            counts[reason or ""] += 1
            continue
        group = (context.space_id, bytes(context.root))
        together[group].append(context)
        if sum(each.blocks for each in together[group]) > MOST_BLOCKS:
            counts += _expire_together(together.pop(group), actor, refuse)
    for members in together.values():
        counts += _expire_together(members, actor, refuse)
    return counts


def _expire_together(members: Sequence[Context], actor: Actor, refuse: Refuse) -> Counter[str]:
    found = expiry.expire_many(contexts=members, actor=actor)
    return Counter(
        _refused(context, answer, refuse)
        if isinstance(answer := found[context.pk], Problem)
        else "done"
        for context in members
    )


def _spared(bulk: BulkAction, context: Context) -> str | None:
    """Why the action is not to be done to the context, if so.

    One that expired since the preview is expired again: an attempt may have ended before it
    removed the blocks.
    """
    if bulk.action not in REMOVING:
        return None
    if context.updated_at > bulk.made_at:
        return "changed"
    ended = context.expired_at
    is_over = bulk.action == "expire" and ended is not None and ended < bulk.made_at
    return "unchanged" if is_over else None


def _refused(context: Context, problem: Problem, refuse: Refuse) -> str:
    """Raises a problem of the platform, so that the job is repeated."""
    if problem.kind == "not-found":
        return "deleted"
    if problem.status >= 500:
        raise problem
    refuse(context, problem)
    return problem.kind


def _note_refusal(
    run: jobs.JobRun, counts: Mapping[str, int], context: Context, problem: Problem
) -> None:
    known = sum(counts.values()) - counts.get("done", 0)
    if known < MOST_LINES:
        run.log(f"{context.name}: {problem.detail}")


def result(bulk: BulkAction) -> dict[str, Any]:
    """The facts of the job: how many contexts the action was done to, and why not to the others."""
    done = bulk.counts.get("done", 0)
    refused = {reason: count for reason, count in bulk.counts.items() if reason != "done"}
    return {
        "action": bulk.action,
        "contexts": bulk.contexts,
        "looked_at": bulk.place,
        "done": done,
        "refused": refused,
    }
