"""The page What-if: a curve, levers, what they would give, and the moves ranked by net money.

The form posts a change; the job that simulates it shows its result on this page. Nothing changes
from here. Of several tenants the page asks for one.
"""

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods

from base.problems import Problem
from catalog.kinds import WHAT_IF
from catalog.models import Job
from dashboard.page import page, render_page
from dashboard.pages.what_if.lists import WhatIfList
from dashboard.pages.what_if.selector import (
    apply_links,
    basis_of,
    change_asked,
    chart_of,
    fields_of,
    fields_with,
    shown,
)
from dashboard.scope import ALL, scope_of
from neve.errors import Misuse
from neve.planner.changes import Change
from neve.planner.simulate.tiers import Setting
from planning import whatif
from tenants.models import Tenant
from tenants.principal import Principal, actor_of

WINDOW_S = 86400


@page("job", "move", "change", *WhatIfList.takes())
@require_http_methods(["GET", "POST"])
def what_if(request: HttpRequest, person: Principal) -> HttpResponse:
    tenant = _tenant(request, person)
    if tenant is None:
        return _choose(request, person)
    if request.method == "POST":
        return _ask(request, person, tenant)
    return _show(request, person, tenant)


def _choose(request: HttpRequest, person: Principal) -> HttpResponse:
    """The tenants, each with its recommendation; none is taken for the person, nor for a form."""
    listing = WhatIfList(request, scope_of(request, person), person.tenants)
    if listing.wants_csv:
        return listing.csv()  # type: ignore[return-value]
    return render_page(request, person, "what_if", {"listing": listing})


def _ask(request: HttpRequest, person: Principal, tenant: Tenant) -> HttpResponse:
    today = whatif.today_of(tenant.pk, block_bytes=whatif.ANY_BLOCK_BYTES)
    try:
        given = change_asked(request.POST, today)
        if not given:
            raise ValueError("Change at least one value: as they are, today is what you get.")
        job = whatif.request(
            tenant=tenant,
            changes=[Change.of(given)],
            window_s=WINDOW_S,
            space=None,
            actor=actor_of(request, person),
        )
    except (ValueError, Misuse, Problem) as error:
        words = error.detail if isinstance(error, Problem) else str(error)
        return _show(request, person, tenant, error=words, given=request.POST.dict())
    query = urlencode({"tenant": tenant.slug, "job": str(job.pk)})
    return redirect(f"{reverse('dashboard:what_if')}?{query}")


def _show(
    request: HttpRequest,
    person: Principal,
    tenant: Tenant,
    *,
    error: str = "",
    given: dict[str, str] | None = None,
) -> HttpResponse:
    job = _job(request, person, tenant)
    page = shown(tenant, whatif.advice_of(tenant.pk), job, _move(request))
    today = whatif.today_of(tenant.pk, block_bytes=whatif.ANY_BLOCK_BYTES)
    context = {
        "shown": page,
        "chosen_tenant": tenant,
        "fields": fields_with(today, given or _to_try(request, today), job),
        "error": error,
        "job": job,
        "apply": apply_links(tenant, page.chosen),
        "is_running": job is not None and job.state in (Job.State.QUEUED, Job.State.RUNNING),
        "basis": basis_of(page.result) if page.result else None,
        "chart": chart_of(page.result, page.chosen) if page.result else None,
        "check": page.result["calibration"] if page.result else None,
    }
    return render_page(request, person, "what_if", context, status=400 if error else 200)


def _to_try(request: HttpRequest, today: Setting) -> dict[str, str]:
    """Inputs of `change`, such as "cold=x2,hot=x2": what a lever's link tries. Raises Http404."""
    text = request.GET.get("change", "")
    if not text:
        return {}
    pairs = [part.partition("=") for part in text[:200].split(",")]
    try:
        then = Change.of({name: value for name, _, value in pairs}).apply(today)
    except Misuse:
        return {}  # quota or policy changed since: as they are
    now = {field.name: field.value for field in fields_of(today)}
    return {f.name: f.value for f in fields_of(then) if f.value != now[f.name]}


def _tenant(request: HttpRequest, person: Principal) -> Tenant | None:
    """The picked tenant, or the only one that the person sees; None: they see none or several."""
    slug = request.GET.get("tenant") or ALL
    if slug != ALL:
        return person.tenant(slug)
    return person.tenants[0] if len(person.tenants) == 1 else None


def _job(request: HttpRequest, person: Principal, tenant: Tenant) -> Job | None:
    """Raises Http404 for a job that is not a what-if of this tenant."""
    text = request.GET.get("job")
    if not text:
        return None
    try:
        uuid = UUID(text)
    except ValueError:
        raise Http404("job is a UUID") from None
    job = person.rows(Job).filter(pk=uuid, tenant=tenant, kind=WHAT_IF.name).first()
    if job is None:
        raise Http404("there is no such what-if")
    return job


def _move(request: HttpRequest) -> int | None:
    text = request.GET.get("move", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise Http404("move is a number")
    return int(text)
