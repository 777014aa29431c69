"""The way back for a tenant whose nodes were cut off (`workers.watch`)."""

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_POST

from dashboard.pages import page, viewer
from tenants.audit import actor_of
from tenants.models import Tenant
from tenants.services import let_in as let_tenant_in


@page()
@require_POST
def let_in(request: HttpRequest, tenant_id: int) -> HttpResponse:
    if not viewer(request).is_operator:
        raise Http404("operators only")
    let_tenant_in(tenant=get_object_or_404(Tenant, pk=tenant_id), actor=actor_of(request))
    return redirect("dashboard:tenants")
