"""One look at the hot tier every few seconds, and what follows from it.

What a look must remember until the next stands in its process; another process begins anew, which
costs one more look.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from valkey.exceptions import ResponseError

from base import log_events
from catalog import jobs
from neve.index.library import Taken, taken
from neve.index.tier import Usage
from retention import provisioning
from storage import hot, hot_servers
from tenants import services
from tenants.models import Quota, Tenant
from tiering import recovery
from tiering.watch import links, weights

MIB = 1 << 20
LOOK_S = 4.0
SLOW_KEYS = 10_000  # of one look, when nothing is suspicious: about 1 % of one server's time
FAST_KEYS = 2_000_000
LINKED_S = 60.0  # it comes back after each look, but needs time for thousands of connections
# Of a server that moves blocks at full speed calls take a tenth of the time; look-ups of a thousand
# ids from a hundred connections take all of it, and others' calls wait for a hundred of them.
BUSY, BUSY_S = 0.5, 5.0
WAIT_S = 0.2  # that two short commands of the watch itself took
STRIKES = 2  # what stands in two looks was no coincidence


@dataclass
class Memory:
    """Between two looks."""

    round: weights.Round | None = None
    strikes: Counter[int] = field(default_factory=Counter)  # rounds a tenant was too heavy in
    linked: dict[int, list[float]] = field(default_factory=dict)  # when it had too many links
    # By server: when, what each tenant's calls took, and CPU seconds of its main thread.
    taken: dict[str, tuple[float, dict[int, Taken], float]] = field(default_factory=dict)
    busy: dict[int, float] = field(default_factory=dict)  # since when a tenant was above BUSY
    connected: set[int] = field(default_factory=set)  # tenants with a connection
    usual_bytes: int = 0  # memory beside booked blocks, when nobody was too heavy
    usual_booked: int = 0
    cleaning: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Held:
    """What the books say of one tenant, and what it may hold in all."""

    booked_bytes: int
    limit_bytes: int


MEMORY = Memory()


def look(memory: Memory = MEMORY) -> None:
    """Raises valkey's errors."""
    until = time.monotonic() + LOOK_S
    found: dict[int, str] = {}
    # First, and with one command: while somebody takes all of a server's time, each needs a second.
    _look_at_calls(memory, found)
    for tenant_id, why in found.items():
        _cut_off(memory, tenant_id, why)
    found.clear()
    held = _held()
    _look_at_links(memory, found)
    _look_at_bytes(memory, held, found, until)
    for tenant_id, why in found.items():
        _cut_off(memory, tenant_id, why)
    for tenant_id in tuple(memory.cleaning):
        _clean(memory, tenant_id, held)


