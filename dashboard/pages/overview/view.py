"""The first screen."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.page import page, render_page
from dashboard.pages.overview.selector import overview_of
from dashboard.scope import scope_of
from tenants.principal import Principal


@page()
@require_GET
def overview(request: HttpRequest, person: Principal) -> HttpResponse:
    return render_page(
        request, person, "overview", overview_of(scope_of(request, person)).context()
    )
