"""What Ctrl-K finds: pages, actions, and objects by name or id, of the tenants that a person sees.

Each kind of object costs one statement, which stops at `EACH` rows. Contexts are looked up by the
beginning of their name, along an index; a word inside of names is looked for only when no beginning
fits.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from django.db.models import Q, QuerySet
from django.http import HttpRequest, JsonResponse
from django.urls import NoReverseMatch
from django.views.decorators.http import require_GET

from catalog.models import Context, Job, NodeSession, Space
from dashboard.page import menu, page
from dashboard.scope import Scope, scope_of
from tenants.models import ApiKey
from tenants.principal import Principal

EACH = 6  # results of a kind
MOST_TYPED = 100  # characters
LEAST_INSIDE = 3  # characters of a word that is looked for inside of names
_ID_PART = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True)
class Found:
    """A result. `of`: its tenant, or what tells it apart from others of its name. `does`: the name
    of an action that a script does, in place of an address."""

    kind: str
    label: str
    url: str = ""
    of: str = ""
    does: str = ""


@page("q", is_data=True)
@require_GET
def palette(request: HttpRequest, person: Principal) -> JsonResponse:
    """At most EACH results of a kind, pages first, for what was typed."""
    typed = request.GET.get("q", "")[:MOST_TYPED].strip().replace("\0", "")
    found = search(scope_of(request, person), person, typed)
    return JsonResponse({"results": [asdict(one) for one in found]})


def search(scope: Scope, person: Principal, typed: str) -> list[Found]:
    """Without anything typed: the pages and actions."""
    places = [one for one in _places(scope, person) if typed.lower() in one.label.lower()]
    if not typed:
        return places
    return [
        *places[:EACH],
        *_tenants(scope, person, typed),
        *_spaces(scope, person, typed),
        *_nodes(scope, person, typed),
        *_contexts(scope, person, typed),
        *_jobs(scope, person, typed),
        *_keys(scope, person, typed),
    ]


def _places(scope: Scope, person: Principal) -> Iterable[Found]:
    for group in menu():
        for item in group:
            yield Found("Pages", item["label"], scope.link(item["name"]), f"g {item['key']}")
    if person.is_operator:
        yield Found("Actions", "Make a tenant", _link(scope, ("tenants",)))
        yield Found("Actions", "Make an API key", _link(scope, ("keys",)))
        yield Found("Actions", "Invite a person", _link(scope, ("tenants",)))
    yield Found("Actions", "Ask why a request missed", _link(scope, ("why",)) or scope.link("jobs"))
    yield Found("Actions", "Dark or light", of="t", does="theme")
    yield Found("Actions", "Keyboard help", of="?", does="help")


def _tenants(scope: Scope, person: Principal, typed: str) -> Iterable[Found]:
    rows = person.tenant_rows().filter(Q(slug__icontains=typed) | Q(name__icontains=typed))
    for one in rows[:EACH]:
        url = _link(scope, ("tenant", one.slug), ("overview",), tenant=one.slug)
        yield Found("Tenants", one.slug, url, one.name)


def _spaces(scope: Scope, person: Principal, typed: str) -> Iterable[Found]:
    rows = person.rows(Space).filter(name__icontains=typed).select_related("tenant")
    for one in rows.only("name", "tenant__slug")[:EACH]:
        url = _link(scope, ("space", one.pk), ("spaces",), space=one.pk, tenant=None)
        yield Found("Spaces", one.name, url, one.tenant.slug)


def _nodes(scope: Scope, person: Principal, typed: str) -> Iterable[Found]:
    rows = person.rows(NodeSession).filter(ended_at=None, node__icontains=typed)
    for one in rows.order_by().select_related("tenant").only("node", "tenant__slug")[:EACH]:
        url = _link(scope, ("node", one.pk), ("nodes",), node=one.node)
        yield Found("Nodes", one.node, url, one.tenant.slug)


def _contexts(scope: Scope, person: Principal, typed: str) -> Iterable[Found]:
    # Unordered, so that the first rows that fit end the statement.
    rows = person.rows(Context).order_by()
    last = typed + "\U0010ffff"
    ids = list(_first(rows.filter(name__gte=typed, name__lt=last, name__startswith=typed)))
    if not ids and len(typed) >= LEAST_INSIDE:
        ids = list(_first(rows.filter(name__icontains=typed)))
    if not ids and (between := _between(typed)):
        ids = list(_first(rows.filter(pk__gte=between[0], pk__lte=between[1])))
    named = person.rows(Context).filter(pk__in=ids).select_related("tenant", "space")
    for one in named.only("name", "tenant__slug", "space__name").order_by("name") if ids else ():
        url = _link(scope, ("context", one.pk), ("contexts",), q=one.name)
        yield Found("Contexts", one.name, url, f"{one.tenant.slug}: {one.space.name}")


def _first(rows: QuerySet[Any]) -> Iterable[Any]:
    return rows.values_list("pk", flat=True)[:EACH]


def _jobs(scope: Scope, person: Principal, typed: str) -> Iterable[Found]:
    if between := _between(typed):
        rows = person.rows(Job).filter(pk__gte=between[0], pk__lte=between[1])
    elif len(typed) >= LEAST_INSIDE:
        rows = person.rows(Job).filter(kind__startswith=typed.lower()).order_by("-created_at")
    else:
        return
    for one in rows.select_related("tenant").only("kind", "state", "tenant__slug")[:EACH]:
        url = _link(scope, ("job", one.pk), ("jobs",))
        of = one.tenant.slug if one.tenant else "platform"
        yield Found("Jobs", f"{one.kind} {str(one.pk)[:8]}", url, f"{of}: {one.state}")


def _keys(scope: Scope, person: Principal, typed: str) -> Iterable[Found]:
    named = Q(name__icontains=typed) | Q(prefix__startswith=typed.removeprefix("neve_"))
    rows = person.rows(ApiKey).filter(named).select_related("tenant").order_by("name", "pk")
    for one in rows.only("name", "prefix", "role", "tenant__slug")[:EACH]:
        of = one.tenant.slug if one.tenant else "platform"
        url = _link(scope, ("keys",))
        yield Found("API keys", one.name, url, f"{of}: {one.role}")


def _between(typed: str) -> tuple[UUID, UUID] | None:
    """The first and the last UUID that begins like this; None for what is no part of one."""
    digits = typed.lower().replace("-", "")
    if not _ID_PART.fullmatch(digits):
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _link(scope: Scope, *targets: tuple[Any, ...], **changes: Any) -> str:
    """The address of the first page that exists; `changes` are for the last of several."""
    for target in targets:
        given: dict[str, Any] = changes if target == targets[-1] else {}
        try:
            return scope.link(*target, **given)
        except NoReverseMatch:
            continue
    return ""
