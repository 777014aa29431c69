"""What the forms of the page Tenant change. Each checks who may, and that nobody was faster.

An action gets the form and returns the address to go on to, or raises Refused, with the facts that
the page then shows beside the form.
"""

from collections.abc import Callable
from typing import Any

from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404

from base.problems import Problem
from dashboard.formats import bytes_quantity
from dashboard.pages.tenant.policy import draft_of, policy_of, rule_fields
from dashboard.revisions import as_seen, revision_of
from neve.typed import parse_size, size_typed
from retention import services as retention
from retention.models import RetentionPolicy, RetentionRule
from retention.undo import undo
from storage import hot
from tenants import members, services
from tenants.audit import Actor
from tenants.models import AuditEvent, Membership, Quota, Tenant
from tenants.principal import Principal, actor_of
from tenants.scope import tenant_scope

QUOTA = ("hot_bytes", "cold_bytes", *Quota.ROW_LIMITS)
TENANT = ("name", "node_limit", "is_active")
LABELS = {"hot_bytes": "Hot quota", "cold_bytes": "Cold quota"}


class Refused(Exception):
    """`facts`: for the page. `status`: of the answer."""

    def __init__(self, status: int = 400, **facts: Any) -> None:
        super().__init__(facts)
        self.status, self.facts = status, facts


def act(request: HttpRequest, person: Principal, tenant: Tenant) -> str:
    """The tab to go on to. Raises Refused, Http404 for what the person may not do."""
    name = request.POST.get("do", "")
    if name not in _ACTIONS:
        raise Http404("no such action")
    may, action = _ACTIONS[name]
    if not may(person, tenant):
        raise Http404("not for this role")
    try:
        return action(request, tenant, actor_of(request, person))
    except Problem as problem:
        raise Refused(problem.status, note=_in_words(problem), typed=request.POST) from problem
    except ValidationError as error:
        raise Refused(note=" ".join(error.messages), typed=request.POST) from error


def quota_of(tenant: Tenant) -> Quota:
    with tenant_scope(tenant.pk):
        quota: Quota = Quota.objects.get()
    return quota


def _operates(person: Principal, tenant: Tenant) -> bool:
    return person.is_operator


def _changes(person: Principal, tenant: Tenant) -> bool:
    return person.may_write(tenant.pk)


def _quota(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    """A quota below its use is asked about first; one beyond the memory only by a button."""
    form, asked, errors = request.POST, {}, {}
    present = quota_of(tenant)
    for name in ("hot_bytes", "cold_bytes"):
        if name not in form:
            continue
        try:
            asked[name] = parse_size(form[name])
        except ValueError as error:
            errors[name] = f"{LABELS[name]}: {error}."
    if errors:
        raise Refused(errors=errors, typed=form)
    asked = {name: size for name, size in asked.items() if size != getattr(present, name)}
    if not asked:
        return "use"
    if "sure" not in form and (leaving := _leaving(tenant, asked)):
        raise Refused(200, asking_quota=leaving, typed=form, quota_changes=_typed(asked))
    try:
        with as_seen(tenant, form.get("seen", ""), lambda: quota_seen(quota_of(tenant))):
            services.set_quota(tenant=tenant, overcommit="overcommit" in form, actor=actor, **asked)
    except Problem as problem:
        if problem.kind != "hot-overcommit":
            raise
        raise Refused(
            problem.status,
            errors={"hot_bytes": no_room(problem)},
            overcommit=_typed(asked),
            typed=form,
        ) from problem
    return "use"


def quota_seen(quota: Quota) -> str:
    return revision_of(quota, QUOTA)


def tenant_seen(tenant: Tenant) -> str:
    return revision_of(tenant, TENANT)


def policy_seen(policy: RetentionPolicy) -> str:
    return revision_of(policy, retention.FIELDS)


def _typed(asked: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, size_typed(size)) for name, size in asked.items()]


def _leaving(tenant: Tenant, asked: dict[str, int]) -> str:
    """What a smaller quota would push out as new blocks come, in words; "" for nothing."""
    try:
        used = hot.hot_tier(tenant.pk).usage()
    except Exception:
        return ""
    over = {
        "hot_bytes": ("hot", used.hot_bytes - asked.get("hot_bytes", used.hot_bytes)),
        "cold_bytes": ("cold", used.cold_bytes - asked.get("cold_bytes", used.cold_bytes)),
    }
    parts = [f"{bytes_quantity(size)} of {tier}" for tier, size in over.values() if size > 0]
    return " and ".join(parts)


def no_room(problem: Problem) -> str:
    """Names what would fit."""
    facts = {name: bytes_quantity(problem.members[name]) for name in _ROOM}
    return (
        f"Hot quota: {facts['hot_bytes']} does not fit. At most {facts['left_bytes']} would: the "
        f"hot tier has room for {facts['capacity_bytes']}, of which other tenants were promised "
        f"{facts['promised_bytes']}."
    )


