"""Opens, follows and ends incidents. May run twice at once: states change by compare-and-set.

A rule has to hold for its `for_s` before an incident opens, and to be calm for `calm_s` before it
ends. One that returns within REOPEN is the same incident, so that a value around its threshold
tells people once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from base import live, log_events
from catalog.usage import bounded
from events.services import Subject, emit
from incidents import figures, levers, rules, slices, words
from incidents.assess import Finding, Threshold, assess, assess_memory
from incidents.kinds import HIT_RATE, KINDS, MEMORY_PROMISE, RuleKind
from incidents.models import Incident
from retention.models import FlushMode, RetentionPolicy
from tenants.audit import SYSTEM, record
from tenants.models import Tenant

REOPEN: Final = timedelta(minutes=10)
UNKNOWN_CALM_S: Final = 600  # without traffic nothing shows that it is over
SETTLES: Final = timedelta(minutes=2)  # while an open incident's cause may still change
NEW_LEVEL: Final = timedelta(hours=24)  # a hit rate that stays low so long is the new one
MOST_DETAILS: Final = 20  # incidents of one run that get slice and levers; others in the next
MOST_ENDED: Final = 500  # kept of a tenant
KEPT: Final = timedelta(days=90)


_FOLLOWED: Final = (
    *("seen_at", "calm_since", "value", "worst", "lost_tokens", "facts", "cause"),
    *("before", "slice", "levers", "words"),
)


@dataclass
class _Case:
    tenant_id: int | None
    slug: str
    kind: RuleKind
    rule: Threshold
    row: Incident | None
    finding: Finding


def run(now: datetime | None = None) -> None:
    """One round over all tenants. Without news: eight statements, and one if rows are followed."""
    now = now or timezone.now()
    changed = [case for case in _cases(now) if case.row is not None or case.finding.holds]
    followed, details = [], 0
    for case in changed:
        row = case.row
        if row is None:
            row = _begin(case, now)
        if row is None:
            continue
        if case.finding.holds:
            row.calm_since = None
            _follow(row, case, now)
            held_s = now.timestamp() - row.facts["held_since"]
            is_due = row.opened_at is None and held_s >= _for_s(case)
            if is_due or _is_bare(row, now):
                details += 1
                if details > MOST_DETAILS:
                    continue
                _explain(row, case.slug, now)
            if is_due and not _open(row, case, now):
                continue
        elif row.opened_at is None:
            Incident.unscoped.filter(pk=row.pk, opened_at=None).delete()
            continue
        elif _has_ended(row, case, now):
            _end(row, case, now)
            continue
        row.seen_at = now
        followed.append(row)
    if followed:
        Incident.unscoped.bulk_update(followed, _FOLLOWED)


def _cases(now: datetime) -> Iterable[_Case]:
    tenants = dict(Tenant.objects.filter(is_active=True).values_list("pk", "slug"))
    never = set(
        RetentionPolicy.unscoped.filter(flush_mode=FlushMode.NEVER).values_list(
            "tenant_id", flat=True
        )
    )
    in_force = rules.in_force([None, *tenants])
    rows = {(row.tenant_id, row.kind): row for row in Incident.unscoped.filter(ended_at=None)}
    found = figures.read(now)
    for id_, slug in tenants.items():
        of = found.get(id_, figures.Figures())
        for kind in KINDS.values():
            if not kind.of_tenant:
                continue
            row, rule = rows.pop((id_, kind.name), None), in_force[id_][kind.name]
            frozen = None
            if row is not None and row.opened_at is not None and row.before is not None:
                is_new_level = now - row.opened_at > NEW_LEVEL
                frozen = None if is_new_level else (row.before, row.cause)
            finding = Finding(False)
            if rule.is_on:
                finding = assess(kind.name, of, rule, frozen=frozen, never_flushes=id_ in never)
            yield _Case(id_, slug, kind, rule, row, finding)
    row, rule = rows.pop((None, MEMORY_PROMISE.name), None), in_force[None][MEMORY_PROMISE.name]
    finding = assess_memory(figures.read_memory(), rule) if rule.is_on else Finding(False)
    yield _Case(None, "", MEMORY_PROMISE, rule, row, finding)
    for (owner_id, name), row in rows.items():  # of tenants that are switched off
        kind = KINDS.get(name, HIT_RATE)
        yield _Case(owner_id, "", kind, Threshold(0, 0), row, Finding(False))


def _begin(case: _Case, now: datetime) -> Incident | None:
    """None: another run began it."""
    since = now
    if case.finding.began_ts is not None:
        since = datetime.fromtimestamp(case.finding.began_ts, UTC)
    row = Incident(
        tenant_id=case.tenant_id, kind=case.kind.name, since=min(since, now), seen_at=now
    )
    row.facts = {"held_since": now.timestamp()}
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        return None
    return row


def _for_s(case: _Case) -> int:
    return case.rule.for_s if case.finding.for_s is None else case.finding.for_s


def _follow(row: Incident, case: _Case, now: datetime) -> None:
    finding = case.finding
    held_since = row.facts.get("held_since", now.timestamp())
    row.facts = finding.facts | {"held_since": held_since}
    is_settled = row.opened_at is not None and now - row.opened_at > SETTLES
    if finding.cause and not is_settled:
        if finding.cause != row.cause:
            row.levers = []
        row.cause = finding.cause
    if row.opened_at is None:
        row.before = finding.before
    row.value = finding.value
    if finding.value is not None:
        pick = min if row.kind == HIT_RATE.name else max
        row.worst = finding.value if row.worst is None else pick(row.worst, finding.value)
    elapsed_s = (now - (row.seen_at if row.opened_at else row.since)).total_seconds()
    lost = int(finding.lost_per_s * max(0.0, min(elapsed_s, 300.0)))
    row.lost_tokens = bounded(row.lost_tokens + lost)  # nodes count whatever they like
    row.words = words.title(row.kind, row.value, row.before, row.facts)[:300]


def _is_bare(row: Incident, now: datetime) -> bool:
    """Whether an open incident lacks what `_explain` adds: its cause changed, or time was short."""
    is_young = row.opened_at is not None and now - row.opened_at < SETTLES
    lacks_slice = row.kind == HIT_RATE.name and not row.slice
    return is_young and (lacks_slice or (bool(row.cause) and not row.levers))


def _explain(row: Incident, slug: str, now: datetime) -> None:
    """Adds the worst slice and the levers. What fails is left out: the incident says the rest."""
    if row.tenant_id is None:
        return
    try:
        row.levers = [turn.as_dict() for turn in levers.turns_of(row.cause, row.tenant_id)]
        row.slice = slices.worst_of(row, slug, now)
    except Exception:
        log_events.INCIDENT_UNEXPLAINED.log(incident=row.pk, tenant_id=row.tenant_id, exc_info=True)


def _open(row: Incident, case: _Case, now: datetime) -> bool:
    """False: another run opened it, or it goes on as one that ended a moment ago."""
    with transaction.atomic():
        earlier = (
            Incident.unscoped.select_for_update()
            .filter(tenant=row.tenant_id, kind=row.kind, ended_at__gt=now - REOPEN)
            .order_by("-ended_at")
            .first()
        )
        if earlier is not None:
            if not Incident.unscoped.filter(pk=row.pk, opened_at=None).delete()[0]:
                return False
            earlier.ended_at, earlier.calm_since, earlier.seen_at = None, None, now
            earlier.save(update_fields=["ended_at", "calm_since", "seen_at"])
            _audit(earlier, "incident.reopen", {"words": row.words})
            return False
        is_mine = Incident.unscoped.filter(pk=row.pk, opened_at=None).update(
            opened_at=now, before=row.before, mail_after=now
        )
        if not is_mine:
            return False
        row.opened_at, row.mail_after = now, now
        muted = Incident.unscoped.filter(
            tenant=row.tenant_id, kind=row.kind, muted_until__gt=now, ended_at__isnull=False
        )
        row.muted_until = (
            muted.order_by("-muted_until").values_list("muted_until", flat=True).first()
        )
        if row.muted_until is not None:
            Incident.unscoped.filter(pk=row.pk).update(muted_until=row.muted_until)
        _audit(row, "incident.open", {"words": row.words, "cause": row.cause})
        emit(
            "incident.opened",
            tenant_id=row.tenant_id,
            subject=subject_of(row, case.slug),
            data=data_of(row),
        )
        _hint(row)
    log_events.INCIDENT_OPENED.log(
        incident=row.pk, tenant_id=row.tenant_id, kind=row.kind, words=row.words, cause=row.cause
    )
    return True


def _has_ended(row: Incident, case: _Case, now: datetime) -> bool:
    if not case.rule.is_on:
        return True
    row.calm_since = row.calm_since or now
    calm_s = UNKNOWN_CALM_S if case.finding.holds is None else case.kind.calm_s
    if case.finding.value is not None:
        row.value = case.finding.value
    return (now - row.calm_since).total_seconds() >= calm_s


def _end(row: Incident, case: _Case, now: datetime) -> None:
    with transaction.atomic():
        if not Incident.unscoped.filter(pk=row.pk, ended_at=None).update(
            ended_at=now, value=row.value, calm_since=row.calm_since, mail_after=now
        ):
            return
        row.ended_at = now
        _audit(row, "incident.end", {"lost_tokens": row.lost_tokens})
        emit(
            "incident.ended",
            tenant_id=row.tenant_id,
            subject=subject_of(row, case.slug),
            data=data_of(row),
        )
        _hint(row)
        ended = Incident.unscoped.filter(tenant=row.tenant_id, ended_at__isnull=False)
        old = ended.order_by("-ended_at").values_list("pk", flat=True)[MOST_ENDED:]
        Incident.unscoped.filter(pk__in=list(old[:100])).delete()
        ended.filter(Q(ended_at__lt=now - KEPT)).delete()


def subject_of(row: Incident, slug: str) -> Subject:
    name = words.line(row.words or KINDS[row.kind].label, slug, row.since)
    return {"type": "incident", "id": str(row.pk), "name": name[:200]}


def data_of(row: Incident) -> dict[str, Any]:
    lever = row.levers[0] if row.levers else {}
    return {
        "kind": row.kind,
        "since": row.since.isoformat(),
        "cause": row.cause,
        "lever": lever.get("name", ""),
        "lever_now": lever.get("now", ""),
        "lost_tokens": row.lost_tokens,
    }


def _audit(row: Incident, action: str, after: dict[str, Any]) -> None:
    record(actor=SYSTEM, tenant_id=row.tenant_id, action=action, obj=row, after=after)


def _hint(row: Incident) -> None:
    """Open pages look again."""
    if row.tenant_id is not None:
        live.hint_on_commit(row.tenant_id)
