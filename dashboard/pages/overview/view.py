"""The first screen, and the same numbers as JSON for its live updates."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from catalog.sessions import live_since
from dashboard import probes, usage
from dashboard.access import ALL, Viewer, viewer_of
from dashboard.formats import AXES
from dashboard.page import page, render_page, render_part, require_known, viewer
from dashboard.pages.jobs.selector import failed_jobs
from dashboard.pages.nodes.selector import node_rows, sessions
from dashboard.pages.overview import health, selector
from dashboard.storage import StorageUse, leaves_first, storage_use, summed
from dashboard.windows import DEFAULT_RANGE, RANGES, Range, offered, window_of
from tenants.models import Tenant

PARTS = {
    name: f"pages/overview/{name}.html"
    for name in ("health", "tiles", "misses", "top_tenants", "node_table", "first_steps")
} | {"fullness": "parts/fullness.html"}
TABLES = {name: f"pages/overview/{name}.html" for name in ("token_table", "byte_table")}
TOP = 5


@page("tenant", "range")
@require_GET
def overview(request: HttpRequest) -> HttpResponse:
    seen_by, range_ = viewer(request), _range(request)
    context = _gather(seen_by, request.GET.get("tenant", ALL), range_)
    return render_page(request, "overview", context)


@require_GET
def overview_data(request: HttpRequest) -> JsonResponse:
    """Steps from `since` on, and the parts of the page, rendered. 401 when signed out."""
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "signed out"}, status=401)
    require_known(request, ("tenant", "range", "since", "tables"))
    since_ts = _since(request)
    context = _gather(
        viewer_of(request.user), request.GET.get("tenant", ALL), _range(request), since_ts
    )
    # The tables behind the charts are long: they are sent whole, and only while one is open.
    templates = PARTS | (TABLES if request.GET.get("tables") == "1" else {})
    parts = {name: render_part(request, each, context) for name, each in templates.items()}
    answer = {**context["chart"], "parts": parts, "is_empty": context["is_empty"]}
    return JsonResponse(answer)


def _gather(seen_by: Viewer, tenant_slug: str, range_: Range, since_ts: int = 0) -> dict[str, Any]:
    tenants = seen_by.choose(tenant_slug)
    now = datetime.now(UTC)
    window = window_of(range_, now.timestamp())
    totals = usage.totals(tenants, window)
    before = usage.totals(tenants, window.previous())
    storage = storage_use(tenants, window.now_s)
    all_storage = summed(list(storage.values()))
    nodes = node_rows(sessions(tenants, now=now), live_since=live_since())
    assessment = health.assess(
        nodes=nodes,
        hot=probes.HOT.read(),
        cold=probes.COLD.read(),
        workers=probes.WORKERS.read(),
        storage=storage,
        all_storage=all_storage,
        tenants=tenants,
        totals=totals,
        failed_jobs=failed_jobs(seen_by, now=now),
        now=now,
    )
    series = selector.series(tenants, window)
    return {
        "viewer": seen_by,
        "now": now,
        "tenant": tenant_slug,
        "range": range_,
        "ranges": offered(selector.oldest_bucket_ts(tenants), window.now_s),
        "is_empty": not selector.has_ever_connected(tenants),
        "health": assessment,
        "totals": totals,
        "hit_change": _change(totals, before),
        "read_rate": selector.read_rate_now(tenants, window.now_s),
        "storage": all_storage,
        "leaves_first": leaves_first(tenants),
        "misses": selector.miss_shares(totals.misses),
        "top_tenants": _top_tenants(tenants, storage, usage.hit_ratios(tenants, window)),
        "more_tenants": max(len(tenants) - TOP, 0),
        "nodes": nodes[:TOP],
        "more_nodes": max(len(nodes) - TOP, 0),
        "series": series,
        "chart": {
            "now_s": window.now_s,
            "start_s": window.start_ts,
            "end_s": window.now_s,
            "step_s": range_.step_s,
            "series": asdict(series.since(since_ts)),
        },
        "axes": AXES,
        "endpoint": settings.ENV.url.geturl(),
    }


@dataclass(frozen=True)
class TenantRow:
    """What one tenant holds, and which part of it its nodes found."""

    tenant: Tenant
    use: StorageUse
    hit_ratio: float | None


def _top_tenants(
    tenants: usage.Tenants, storage: dict[int, StorageUse], hit_ratios: dict[int, float]
) -> list[TenantRow]:
    """Those that hold the most bytes."""
    rows = [TenantRow(one, storage[one.pk], hit_ratios.get(one.pk)) for one in tenants]
    return sorted(rows, key=lambda row: (-row.use.held_bytes, row.tenant.slug))[:TOP]


def _change(totals: usage.Totals, before: usage.Totals) -> float | None:
    if totals.hit_ratio is None or before.hit_ratio is None:
        return None
    return totals.hit_ratio - before.hit_ratio


def _range(request: HttpRequest) -> Range:
    try:
        return RANGES[request.GET.get("range", DEFAULT_RANGE)]
    except KeyError:
        raise Http404("no such range") from None


def _since(request: HttpRequest) -> int:
    try:
        return max(int(request.GET.get("since", "0")), 0)
    except ValueError:
        raise Http404("since is seconds since 1970") from None
