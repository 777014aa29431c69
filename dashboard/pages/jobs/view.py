"""The page Jobs."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from catalog.models import Job
from dashboard import probes
from dashboard.formats import count_quantity
from dashboard.page import page, part_of, render_page, viewer

ROWS = 50


# Members of a job's report → what they mean.
NOTES = {
    "refused_blocks": "refused: the cold tier is full",
    "waiting_blocks": "waiting: segments take all that the quota lets them",
    "unreadable_blocks": "lost: unreadable",
    "evicted_blocks": "evicted from the cold tier for others",
}


@page("page")
@require_GET
def jobs(request: HttpRequest) -> HttpResponse:
    found = viewer(request).rows_with_platform(Job).select_related("tenant")
    rows = part_of(request, found, ROWS)
    for job in rows:
        job.notes = _notes(job.detail)
    return render_page(request, "jobs", {"rows": rows, "workers": probes.WORKERS.read()})


def _notes(detail: Any) -> list[str]:
    """What a job could not do although it is done, and what it cost; from its report."""
    counts = detail if isinstance(detail, dict) else {}
    notes = [
        f"{count_quantity(count)} blocks {words}"
        for name, words in NOTES.items()
        if type(count := counts.get(name)) is int and count > 0
    ]
    repaired = counts.get("repaired")
    damaged = [
        count
        for name, count in (repaired.items() if isinstance(repaired, dict) else ())
        if name.startswith("damaged_") and type(count) is int
    ]
    if damaged:
        notes.append(f"{count_quantity(sum(damaged))} damaged pieces of an index repaired")
    return notes
