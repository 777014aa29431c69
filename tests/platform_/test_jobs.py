"""Jobs: the row is the status, whatever happens to the task or to the broker."""

import time
from contextlib import suppress
from datetime import timedelta

import pytest
from celery import Celery, current_app
from django.db import transaction
from django.utils import timezone

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


def test_work_that_failed_goes_on_in_its_row_until_it_is_done(monkeypatch):
    monkeypatch.setattr(jobs, "FIRST_RETRY_S", 0)
    monkeypatch.setattr(jobs, "LAST_RETRY_S", 0)
    tenant = make_tenant()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), jobs.attempt("flush", tenant.pk):
            raise ZeroDivisionError("oh")
    job = Job.unscoped.get()
    assert (job.state, job.attempts, job.error) == ("failed", 2, "ZeroDivisionError: oh")
    with jobs.attempt("flush", tenant.pk) as run:
        run.progress(0.5, blocks=3, bytes_=4)
        run.detail({"segments": 1})
    job = Job.unscoped.get()
    assert (job.state, job.attempts, job.error, job.retry_at) == ("done", 3, "", None)
    assert (job.blocks, job.bytes, job.detail) == (3, 4, {"segments": 1})
    assert job.duration_s >= 0
    with jobs.attempt("flush", tenant.pk):
        pass
    assert Job.unscoped.count() == 2


def test_nobody_tries_again_before_it_is_time():
    tenant, other = make_tenant(), make_tenant()
    with pytest.raises(ZeroDivisionError), jobs.attempt("flush", tenant.pk):
        raise ZeroDivisionError
    assert jobs.is_waiting("flush", tenant.pk)
    assert not jobs.is_waiting("flush", other.pk)
    assert not jobs.is_waiting("compact", tenant.pk)
    Job.unscoped.update(retry_at=timezone.now())
    assert not jobs.is_waiting("flush", tenant.pk)


def test_a_retry_planned_before_the_clock_was_set_back_is_not_waited_for():
    tenant = make_tenant()
    with pytest.raises(ZeroDivisionError), jobs.attempt("flush", tenant.pk):
        raise ZeroDivisionError
    Job.unscoped.update(retry_at=timezone.now() + timedelta(days=1))
    assert not jobs.is_waiting("flush", tenant.pk)


def test_pauses_grow_to_a_limit_and_are_spread():
    pauses = [jobs.pause_s(n) for n in range(1, 30)]
    assert all(pause <= jobs.LAST_RETRY_S for pause in pauses)
    assert pauses[0] <= jobs.FIRST_RETRY_S < jobs.LAST_RETRY_S / 2 <= pauses[-1]
    assert len({jobs.pause_s(5) for _ in range(10)}) > 1


def test_of_several_that_failed_at_once_one_success_ends_all(monkeypatch):
    monkeypatch.setattr(jobs, "LAST_RETRY_S", 0)
    tenant = make_tenant()
    with suppress(ZeroDivisionError), jobs.attempt("flush", tenant.pk):
        with suppress(ZeroDivisionError), jobs.attempt("flush", tenant.pk):
            raise ZeroDivisionError
        raise ZeroDivisionError
    assert Job.unscoped.filter(retry_at__isnull=False).count() == 2
    with jobs.attempt("flush", tenant.pk):
        pass
    assert sorted(Job.unscoped.values_list("state", "retry_at")) == [
        ("done", None),
        ("failed", None),
    ]


@pytest.mark.parametrize("past", [1, -1])
def test_a_job_whose_worker_was_killed_is_not_shown_as_running_for_ever(past):
    """Nor if it was killed while a clock ran ahead."""
    seen_at = timezone.now() - past * (jobs.LOST + timedelta(minutes=1))
    lost = Job.unscoped.create(kind="flush", state="running", seen_at=seen_at)
    alive = Job.unscoped.create(kind="flush", state="running", seen_at=timezone.now())
    assert jobs.bury_lost() == 1
    lost.refresh_from_db(), alive.refresh_from_db()
    assert (lost.state, alive.state) == ("failed", "running")
    assert "no sign of life" in lost.error


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
