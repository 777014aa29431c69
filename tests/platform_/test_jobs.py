"""Jobs: the row is the status, whatever happens to the task or to the broker."""

import time

import pytest
from celery import Celery, current_app
from django.db import transaction

from catalog import jobs
from catalog.models import Job
from controlplane.celery import configure
from rows import make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sent(monkeypatch):
    calls = []
    monkeypatch.setattr(
        current_app, "send_task", lambda name, **kwargs: calls.append((name, kwargs))
    )
    return calls


def test_a_task_starts_on_commit_and_gets_ids_only(sent):
    tenant = make_tenant()
    with transaction.atomic():
        job = jobs.enqueue("flush", tenant_id=tenant.pk, space_id=3)
        assert sent == []
    assert sent == [("workers.flush", {"kwargs": {"job_id": str(job.pk), "space_id": 3}})]
    job.refresh_from_db()
    assert (job.state, job.tenant_id, job.detail) == ("queued", tenant.pk, {"space_id": 3})


def test_a_rolled_back_change_starts_nothing(sent):
    with transaction.atomic():
        jobs.enqueue("flush")
        transaction.set_rollback(True)
    assert sent == []
    assert not Job.unscoped.exists()


def test_a_run_tells_its_progress_and_ends_done(sent):
    job = jobs.enqueue("flush")
    with jobs.job_run(job.pk) as run:
        job.refresh_from_db()
        assert (job.state, job.finished_at) == ("running", None)
        run.progress(0.5, blocks=7, bytes_=9)
        job.refresh_from_db()
        assert (job.progress, job.blocks, job.bytes) == (0.5, 7, 9)
    job.refresh_from_db()
    assert (job.state, job.progress, job.blocks) == ("done", 1.0, 7)
    assert job.started_at <= job.finished_at


def test_a_failed_run_keeps_the_error_and_may_run_again(sent):
    job = jobs.enqueue("flush")
    with pytest.raises(ZeroDivisionError), jobs.job_run(job.pk):
        raise ZeroDivisionError("oh")
    job.refresh_from_db()
    assert (job.state, job.error) == ("failed", "ZeroDivisionError: oh")
    with jobs.job_run(job.pk):
        pass
    job.refresh_from_db()
    assert (job.state, job.error) == ("done", "")


def test_a_job_that_is_done_does_not_run_again(sent):
    job = jobs.enqueue("flush")
    with jobs.job_run(job.pk):
        pass
    with pytest.raises(jobs.JobDone), jobs.job_run(job.pk):
        pytest.fail("ran twice")


def test_a_broker_that_is_down_fails_the_job_quickly_and_not_the_caller(monkeypatch):
    app = Celery("lonely", set_as_current=False)
    app.conf.update({**configure(), "broker_url": "redis://127.0.0.1:1/0"})
    monkeypatch.setattr(jobs, "current_app", app)
    began = time.monotonic()
    job = jobs.enqueue("flush")
    job.refresh_from_db()
    assert job.state == "failed"
    assert "valkey-bus" in job.error
    assert time.monotonic() - began < 5
