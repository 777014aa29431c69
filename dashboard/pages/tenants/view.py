"""The page Tenants, and its actions."""

from datetime import UTC, datetime

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from dashboard.page import page, render_page, require_operator
from dashboard.pages.tenants.selector import tenant_rows
from tenants import services
from tenants.models import Tenant
from tenants.principal import Principal, actor_of


@page()
@require_GET
def tenants(request: HttpRequest, person: Principal) -> HttpResponse:
    rows = tenant_rows(person.tenants, now=datetime.now(UTC))
    writable = {row.tenant.pk for row in rows if person.may_write(row.tenant.pk)}
    return render_page(request, person, "tenants", {"rows": rows, "writable": writable})


@page()
@require_POST
def let_in(request: HttpRequest, person: Principal, tenant_id: int) -> HttpResponse:
    """Lets the nodes of a tenant in again that was cut off (`tiering.watch`)."""
    require_operator(person)
    tenant = get_object_or_404(Tenant, pk=tenant_id)
    services.let_in(tenant=tenant, actor=actor_of(request, person))
    return redirect("dashboard:tenants")


@page()
@require_POST
def switch_samples(request: HttpRequest, person: Principal, tenant_id: int) -> HttpResponse:
    """Samples of the tenant's traffic: on if they were off, else off."""
    tenant = get_object_or_404(person.tenant_rows(), pk=tenant_id)
    if not person.may_write(tenant.pk):
        raise Http404("only those who may change the tenant's contexts")
    enabled = request.POST.get("enabled") == "true"
    services.switch_samples(tenant=tenant, enabled=enabled, actor=actor_of(request, person))
    return redirect("dashboard:tenants")
