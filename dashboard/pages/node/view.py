"""The page of one node's session."""

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponseBase
from django.views.decorators.http import require_GET

from catalog.models import KeptRequest, NodeSession
from catalog.nodes import host_of
from dashboard.page import page, render_page
from dashboard.pages.node.selector import node_page
from dashboard.pages.why.selector import RequestList
from dashboard.scope import scope_of
from dashboard.snippets import another_node, endpoint_of
from tenants.principal import Principal


@page(*RequestList.takes())
@require_GET
def node(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponseBase:
    rows = person.rows(NodeSession).select_related("tenant", "space", "key")
    session = rows.filter(pk=uuid).first()
    if session is None:
        raise Http404("no such node")
    kept = person.rows(KeptRequest).filter(session=session)
    kept = kept.select_related("session", "space", "tenant").defer("chain", "kin", "session__marks")
    listing = RequestList(request, scope_of(request, person), kept)
    if listing.wants_csv:
        return listing.csv()
    context = {
        "node": node_page(session),
        "host": host_of(session.node),
        "snippet": another_node(endpoint_of(request), session.space),
        "listing": listing,
    }
    return render_page(request, person, "node", context)
