"""When beat starts which task. Seconds; each task finds its own work and may run twice at once.

A tick that waits for a worker is not joined by a second one (`controlplane.ticks`).
"""

SCHEDULE = {
    "flush": {"task": "workers.flush", "schedule": 1.0},
    "compact": {"task": "workers.compact", "schedule": 30.0},
    "expire": {"task": "workers.expire", "schedule": 10.0},
    "retain": {"task": "workers.retain", "schedule": 5.0},
    "remove": {"task": "workers.remove", "schedule": 10.0},
    "provision": {"task": "workers.provision", "schedule": 10.0},
    "sample": {"task": "workers.sample", "schedule": 5.0},
    "reconcile": {"task": "workers.reconcile", "schedule": 300.0},
}