_ROOM = ("hot_bytes", "left_bytes", "capacity_bytes", "promised_bytes")


def _policy(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    policy = policy_of(tenant)
    draft = draft_of(policy, request.POST)
    if draft.errors:
        raise Refused(draft=draft)
    if draft.changes:
        with as_seen(policy, request.POST.get("seen", ""), lambda: policy_seen(policy_of(tenant))):
            retention.set_policy(tenant=tenant, actor=actor, **draft.changes)
    return "policy"


def _rule(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    retention.add_rule(tenant=tenant, actor=actor, **rule_fields(tenant, request.POST))
    return "policy"


def _remove_rule(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    with tenant_scope(tenant.pk):
        rule = get_object_or_404(RetentionRule.objects, pk=_number(request, "rule"))
    retention.remove_rule(rule=rule, actor=actor)
    return "policy"


def _undo(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    with tenant_scope(tenant.pk):
        event = get_object_or_404(AuditEvent.objects, pk=_number(request, "event"))
    undo(event=event, actor=actor)
    return "use" if event.action == "quota.set" else "policy"


def _limits(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    form = request.POST
    node_limit = _whole(form, "node_limit")
    limits: Any = {name: _whole(form, name) for name in Quota.ROW_LIMITS}
    if node_limit is None:
        raise ValidationError("Nodes: need a whole number.")
    seen = form.get("seen", "")
    with as_seen(tenant, seen, lambda: limits_seen(Tenant.objects.get(pk=tenant.pk))):
        services.change_tenant(
            tenant=tenant, name=form.get("name", "").strip(), node_limit=node_limit, actor=actor
        )
        services.set_quota(tenant=tenant, actor=actor, **limits)
    return "policy"


def limits_seen(tenant: Tenant) -> str:
    return tenant_seen(tenant) + quota_seen(quota_of(tenant))


def _whole(form: Any, name: str) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        label = name.removesuffix("_limit").replace("_", " ")
        raise ValidationError(f"Limit of {label}s: need a whole number, got {text[:40]!r}.")
    return int(text)


def _active(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    try:
        services.change_tenant(
            tenant=tenant,
            is_active=request.POST.get("is_active") == "true",
            overcommit="overcommit" in request.POST,
            actor=actor,
        )
    except Problem as problem:
        if problem.kind != "hot-overcommit":
            raise
        raise Refused(problem.status, note=no_room(problem), active_overcommit=True) from problem
    return "policy"


def _remove(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    if request.POST.get("confirm", "").strip() != tenant.slug:
        raise ValidationError(f"Type {tenant.slug} to remove the tenant with all that it stores.")
    services.remove_tenant(tenant=tenant, actor=actor)
    return ""


def _add_member(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    user = members.person_named(request.POST.get("user", "").strip())
    members.add_member(tenant=tenant, user=user, role=_role(request))
    return "people"


def _change_member(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    membership = _membership(request, tenant)
    with as_seen(
        membership,
        request.POST.get("seen", membership.role),
        lambda: Membership.objects.get(pk=membership.pk).role,
    ):
        members.change_member(membership=membership, role=_role(request))
    return "people"


def _remove_member(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    members.remove_member(membership=_membership(request, tenant))
    return "people"


def _samples(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    enabled = request.POST.get("enabled") == "true"
    services.switch_samples(tenant=tenant, enabled=enabled, actor=actor)
    return "policy"


def _let_in(request: HttpRequest, tenant: Tenant, actor: Actor) -> str:
    services.let_in(tenant=tenant, actor=actor)
    return "use"


def _membership(request: HttpRequest, tenant: Tenant) -> Membership:
    rows = Membership.objects.filter(tenant=tenant).select_related("user")
    return get_object_or_404(rows, pk=_number(request, "member"))


def _role(request: HttpRequest) -> str:
    role = request.POST.get("role", "")
    if role not in Membership.Role.values:
        raise ValidationError("Choose a role.")
    return role


def _number(request: HttpRequest, name: str) -> int:
    text = request.POST.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Http404(f"{name} is a number")
    return int(text)


def _in_words(problem: Problem) -> str:
    if problem.kind == "precondition-failed":
        return (
            "Somebody changed this since you opened the page, so nothing was saved. Below is what "
            "holds now."
        )
    return problem.detail


_ACTIONS: dict[
    str,
    tuple[Callable[[Principal, Tenant], bool], Callable[[HttpRequest, Tenant, Actor], str]],
] = {
    "quota": (_operates, _quota),
    "policy": (_operates, _policy),
    "rule": (_operates, _rule),
    "rule-remove": (_operates, _remove_rule),
    "undo": (_operates, _undo),
    "limits": (_operates, _limits),
    "active": (_operates, _active),
    "remove": (_operates, _remove),
    "let-in": (_operates, _let_in),
    "member-add": (_operates, _add_member),
    "member-change": (_operates, _change_member),
    "member-remove": (_operates, _remove_member),
    "samples": (_changes, _samples),
}
