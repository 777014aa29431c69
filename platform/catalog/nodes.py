"""Which sessions and nodes are live, and events of nodes: up with the first live session, down when
no session is live any more.

A mark for each node that is up makes every change be told once, whoever notices it first.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from catalog import usage
from catalog.models import NodeSession
from events import marks
from events.services import Subject, emit
from neve.node.session import SCHEDULER_PART
from neve.node.stats import COUNTERS
from tenants.models import Tenant
from tenants.scope import tenant_scope

PREFIX = "node:"


def host_of(node: str) -> str:
    """The node that a process belongs to: its name before the first slash."""
    return node.partition("/")[0]


def engine_of(node: str) -> str:
    """The engine that a process belongs to: its name without the mark of a scheduler part."""
    return node.removesuffix(SCHEDULER_PART)


def together(sessions: Iterable[NodeSession]) -> dict[UUID, list[NodeSession]]:
    """By session: those of the same engine and space that lived at the same time, itself included.

    The one place that says which sessions' counters add up: a scheduler in a process of its own
    counts what is asked for, its ranks ("gpu-07", one or more) count what they load and store.
    """
    engines: defaultdict[tuple[int | None, int, str], list[NodeSession]] = defaultdict(list)
    for one in sessions:
        engines[one.tenant_id, one.space_id, engine_of(one.node)].append(one)
    return {
        one.pk: [other for other in same if other is one or _meet(one, other)]
        for same in engines.values()
        for one in same
    }


def _meet(one: NodeSession, other: NodeSession) -> bool:
    return max(one.opened_at, other.opened_at) <= min(_lived_until(one), _lived_until(other))


def _lived_until(session: NodeSession) -> datetime:
    """An open session lives until its next heartbeat is due; a crashed one is told by no more."""
    if session.ended_at is not None:
        return session.last_heartbeat_at
    return session.last_heartbeat_at + _a_heartbeat()


def _a_heartbeat() -> timedelta:
    return timedelta(seconds=int(settings.ENV.heartbeat_s))


def totals_of(sessions: Iterable[NodeSession]) -> dict[str, int]:
    """Counters of sessions that are `together`."""
    found: dict[str, int] = {}
    for one in sessions:
        found = usage.add(found, usage.known(one.totals, COUNTERS))
    return found


def with_others(
    sessions: Collection[NodeSession], among: QuerySet[NodeSession]
) -> dict[UUID, list[NodeSession]]:
    """`together` of some sessions with the others of their engines. One query of `among`."""
    if not sessions:
        return {}
    engines = {engine_of(one.node) for one in sessions}
    names = {*engines, *(name + SCHEDULER_PART for name in engines)}
    others = among.filter(
        node__in=names,
        space_id__in={one.space_id for one in sessions},
        last_heartbeat_at__gte=min(one.opened_at for one in sessions) - _a_heartbeat(),
    ).exclude(pk__in=[one.pk for one in sessions])
    return together([*sessions, *others.order_by().defer("breaker_log")])


def tell(tenant_id: int, *, reason: str, hosts: Collection[str] | None = None) -> None:
    """Tells of the nodes (None: all) that are up or down otherwise than told.

    `reason` of those that are down: ended, cut or silent. Two queries if there is nothing to tell.
    """
    if not _changes(tenant_id, hosts):
        return
    with transaction.atomic():
        Tenant.objects.select_for_update().get(pk=tenant_id)  # as handshakes and ends of sessions
        for host, space in _changes(tenant_id, hosts).items():
            if marks.change(tenant_id, f"{PREFIX}{host}", 0 if space is None else 1):
                subject: Subject = {"type": "node", "id": host, "name": host}
                kind = "node.down" if space is None else "node.up"
                data = {"reason": reason} if space is None else {"space": space}
                emit(kind, tenant_id=tenant_id, subject=subject, data=data)


def _changes(tenant_id: int, hosts: Collection[str] | None) -> dict[str, str | None]:
    """Node → name of the space of a live session; None: it is down."""
    told = marks.values(tenant_id, PREFIX)
    with tenant_scope(tenant_id):
        rows = live_sessions().order_by("-pk").values_list("node", "space__name")
        live = {host_of(node): space for node, space in rows}
    found: dict[str, str | None] = {host: None for host in told if host not in live}
    found |= {host: space for host, space in live.items() if host not in told}
    return {host: space for host, space in found.items() if hosts is None or host in hosts}


def live_after_s() -> int:
    """A session is live while its last heartbeat is younger than so many seconds."""
    return 3 * int(settings.ENV.heartbeat_s) + 10


def live_since() -> datetime:
    return timezone.now() - timedelta(seconds=live_after_s())


def live_sessions() -> QuerySet[NodeSession]:
    """Inside a tenant's scope: its live sessions."""
    rows: QuerySet[NodeSession] = NodeSession.objects.filter(
        ended_at=None, last_heartbeat_at__gt=live_since()
    )
    return rows
