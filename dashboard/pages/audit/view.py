"""The page Audit."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.page import page, part_of, render_page
from dashboard.pages.audit.selector import audit_row
from tenants.models import AuditEvent
from tenants.principal import Principal

ROWS = 50


@page("page")
@require_GET
def audit(request: HttpRequest, person: Principal) -> HttpResponse:
    shown = part_of(request, person.rows(AuditEvent).select_related("tenant"), ROWS)
    rows = [audit_row(event) for event in shown]
    return render_page(request, person, "audit", {"page": shown, "rows": rows})
