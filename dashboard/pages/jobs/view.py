"""The page Jobs."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import Job
from dashboard import probes
from dashboard.page import page, part_of, render_page
from dashboard.pages.jobs.selector import job_row
from tenants.principal import Principal

ROWS = 50


@page("page")
@require_GET
def jobs(request: HttpRequest, person: Principal) -> HttpResponse:
    shown = part_of(request, person.rows(Job).select_related("tenant"), ROWS)
    rows = [job_row(job) for job in shown]
    context = {"page": shown, "rows": rows, "workers": probes.WORKERS.read()}
    return render_page(request, person, "jobs", context)
