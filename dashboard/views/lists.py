"""The plain pages: tenants, nodes, tiers and segments, jobs, audit. They only read."""

from datetime import UTC, datetime
from typing import Any

from django.db.models import Count, QuerySet, Sum
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import Job, NodeSession, Segment
from catalog.occupancy import occupancies
from catalog.sessions import live_since
from dashboard import health, probes, selectors
from dashboard.access import ALL
from dashboard.formats import count_quantity
from dashboard.pages import page, part_of, render_page, viewer
from dashboard.storage import hot_server, leaves_first, storage_use, summed
from dashboard.windows import RANGES, window_of
from tenants.models import AuditEvent

ROWS = 50
# Members of a job's report → what they mean.
NOTES = {
    "refused_blocks": "refused: the cold tier is full",
    "waiting_blocks": "waiting: segments take all that the quota lets them",
    "unreadable_blocks": "lost: unreadable",
    "evicted_blocks": "evicted from the cold tier for others",
}


@page()
@require_GET
def tenants(request: HttpRequest) -> HttpResponse:
    seen_by, now = viewer(request), datetime.now(UTC)
    hour = window_of(RANGES["1h"], now.timestamp())
    storage = storage_use(seen_by.tenants, hour.now_s)
    ratios = selectors.hit_ratios(seen_by.tenants, hour)
    live = dict(
        seen_by.rows(NodeSession)
        .filter(ended_at=None, last_heartbeat_at__gt=live_since())
        .order_by()
        .values_list("tenant_id")
        .annotate(nodes=Count("node", distinct=True))
    )
    rows = [
        {
            "tenant": tenant,
            "use": storage[tenant.pk],
            "hit_ratio": ratios.get(tenant.pk),
            "nodes": live.get(tenant.pk, 0),
        }
        for tenant in seen_by.tenants
    ]
    return render_page(request, "tenants", {"rows": rows})


@page("tenant")
@require_GET
def nodes(request: HttpRequest) -> HttpResponse:
    seen_by, now = viewer(request), datetime.now(UTC)
    chosen = seen_by.choose(request.GET.get("tenant", ALL))
    found = selectors.sessions(chosen, now=now)
    rows = health.node_rows(found, live_since=live_since())
    return render_page(request, "nodes", {"rows": rows})


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
        **_rows(request, segments),
    }
    return render_page(request, "tiers", context)


@page("page")
@require_GET
def jobs(request: HttpRequest) -> HttpResponse:
    found = viewer(request).rows_with_platform(Job).select_related("tenant")
    context = {"workers": probes.WORKERS.read(), **_rows(request, found)}
    for job in context["rows"]:
        job.notes = _notes(job.detail)
    return render_page(request, "jobs", context)


def _notes(detail: Any) -> list[str]:
    """What a job could not do although it is done, and what it cost; from its report."""
    counts = detail if isinstance(detail, dict) else {}
    notes = [
        f"{count_quantity(count)} blocks {words}"
        for name, words in NOTES.items()
        if type(count := counts.get(name)) is int and count > 0
    ]
    repaired = counts.get("repaired")
    damaged = [
        count
        for name, count in (repaired.items() if isinstance(repaired, dict) else ())
        if name.startswith("damaged_") and type(count) is int
    ]
    if damaged:
        notes.append(f"{count_quantity(sum(damaged))} damaged pieces of an index repaired")
    return notes


@page("page")
@require_GET
def audit(request: HttpRequest) -> HttpResponse:
    found = viewer(request).rows_with_platform(AuditEvent).select_related("tenant")
    context = _rows(request, found)
    for event in context["rows"]:
        event.changes = _changes(event.before or {}, event.after or {})
    return render_page(request, "audit", context)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(member, before, after) of what differs; None where it was not there."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        (name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _rows(request: HttpRequest, found: QuerySet[Any]) -> dict[str, Any]:
    rows = part_of(request, found, ROWS)
    return {"rows": rows}
