"""The page Tenants."""

from datetime import UTC, datetime

from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from catalog.models import NodeSession
from catalog.sessions import live_since
from dashboard.page import page, render_page, viewer
from dashboard.storage import storage_use
from dashboard.usage import hit_ratios
from dashboard.windows import RANGES, window_of
from tenants.audit import actor_of
from tenants.models import Tenant
from tenants.services import let_in as let_tenant_in

ROWS = 50


@page()
@require_GET
def tenants(request: HttpRequest) -> HttpResponse:
    seen_by, now = viewer(request), datetime.now(UTC)
    hour = window_of(RANGES["1h"], now.timestamp())
    storage = storage_use(seen_by.tenants, hour.now_s)
    ratios = hit_ratios(seen_by.tenants, hour)
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


@page()
@require_POST
def let_in(request: HttpRequest, tenant_id: int) -> HttpResponse:
    """The way back for a tenant whose nodes were cut off (`tiering.watch`)."""
    if not viewer(request).is_operator:
        raise Http404("operators only")
    let_tenant_in(tenant=get_object_or_404(Tenant, pk=tenant_id), actor=actor_of(request))
    return redirect("dashboard:tenants")
