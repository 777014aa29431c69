"""The page Nodes."""

from datetime import UTC, datetime

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.sessions import live_since
from dashboard.access import ALL
from dashboard.page import page, render_page, viewer
from dashboard.pages.nodes.selector import node_rows, sessions


@page("tenant")
@require_GET
def nodes(request: HttpRequest) -> HttpResponse:
    seen_by, now = viewer(request), datetime.now(UTC)
    chosen = seen_by.choose(request.GET.get("tenant", ALL))
    found = sessions(chosen, now=now)
    rows = node_rows(found, live_since=live_since())
    return render_page(request, "nodes", {"rows": rows})
