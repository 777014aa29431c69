"""Jobs: the row is the status, whatever happens to the task or to the broker."""

import time
from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest
from celery import Celery, current_app
from django.db import transaction
from django.utils import timezone

from base.problems import Problem
from catalog import jobs
from catalog.kinds import REQUEST_ATTEMPTS, WARM, BadRequest
from catalog.models import Job
from controlplane.celery import configure
from support.rows import make_tenant
from tenants.audit import SYSTEM

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def sent(monkeypatch):
    calls = []
    monkeypatch.setattr(
        current_app, "send_task", lambda name, **kwargs: calls.append((name, kwargs))
    )
    return calls


@pytest.fixture
def tenant():
    return make_tenant()


@pytest.fixture
def job(sent, tenant):
    return jobs.enqueue("flush", tenant_id=tenant.pk)


def test_a_task_starts_on_commit_and_gets_the_id_of_its_row(sent, tenant):
    with transaction.atomic():
        job = jobs.enqueue("remove_space", tenant_id=tenant.pk, by="ann", space_id=3)
        assert sent == []
    assert sent == [("workers.remove_space", {"kwargs": {"job_id": str(job.pk)}})]
    job.refresh_from_db()
    assert (job.state, job.tenant_id, job.requested_by) == ("queued", tenant.pk, "ann")
    assert job.arguments == {"space_id": 3}


@pytest.mark.parametrize(
    ("kind", "has_tenant", "arguments", "words"),
    [
        ("flusch", True, {}, "kind: there is no 'flusch'"),
        ("flush", False, {}, "tenant: a flush job needs one"),
        ("reconcile", True, {}, "tenant: a reconcile job is of the whole platform"),
        ("flush", True, {"space_id": 3}, "arguments.space_id: unknown; flush has: none"),
        ("remove_space", True, {}, "arguments.space_id: needs to be int"),
        ("remove_space", True, {"space_id": True}, "arguments.space_id: needs to be int"),
    ],
)
def test_a_request_that_no_worker_could_answer_is_refused(
    sent, tenant, kind, has_tenant, arguments, words
):
    with pytest.raises(BadRequest, match=words):
        jobs.enqueue(kind, tenant_id=tenant.pk if has_tenant else None, **arguments)
    assert not Job.unscoped.exists()


def test_a_rolled_back_change_starts_nothing(sent, tenant):
    with transaction.atomic():
        jobs.enqueue("flush", tenant_id=tenant.pk)
        transaction.set_rollback(True)
    assert sent == []
    assert not Job.unscoped.exists()


def test_a_run_tells_its_progress_and_ends_done(job):
    with jobs.job_run(job.pk) as run:
        job.refresh_from_db()
        assert (job.state, job.finished_at) == ("running", None)
        run.progress(0.5, blocks=7, bytes_=9)
        job.refresh_from_db()
        assert (job.progress, job.blocks, job.bytes) == (0.5, 7, 9)
    job.refresh_from_db()
    assert (job.state, job.progress, job.blocks) == ("done", 1.0, 7)
    assert job.started_at <= job.finished_at


def test_a_failed_run_keeps_the_error_and_may_run_again(job):
    with pytest.raises(ZeroDivisionError), jobs.job_run(job.pk):
        raise ZeroDivisionError("oh")
    job.refresh_from_db()
    assert (job.state, job.error) == ("failed", "ZeroDivisionError: oh")
    with jobs.job_run(job.pk):
        pass
    job.refresh_from_db()
    assert (job.state, job.error) == ("done", "")


def test_a_job_that_is_done_does_not_run_again(job):
    with jobs.job_run(job.pk):
        pass
    with pytest.raises(jobs.JobDone), jobs.job_run(job.pk):
        pytest.fail("ran twice")


def warm_job(tenant):
    return jobs.enqueue("warm", tenant_id=tenant.pk, context_id="c", engine_id=0)


def test_warm_jobs_of_one_tenant_leave_threads_to_others(sent, tenant):
    """An engine that hangs holds a thread for minutes."""
    other, third = make_tenant(), make_tenant()
    first, waits = warm_job(tenant), warm_job(other)
    with ExitStack() as running:
        running.enter_context(jobs.job_run(first.pk))
        for _ in range(WARM.at_once_of_tenant - 1):
            running.enter_context(jobs.job_run(warm_job(tenant).pk))
        late = warm_job(tenant)
        with pytest.raises(jobs.JobDone), jobs.job_run(late.pk):
            pytest.fail("one tenant took more than its share")
        late.refresh_from_db()
        assert (late.state, late.attempts, late.log) == ("queued", 0, [])
        for _ in range(WARM.at_once - WARM.at_once_of_tenant):
            running.enter_context(jobs.job_run(warm_job(third).pk))
        with pytest.raises(jobs.JobDone), jobs.job_run(waits.pk):
            pytest.fail("all threads have warm jobs")
        sent.clear()
    ids = [kwargs["kwargs"]["job_id"] for _, kwargs in sent[:2]]
    assert ids == [str(waits.pk), str(late.pk)]  # the oldest of each tenant may begin now
    with jobs.job_run(late.pk):
        pass
    late.refresh_from_db()
    assert (late.state, late.attempts) == ("done", 1)


