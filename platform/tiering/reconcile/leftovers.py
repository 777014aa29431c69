"""Uploads of killed workers, and rows of old jobs. Few at any time, so not in slices."""

from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from catalog.models import Job, Segment
from storage import hot, s3
from tiering.elapsed import is_past
from tiering.objects import abort_uploads
from tiering.reconcile.report import Report

# A flush that takes longer has lost its lease: nothing will name its segment.
ABANDONED = timedelta(hours=1)
JOBS_KEPT = timedelta(days=7)


def remove_abandoned_segments(report: Report) -> None:
    """Deletes the objects and rows of uploads that never became live.

    Their blocks are still dirty, or went to S3 with a later flush.
    """
    is_abandoned = is_past("created_at", ABANDONED)
    rows = Segment.unscoped.filter(is_abandoned, state=Segment.State.UPLOADING)
    for row in rows:
        with report.apart(f"upload {row.object_key}"):
            hot.hot_tier(row.tenant_id).close_segments([row.pk])
            abort_uploads(row.object_key)
            s3.client().delete_object(Bucket=settings.ENV.s3_bucket, Key=row.object_key)
            report.found("abandoned_uploads", row.delete()[0])


def prune_jobs() -> int:
    """Deletes rows of jobs that ended a week ago. Returns how many."""
    return Job.unscoped.filter(finished_at__lt=timezone.now() - JOBS_KEPT).delete()[0]