def _held() -> dict[int, Held]:
    quotas = {quota.tenant_id: quota for quota in Quota.unscoped.all()}
    held = {}
    for tenant_id, quota in quotas.items():
        try:
            usage = hot.hot_tier(tenant_id).usage()
        except ResponseError:  # damaged books of one tenant: reconcile's
            log_events.BOOKS_UNREADABLE.log(tenant_id=tenant_id, exc_info=True)
            usage = Usage()
        room = max(settings.ENV.hot_uncommitted_mib * MIB, quota.hot_bytes // 4)
        books = (quota.hot_bytes + quota.cold_bytes) // 64  # 300 bytes for each block
        limit = max(quota.hot_bytes, usage.hot_bytes) + room + books
        held[tenant_id] = Held(usage.hot_bytes, limit)
    return held


def _look_at_links(memory: Memory, found: dict[int, str]) -> None:
    excessive: dict[int, str] = {}
    connected: set[int] = set()
    for client in hot_servers.servers():
        told = client.info()
        share = links.Share.of(
            connections=settings.ENV.hot_connections,
            max_clients=int(told["maxclients"]),
            max_memory=int(told["maxmemory"]),
        )
        if (clients := links.told(client)) is None:
            unlisted = links.end_unlisted(client)
            log_events.CONNECTIONS_UNLISTED.log(why=unlisted)
            found |= unlisted
            continue
        all_links = [links.Link.of(each) for each in clients]
        connected |= {link.tenant_id for link in all_links if link.tenant_id is not None}
        verdict = links.judge(all_links, share)
        found |= verdict.deliberate
        if verdict.kill:
            count = links.kill(client, verdict.kill)
            reasons = verdict.excessive | verdict.deliberate
            log_events.CONNECTIONS_ENDED.log(count=count, why=reasons)
        excessive |= verdict.excessive
    memory.connected = connected
    now = time.monotonic()
    for tenant_id, why in excessive.items():
        lately = [at for at in memory.linked.get(tenant_id, ()) if at > now - LINKED_S]
        memory.linked[tenant_id] = [*lately, now]
        if len(lately) + 1 >= STRIKES:
            found[tenant_id] = why


def _look_at_calls(memory: Memory, found: dict[int, str]) -> None:
    busy: dict[int, tuple[float, float]] = {}  # share, since
    for client in hot_servers.primaries():
        at = client.connection_pool.connection_kwargs
        where, begun = f"{at.get('host')}:{at.get('port')}", _now_s()
        try:
            is_ = taken(client)
        except ResponseError:  # started again, and its functions are not there yet
            continue
        cpu, now = client.info("cpu"), _now_s()
        cpu_s = float(cpu["used_cpu_user_main_thread"]) + float(cpu["used_cpu_sys_main_thread"])
        then, was, cpu_s_then = memory.taken.get(where, (now, is_, cpu_s))
        memory.taken[where] = now, is_, cpu_s
        # Who waits for its turn meets a server without time to give: on a busy host that has less
        # than the clock says.
        had_s = min(now - then, cpu_s - cpu_s_then) if now - begun > WAIT_S else now - then
        for tenant_id, each in is_.items():
            if each.abused_calls > was.get(tenant_id, Taken()).abused_calls:
                found[tenant_id] = "a call with more than 100,000 values, which no client sends"
        for tenant_id, share in shares(was, is_, had_s).items():
            busy[tenant_id] = max((share, then), busy.get(tenant_id, (0.0, then)))
    memory.busy = {
        tenant_id: memory.busy.get(tenant_id, then) for tenant_id, (_, then) in busy.items()
    }
    for tenant_id, (share, _) in busy.items():
        if _now_s() - memory.busy[tenant_id] >= BUSY_S and memory.connected - {tenant_id}:
            found[tenant_id] = f"calls that take {share:.0%} of a hot server's time from others"


def _now_s() -> float:
    return time.monotonic()


def shares(was: dict[int, Taken], is_: dict[int, Taken], seconds: float) -> dict[int, float]:
    """Of a server's time, by tenant: those above BUSY; pure."""
    spent = {
        tenant_id: each.spent_s - was.get(tenant_id, Taken()).spent_s
        for tenant_id, each in is_.items()
    }
    if seconds <= 0:
        return {}
    return {tenant_id: s / seconds for tenant_id, s in spent.items() if s > BUSY * seconds}


def _look_at_bytes(
    memory: Memory, held: dict[int, Held], found: dict[int, str], until: float
) -> None:
    beside, booked = _memory_beside(), sum(each.booked_bytes for each in held.values())
    grown = max(settings.ENV.hot_uncommitted_mib * MIB // 2, (booked - memory.usual_booked) // 3)
    hurry = beside - booked > memory.usual_bytes + grown or bool(memory.strikes)
    memory.round = memory.round or weights.Round()
    try:
        is_around = memory.round.go_on(most_keys=FAST_KEYS if hurry else SLOW_KEYS, until=until)
    except Exception:
        memory.round = None
        raise
    if not is_around:
        return
    weighed, memory.round = memory.round.held, None
    if not recovery.index_is_whole():  # until then blocks may be in no books, and nobody's fault
        memory.strikes.clear()
        return
    heavy = {
        tenant_id: bytes_
        for tenant_id, bytes_ in weighed.items()
        if tenant_id in held and bytes_ > held[tenant_id].limit_bytes
    }
    memory.strikes = Counter({tenant_id: memory.strikes[tenant_id] + 1 for tenant_id in heavy})
    if not heavy:
        memory.usual_bytes, memory.usual_booked = beside - booked, booked
    for tenant_id, bytes_ in heavy.items():
        if memory.strikes[tenant_id] >= STRIKES:
            limit = held[tenant_id].limit_bytes
            found[tenant_id] = (
                f"{bytes_ // MIB} MiB in the hot tier, the limit is {limit // MIB} MiB"
            )


def _memory_beside() -> int:
    """Of all primaries, without the server itself and its clients' buffers."""
    told: list[dict[str, Any]] = [client.info("memory") for client in hot_servers.primaries()]
    return sum(
        int(each["used_memory"])
        - int(each.get("used_memory_startup", 0))
        - int(each.get("mem_clients_normal", 0))
        for each in told
    )


def _cut_off(memory: Memory, tenant_id: int, why: str) -> None:
    tenant = Tenant.objects.filter(pk=tenant_id).first()
    if tenant is None:
        return
    if services.cut_off(tenant=tenant, reason=why):
        log_events.TENANT_CUT_OFF.log(tenant=tenant.slug, why=why)
    memory.linked.pop(tenant_id, None)
    memory.cleaning.add(tenant_id)


def _clean(memory: Memory, tenant_id: int, held: dict[int, Held]) -> None:
    """What it left outside of the books goes; were the books themselves too heavy, they too."""
    keys, bytes_, is_done = weights.remove_junk(tenant_id, until=time.monotonic() + LOOK_S)
    if keys:
        log_events.JUNK_REMOVED.log(tenant_id=tenant_id, keys=keys, bytes=bytes_)
    if not is_done:
        return
    memory.cleaning.discard(tenant_id)
    memory.strikes.pop(tenant_id, None)
    limit = held[tenant_id].limit_bytes if tenant_id in held else 0
    if weights.held_bytes(tenant_id) > limit:
        log_events.BOOKS_REMOVED.log(tenant_id=tenant_id)
        weights.remove_all(tenant_id)
        provisioning.provision_tenant(Tenant.objects.get(pk=tenant_id))
        jobs.enqueue("rebuild_tenant", tenant_id=tenant_id)
