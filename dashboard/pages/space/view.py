"""The page of one space."""

from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import NodeSession, Space
from catalog.sessions import live_since
from contexts.break_even import AT_TOKENS
from dashboard.page import page, render_page
from dashboard.pages.nodes.selector import node_rows, one_a_node
from dashboard.pages.spaces.selector import contexts_in, kin_of, space_rows
from tenants.principal import Principal, rows_of

MOST_NODES = 50


@page()
@require_GET
def space(request: HttpRequest, person: Principal, number: int) -> HttpResponse:
    found = person.rows(Space).select_related("tenant").filter(pk=number).first()
    if found is None:
        raise Http404("no such space")
    sessions = rows_of(NodeSession, (found.tenant,)).filter(space=found, ended_at=None)
    latest = (
        sessions.select_related("tenant", "space").defer("marks").order_by("-last_heartbeat_at")
    )
    context = {
        "row": space_rows([found])[0],
        "identity": sorted(found.identity.items()),
        "kin": kin_of(found),
        "contexts": contexts_in(found),
        "nodes": one_a_node(node_rows(list(latest[:MOST_NODES]), live_since=live_since())),
        "at_tokens": AT_TOKENS,
    }
    return render_page(request, person, "space", context)
