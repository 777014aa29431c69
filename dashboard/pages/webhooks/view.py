"""The page Webhooks: addresses that get events, a test button, and what was delivered lately.

Webhooks are made and changed over REST: their secrets are shown there, once.
"""

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_http_methods, require_POST

from base.problems import Problem
from dashboard.page import page, part_of, render_page
from events import webhooks as services
from events.models import Delivery, Webhook
from tenants.principal import Principal

ROWS = 50
DELIVERIES = 20


@page("page")
@require_http_methods(["GET"])
def webhooks(request: HttpRequest, person: Principal) -> HttpResponse:
    rows = part_of(request, person.rows(Webhook).select_related("tenant"), ROWS)
    deliveries = person.rows(Delivery).select_related("event", "webhook")
    context: dict[str, object] = {
        "rows": rows,
        "writable": [row.pk for row in rows if person.may_write(row.tenant_id)],
        "deliveries": deliveries[:DELIVERIES],
    }
    return render_page(request, person, "webhooks", context)


@page()
@require_POST
def test(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    """Sends webhook.test. 404 for people who may only look, 409 if it is inactive."""
    webhook = get_object_or_404(person.rows(Webhook), pk=uuid)
    if not person.may_write(webhook.tenant_id):
        raise Http404("Your role lets you look, not change.")
    try:
        services.test(webhook)
    except Problem as problem:
        return HttpResponse(problem.detail, status=problem.status)
    return redirect("dashboard:webhooks")
