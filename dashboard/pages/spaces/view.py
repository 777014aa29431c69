"""The page Spaces."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import Space
from contexts.break_even import AT_TOKENS
from dashboard.page import chosen_tenants, page, part_of, render_page
from dashboard.pages.spaces.selector import space_rows
from tenants.principal import Principal, rows_of

ROWS = 50


@page("tenant", "page")
@require_GET
def spaces(request: HttpRequest, person: Principal) -> HttpResponse:
    tenants = chosen_tenants(request, person)
    part = part_of(request, rows_of(Space, tenants).select_related("tenant"), ROWS)
    context = {"part": part, "rows": space_rows(list(part)), "at_tokens": AT_TOKENS}
    return render_page(request, person, "spaces", context)