def test_a_team_cannot_retry_more_jobs_than_may_wait(sent, tenant, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_RETRIED", 2)
    over = [warm_job(tenant) for _ in range(3)]
    assert all(jobs.cancel(job) for job in over)
    assert jobs.retry_by(over[0], SYSTEM)
    assert jobs.retry_by(over[1], SYSTEM)
    with pytest.raises(Problem, match="2 warm jobs of the tenant wait or run"):
        jobs.retry_by(over[2], SYSTEM)


def test_a_job_runs_once_although_its_message_came_twice(job):
    with jobs.job_run(job.pk):
        with pytest.raises(jobs.JobDone), jobs.job_run(job.pk):
            pytest.fail("ran twice at once")
        with jobs.job_run(job.pk, is_redelivered=True):  # the broker says that the first one died
            pass


def test_a_failed_request_is_sent_again_until_it_is_given_up(job, sent, monkeypatch):
    monkeypatch.setattr(jobs, "FIRST_RETRY_S", 0)
    for attempt in range(1, REQUEST_ATTEMPTS + 1):
        assert len(sent) == attempt
        with pytest.raises(ZeroDivisionError), jobs.job_run(job.pk):
            raise ZeroDivisionError
        jobs.send_again()
    job.refresh_from_db()
    assert (job.state, job.attempts, job.retry_at) == ("failed", REQUEST_ATTEMPTS, None)
    assert len(sent) == REQUEST_ATTEMPTS
    with pytest.raises(jobs.JobDone), jobs.job_run(job.pk):  # a second message of an attempt
        pytest.fail("ran although it was given up")
    assert jobs.retry(job)
    assert len(sent) == REQUEST_ATTEMPTS + 1


def test_a_failed_request_does_not_stop_the_work_that_ticks_find(job, tenant):
    with pytest.raises(ZeroDivisionError), jobs.job_run(job.pk):
        raise ZeroDivisionError
    assert not jobs.is_waiting("flush", tenant.pk)
    with jobs.attempt("flush", tenant.pk) as run:
        assert run.job.pk != job.pk


def test_a_request_whose_message_was_lost_is_sent_again(job, sent):
    assert jobs.send_again() == 0
    Job.unscoped.update(sent_at=timezone.now() - 2 * jobs.UNSENT)
    assert jobs.send_again() == 1
    assert len(sent) == 2


def test_a_waiting_job_is_cancelled_at_once(job):
    assert jobs.cancel(job)
    with pytest.raises(jobs.JobDone), jobs.job_run(job.pk):
        pytest.fail("ran although it was cancelled")
    job.refresh_from_db()
    assert job.state == "cancelled"
    assert not jobs.cancel(job)
    assert jobs.retry(job)


def test_a_running_job_ends_at_its_next_sign_of_life(job):
    with jobs.job_run(job.pk) as run:
        assert jobs.cancel(job)
        run.progress(0.5)
        pytest.fail("went on although it was cancelled")
    job.refresh_from_db()
    assert (job.state, job.progress, job.error) == ("cancelled", 0.5, "")


def test_work_that_a_tick_found_cannot_be_cancelled(tenant):
    with jobs.attempt("flush", tenant.pk) as run:
        assert not jobs.cancel(run.job)


def test_a_job_keeps_the_last_lines_of_its_log(job, monkeypatch):
    monkeypatch.setattr(jobs, "LOG_LINES", 2)
    with jobs.job_run(job.pk) as run:
        for words in ("one", "two", "three"):
            run.log(words)
    job.refresh_from_db()
    assert [line["words"] for line in job.log] == ["two", "three"]


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
    assert jobs.fail_lost() == 1
    lost.refresh_from_db(), alive.refresh_from_db()
    assert (lost.state, alive.state) == ("failed", "running")
    assert "no sign of life" in lost.error


def test_a_request_whose_worker_was_killed_is_sent_again(job, sent):
    Job.unscoped.update(state="running", seen_at=timezone.now() - 2 * jobs.LOST)
    assert jobs.fail_lost() == 1
    assert jobs.send_again() == 1


def test_a_broker_that_is_down_delays_the_job_and_not_the_caller(monkeypatch, tenant, sent):
    app = Celery("lonely", set_as_current=False)
    app.conf.update({**configure(), "broker_url": "redis://127.0.0.1:1/0"})
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "current_app", app)
        began = time.monotonic()
        jobs.enqueue("flush", tenant_id=tenant.pk)
        assert time.monotonic() - began < 30
    assert jobs.send_again() == 1
    assert len(sent) == 1
