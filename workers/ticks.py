"""Beat's scheduler: at most one tick of each task waits in the queues.

A tick carries no expiry time: a worker whose clock is ahead of beat's would revoke every tick, and
a busy host would drop many. Instead beat notes on the bus that a tick waits, sends no second one
meanwhile, and the worker that takes it removes the note. No clock but the bus's own takes part.
"""

from typing import Any

from celery import Task, current_app
from celery.beat import PersistentScheduler, ScheduleEntry
from celery.schedules import schedule
from celery.signals import task_prerun

BEAT_HEADER = "celery_beat_task"  # what beat adds to its messages (celery.beat, since 5.4)
# A tick that was lost (its worker was killed before it began) is sent again after so many seconds.
# Without any worker a day leaves some 20,000 ticks of 0.7 kB in the queues.
LOST_S = 30


class TickScheduler(PersistentScheduler):
    def apply_async(
        self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any
    ) -> Any:
        """None, and nothing sent, while a tick of this task waits."""
        task, every = entry.task, entry.schedule
        assert task is not None
        assert isinstance(every, schedule)  # workers.schedule makes no other
        every_s = every.run_every.total_seconds()  # type: ignore[attr-defined]  # not in the stubs
        if _note_waiting(task, max(LOST_S, 3 * int(every_s))):
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        if advance:
            self.reserve(entry)
        return None


@task_prerun.connect(dispatch_uid="workers.ticks")
def _forget_waiting(task: Task[..., object], **kwargs: Any) -> None:
    if task.request.headers and task.request.headers.get(BEAT_HEADER):
        with current_app.connection_or_acquire() as bus:
            bus.default_channel.client.delete(_key(task.name))


def _note_waiting(task: str, for_s: int) -> bool:
    """False: one waits already. Raises what the broker's client raises, as sending would."""
    with current_app.connection_or_acquire() as bus:
        return bool(bus.default_channel.client.set(_key(task), 1, nx=True, ex=for_s))


def _key(task: str) -> str:
    return f"neve:tick:{task}"
