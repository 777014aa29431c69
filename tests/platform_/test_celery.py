"""Celery as STYLE.md wants it: late acks, no prefetch, no result backend, queues named by harm."""

from celery.schedules import maybe_schedule

from controlplane.celery import QUEUES, app
from workers.schedule import SCHEDULE


def test_a_task_that_dies_is_delivered_again_and_no_result_is_kept():
    conf = app.conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.result_backend is None
    assert conf.task_ignore_result
    assert conf.task_time_limit < conf.broker_transport_options["visibility_timeout"]


def test_every_scheduled_task_has_a_queue_and_a_time():
    assert app.conf.beat_schedule == SCHEDULE
    routed = {task for tasks in QUEUES.values() for task in tasks}
    assert {entry["task"] for entry in SCHEDULE.values()} <= routed
    for entry in SCHEDULE.values():
        assert maybe_schedule(entry["schedule"]).run_every.total_seconds() > 0
    assert {queue.name for queue in app.conf.task_queues} == set(QUEUES)
