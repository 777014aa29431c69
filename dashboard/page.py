"""What every page has: a signed-in person, navigation, theme.

The content security policy stands in the settings; `nonce` is what lets a script or style in.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.core.paginator import Page, Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.template import loader
from django.urls import reverse

from base.problems import Problem
from tenants.models import Tenant
from tenants.principal import Principal, principal_of_person

ALL = "all"  # the picker's value for all tenants that the person sees
THEMES = ("dark", "light")
_NAVIGATION = (
    (
        *(("overview", "Overview", "o"), ("nodes", "Nodes", "n")),
        *(("tiers", "Tiers & segments", "s"), ("spaces", "Spaces", "p")),
    ),
    (
        *(("tenants", "Tenants", "t"), ("contexts", "Contexts", "c")),
        *(("families", "Families", "f"), ("keys", "API keys", "k")),
        *(("webhooks", "Webhooks", "w"), ("savings", "Savings", "v")),
    ),
    (("what_if", "What-if", "i"),),
    (("jobs", "Jobs", "j"), ("audit", "Audit", "a"), ("system", "System", "y")),
)

View = Callable[..., HttpResponseBase]


def page(*takes: str, is_data: bool = False) -> Callable[[View], View]:
    """Makes a view for signed-in people, which gets their Principal as its second argument.

    `takes`: the parameters of its query string; any other is 404, since a misspelt filter would let
    an action touch more rows than meant. `is_data`: scripts call it, so signed out is 401.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.is_authenticated:
                if is_data:
                    return JsonResponse({"detail": "signed out"}, status=401)
                return redirect_to_login(request.get_full_path())
            _require_known(request, takes)
            try:
                return view(request, principal_of_person(request.user), *args, **kwargs)
            except Problem as problem:  # of an address: what it names is not there
                if problem.kind in ("not-found", "malformed"):
                    raise Http404(problem.detail) from problem
                raise

        return answer

    return decorate


def require_operator(person: Principal) -> None:
    """Raises Http404 for everybody else."""
    if not person.is_operator:
        raise Http404("operators only")


def chosen_tenants(request: HttpRequest, person: Principal) -> tuple[Tenant, ...]:
    """The picker's choice. Raises Problem (not-found) for a tenant that the person does not see."""
    slug = request.GET.get("tenant", ALL)
    return person.tenants if slug == ALL else (person.tenant(slug),)


def part_of(request: HttpRequest, found: Any, rows: int) -> Page[Any]:
    """The rows of the page that is asked for, or of the last. Raises Http404 for no number."""
    asked = request.GET.get("page", "1")
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise Http404("page is a number")
    return Paginator(found, rows).get_page(asked)


def theme_of(request: HttpRequest) -> str:
    """The chosen theme, or "" to follow the system."""
    theme = request.COOKIES.get("neve_theme", "")
    return theme if theme in THEMES else ""


def render_page(
    request: HttpRequest,
    person: Principal,
    name: str,
    context: dict[str, Any],
    *,
    status: int = 200,
) -> HttpResponse:
    """`name`: of the page in the navigation, of its URL and of its folder."""
    base = {
        "person": person,
        "tenant": request.GET.get("tenant", ALL),
        "all": ALL,
        "page_name": name,
        "theme": theme_of(request),
        "nonce": request.csp_nonce,  # type: ignore[attr-defined]  # of django-csp
        "navigation": [[_item(*item) for item in group] for group in _NAVIGATION],
    }
    return render(request, f"pages/{name}/page.html", base | context, status=status)


def render_part(request: HttpRequest, template: str, context: dict[str, Any]) -> str:
    """One part of a page, as htmx and the live updates swap it in."""
    return loader.render_to_string(template, context, request=request)


def _item(name: str, label: str, key: str) -> dict[str, str]:
    return {"name": name, "label": label, "key": key, "url": reverse(f"dashboard:{name}")}


def _require_known(request: HttpRequest, takes: tuple[str, ...]) -> None:
    """Raises Http404 for a parameter that is unknown or given twice. Forms send empty ones."""
    for name, values in request.GET.lists():
        if name not in takes or len(values) > 1:
            raise Http404("unknown parameter, or given twice")
