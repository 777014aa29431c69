"""What goes wrong: each fault is a context manager that lasts from its begin to its end.

`FAULT[kind](trial, rng)`; a fault that had nothing to hit yields False and does not count.
"""

import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from valkey.exceptions import ValkeyError

from support.servers import Server
from torture import damage
from torture.clock import Clock
from torture.plan import FAULTS, Persistence

if TYPE_CHECKING:
    from torture.trial import Trial

FULL_BYTES = 64  # no file of a server may grow beyond: every append fails
JUMPS_S = (-7200, -600, -30, 30, 600, 7200, 90_000)

Apply = Callable[["Trial", random.Random], AbstractContextManager[bool]]


@contextmanager
def kill_member(trial: "Trial", rng: random.Random, *, role: str) -> Iterator[bool]:
    """kill -9 of a process; another one takes its place at the end."""
    members = trial.crew.of(role)
    if not members:
        yield False
        return
    member = rng.choice(members)
    trial.crew.kill(member)
    try:
        yield True
    finally:
        member.start_again()


@contextmanager
def stop_member(trial: "Trial", rng: random.Random, *, role: str) -> Iterator[bool]:
    members = trial.crew.of(role)
    if not members:
        yield False
        return
    member = rng.choice(members)
    member.signal(signal.SIGSTOP)
    try:
        yield True
    finally:
        if member in trial.crew.members:
            member.signal(signal.SIGCONT)


@contextmanager
def kill_valkey(trial: "Trial", rng: random.Random) -> Iterator[bool]:
    """kill -9. With snapshots it comes back as it was when the fault began."""
    valkey = trial.world.valkey
    if not trial.is_running("valkey"):
        yield False
        return
    keeps_all = valkey.persistence is Persistence.LOG and not trial.valkey_disk_was_full
    for tenant in trial.tenants:
        tenant.model.memory_lost |= not keeps_all
    if valkey.persistence is Persistence.SNAPSHOT:
        valkey.snapshot()
    else:
        valkey.kill()
    try:
        yield True
    finally:
        valkey.restart()


@contextmanager
def kill_store(trial: "Trial", rng: random.Random, *, name: str) -> Iterator[bool]:
    if not trial.is_running(name):
        yield False
        return
    server: Server = getattr(trial.world, name)
    server.kill()
    try:
        yield True
    finally:
        server.restart()


@contextmanager
def stop_server(trial: "Trial", rng: random.Random, *, name: str) -> Iterator[bool]:
    if not trial.is_running(name):
        yield False
        return
    server: Server = getattr(trial.world, name)
    process = server.process
    process.send_signal(signal.SIGSTOP)
    trial.stopped.add(name)
    try:
        yield True
    finally:
        trial.stopped.discard(name)
        if server.process is process:
            process.send_signal(signal.SIGCONT)


@contextmanager
def s3_trouble(trial: "Trial", rng: random.Random, *, kind: str) -> Iterator[bool]:
    with rng.choice(trial.world.proxies).trouble(kind, rng.getrandbits(32)):
        yield True


@contextmanager
def clock_jump(trial: "Trial", rng: random.Random, *, name: str) -> Iterator[bool]:
    clock: Clock = getattr(trial.world, name)
    clock.offset_s += (jump := rng.choice(JUMPS_S))
    try:
        yield True
    finally:
        clock.offset_s -= jump


@contextmanager
def disk_full(trial: "Trial", rng: random.Random, *, name: str) -> Iterator[bool]:
    """No file of the server grows any more (RLIMIT_FSIZE): its writes fail as on a full disk."""
    if not trial.is_running(name):
        yield False
        return
    server: Server = getattr(trial.world, name)
    process = server.process
    if name == "valkey":
        trial.valkey_disk_was_full = True
    _limit_files(process.pid, str(FULL_BYTES))
    try:
        yield True
    finally:
        if server.process is process:
            _limit_files(process.pid, "unlimited")


@contextmanager
def disk_full_local(trial: "Trial", rng: random.Random) -> Iterator[bool]:
    """No file of the nodes grows any more: they have none but those of their local tier."""
    pids = [member.process.pid for member in trial.crew.of("node") if member.process.is_alive()]
    for pid in pids:
        _limit_files(pid, str(FULL_BYTES))
    try:
        yield bool(pids)
    finally:
        for member in trial.crew.of("node"):
            if member.process.pid in pids and member.process.is_alive():
                _limit_files(member.process.pid, "unlimited")


@contextmanager
def damage_local(trial: "Trial", rng: random.Random, *, act: Callable[..., None]) -> Iterator[bool]:
    files = sorted(trial.local.folder.glob("*/*/??/" + "?" * 32))
    with suppress(FileNotFoundError):  # it was evicted meanwhile
        if files:
            act(files, rng)
    yield bool(files)


def _limit_files(pid: int, limit: str) -> None:
    subprocess.run(["prlimit", "--pid", str(pid), f"--fsize={limit}:"], check=True)


@contextmanager
def damage_hot(trial: "Trial", rng: random.Random, *, act: Callable[..., bool]) -> Iterator[bool]:
    tenant = rng.choice(trial.tenants)
    arguments = (rng,) if act is damage.stray_key else (tenant.model, rng)
    done = False
    with suppress(ValkeyError), trial.world.valkey.client(socket_timeout=2) as client:
        done = trial.is_running("valkey") and act(client, tenant.id, *arguments)
    yield done


@contextmanager
def damage_cold(trial: "Trial", rng: random.Random, *, act: Callable[..., Any]) -> Iterator[bool]:
    tenant, other = rng.choice(trial.tenants), rng.choice(trial.tenants)
    arguments = {
        damage.foreign_segment: (tenant.model, rng, other.id),
        damage.stray_object: (rng,),
    }.get(act, (tenant.model, rng))
    done = None
    with suppress(ClientError, BotoCoreError):
        whole = trial.is_running("s3") and trial.is_running("far")
        done = whole and act(trial.places, tenant.id, *arguments)
    yield bool(done)


FAULT: dict[str, Apply] = {
    "kill_worker": partial(kill_member, role="worker"),
    "kill_node": partial(kill_member, role="node"),
    "kill_valkey": kill_valkey,
    "kill_s3": partial(kill_store, name="s3"),
    "kill_far": partial(kill_store, name="far"),
    "stop_worker": partial(stop_member, role="worker"),
    "stop_node": partial(stop_member, role="node"),
    "stop_valkey": partial(stop_server, name="valkey"),
    "stop_s3": partial(stop_server, name="s3"),
    "stop_far": partial(stop_server, name="far"),
    "clock_valkey": partial(clock_jump, name="valkey_clock"),
    "clock_workers": partial(clock_jump, name="clock"),
    "disk_full_s3": partial(disk_full, name="s3"),
    "disk_full_far": partial(disk_full, name="far"),
    "disk_full_valkey": partial(disk_full, name="valkey"),
    "disk_full_local": disk_full_local,
    **{
        act.__name__: partial(damage_local, act=act)
        for act in (damage.flip_local, damage.cut_local, damage.foreign_local)
    },
    **{
        act.__name__: partial(damage_hot, act=act)
        for act in (damage.flip_hot, damage.lose_key, damage.stray_key, damage.miscount)
    },
    **{
        act.__name__: partial(damage_cold, act=act)
        for act in (
            damage.flip_cold,
            damage.flip_footer,
            damage.cut_segment,
            damage.foreign_segment,
            damage.delete_segment,
            damage.stray_object,
        )
    },
    **{kind: partial(s3_trouble, kind=kind) for kind in FAULTS if kind.startswith("s3_")},
}
assert FAULT.keys() == FAULTS.keys()
