"""The first screen, and its live updates as JSON."""

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from dashboard.page import page, render_page, render_part
from dashboard.pages.overview.selector import Overview, overview_of
from dashboard.scope import scope_of
from tenants.principal import Principal

PARTS = {
    name: f"pages/overview/{name}.html"
    for name in ("health", "tiles", "misses", "top_tenants", "node_table", "first_steps")
} | {"fullness": "parts/fullness.html"}
TABLES = {name: f"pages/overview/{name}.html" for name in ("token_table", "byte_table")}


@page()
@require_GET
def overview(request: HttpRequest, person: Principal) -> HttpResponse:
    return render_page(request, person, "overview", _read(request, person).context())


@require_GET
@page("since", "tables", is_data=True)
def overview_data(request: HttpRequest, person: Principal) -> JsonResponse:
    """Steps from `since` on, and the parts of the page, rendered."""
    since_ts, found = _since(request), _read(request, person)
    # The tables behind the charts are long: they are sent whole, and only while one is open.
    templates = PARTS | (TABLES if request.GET.get("tables") == "1" else {})
    context = {**found.context(), "person": person}
    parts = {name: render_part(request, each, context) for name, each in templates.items()}
    return JsonResponse({**found.chart(since_ts), "parts": parts, "is_empty": found.is_empty})


def _read(request: HttpRequest, person: Principal) -> Overview:
    scope = scope_of(request, person)
    return overview_of(person, scope.tenants, scope.window)


def _since(request: HttpRequest) -> int:
    try:
        return max(int(request.GET.get("since", "0")), 0)
    except ValueError:
        raise Http404("since is seconds since 1970") from None
