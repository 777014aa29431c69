"""When beat starts which task. Seconds; each task finds its own work and may run twice at once.

A tick that waits for a worker is not joined by a second one (`workers.ticks`).
"""

from catalog.kinds import KINDS

SCHEDULE = {
    kind.name: {"task": kind.task, "schedule": kind.every_s}
    for kind in KINDS.values()
    if kind.every_s is not None
}
