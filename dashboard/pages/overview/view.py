"""The first screen."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.page import page, render_page
from dashboard.pages.overview.selector import Overview, overview_of
from dashboard.scope import scope_of
from tenants.principal import Principal


@page()
@require_GET
def overview(request: HttpRequest, person: Principal) -> HttpResponse:
    return render_page(request, person, "overview", _read(request, person).context())


def _read(request: HttpRequest, person: Principal) -> Overview:
    scope = scope_of(request, person)
    return overview_of(person, scope.tenants, scope.window)
