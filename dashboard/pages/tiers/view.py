"""The page Tiers & segments."""

from datetime import UTC, datetime

from django.db.models import Count, Sum
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import Segment
from catalog.occupancy import occupancies
from dashboard import probes
from dashboard.access import ALL
from dashboard.page import page, part_of, render_page, viewer
from dashboard.storage import hot_server, leaves_first, storage_use, summed

ROWS = 50


@page("tenant", "page")
@require_GET
def tiers(request: HttpRequest) -> HttpResponse:
    seen_by, now = viewer(request), datetime.now(UTC)
    chosen = seen_by.choose(request.GET.get("tenant", ALL))
    segments = seen_by.rows(Segment, chosen).select_related("tenant", "space")
    sums = segments.exclude(state=Segment.State.DELETING).aggregate(
        segments=Count("pk"), blocks=Sum("blocks"), size=Sum("size_bytes"), live=Sum("live_bytes")
    )
    taken = occupancies([tenant.pk for tenant in chosen]).values()
    context = {
        "live_bytes": sum(each.live_bytes for each in taken),
        "dead_bytes": sum(each.dead_bytes for each in taken),
        "waiting_bytes": sum(each.waiting_bytes for each in taken),
        "storage": summed(list(storage_use(chosen, now.timestamp()).values())),
        "leaves_first": leaves_first(chosen),
        "server": hot_server() if seen_by.is_operator else None,
        "hot": probes.HOT.read(),
        "cold": probes.COLD.read(),
        "sums": sums,
        "live_ratio": sums["live"] / sums["size"] if sums["size"] else None,
        "rows": part_of(request, segments, ROWS),
    }
    return render_page(request, "tiers", context)
