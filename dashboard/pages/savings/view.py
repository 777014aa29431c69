"""The page Savings: what stored context saved and cost, by team, this month and the last twelve."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.page import chosen_tenants, page, render_page
from dashboard.pages.savings.selector import months_of, row_of
from dashboard.scope import ALL
from planning import savings
from tenants.principal import Principal

MONTHS = 12


@page("tenant", "month")
@require_GET
def savings_page(request: HttpRequest, person: Principal) -> HttpResponse:
    tenants = chosen_tenants(request, person)
    month = savings.month_named(request.GET.get("month") or f"{savings.this_month():%Y-%m}")
    ids = [tenant.pk for tenant in tenants]
    found = savings.rows(ids, month=month, by="tenant") if ids else []
    years = savings.rows(ids, month=savings.this_month(), months=MONTHS) if ids else []
    one = request.GET.get("tenant", ALL) != ALL or len(tenants) == 1
    spaces = savings.rows(ids, month=month, by="space") if ids and one else []
    context = {
        "month": f"{month:%Y-%m}",
        "rows": [row_of(row) for row in found],
        "spaces": [row_of(row) for row in spaces],
        "months": months_of(years),
        "choices": [
            f"{savings.months_before(savings.this_month(), back):%Y-%m}" for back in range(MONTHS)
        ],
        "formula": savings.FORMULA,
    }
    return render_page(request, person, "savings", context)
