"""Node sessions: handshake, heartbeat, end. A session is live while its heartbeats are young."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from catalog import usage
from catalog.models import NodeSession
from catalog.spaces import resolve_space
from controlplane import live
from controlplane.problems import Problem
from neve.space import SpaceIdentity
from tenants.audit import Actor
from tenants.models import Tenant
from tenants.scope import tenant_scope


@dataclass(frozen=True)
class Heartbeat:
    """Deltas since the last one. `seq` grows by one; a repeated one is not counted again."""

    seq: int
    counters: dict[str, int]
    misses: dict[str, int]
    load_ms: dict[str, int]
    breaker: str


@transaction.atomic
def open_session(
    *,
    tenant: Tenant,
    node: str,
    engine: dict[str, Any],
    identity: SpaceIdentity,
    space_name: str | None,
    max_chunk_tokens: int,
    actor: Actor,
) -> NodeSession:
    """Replaces this node's older session of the same space; a node counts once, however many
    spaces (ranks) it serves and processes it has ("gpu-07/scheduler" is a part of "gpu-07").
    Raises Problem: fingerprint-clash, node-limit.
    """
    # The lock makes two handshakes of one tenant count one after the other.
    tenant = Tenant.objects.select_for_update().get(pk=tenant.pk)
    with tenant_scope(tenant.pk):
        live = live_sessions().values_list("node", flat=True)
        others = {host_of(name) for name in live} - {host_of(node)}
        if len(others) >= tenant.node_limit:
            raise Problem(
                "node-limit",
                f"{len(others)} nodes are connected and the limit of {tenant.slug} is "
                f"{tenant.node_limit}.",
                node_limit=tenant.node_limit,
            )
        space = resolve_space(
            tenant_id=tenant.pk,
            identity=identity,
            name=space_name,
            max_chunk_tokens=max_chunk_tokens,
            actor=actor,
        )
        now = timezone.now()
        NodeSession.objects.filter(node=node, space=space, ended_at=None).update(ended_at=now)
        return NodeSession.objects.create(
            space=space, node=node, engine=engine, opened_at=now, last_heartbeat_at=now
        )


def host_of(node: str) -> str:
    """The node that a process belongs to: its name before the first slash."""
    return node.partition("/")[0]


@transaction.atomic
def record_heartbeat(*, session_id: UUID, heartbeat: Heartbeat) -> NodeSession:
    """Inside the tenant's scope. Raises Problem (not-found) for an unknown or ended session."""
    session = NodeSession.objects.select_for_update().filter(pk=session_id, ended_at=None).first()
    if session is None:
        raise Problem("not-found", "This session is unknown or has ended: open a new one.")
    now = timezone.now()
    session.last_heartbeat_at = now
    session.breaker = heartbeat.breaker
    if heartbeat.seq > session.last_seq:
        session.last_seq = heartbeat.seq
        session.totals = usage.add(session.totals, heartbeat.counters)
        usage.record_deltas(
            tenant_id=session.tenant_id,
            at=now,
            counters=heartbeat.counters,
            misses=heartbeat.misses,
            load_ms=heartbeat.load_ms,
        )
    session.save(update_fields=["last_heartbeat_at", "breaker", "last_seq", "totals"])
    live.announce_usage_on_commit(session.tenant_id)
    return session


def end_session(*, session_id: UUID) -> None:
    """Inside the tenant's scope. Ending twice changes nothing. Raises Problem (not-found)."""
    found = NodeSession.objects.filter(pk=session_id)
    if not found.filter(ended_at=None).update(ended_at=timezone.now()) and not found.exists():
        raise Problem("not-found", "This session is unknown.")


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
