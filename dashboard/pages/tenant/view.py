"""The page of one tenant: a tab in the address, forms that change it in place."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from catalog.models import Context, NodeSession, Space
from dashboard.lists.listing import TAKES
from dashboard.page import page, render_page
from dashboard.pages.invitation.view import of_tenant
from dashboard.pages.keys import making
from dashboard.pages.keys.lists import KeyList, keys_of, link
from dashboard.pages.savings.selector import months_of, row_of
from dashboard.pages.tenant import actions
from dashboard.pages.tenant.changes import with_changes
from dashboard.pages.tenant.lists import AuditList, NodeList, OwnContexts, PeopleList, SpaceList
from dashboard.pages.tenant.policy import (
    INPUTS,
    RULE_INPUTS,
    draft_of,
    policy_of,
    preview,
    put_errors,
    rule_fields,
    rule_rows,
    rules_with,
)
from dashboard.pages.tenant.use import use_of
from dashboard.scope import Scope, scope_of
from neve.typed import size_typed
from planning import savings
from retention.models import RetentionPolicy
from retention.presets import PRESETS
from tenants.models import ApiKey, AuditEvent, Membership, Tenant
from tenants.principal import Principal, rows_of
from tenants.room import read_room

TABS = {
    **{"use": "Use", "contexts": "Contexts", "spaces": "Spaces", "nodes": "Nodes"},
    **{"policy": "Policy", "keys": "Keys", "people": "People", "audit": "Audit"},
    "savings": "Savings",
}
MONTHS = 12
HISTORY = 10
_RULE_FIELDS = ("r_label", "r_context", "r_space", *(f"r_{each.name}" for each in RULE_INPUTS))
_TAKES = (
    *("tab", "done", "edit", "without", "leaving", *TAKES),
    *(each.name for each in INPUTS),
    *_RULE_FIELDS,
    *(each.name for each in (*KeyList.filters, *OwnContexts.filters)),
)

Facts = dict[str, Any]


@page(*_TAKES)
@require_http_methods(["GET", "POST"])
def tenant(request: HttpRequest, person: Principal, slug: str) -> HttpResponse:
    one = person.tenant(slug)
    if (other := request.GET.get("tenant", slug)) not in (slug, ""):  # chosen in the scope bar
        if other == "all":
            return redirect(reverse("dashboard:tenants"))
        return redirect(reverse("dashboard:tenant", args=[person.tenant(other).slug]))
    scope = _scope(request, person, one)
    tab = request.GET.get("tab") or "use"
    if tab not in TABS:
        raise Http404("no such tab")
    status, refused = 200, {}
    if request.method == "POST" and request.POST.get("do") == "key":
        if not making.roles_for(person) or not person.may_issue_for(one.pk):
            raise Http404("viewers make no keys")
        refused = making.make_from(request, person, tenant=one)
        status = 400 if "key_error" in refused else 200
    elif request.method == "POST":
        try:
            then = actions.act(request, person, one)
        except actions.Refused as refusal:
            status, refused = refusal.status, refusal.facts
            one.refresh_from_db()
        else:
            return redirect(_after(one, then, scope))
    facts = _TAB_FACTS[tab](request, scope, one)
    listing = facts.get("listing")
    if listing is not None and listing.wants_csv:
        return listing.csv()  # type: ignore[no-any-return]
    shown: Facts = {
        "one": one,
        "tab": tab,
        "tabs": [(name, label, _tab_url(scope, one, name)) for name, label in TABS.items()],
        "tabs_label": one.slug,
        "may_operate": person.is_operator,
        "may_change": person.may_write(one.pk),
        "done": _done(request, one),
        "body": f"pages/tenant/{tab}.html",
        **facts,
        **refused,
    }
    return render_page(request, person, "tenant", shown, status=status)


def _scope(request: HttpRequest, person: Principal, one: Tenant) -> Scope:
    """The request's scope, of this tenant."""
    found = scope_of(request, person)
    scope = replace(
        found, tenant=one.slug, tenants=(one,), query={**found.query, "tenant": one.slug}
    )
    request.neve_scope = scope  # type: ignore[attr-defined]
    return scope


def _tab_url(scope: Scope, one: Tenant, tab: str) -> str:
    return scope.link("tenant", one.slug, tenant=None, tab=None if tab == "use" else tab)


def _after(one: Tenant, then: str, scope: Scope) -> str:
    """Where a change leads: the tab, with a note that names the change."""
    if not then:
        return reverse("dashboard:tenants")
    last = rows_of(AuditEvent, (one,)).order_by("-pk").first()
    done = None if last is None else last.pk
    return scope.link("tenant", one.slug, tenant=None, tab=then, done=done)


