"""The page Tenants, and its one action."""

from datetime import UTC, datetime

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from dashboard.page import page, render_page, require_operator
from dashboard.pages.tenants.selector import tenant_rows
from tenants.models import Tenant
from tenants.principal import Principal, actor_of
from tenants.services import let_in as let_tenant_in


@page()
@require_GET
def tenants(request: HttpRequest, person: Principal) -> HttpResponse:
    rows = tenant_rows(person.tenants, now=datetime.now(UTC))
    return render_page(request, person, "tenants", {"rows": rows})


@page()
@require_POST
def let_in(request: HttpRequest, person: Principal, tenant_id: int) -> HttpResponse:
    """Lets the nodes of a tenant in again that was cut off (`tiering.watch`)."""
    require_operator(person)
    tenant = get_object_or_404(Tenant, pk=tenant_id)
    let_tenant_in(tenant=tenant, actor=actor_of(request, person))
    return redirect("dashboard:tenants")
