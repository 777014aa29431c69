"""What every page has: a signed-in person, navigation, theme.

The content security policy stands in the settings; `nonce` is what lets a script or style in.
"""

from collections.abc import Callable
from datetime import UTC
from functools import cache, wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.template import loader
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from base.problems import Problem
from dashboard import shared
from dashboard.scope import ALL, SCOPE, Scope, scope_of
from tenants.principal import Principal, principal_of_person

THEMES = ("dark", "light")
# Name of the page and of its URL, label, second key after `g`. An entry shows up once its URL does.
_NAVIGATION = (
    (
        *(("overview", "Overview", "o"), ("explorer", "Explorer", "x")),
        *(("why", "Why?", "h"), ("what_if", "What-if", "i")),
    ),
    (
        *(("tenants", "Tenants", "t"), ("contexts", "Contexts", "c"), ("spaces", "Spaces", "p")),
        *(("policies", "Policies", "l"), ("savings", "Savings", "v"), ("keys", "API keys", "k")),
        *(("families", "Families", "f"), ("webhooks", "Webhooks", "w")),
    ),
    (
        *(("nodes", "Nodes", "n"), ("tiers", "Tiers & segments", "s")),
        *(("jobs", "Jobs", "j"), ("incidents", "Incidents", "d")),
    ),
    (("audit", "Audit", "a"), ("system", "System", "y")),
)
# Pages of one object stand under their list.
_UNDER = {
    **{"tenant": "tenants", "context": "contexts", "space": "spaces", "spaces-compare": "spaces"},
    **{"node": "nodes", "job": "jobs", "incident": "incidents"},
}

PICKERS = ("space", "node", "label")  # of the scope bar, beside the tenant
# By which of them a page narrows; the others are not offered there.
NARROWS: dict[str, tuple[str, ...]] = {
    **{"explorer": PICKERS, "nodes": ("space", "node"), "why": ("space", "node")},
    **{"contexts": ("space", "label"), "spaces": ("space",), "tiers": ("space",)},
}

# They show nothing of what nodes report, so that no heartbeat renders them again.
QUIET = frozenset(
    (
        *("account", "audit", "incidents", "invitation", "job", "jobs", "keys", "policies"),
        *("spaces-compare", "system", "tenant_new", "webhooks", "what_if"),
    )
)

LABELS = {name: label for group in _NAVIGATION for name, label, _ in group} | {"account": "Account"}

View = Callable[..., HttpResponseBase]


def page(*takes: str, is_data: bool = False) -> Callable[[View], View]:
    """Makes a view for signed-in people, which gets their Principal as its second argument.

    `takes`: the parameters of its query string, beside those of the scope, which every page takes;
    any other is 404, since a misspelt filter would let an action touch more rows than meant.
    `is_data`: scripts call it, so signed out is 401.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.is_authenticated:
                if is_data or shared.is_asked(request):
                    return JsonResponse({"detail": "signed out"}, status=401)
                return redirect_to_login(request.get_full_path())
            _require_known(request, (*takes, *SCOPE))
            person = principal_of_person(request.user)
            try:
                if shared.is_asked(request):
                    return shared.respond(
                        request, person, lambda one, who: view(one, who, *args, **kwargs)
                    )
                return view(request, person, *args, **kwargs)
            except Problem as problem:  # of an address: what it names is not there
                if problem.kind in ("not-found", "malformed"):
                    raise Http404(problem.detail) from problem
                raise

        answer.is_page = True  # type: ignore[attr-defined]  # for `controlplane.handler`
        return answer

    return decorate


def require_operator(person: Principal) -> None:
    """Raises Http404 for everybody else."""
    if not person.is_operator:
        raise Http404("operators only")


def theme_of(request: HttpRequest) -> str:
    """The chosen theme, or "" to follow the system."""
    theme = request.COOKIES.get("neve_theme", "")
    return theme if theme in THEMES else ""


def _pickers(name: str) -> tuple[str, ...]:
    return NARROWS.get(name, ())


def _is_wider(scope: Scope, name: str) -> bool:
    """Whether the address narrows by something that the page does not narrow by. A page of one
    object says itself what it shows."""
    ignored = (each for each in PICKERS if each not in _pickers(name))
    return name in LABELS and any(each in scope.query for each in ignored)


def render_page(
    request: HttpRequest,
    person: Principal,
    name: str,
    context: dict[str, Any],
    *,
    status: int = 200,
) -> HttpResponse:
    """`name`: of the page's URL and of its folder."""
    scope = scope_of(request, person)
    navigation = [[item | {"url": scope.link(item["name"])} for item in group] for group in menu()]
    base = {
        "person": person,
        "scope": scope,
        "tenant": scope.tenant,
        "all": ALL,
        "page_name": name,
        "page_at": _UNDER.get(name, name),
        "is_quiet": name in QUIET,
        "pickers": _pickers(name),
        "is_wider": _is_wider(scope, name),
        "page_label": LABELS.get(_UNDER.get(name, name), "Neve"),
        "theme": theme_of(request),
        "nonce": request.csp_nonce,  # type: ignore[attr-defined]  # of django-csp
        "navigation": navigation,
    }
    base["with_tables"] = shared.wants_tables(request)
    if shared.is_asked(request):  # only what a page has in `main`
        base |= {"is_live": True, "csrf_token": shared.CSRF_PLACE}
    with timezone.override(scope.zone):  # of all times on the page
        return render(request, f"pages/{name}/page.html", base | context, status=status)


def render_part(request: HttpRequest, template: str, context: dict[str, Any]) -> str:
    """One part of a page, as htmx and the live updates swap it in."""
    scope = getattr(request, "neve_scope", None)
    zone = UTC if scope is None else scope.zone
    with timezone.override(zone):
        return loader.render_to_string(template, {"scope": scope, **context}, request=request)


@cache
def menu() -> tuple[tuple[dict[str, str], ...], ...]:
    """The navigation's groups: those pages that have an address."""
    groups = (
        tuple(
            {"name": name, "label": label, "key": key}
            for name, label, key in group
            if _has_address(name)
        )
        for group in _NAVIGATION
    )
    return tuple(group for group in groups if group)


def _has_address(name: str) -> bool:
    try:
        reverse(f"dashboard:{name}")
    except NoReverseMatch:
        return False
    return True


def _require_known(request: HttpRequest, takes: tuple[str, ...]) -> None:
    """Raises Http404 for a parameter that is unknown or given twice. Forms send empty ones."""
    for name, values in request.GET.lists():
        if name not in takes or len(values) > 1:
            raise Http404("unknown parameter, or given twice")
