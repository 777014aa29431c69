"""The page Audit."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.page import page, part_of, render_page, viewer
from tenants.models import AuditEvent

ROWS = 50


@page("page")
@require_GET
def audit(request: HttpRequest) -> HttpResponse:
    found = viewer(request).rows_with_platform(AuditEvent).select_related("tenant")
    rows = part_of(request, found, ROWS)
    for event in rows:
        event.changes = _changes(event.before or {}, event.after or {})
    return render_page(request, "audit", {"rows": rows})


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(member, before, after) of what differs; None where it was not there."""
    names = [*before, *(name for name in after if name not in before)]
    return [
        (name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]
