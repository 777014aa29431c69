"""The page Tiers & segments, and the request to merge or delete segments now."""

from datetime import UTC, datetime
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.views.decorators.http import require_GET, require_POST

from catalog import jobs
from catalog.kinds import COMPACT, SWEEP
from catalog.occupancy import occupancies
from dashboard import probes
from dashboard.page import page, render_page, require_operator
from dashboard.pages.tiers.lists import FillingList, SegmentList, segment_rows
from dashboard.pages.tiers.reclaim import reclaim
from dashboard.pages.tiers.selector import filling_rows, memory, moved, requests
from dashboard.pages.tiers.stores import stores
from dashboard.scope import Scope, scope_of
from dashboard.storage import leaves_first, storage_use, summed
from retention.models import RetentionPolicy
from storage.hot_figures import figures
from tenants.principal import Principal, actor_of, rows_of

TABS = {"": "Tiers", "segments": "Segments"}
NOW = {"merge": COMPACT.name, "delete": SWEEP.name}


@page("tab", *SegmentList.takes())
@require_GET
def tiers(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope, tab = scope_of(request, person), request.GET.get("tab", "")
    if tab not in TABS:
        raise Http404("there is no such tab")
    listing: FillingList | SegmentList
    facts: dict[str, Any] = {}
    if tab == "segments":
        space_id = scope.space.pk if scope.space else None
        listing = SegmentList(request, scope, segment_rows(scope.tenants, space_id))
    else:
        now = datetime.now(UTC)
        use = storage_use(scope.tenants, now.timestamp())
        taken = occupancies([tenant.pk for tenant in scope.tenants])
        listing = FillingList(request, scope, filling_rows(scope.tenants, use, taken, now))
        if not listing.wants_csv:
            facts = _facts(person, scope, now)
            facts["storage"] = summed(list(use.values()))
            facts["reclaim"] = reclaim(scope.tenants, taken, now)
    if listing.wants_csv:
        return listing.csv()
    tabs = [(slug, label, scope.link("tiers", tab=slug or None)) for slug, label in TABS.items()]
    context = {"listing": listing, "tab": tab, "tabs": tabs, **facts}
    return render_page(request, person, "tiers", context)


@page()
@require_POST
def reclaim_now(request: HttpRequest, person: Principal, slug: str, what: str) -> HttpResponse:
    """Requests the job; its page shows how it goes."""
    require_operator(person)
    if what not in NOW:
        raise Http404("there is no such work")
    tenant = person.tenant(slug)
    jobs.request(kind=NOW[what], tenant=tenant, actor=actor_of(request, person))
    return redirect("dashboard:jobs")


def _facts(person: Principal, scope: Scope, now: datetime) -> dict[str, Any]:
    primaries = figures() if person.is_operator else None
    return {
        "primaries": primaries,
        "memory": memory(primaries) if primaries else None,
        "leaves_first": leaves_first(rows_of(RetentionPolicy, scope.tenants)),
        "hot": probes.HOT.read(),
        "cold": probes.COLD.read(),
        "moved": moved(scope.tenants, scope.window),
        "requests": requests(scope.tenants),
        "stores": stores(scope.tenants) if person.is_operator else None,
    }
