"""A receiver of webhooks that is down for an hour, in compressed time, with killed workers.

`python -m support.webhook_outage --events 600 --hour 20`: the hour takes 20 s, and so do all pauses
of the schedule in proportion. Prints how many deliveries arrived, were lost, and came twice; exits
with 1 if one was lost. Real servers: database, Valkeys, receiver, two delivering processes.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter

HOUR_S = 3600.0


def work(scale: float) -> None:
    """A delivering process: ticks without end."""
    import django

    django.setup()
    from events import deliveries

    deliveries.RETRIES_S = tuple(pause * scale for pause in deliveries.RETRIES_S)  # type: ignore[assignment]
    deliveries.QUIET_MOST_S = max(1, int(deliveries.QUIET_MOST_S * scale))
    deliveries.LEASE_S = 5
    while True:
        deliveries.deliver()
        time.sleep(0.1)


def start(scale: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "support.webhook_outage", "--worker", str(scale)]
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], env=dict(os.environ))


def run(events: int, hour_s: float) -> int:
    os.environ["DJANGO_SETTINGS_MODULE"] = "support.testsettings"
    import django

    django.setup()
    os.environ["DJANGO_SETTINGS_MODULE"] = "controlplane.settings"  # of the workers
    from events import webhooks
    from events.models import Delivery, Event
    from events.services import Subject, emit
    from support.platform_servers import platform_servers
    from support.rows import make_tenant
    from support.servers import wait_until
    from support.webhook_receiver import Receiver
    from tenants.audit import SYSTEM

    scale = hour_s / HOUR_S
    with platform_servers(), Receiver() as receiver:
        tenant = make_tenant()
        hook, secret = webhooks.add(tenant=tenant, url=receiver.url, types=[], actor=SYSTEM)
        workers = [start(scale) for _ in range(2)]
        receiver.status = 503
        try:
            subject: Subject = {"type": "node", "id": "first", "name": "first"}
            emit("node.up", tenant_id=tenant.pk, subject=subject)
            wait_until(lambda: bool(receiver.refused), what="a first attempt")
            began = time.monotonic()
            for n in range(events):
                name = f"node-{n}"
                emit(
                    "node.up",
                    tenant_id=tenant.pk,
                    subject={"type": "node", "id": name, "name": name},
                )
                time.sleep(max(0.0, began + hour_s * n / events - time.monotonic()))
                if n % (events // 5 + 1) == 1:  # crashes, also amid a request
                    workers[0].send_signal(signal.SIGKILL)
                    workers[0].wait()
                    workers = [workers[1], start(scale)]
            refused, receiver.status = len(receiver.refused), 200
            waiting = Delivery.unscoped.filter(state="waiting")
            deadline = time.monotonic() + 60 + 12 * hour_s
            while time.monotonic() < deadline and (
                waiting.exists() or Event.unscoped.filter(sequence=None).exists()
            ):
                time.sleep(0.2)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        counts = Counter(receiver.ids())
        emitted = {str(uuid) for uuid in Event.unscoped.values_list("uuid", flat=True)}
        lost, twice = emitted - set(counts), sum(counts.values()) - len(counts)
        verified = len(receiver.verified(secret))
        hook.refresh_from_db()
        print(
            f"emitted {len(emitted)}, attempts while down {refused}, delivered {len(counts)}, "
            f"lost {len(lost)}, duplicates {twice}, signatures verified {verified}, "
            f"active {hook.is_active}"
        )
        return 1 if lost or not hook.is_active else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=600)
    parser.add_argument("--hour", type=float, default=20.0, help="seconds that an hour takes")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(given.worker)
    sys.exit(run(given.events, given.hour))
