"""Celery as STYLE.md wants it: late acks, no prefetch, no result backend, queues named by harm."""

from importlib import import_module

from celery.schedules import maybe_schedule

from catalog.kinds import KINDS, QUEUES
from controlplane.celery import app
from workers.schedule import SCHEDULE


def test_a_task_that_dies_is_delivered_again_and_no_result_is_kept():
    conf = app.conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.result_backend is None
    assert conf.task_ignore_result
    assert conf.task_time_limit < conf.broker_transport_options["visibility_timeout"]


def test_every_kind_has_a_task_a_queue_and_a_time():
    import_module("workers.tasks")
    assert app.conf.beat_schedule == SCHEDULE
    assert {queue.name for queue in app.conf.task_queues} == set(QUEUES)
    bound = {name for name in app.tasks if name.startswith("workers.")}
    assert bound == {kind.task for kind in KINDS.values()}
    for kind in KINDS.values():
        assert kind.queue in QUEUES
        assert app.conf.task_routes[kind.task] == {"queue": kind.queue}
    for entry in SCHEDULE.values():
        assert maybe_schedule(entry["schedule"]).run_every.total_seconds() > 0
