"""What every page has: a signed-in viewer, navigation, theme.

The content security policy stands in the settings; `nonce` is what lets a script or style in.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.paginator import Page, Paginator
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.template import loader
from django.urls import reverse, reverse_lazy

from dashboard.access import ALL, Viewer, viewer_of

LOGIN_URL = reverse_lazy("dashboard:login")
THEMES = ("dark", "light")
_NAVIGATION = (
    (("overview", "Overview", "o"), ("nodes", "Nodes", "n"), ("tiers", "Tiers & segments", "s")),
    (("tenants", "Tenants", "t"), ("contexts", "Contexts", "c"), ("keys", "API keys", "k")),
    (("jobs", "Jobs", "j"), ("audit", "Audit", "a")),
)

View = Callable[..., HttpResponseBase]


def page(*takes: str) -> Callable[[View], View]:
    """A view for people: signed in, with `request.viewer`. `takes`: what its query string may
    hold; with a misspelt filter, what follows would be done to more than was meant (404)."""

    def decorate(view: View) -> View:
        @login_required(login_url=LOGIN_URL)
        @wraps(view)
        def seen(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            require_known(request, takes)
            request.viewer = viewer_of(request.user)  # type: ignore[attr-defined]
            return view(request, *args, **kwargs)

        return seen

    return decorate


def require_known(request: HttpRequest, takes: tuple[str, ...]) -> None:
    """Raises Http404 for a parameter that is unknown or given twice. Forms send empty ones."""
    for name, values in request.GET.lists():
        if name not in takes or len(values) > 1:
            raise Http404("unknown parameter, or given twice")


def part_of(request: HttpRequest, found: Any, rows: int) -> Page[Any]:
    """The rows of the page that is asked for, or of the last. Raises Http404 for no number."""
    asked = request.GET.get("page", "1")
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise Http404("page is a number")
    return Paginator(found, rows).get_page(asked)


def viewer(request: HttpRequest) -> Viewer:
    return request.viewer  # type: ignore[attr-defined, no-any-return]


def theme_of(request: HttpRequest) -> str:
    """The chosen theme, or "" to follow the system."""
    theme = request.COOKIES.get("neve_theme", "")
    return theme if theme in THEMES else ""


def base_context(request: HttpRequest, name: str = "") -> dict[str, Any]:
    return {
        "page_name": name,
        "theme": theme_of(request),
        "nonce": request.csp_nonce,  # type: ignore[attr-defined]
        "navigation": [
            [
                {
                    "name": item,
                    "label": label,
                    "key": key,
                    "icon": item,
                    "url": reverse(f"dashboard:{item}"),
                }
                for item, label, key in group
            ]
            for group in _NAVIGATION
        ],
    }


def render_page(
    request: HttpRequest, name: str, context: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    """`name`: of the page in the navigation, of its URL and of its folder."""
    seen_by = viewer(request)
    chosen = request.GET.get("tenant", ALL)
    base = {"viewer": seen_by, "tenant": chosen, "all": ALL, **base_context(request, name)}
    return render(request, f"pages/{name}/page.html", base | context, status=status)


def render_part(request: HttpRequest, template: str, context: dict[str, Any]) -> str:
    """One part of a page, as htmx and the live updates swap it in."""
    return loader.render_to_string(template, context, request=request)
