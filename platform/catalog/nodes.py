"""Which sessions and nodes are live, and events of nodes: up with the first live session, down when
no session is live any more.

A mark for each node that is up makes every change be told once, whoever notices it first.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from catalog.models import NodeSession
from events import marks
from events.services import Subject, emit
from tenants.models import Tenant
from tenants.scope import tenant_scope

PREFIX = "node:"


def host_of(node: str) -> str:
    """The node that a process belongs to: its name before the first slash."""
    return node.partition("/")[0]


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
