"""The page API keys: keys of all tenants that the person sees; making, rotating, revoking one.

Operators make any; members of the role team make and end team keys of their tenants
(`tenants.issuing`). A key's secret is shown once, in the answer that makes it.
"""

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_http_methods

from base.problems import Problem
from catalog.models import NodeSession
from dashboard.page import page, render_page, render_part
from dashboard.pages.keys import making
from dashboard.pages.keys.lists import KeyList, keys_of, link
from dashboard.scope import ALL, scope_of
from neve.typed import parse_time
from tenants import issuing
from tenants.models import ApiKey
from tenants.principal import Principal, actor_of

OVERLAP = "1 h"


@page(*KeyList.takes())
@require_http_methods(["GET", "POST"])
def keys(request: HttpRequest, person: Principal) -> HttpResponse:
    context: dict[str, Any] = {}
    if request.method == "POST":
        if not making.roles_for(person):
            raise Http404("viewers make no keys")
        context = making.make_from(request, person)
    return _show(request, person, context)


@page("back", "keep_made")
@require_http_methods(["GET", "POST"])
def revoke(request: HttpRequest, person: Principal, key_id: int) -> HttpResponse:
    """GET says what stops and asks; POST does it."""
    key = _managed(person, key_id)
    if request.method == "POST":
        issuing.revoke_key(caller=person, key=key, actor=actor_of(request, person))
        return redirect(_back(request, person, key))
    return _show(
        request, person, {"asking": key, "verb": "revoke", **_weight(request, person, key)}
    )


@page("back")
@require_http_methods(["GET", "POST"])
def rotate(request: HttpRequest, person: Principal, key_id: int) -> HttpResponse:
    """GET says what the overlap is for and asks; POST makes the successor."""
    key = _managed(person, key_id)
    asking = {"asking": key, "verb": "rotate", "overlap": OVERLAP, **_weight(request, person, key)}
    if request.method == "GET":
        return _show(request, person, asking)
    try:
        overlap_s = _overlap(request.POST.get("overlap", ""))
        context = making.once(
            request,
            lambda: issuing.rotate_key(
                caller=person, key=key, overlap_s=overlap_s, actor=actor_of(request, person)
            ),
            request.POST,
        )
    except (Problem, ValueError) as error:
        context = {**asking, "overlap": request.POST.get("overlap", ""), "key_error": str(error)}
    return _show(request, person, context)


@page()
@require_GET
def first_use(request: HttpRequest, person: Principal, key_id: int) -> HttpResponse:
    """A part of the page that made the key: whether somebody used it by now."""
    key = get_object_or_404(person.rows(ApiKey).select_related("tenant"), pk=key_id)
    return HttpResponse(render_part(request, "pages/keys/first_use.html", use_facts(person, key)))


def use_facts(person: Principal, key: ApiKey) -> dict[str, Any]:
    sessions = person.rows(NodeSession).filter(key=key, last_seq__gt=0)
    return {"key": key, "session": sessions.order_by("-last_heartbeat_at").first()}


def _show(request: HttpRequest, person: Principal, context: dict[str, Any]) -> HttpResponse:
    scope = scope_of(request, person)
    rows = person.rows(ApiKey)
    if scope.tenant != "all":
        rows = rows.filter(tenant__in=scope.tenants)
    listing = KeyList(request, scope, keys_of(rows), person=person)
    if listing.wants_csv:
        return listing.csv()  # type: ignore[return-value]
    facts = making.form_facts(person) | {"listing": listing} | context
    facts["key_for"] = _key_for(facts, scope.tenant)
    facts["is_tenant_missing"] = "typed" in facts and not facts["key_for"]
    return render_page(
        request, person, "keys", facts, status=400 if "key_error" in context else 200
    )


def _key_for(facts: dict[str, Any], picked: str) -> str:
    """The tenant in the form: what was typed, that of the scope, or the only one. Of several none
    is offered: a key of a wrong tenant would work, and store there."""
    if "typed" in facts:
        return str(facts["typed"].get("tenant", "")).strip()
    if picked != ALL:
        return picked
    offered = facts["key_tenants"]
    return str(offered[0].slug) if len(offered) == 1 else ""


def _managed(person: Principal, key_id: int) -> ApiKey:
    """Raises Http404 for a key that the person does not see, or may not end."""
    key: ApiKey = get_object_or_404(person.rows(ApiKey).select_related("tenant"), pk=key_id)
    try:
        issuing.require_managed(person, key)
    except Problem as problem:
        raise Http404(problem.detail) from problem
    return key


def _weight(request: HttpRequest, person: Principal, key: ApiKey) -> dict[str, Any]:
    """What stops with the key: nodes that use it now, and keys that it made."""
    one = keys_of(person.rows(ApiKey).filter(pk=key.pk)).get()
    made = person.rows(ApiKey).filter(made_by=key, revoked_at=None).count()
    return {"nodes": one.nodes, "made_count": made, "keep_url": _back(request, person, key)}


def _back(request: HttpRequest, person: Principal, key: ApiKey) -> str:
    """The tab of the tenant's page, for those who came from there."""
    scope = scope_of(request, person)
    if request.GET.get("back") == "tenant" and key.tenant is not None:
        return link(scope, "tenant", key.tenant.slug, tenant=None, tab="keys") or ""
    return scope.link("keys")


def _overlap(text: str) -> int:
    """Seconds. Raises ValueError."""
    if text.strip() in ("0", "0 s", "none"):
        return 0
    overlap_s = parse_time(text or OVERLAP)
    if overlap_s is None or overlap_s > issuing.MOST_OVERLAP_S:
        raise ValueError("Overlap: at most 30 d, or 0.")
    return overlap_s
