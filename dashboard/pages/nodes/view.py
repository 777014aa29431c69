"""The page Nodes."""

from datetime import UTC, datetime

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.sessions import live_since
from dashboard.page import chosen_tenants, page, render_page
from dashboard.pages.nodes.selector import node_rows, sessions
from tenants.principal import Principal


@page("tenant")
@require_GET
def nodes(request: HttpRequest, person: Principal) -> HttpResponse:
    found = sessions(chosen_tenants(request, person), now=datetime.now(UTC))
    rows = node_rows(found, live_since=live_since())
    return render_page(request, person, "nodes", {"rows": rows})
