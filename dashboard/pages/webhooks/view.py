"""The page Webhooks: addresses that get events, a test button, and what was delivered lately.

Webhooks are made and changed over REST: their secrets are shown there, once.
"""

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_http_methods, require_POST

from base.problems import Problem
from dashboard.page import page, render_page
from dashboard.pages.webhooks.lists import DeliveryList, WebhookList
from dashboard.scope import scope_of
from events import webhooks as services
from events.models import Delivery, Webhook
from tenants.principal import Principal, rows_of


@page(*WebhookList.takes(), *DeliveryList.takes())
@require_http_methods(["GET"])
def webhooks(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    writable = {tenant.pk for tenant in scope.tenants if person.may_write(tenant.pk)}
    hooks = WebhookList(
        request,
        scope,
        rows_of(Webhook, scope.tenants).select_related("tenant"),
        writable=writable,
    )
    sent = rows_of(Delivery, scope.tenants).select_related("event", "webhook")
    deliveries = DeliveryList(request, scope, sent)
    for each in (hooks, deliveries):
        if each.wants_csv:
            return each.csv()
    context = {
        "hooks": hooks,
        "deliveries": deliveries,
        "has_deliveries": deliveries.is_narrowed or sent.exists(),
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
