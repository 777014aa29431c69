"""The page Audit."""

from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse
from django.views.decorators.http import require_GET

from dashboard.page import page, render_page
from dashboard.pages.audit.lists import AuditList, audit_rows
from dashboard.scope import ALL, Scope, scope_of
from tenants.principal import Principal


@page(*AuditList.takes())
@require_GET
def audit(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    listing = AuditList(request, scope, audit_rows(person, scope))
    if listing.wants_csv:
        return listing.csv()
    context = {"listing": listing, "jsonl_url": _jsonl_url(scope)}
    return render_page(request, person, "audit", context)


def _jsonl_url(scope: Scope) -> str:
    """REST's export of the scope."""
    query = {"format": "jsonl"}
    if scope.tenant != ALL:
        query["tenant"] = scope.tenant
    if not scope.is_live:
        query |= {"from": scope.start.isoformat(), "to": scope.end.isoformat()}
    return f"{reverse('api:audit-export')}?{urlencode(query)}"
