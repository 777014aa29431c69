"""The page Tiers & segments."""

from datetime import UTC, datetime

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import Segment
from dashboard import probes
from dashboard.page import chosen_tenants, page, part_of, render_page
from dashboard.pages.tiers.selector import segment_totals, space_rows
from dashboard.storage import hot_server, leaves_first, storage_use, summed
from tenants.principal import Principal, rows_of

ROWS = 50
SPACES = 20


@page("tenant", "page")
@require_GET
def tiers(request: HttpRequest, person: Principal) -> HttpResponse:
    tenants = chosen_tenants(request, person)
    segments = rows_of(Segment, tenants).select_related("tenant", "space")
    spaces, all_spaces = space_rows(tenants, SPACES)
    context = {
        "totals": segment_totals(tenants),
        "storage": summed(list(storage_use(tenants, datetime.now(UTC).timestamp()).values())),
        "leaves_first": leaves_first(tenants),
        "server": hot_server() if person.is_operator else None,
        "hot": probes.HOT.read(),
        "cold": probes.COLD.read(),
        "spaces": spaces,
        "more_spaces": all_spaces if all_spaces > len(spaces) else 0,
        "rows": part_of(request, segments, ROWS),
    }
    return render_page(request, person, "tiers", context)
