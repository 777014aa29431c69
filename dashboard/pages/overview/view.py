"""The first screen, and its live updates as JSON."""

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from catalog.windows import DEFAULT_RANGE, range_named
from dashboard.page import chosen_tenants, page, render_page, render_part
from dashboard.pages.overview.selector import Overview, overview_of
from tenants.principal import Principal

PARTS = {
    name: f"pages/overview/{name}.html"
    for name in ("health", "tiles", "misses", "top_tenants", "node_table", "first_steps")
} | {"fullness": "parts/fullness.html"}
TABLES = {name: f"pages/overview/{name}.html" for name in ("token_table", "byte_table")}


@page("tenant", "range")
@require_GET
def overview(request: HttpRequest, person: Principal) -> HttpResponse:
    return render_page(request, person, "overview", _read(request, person).context())


@require_GET
@page("tenant", "range", "since", "tables", is_data=True)
def overview_data(request: HttpRequest, person: Principal) -> JsonResponse:
    """Steps from `since` on, and the parts of the page, rendered."""
    since_ts, found = _since(request), _read(request, person)
    # The tables behind the charts are long: they are sent whole, and only while one is open.
    templates = PARTS | (TABLES if request.GET.get("tables") == "1" else {})
    context = {**found.context(), "person": person}
    parts = {name: render_part(request, each, context) for name, each in templates.items()}
    return JsonResponse({**found.chart(since_ts), "parts": parts, "is_empty": found.is_empty})


def _read(request: HttpRequest, person: Principal) -> Overview:
    range_ = range_named(request.GET.get("range", DEFAULT_RANGE))
    return overview_of(person, chosen_tenants(request, person), range_)


def _since(request: HttpRequest) -> int:
    try:
        return max(int(request.GET.get("since", "0")), 0)
    except ValueError:
        raise Http404("since is seconds since 1970") from None
