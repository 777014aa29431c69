"""Opens, follows and ends incidents. May run twice at once: states change by compare-and-set.

A rule has to hold for its `for_s` before an incident opens, and to be calm for `calm_s` before it
ends. One that returns within REOPEN is the same incident, so that a value around its threshold
tells people once.

A busy tenant's hit rate that falls by twice its threshold is on the overview within 25 s: heartbeat
2 s, good traffic in the same bucket 5 s, the next round and its work 4 s, `for_s` up to the round
after it 12 s, hint and page 2 s.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Max, Q
from django.utils import timezone

from base import live, log_events
from base.isolation import isolated
from catalog.kinds import WATCH_INCIDENTS
from catalog.usage import bounded
from events.services import Subject, emit
from incidents import figures, levers, rules, slices, words
from incidents.assess import Finding, Threshold, assess, assess_memory, assess_stores
from incidents.fall import BUCKET_S, Followed, Mark
from incidents.kinds import HIT_RATE, KINDS, STORE_AWAY, RuleKind
from incidents.models import Incident
from retention.models import FlushMode, RetentionPolicy
from tenants.audit import SYSTEM, record
from tenants.models import Tenant

REOPEN: Final = timedelta(minutes=10)
UNKNOWN_CALM_S: Final = 600  # without traffic nothing shows that it is over
SETTLES: Final = timedelta(minutes=2)  # while an open incident's cause may still change
EXPLAINED: Final = timedelta(seconds=20)  # a young incident's worst slice is looked for again
NEW_LEVEL: Final = timedelta(hours=24)  # a hit rate that stays low so long is the new one
# Incidents of one run that get slice and levers, others in the next; half of it for open ones.
MOST_DETAILS: Final = 10
MOST_ENDED: Final = 500  # kept of a tenant
KEPT: Final = timedelta(days=90)


_FOLLOWED: Final = (
    *("seen_at", "calm_since", "value", "worst", "lost_tokens", "facts", "cause"),
    *("before", "slice", "levers", "words"),
)


@dataclass
class _Case:
    """A rule of a tenant, or (None) of the platform, and the incident that follows it."""

    tenant_id: int | None
    slug: str
    kind: RuleKind
    rule: Threshold
    row: Incident | None
    now: datetime
    of: figures.Figures = field(default_factory=figures.Figures)
    never_flushes: bool = False
    finding: Finding = field(default_factory=lambda: Finding(False))

    def assess(self) -> None:
        if not self.rule.is_on:
            return
        if self.tenant_id is None:
            if self.kind is STORE_AWAY:
                self.finding = assess_stores(figures.read_stores(), self.rule)
            else:
                self.finding = assess_memory(figures.read_memory(), self.rule)
            return
        self.finding = assess(
            self.kind.name,
            self.of,
            self.rule,
            followed=_followed(self.row, self.now) if self.row else None,
            never_flushes=self.never_flushes,
        )


def _followed(row: Incident, now: datetime) -> Followed:
    since_ts = row.since.timestamp()
    if row.opened_at is None:
        held_s = now.timestamp() - row.facts.get("held_since", now.timestamp())
        mark = row.facts.get("mark")
        return Followed(since_ts, held_s, Mark(*mark) if mark else None)
    if row.before is None or now - row.opened_at > NEW_LEVEL:
        return Followed(since_ts, is_open=True)
    return Followed(since_ts, is_open=True, before=row.before, cause=row.cause)


def run(now: datetime | None = None) -> None:
    """One round over all tenants. Without news: nine statements, and one if rows are followed."""
    now = now or timezone.now()
    round_ = _Round(now)
    for case in _cases(now):
        with isolated(WATCH_INCIDENTS.name, case.tenant_id):
            round_.take(case)
    if round_.followed:
        _save(round_.followed)


@dataclass
class _Round:
    now: datetime
    followed: list[Incident] = field(default_factory=list)
    details: int = 0

    def take(self, case: _Case) -> None:
        case.assess()
        now, row = self.now, case.row
        if row is None:
            row = _begin(case, now) if case.finding.holds else None
        if row is None:
            return
        if case.finding.holds:
            row.calm_since = None
            _follow(row, case, now)
            is_due = row.opened_at is None and _has_held(row, case, now)
            if is_due or _is_bare(row, now):
                if self.details >= (MOST_DETAILS if is_due else MOST_DETAILS // 2):
                    return
                self.details += 1
                _explain(row, case.slug, now)
            if is_due and not _open(row, case, now):
                return
        elif row.opened_at is None:
            Incident.unscoped.filter(pk=row.pk, opened_at=None).delete()
            return
        elif _has_ended(row, case, now):
            _end(row, case, now)
            return
        row.seen_at = now
        self.followed.append(row)


def _save(rows: list[Incident]) -> None:
    """At once or, if one of them cannot be saved, each by itself."""
    try:
        _update(rows)
    except Exception:
        for row in rows:
            with isolated(WATCH_INCIDENTS.name, row.tenant_id):
                _update([row])


@transaction.atomic
def _update(rows: list[Incident]) -> None:
    Incident.unscoped.bulk_update(rows, _FOLLOWED)


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
        of: figures.Figures | None = None
        with isolated(WATCH_INCIDENTS.name, id_):
            of = found.of(id_)
        for kind in KINDS.values():
            if not kind.of_tenant:
                continue
            row, rule = rows.pop((id_, kind.name), None), in_force[id_][kind.name]
            if of is not None:
                yield _Case(id_, slug, kind, rule, row, now, of, never_flushes=id_ in never)
    for kind in KINDS.values():
        if not kind.of_tenant:
            row, rule = rows.pop((None, kind.name), None), in_force[None][kind.name]
            yield _Case(None, "", kind, rule, row, now)
    for (owner_id, name), row in rows.items():  # of tenants that are switched off
        kind = KINDS.get(name, HIT_RATE)
        yield _Case(owner_id, "", kind, Threshold(0, 0, is_on=False), row, now)


def _begin(case: _Case, now: datetime) -> Incident | None:
    """None: another run began it."""
    since = now
    if case.finding.began_ts is not None:
        since = min(since, datetime.fromtimestamp(case.finding.began_ts, UTC))
    row = Incident(tenant_id=case.tenant_id, kind=case.kind.name, since=since, seen_at=now)
    row.facts = {"held_since": now.timestamp()} | _marked(case.finding)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        return None
    return row


def _marked(finding: Finding) -> dict[str, Any]:
    return {"mark": list(astuple(finding.mark))} if finding.mark else {}


def _has_held(row: Incident, case: _Case, now: datetime) -> bool:
    """Long enough and, of a fall, also in traffic that was counted since it was first seen."""
    for_s = case.rule.for_s if case.finding.for_s is None else case.finding.for_s
    is_confirmed = case.finding.mark is None or row.facts.get("is_confirmed", False)
    return bool(is_confirmed and now.timestamp() - row.facts["held_since"] >= for_s)


def _follow(row: Incident, case: _Case, now: datetime) -> None:
    finding = case.finding
    held_since = row.facts.get("held_since", now.timestamp())
    is_confirmed = finding.is_confirmed or row.facts.get("is_confirmed", False)
    row.facts = finding.facts | {"held_since": held_since}
    if row.opened_at is None and finding.mark:
        row.facts |= _marked(finding) | {"is_confirmed": is_confirmed}
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
    """Whether an open incident lacks what `_explain` adds: its cause changed, time was short, or
    slices have more to tell by now: they come later than the sums that opened it."""
    if row.opened_at is None or now - row.opened_at >= SETTLES:
        return False
    has_more = (now - row.opened_at) // EXPLAINED != (row.seen_at - row.opened_at) // EXPLAINED
    is_unsure = row.kind == HIT_RATE.name and (not row.slice or has_more)
    return is_unsure or (bool(row.cause) and not row.levers)


def _explain(row: Incident, slug: str, now: datetime) -> None:
    """Adds the worst slice and the levers. What fails is left out: the incident says the rest."""
    if row.tenant_id is None:
        row.levers = [turn.as_dict() for turn in levers.turns_of_platform(row.cause, row.facts)]
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
        later_s = (case.finding.began_ts or 0.0) - row.since.timestamp()
        if 0 < later_s < BUCKET_S:  # its first bucket was not full when it was noticed
            row.since += timedelta(seconds=later_s)
        is_mine = Incident.unscoped.filter(pk=row.pk, opened_at=None).update(
            opened_at=now, before=row.before, mail_after=now, since=row.since
        )
        if not is_mine:
            return False
        row.opened_at, row.mail_after = now, now
        row.facts = {k: v for k, v in row.facts.items() if k not in ("mark", "is_confirmed")}
        muted = Incident.unscoped.filter(
            tenant=row.tenant_id, kind=row.kind, ended_at__isnull=False
        ).aggregate(
            muted_until=Max("muted_until", filter=Q(muted_until__gt=now)),
            operators_muted_until=Max(
                "operators_muted_until", filter=Q(operators_muted_until__gt=now)
            ),
        )
        if any(muted.values()):
            Incident.unscoped.filter(pk=row.pk).update(**muted)
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
