"""Uploads of killed workers, and rows of old jobs. Few at any time, so not in slices."""

from datetime import timedelta

from django.utils import timezone

from catalog.models import Job, Segment
from catalog.stores import Stores
from storage import hot
from tiering.elapsed import is_past
from tiering.reconcile.report import Report

# A flush that takes longer has lost its lease: nothing will name its segment.
ABANDONED = timedelta(hours=1)
JOBS_KEPT = timedelta(days=7)


def remove_abandoned_segments(report: Report) -> None:
    """Deletes the objects and rows of uploads that never became live.

    Their blocks are still dirty, or went to S3 with a later flush.
    """
    is_abandoned = is_past("created_at", ABANDONED)
    rows, stores = Segment.unscoped.filter(is_abandoned, state=Segment.State.UPLOADING), Stores()
    for row in rows:
        with report.apart(f"upload {row.object_key}"):
            hot.hot_tier(row.tenant_id).close_segments([row.pk])
            object_ = stores.object(row)
            object_.abort_uploads()
            object_.delete()
            report.found("abandoned_uploads", row.delete()[0])


def prune_jobs() -> int:
    """Deletes rows of jobs that ended a week ago. Returns how many."""
    return Job.unscoped.filter(finished_at__lt=timezone.now() - JOBS_KEPT).delete()[0]
