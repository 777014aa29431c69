"""The page Nodes."""

from datetime import UTC, datetime

from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.http import require_GET

from catalog.nodes import host_of
from catalog.sessions import live_since
from dashboard.page import page, render_page
from dashboard.pages.nodes.selector import NodeList, node_rows, one_a_node, sessions
from dashboard.scope import scope_of
from tenants.principal import Principal


@page(*NodeList.takes())
@require_GET
def nodes(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    found = sessions(scope.tenants, now=datetime.now(UTC))
    if scope.space is not None:
        found = [each for each in found if each.space_id == scope.space.pk]
    if scope.node:
        found = [each for each in found if scope.node in (each.node, host_of(each.node))]
    rows = one_a_node(node_rows(found, live_since=live_since()))
    listing = NodeList(request, scope, rows)
    if listing.wants_csv:
        return listing.csv()
    return render_page(request, person, "nodes", {"listing": listing})