def _done(request: HttpRequest, one: Tenant) -> AuditEvent | None:
    """The change that this page was opened with."""
    text = request.GET.get("done", "")
    if not _is_number(text):
        return None
    event = rows_of(AuditEvent, (one,)).filter(pk=int(text)).first()
    return None if event is None else with_changes(event)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _use(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    quota = actions.quota_of(one)
    use = use_of(one, scope.window)
    saved = {"hot": size_typed(quota.hot_bytes), "cold": size_typed(quota.cold_bytes)}
    return {
        "use": use,
        "quota": quota,
        "seen": actions.quota_seen(quota),
        "hot_saved": saved["hot"],
        "cold_saved": saved["cold"],
        "hot_text": request.POST.get("hot_bytes", saved["hot"]),
        "cold_text": request.POST.get("cold_bytes", saved["cold"]),
        "explore": link(scope, "explorer", measure="hit_rate", split="space"),
        "misses": [
            (each, change, link(scope, "explorer", measure="miss_blocks", split="reason"))
            for each, change in use.misses
        ],
        "spaces": [(each, size, link(scope, "space", each.pk)) for each, size in use.spaces],
        "gridlines": [(0, "100 %"), (75, "50"), (150, "0")],
        "room": _promised() if scope.person.is_operator else "",
    }


def _promised() -> str:
    """How often all hot quotas promise the memory for blocks; "" where that is not known."""
    room = read_room()
    if room is None or not room.capacity_bytes:
        return ""
    return f"{room.promised_bytes / room.capacity_bytes:.1f} ×"


def _contexts(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    rows = rows_of(Context, (one,)).select_related("tenant", "space")
    return {"listing": OwnContexts(request, scope, rows)}


def _spaces(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    return {"listing": SpaceList(request, scope, rows_of(Space, (one,)))}


def _nodes(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    rows = rows_of(NodeSession, (one,)).filter(ended_at=None).select_related("space")
    return {"listing": NodeList(request, scope, rows)}


def _audit(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    return {"listing": AuditList(request, scope, rows_of(AuditEvent, (one,)))}


def _policy(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    policy = policy_of(one)
    draft = draft_of(policy, request.GET)
    facts: Facts = {
        "policy": policy,
        "draft": draft,
        "seen": actions.policy_seen(policy),
        "edit": request.GET.get("edit", ""),
        "presets": _presets(scope, one),
        "rules": rule_rows(one),
        "rule_inputs": [(each, request.GET.get(f"r_{each.name}", "")) for each in RULE_INPUTS],
        "rule_typed": {name[2:]: request.GET.get(name, "") for name in _RULE_FIELDS},
        "spaces": list(rows_of(Space, (one,))[:100]),
        "history": _history(one),
        "limits_seen": actions.limits_seen(one),
        "quota": actions.quota_of(one),
    }
    # It walks the index: only for those who could save.
    return facts | (_preview(request, one, facts) if scope.person.is_operator else {})


def _preview(request: HttpRequest, one: Tenant, facts: Facts) -> Facts:
    """The dry run of what the address asks: the policy, one more rule, or one less."""
    draft = facts["draft"]
    try:
        if draft.changes and not draft.errors:
            return {"preview": preview(one, policy=draft.changes), "preview_of": "policy"}
        if any(request.GET.get(name) for name in _RULE_FIELDS):
            fields = rule_fields(one, request.GET)
            return {
                "preview": preview(one, rules=rules_with(one, fields, None)),
                "preview_of": "rule",
                "repeat": [(name, request.GET.get(name, "")) for name in _RULE_FIELDS],
            }
        if (without := request.GET.get("without", "")).isdecimal():
            gone = next((each for each in facts["rules"] if str(each.rule.pk) == without), None)
            if gone is None:
                raise Http404("there is no such rule")
            return {
                "preview": preview(one, rules=rules_with(one, None, gone.rule.pk)),
                "preview_of": "rule-remove",
                "leaving_rule": gone,
            }
    except ValidationError as error:
        if draft.changes:
            put_errors(draft, error)
            return {}
        return {"rule_error": " ".join(error.messages)}
    return {}


def _presets(scope: Scope, one: Tenant) -> list[tuple[Any, str]]:
    """Each preset with the address of its draft."""
    plain = {each.name: each for each in INPUTS}
    fresh = policy_defaults()
    found = []
    for each in PRESETS:
        texts = {name: plain[name].write(value) for name, value in {**fresh, **each.values}.items()}
        found.append((each, scope.link("tenant", one.slug, tenant=None, tab="policy", **texts)))
    return found


def policy_defaults() -> Facts:
    """Of a new policy, but for what presets leave alone: budget of pins."""
    fresh = RetentionPolicy()
    names = [each.name for each in INPUTS if each.name not in ("pin_budget_bytes", "flush_after_s")]
    return {name: getattr(fresh, name) for name in names}


def _history(one: Tenant) -> list[Any]:
    rows = rows_of(AuditEvent, (one,)).filter(action__startswith="retention.")
    return [with_changes(each) for each in rows[:HISTORY]]


def _keys(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    person = scope.person
    rows = keys_of(rows_of(ApiKey, (one,)))
    facts = making.form_facts(person) if person.may_issue_for(one.pk) else {"roles": ()}
    facts["roles"] = tuple(role for role in facts["roles"] if role != ApiKey.Role.OPERATOR)
    return {"listing": KeyList(request, scope, rows, back="?back=tenant"), "key_do": "key", **facts}


def _people(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    rows = Membership.objects.filter(tenant=one).select_related("user")
    leaving = request.GET.get("leaving", "")
    return {
        "listing": PeopleList(request, scope, rows, may_operate=scope.person.is_operator),
        "roles": Membership.Role.choices,
        **of_tenant(scope.person, one),
        "leaving": rows.filter(pk=leaving).first() if _is_number(leaving) else None,
    }


def _savings(request: HttpRequest, scope: Scope, one: Tenant) -> Facts:
    month = savings.this_month()
    rows = savings.rows([one.pk], month=month, by="tenant")
    spaces = savings.rows([one.pk], month=month, by="space")
    years = savings.rows([one.pk], month=month, months=MONTHS)
    return {
        "month": f"{month:%Y-%m}",
        "row": row_of(rows[0]) if rows else None,
        "spaces": [row_of(each) for each in spaces],
        "months": months_of(years),
        "formula": savings.FORMULA,
    }


_TAB_FACTS: dict[str, Callable[[HttpRequest, Scope, Tenant], Facts]] = {
    "use": _use,
    "contexts": _contexts,
    "spaces": _spaces,
    "nodes": _nodes,
    "policy": _policy,
    "keys": _keys,
    "people": _people,
    "audit": _audit,
    "savings": _savings,
}
