"""Looks at the hot tier every few seconds, and cuts off tenants that take it from the others.

`Memory` of one process links a look to the next. Another process begins without, which costs one
more look.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from valkey.exceptions import ResponseError

from base import log_events
from base.isolation import isolated
from catalog import jobs
from catalog.kinds import WATCH
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
SLOW_KEYS = 10_000  # weighed in a look without suspicion: about 1 % of one server's time
FAST_KEYS = 2_000_000
LINKED_S = 60.0  # a tenant whose connections end comes back, but needs time for thousands
# On a server that moves blocks at full speed calls take a tenth of its time. Look-ups of a thousand
# ids from a hundred connections take all of it, and every other call waits for a hundred of them.
BUSY, BUSY_S = 0.5, 5.0
WAIT_S = 0.2  # for two short commands of the watch itself: the server is busy
STRIKES = 2  # looks in a row that must agree before a tenant is cut off


@dataclass
class Memory:
    """What a process keeps from one look to the next."""

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
class Weight:
    """Bytes of blocks that the books count for a tenant, and the most it may have in all."""

    booked_bytes: int
    limit_bytes: int


MEMORY = Memory()


def look(memory: Memory = MEMORY) -> None:
    """Raises valkey's errors."""
    until = time.monotonic() + LOOK_S
    found: dict[int, str] = {}
    # First, with one command: each takes a second while a tenant takes all of a server's time.
    _look_at_calls(memory, found)
    for tenant_id, why in found.items():
        with isolated(WATCH.name, tenant_id):
            _cut_off(memory, tenant_id, why)
    found.clear()
    booked = _booked()
    _look_at_links(memory, found)
    _look_at_bytes(memory, booked, found, until)
    for tenant_id, why in found.items():
        with isolated(WATCH.name, tenant_id):
            _cut_off(memory, tenant_id, why)
    for tenant_id in tuple(memory.cleaning):
        with isolated(WATCH.name, tenant_id):
            _clean(memory, tenant_id, booked)


def _booked() -> dict[int, Weight]:
    quotas = {quota.tenant_id: quota for quota in Quota.unscoped.all()}
    booked = {}
    for tenant_id, quota in quotas.items():
        try:
            usage = hot.hot_tier(tenant_id).usage()
        except (ResponseError, ValueError):  # damaged books of one: reconcile repairs them
            log_events.BOOKS_UNREADABLE.log(tenant_id=tenant_id, exc_info=True)
            usage = Usage()
        room = max(settings.ENV.hot_uncommitted_mib * MIB, quota.hot_bytes // 4)
        books = (quota.hot_bytes + quota.cold_bytes) // 64  # 300 bytes for each block
        limit = max(quota.hot_bytes, usage.hot_bytes) + room + books
        booked[tenant_id] = Weight(usage.hot_bytes, limit)
    return booked


def _look_at_links(memory: Memory, found: dict[int, str]) -> None:
    excessive: dict[int, str] = {}
    connected: set[int] = set()
    for client in hot_servers.servers():
        info = client.info()
        share = links.Share.of(
            connections=settings.ENV.hot_connections,
            max_clients=int(info["maxclients"]),
            max_memory=int(info["maxmemory"]),
        )
        if (clients := links.clients_of(client)) is None:
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
        # If the watch had to wait, the server was never idle: then its CPU time counts, which on a
        # busy host is less than the clock says.
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
    """Shares of a server's time, of tenants above BUSY; pure."""
    spent = {
        tenant_id: each.spent_s - was.get(tenant_id, Taken()).spent_s
        for tenant_id, each in is_.items()
    }
    if seconds <= 0:
        return {}
    return {tenant_id: s / seconds for tenant_id, s in spent.items() if s > BUSY * seconds}


def _look_at_bytes(
    memory: Memory, booked: dict[int, Weight], found: dict[int, str], until: float
) -> None:
    used, in_books = _used_bytes(), sum(each.booked_bytes for each in booked.values())
    grown = max(settings.ENV.hot_uncommitted_mib * MIB // 2, (in_books - memory.usual_booked) // 3)
    hurry = used - in_books > memory.usual_bytes + grown or bool(memory.strikes)
    memory.round = memory.round or weights.Round()
    try:
        is_around = memory.round.go_on(most_keys=FAST_KEYS if hurry else SLOW_KEYS, until=until)
    except Exception:
        memory.round = None
        raise
    if not is_around:
        return
    weighed, memory.round = memory.round.held, None
    if not recovery.index_is_whole():  # until then blocks may be in no books by nobody's fault
        memory.strikes.clear()
        return
    heavy = {
        tenant_id: bytes_
        for tenant_id, bytes_ in weighed.items()
        if tenant_id in booked and bytes_ > booked[tenant_id].limit_bytes
    }
    memory.strikes = Counter({tenant_id: memory.strikes[tenant_id] + 1 for tenant_id in heavy})
    if not heavy:
        memory.usual_bytes, memory.usual_booked = used - in_books, in_books
    for tenant_id, bytes_ in heavy.items():
        if memory.strikes[tenant_id] >= STRIKES:
            limit = booked[tenant_id].limit_bytes
            found[tenant_id] = (
                f"{bytes_ // MIB} MiB in the hot tier, the limit is {limit // MIB} MiB"
            )


def _used_bytes() -> int:
    """Memory of all primaries, without the servers' own and their clients' buffers."""
    info: list[dict[str, Any]] = [client.info("memory") for client in hot_servers.primaries()]
    return sum(
        int(each["used_memory"])
        - int(each.get("used_memory_startup", 0))
        - int(each.get("mem_clients_normal", 0))
        for each in info
    )


def _cut_off(memory: Memory, tenant_id: int, why: str) -> None:
    tenant = Tenant.objects.filter(pk=tenant_id).first()
    if tenant is None:
        return
    if services.cut_off(tenant=tenant, reason=why):
        log_events.TENANT_CUT_OFF.log(tenant=tenant.slug, why=why)
    memory.linked.pop(tenant_id, None)
    memory.cleaning.add(tenant_id)


def _clean(memory: Memory, tenant_id: int, booked: dict[int, Weight]) -> None:
    """Removes the tenant's keys that are in no books; and its books, if they are too heavy."""
    keys, bytes_, is_done = weights.remove_junk(tenant_id, until=time.monotonic() + LOOK_S)
    if keys:
        log_events.JUNK_REMOVED.log(tenant_id=tenant_id, keys=keys, bytes=bytes_)
    if not is_done:
        return
    memory.cleaning.discard(tenant_id)
    memory.strikes.pop(tenant_id, None)
    limit = booked[tenant_id].limit_bytes if tenant_id in booked else 0
    if weights.held_bytes(tenant_id) > limit:
        log_events.BOOKS_REMOVED.log(tenant_id=tenant_id)
        weights.remove_all(tenant_id)
        provisioning.provision_tenant(Tenant.objects.get(pk=tenant_id))
        jobs.enqueue("rebuild_tenant", tenant_id=tenant_id)
