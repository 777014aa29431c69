"""The Celery app: a broker on the bus Valkey, no result backend (a Job row is the status).

`catalog.kinds` declares the kinds of work and their queues.
"""

import os
import ssl
import sys
from importlib import import_module
from pathlib import Path

from celery import Celery
from kombu import Queue

for source_root in (Path(__file__).resolve().parents[2], Path(__file__).resolve().parents[1]):
    if str(source_root) not in sys.path:
        sys.path.append(str(source_root))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

import_module("controlplane.observing")  # listens to Celery's signals

app = Celery("neve")


def configure() -> dict[str, object]:
    """All of Celery's settings; asked for when Celery first needs one."""
    from django.conf import settings

    from catalog.kinds import KINDS, QUEUES

    return {
        "broker_url": settings.ENV.bus_url,
        # kombu would check no certificate of a rediss:// broker.
        "broker_use_ssl": (
            {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
            if settings.ENV.bus_url.startswith("rediss:")
            else False
        ),
        "broker_connection_retry_on_startup": True,
        # Longer than any task may run: otherwise a running task is delivered a second time.
        "broker_transport_options": {
            "visibility_timeout": 3600,
            "socket_connect_timeout": 2,
            # For callers that enqueue; a worker waits for its broker without limit.
            "max_retries": 1,
            "interval_start": 0,
        },
        "task_time_limit": 900,
        "task_soft_time_limit": 840,
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "task_publish_retry": False,
        "task_queues": [Queue(name) for name in QUEUES],
        "task_default_queue": "view-at-risk",
        "task_routes": {kind.task: {"queue": kind.queue} for kind in KINDS.values()},
        "beat_schedule": _schedule(),
        "beat_scheduler": "workers.ticks:TickScheduler",
        "imports": ["workers.ticks"],
    }


def _schedule() -> dict[str, object]:
    """By name, since nothing in `platform/` imports what stands above it."""
    return dict(import_module("workers.schedule").SCHEDULE)


app.add_defaults(configure)
app.autodiscover_tasks(["workers"])
