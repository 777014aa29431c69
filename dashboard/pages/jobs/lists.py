"""The list of jobs, one by one."""

from catalog.kinds import KINDS
from dashboard.lists import Choice, Column, List
from dashboard.pages.jobs.folding import apply_what, words_of
from dashboard.pages.jobs.selector import job_row

WHAT = tuple(
    (name, name) for name in ("failed", "refused", "running", "queued", "done", "cancelled")
)


class JobList(List):
    """Of Job."""

    name = "jobs"
    title = "Jobs"
    columns = (
        Column(
            *("kind", "Kind"),
            words=lambda job: words_of(job.kind),
            link=lambda job, scope: scope.link("job", job.pk),
        ),
        Column(
            "tenant",
            "Tenant",
            path="tenant.slug",
            link=lambda job, scope: job.tenant and scope.link("jobs", tenant=job.tenant.slug),
        ),
        Column("state", "State", "state", words=lambda job: job.state),
        Column("progress", "Progress", "bar"),
        Column("blocks", "Blocks", "count"),
        Column("bytes", "Bytes", "size"),
        Column("attempts", "Attempts", "count"),
        Column("created_at", "Queued", "ago"),
        Column("finished_at", "Ended", "moment"),
        Column("took", "Took", "duration", path="duration_s", order=""),
        Column("retry_at", "Next attempt", "moment", shown=False),
        Column("requested_by", "Asked by"),
        Column(
            "notes",
            "Error or note",
            value=lambda job: "; ".join(filter(None, (job.error, *job_row(job).notes))),
            order="",
        ),
    )
    filters = (
        Choice("what", "State", WHAT, apply=apply_what),
        Choice("kind", "Kind", tuple((name, words_of(name)) for name in sorted(KINDS))),
    )
    search = ("kind", "error", "requested_by", "tenant__slug")
    search_label = "Kind, error or requester"
    default_sort = "-created_at"
    nothing = "pages/jobs/nothing.html"
