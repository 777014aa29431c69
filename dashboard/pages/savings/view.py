"""The page Savings: what stored context saved and cost, by team, this month and the last twelve."""

from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.http import require_GET

from dashboard.page import page, render_page
from dashboard.pages.savings.lists import SavingsList
from dashboard.pages.savings.selector import months_of, row_of
from dashboard.scope import scope_of
from planning import savings
from tenants.principal import Principal

MONTHS = 12


@page("month", *SavingsList.takes())
@require_GET
def savings_page(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    tenants = scope.tenants
    month = savings.month_named(request.GET.get("month") or f"{savings.this_month():%Y-%m}")
    ids = [tenant.pk for tenant in tenants]
    found = savings.rows(ids, month=month, by="tenant") if ids else []
    listing = SavingsList(request, scope, [row_of(row) for row in found])
    if listing.wants_csv:
        return listing.csv()
    years = savings.rows(ids, month=savings.this_month(), months=MONTHS) if ids else []
    one = len(tenants) == 1
    spaces = savings.rows(ids, month=month, by="space") if ids and one else []
    context = {
        "month": f"{month:%Y-%m}",
        "listing": listing,
        "spaces": [row_of(row) for row in spaces],
        "months": months_of(years),
        "choices": [
            f"{savings.months_before(savings.this_month(), back):%Y-%m}" for back in range(MONTHS)
        ],
        "formula": savings.FORMULA,
    }
    return render_page(request, person, "savings", context)
