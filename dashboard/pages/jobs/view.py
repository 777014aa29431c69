"""The page Jobs, folded or as a list, and the page of one job with its actions."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from base.problems import Problem
from catalog import jobs as service
from catalog.kinds import KINDS, REQUEST_ATTEMPTS
from catalog.models import Job
from dashboard import probes
from dashboard.page import page, render_page
from dashboard.pages.jobs import folding
from dashboard.pages.jobs.lists import JobList
from dashboard.pages.jobs.selector import job_row
from dashboard.scope import scope_of
from tenants.audit import Actor
from tenants.principal import Principal, actor_of


@page(*JobList.takes())
@require_GET
def jobs(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    rows = folding.jobs_of(scope)
    shown = rows.select_related("tenant").defer("log", "arguments")
    listing = JobList(request, scope, shown)
    if listing.wants_csv:
        return listing.csv()
    context: dict[str, Any] = {
        "workers": probes.WORKERS.read(),
        "counts": folding.counts(rows, scope),
        "what": request.GET.get("what", ""),
    }
    if listing.is_narrowed or "page" in request.GET or "sort" in request.GET:
        context["listing"] = listing
    else:
        context |= {
            "throughput": folding.throughput(rows, scope),
            "failed": [facts_of(job, person) for job in folding.failed(rows, scope)],
            "running": folding.running(rows),
            "groups": folding.groups(rows, scope),
        }
    return render_page(request, person, "jobs", context)


@page()
@require_GET
def job(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    return _show(request, person, _job(person, uuid), {})


@page()
@require_POST
def retry(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    return _change(request, person, uuid, service.retry_by, "Only a failed job is tried again.")


@page()
@require_POST
def cancel(request: HttpRequest, person: Principal, uuid: UUID) -> HttpResponse:
    return _change(request, person, uuid, service.cancel_by, "It has ended.")


def may_change(job: Job, person: Principal) -> bool:
    """As REST has it: operators, and teams the kinds that teams request."""
    if person.is_operator:
        return True
    kind = KINDS.get(job.kind)
    of_team = kind is not None and kind.is_of_team and job.tenant_id is not None
    return of_team and person.may_write(job.tenant_id or 0)


def facts_of(job: Job, person: Principal) -> dict[str, Any]:
    is_asked = job.is_requested and may_change(job, person)
    return {
        "job": job,
        "notes": job_row(job).notes,
        "most_attempts": REQUEST_ATTEMPTS if job.is_requested else None,
        "may_retry": is_asked and job.state in (Job.State.FAILED, Job.State.CANCELLED),
        "may_cancel": is_asked
        and (job.state in (Job.State.QUEUED, Job.State.RUNNING) or job.retry_at is not None),
        "about": KINDS[job.kind].about if job.kind in KINDS else "",
    }


def _job(person: Principal, uuid: UUID) -> Job:
    found: Job = get_object_or_404(person.rows(Job).select_related("tenant"), pk=uuid)
    return found


def _change(
    request: HttpRequest,
    person: Principal,
    uuid: UUID,
    change: Callable[[Job, Actor], bool],
    refusal: str,
) -> HttpResponse:
    found = _job(person, uuid)
    if not (found.is_requested and may_change(found, person)):
        raise Http404("not theirs to change")
    try:
        is_done = change(found, actor_of(request, person))
    except Problem as problem:
        return _show(request, person, found, {"error": problem.detail}, status=409)
    if not is_done:
        return _show(request, person, found, {"error": refusal}, status=409)
    return redirect("dashboard:job", found.pk)


def _show(
    request: HttpRequest, person: Principal, job: Job, facts: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    facts = {**facts_of(job, person), **facts}
    return render_page(request, person, "job", facts, status=status)
