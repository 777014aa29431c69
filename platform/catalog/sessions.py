"""Node sessions: handshake, heartbeat, end. A session is live while its heartbeats are recent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from base import live, log_events, write_lock
from base.preconditions import require_unchanged
from base.problems import Problem
from catalog import families, hot_access, nodes, recent, spaces, told, usage
from catalog.models import FamilyMember, NodeSession
from catalog.nodes import host_of as host_of  # others ask here
from catalog.nodes import live_after_s as live_after_s
from catalog.nodes import live_sessions as live_sessions
from catalog.nodes import live_since as live_since
from catalog.spaces import note_groups, resolve_space
from neve.formats.parts import PartGroup
from neve.formats.space import SpaceIdentity
from neve.node.session import SCHEDULER_PART
from neve.node.stats import COUNTERS
from tenants.audit import Actor, record
from tenants.keys import usable_node_keys
from tenants.models import ApiKey, AuditEvent, Tenant
from tenants.scope import tenant_scope

REFUSED = "session.refuse"  # in the audit trail
REFUSAL_S = 3600
REFUSALS_MOST = 100
_REFUSED = ("field", "expected", "got")
PROCESSES_MOST = 256  # live sessions of one node: its processes, each with the spaces it serves


@dataclass(frozen=True)
class Heartbeat:
    """Deltas since the last one. `seq` grows by one; a repeated one is not counted again."""

    seq: int
    counters: dict[str, int]
    misses: dict[str, int]
    load_ms: dict[str, int]
    breaker: str
    drops: dict[str, int] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    about: object = None  # see `told.about_of`


@transaction.atomic
def open_session(
    *,
    tenant: Tenant,
    key: ApiKey | None = None,
    node: str,
    instance: str = "",
    engine: dict[str, Any],
    identity: SpaceIdentity,
    space_name: str | None,
    family: families.Applicant | None = None,
    max_chunk_tokens: int,
    actor: Actor,
    groups: Sequence[PartGroup] = (),
    selective_weights: str = "",
    near_stores: Sequence[str] = (),
) -> NodeSession:
    """Replaces this engine's older session of the same space, and silent ones of its name.

    Another engine of the same name keeps its session: engines that replaced each other's sessions
    would make handshakes for ever. A node counts once, however many spaces (ranks) it serves and
    processes it has ("gpu-07/scheduler" is a part of "gpu-07").
    `instance`: tells engines of one name apart.
    `family`: the node is to share the KV of one; its state is in the session's `member`.
    `key`: the node's; None for sessions that no key opened. `groups`: KV groups of which a chunk
    has a part; empty if it is one block. `selective_weights`: see `Space`.
    `near_stores`: names, the nearest first, for cold loads.
    Raises Problem: fingerprint-clash, node-limit, limit-reached, tenant-cut-off, unauthorized (the
    key was revoked meanwhile).
    """
    # The lock orders handshakes of one tenant, so that both count. A revocation either ends this
    # session or is seen here.
    tenant = Tenant.objects.select_for_update().get(pk=tenant.pk)
    if tenant.cut_off_at is not None:
        raise Problem(
            "tenant-cut-off",
            f"Nodes of {tenant.slug} are kept out of the hot tier: {tenant.cut_off_reason}.",
        )
    if key is not None and not usable_node_keys().filter(pk=key.pk).exists():
        raise Problem("unauthorized", "The API key is unknown, revoked or expired.")
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
        if sum(host_of(name) == host_of(node) for name in live) >= PROCESSES_MOST:
            raise Problem(
                "node-limit",
                f"{host_of(node)} has {PROCESSES_MOST} live sessions, the most that one node may "
                "have: end processes of it, or name engines of other hosts otherwise.",
                node_limit=tenant.node_limit,
            )
        member = None
        if family is not None:
            space, member = families.join(family)
        else:
            space = resolve_space(
                tenant_id=tenant.pk,
                identity=identity,
                name=space_name,
                max_chunk_tokens=max_chunk_tokens,
                actor=actor,
                groups=groups,
            )
        note_groups(space, groups)
        if (
            selective_weights
            and not space.selective_weights
            and space.identity == identity.as_dict()
        ):
            space.selective_weights = selective_weights
            space.save(update_fields=["selective_weights"])
        now = timezone.now()
        own_or_silent = Q(instance=instance) | Q(last_heartbeat_at__lte=live_since())
        NodeSession.objects.filter(own_or_silent, node=node, space=space, ended_at=None).update(
            ended_at=now
        )
        if member is not None:  # behind the sessions: a heartbeat locks in this order
            FamilyMember.objects.filter(pk=member.pk).update(seen_at=now)
        session = NodeSession.objects.create(
            space=space,
            member=member,
            key=key,
            node=node,
            instance=instance,
            engine=engine,
            near_stores=list(near_stores),
            opened_at=now,
            last_heartbeat_at=now,
        )
    nodes.tell(tenant.pk, hosts=[host_of(node)], reason="silent")
    return session


def record_heartbeat(*, session_id: UUID, heartbeat: Heartbeat) -> NodeSession:
    """Inside the tenant's scope. Raises Problem (not-found) for an unknown or ended session."""
    with write_lock.in_turn(), transaction.atomic():
        return _record(session_id, heartbeat)


def _record(session_id: UUID, heartbeat: Heartbeat) -> NodeSession:
    # Its space says whether it may store with loss (`cacheapi.nodes.topology`).
    rows = NodeSession.objects.select_for_update(of=("self",)).select_related("space")
    rows = rows.defer("marks")
    session = rows.filter(pk=session_id, ended_at=None).first()
    if session is None:
        raise Problem("not-found", "This session is unknown or has ended: open a new one.")
    now = timezone.now()
    is_mark_due = recent.is_due(session.last_heartbeat_at, now)
    session.last_heartbeat_at = now
    changed = ["last_heartbeat_at", "breaker", "last_seq", "totals", "totals_by_name"]
    if heartbeat.breaker != session.breaker:
        session.breaker_log = told.with_change(session.breaker_log, now, heartbeat.breaker)
        changed.append("breaker_log")
    session.breaker = heartbeat.breaker
    if about := told.about_of(heartbeat.about, now):
        if "loss" in about and about["loss"] != session.about.get("loss"):
            spaces.note_loss(space_id=session.space_id, loss=about["loss"])
        session.about = about
        changed.append("about")
    if heartbeat.seq > session.last_seq:
        session.last_seq = heartbeat.seq
        session.totals = usage.add(usage.known(session.totals, COUNTERS), heartbeat.counters)
        session.totals_by_name = usage.add_by_name(
            session.totals_by_name,
            {"misses": heartbeat.misses, "load_ms": heartbeat.load_ms, "drops": heartbeat.drops},
        )
        usage.record_deltas(
            tenant_id=session.tenant_id,
            at=now,
            counters=heartbeat.counters,
            misses=heartbeat.misses,
            load_ms=heartbeat.load_ms,
            drops=heartbeat.drops,
        )
        if session.member_id is not None and (hits := heartbeat.counters.get("family_hit_tokens")):
            families.count_hits(member_id=session.member_id, tokens=hits)
    if heartbeat.speeds:
        session.speeds = heartbeat.speeds
        changed.append("speeds")
    if is_mark_due:
        session.marks = recent.with_mark(session.marks, now, session.totals)
        changed.append("marks")
    session.save(update_fields=changed)
    live.hint_heartbeat_on_commit(session.tenant_id)
    return session


@transaction.atomic
def end_session(*, session_id: UUID) -> None:
    """The node is leaving. The key's Valkey user goes with its last open session.

    Inside the tenant's scope. Ending twice changes nothing. Raises Problem (not-found).
    """
    session = NodeSession.objects.filter(pk=session_id).first()
    if session is None:
        raise Problem("not-found", "This session is unknown.")
    Tenant.objects.select_for_update().get(pk=session.tenant_id)  # see open_session
    if NodeSession.objects.filter(pk=session_id, ended_at=None).update(ended_at=timezone.now()):
        hot_access.remove_unused_users_on_commit([session.key_id])
        nodes.tell(session.tenant_id, hosts=[host_of(session.node)], reason="ended")


def note_refusal(
    *, tenant: Tenant, node: str, instance: str, problem: Problem, actor: Actor
) -> None:
    """A handshake was refused: ends the engine's session, and leaves a line in audit and log.

    A node asks again each half minute: an equal refusal is told once an hour, and of one tenant
    REFUSALS_MOST at most.
    """
    now = timezone.now()
    told = {"node": node, "kind": problem.kind}
    told |= {name: f"{problem.members[name]}"[:200] for name in _REFUSED if name in problem.members}
    since = now - timedelta(seconds=REFUSAL_S)
    with transaction.atomic():
        Tenant.objects.select_for_update().get(pk=tenant.pk)
        with tenant_scope(tenant.pk):
            if instance:
                own = NodeSession.objects.filter(node=node, instance=instance, ended_at=None)
                if own.update(ended_at=now):
                    nodes.tell(tenant.pk, hosts=[host_of(node)], reason="cut")
            lately = AuditEvent.objects.filter(at__gte=since, action=REFUSED).order_by()
            earlier = list(lately.values_list("after", flat=True))
        if told in earlier or len(earlier) >= REFUSALS_MOST:
            return
        record(actor=actor, tenant_id=tenant.pk, action=REFUSED, obj=tenant, after=told)
    log_events.SESSION_REFUSED.log(node=node, kind=problem.kind, detail=problem.detail)


@transaction.atomic
def cut_session(*, session: NodeSession, actor: Actor) -> None:
    """Ends a session and its Valkey access at once, whatever the node does.

    The key's other nodes make a new handshake, as this one may: to keep it out, revoke its key.
    Ending twice changes nothing.
    """
    Tenant.objects.select_for_update().get(pk=session.tenant_id)
    require_unchanged(session)
    with tenant_scope(session.tenant_id):
        found = NodeSession.objects.filter(pk=session.pk, ended_at=None)
        if not found.update(ended_at=timezone.now()):
            return
        record(
            actor=actor,
            tenant_id=session.tenant_id,
            action="session.end",
            obj=session,
            before={"node": session.node},
        )
        if session.key is not None:
            ApiKey.objects.filter(pk=session.key.pk).update(hot_generation=F("hot_generation") + 1)
            hot_access.remove_user_on_commit(session.key)
    nodes.tell(session.tenant_id, hosts=[host_of(session.node)], reason="cut")


def end_replaced(*, tenant_id: int) -> int:
    """Ends sessions that nobody will end: see `_replaced` and `_left_behind`. Returns how many."""
    with tenant_scope(tenant_id):
        over = {*_replaced(), *_left_behind()}
        ended: int = NodeSession.objects.filter(pk__in=over).update(ended_at=timezone.now())
        return ended


def _replaced() -> QuerySet[NodeSession, UUID]:
    """Of crashed engines: silent, and their node has a later one of the same space."""
    later = NodeSession.objects.filter(
        node=OuterRef("node"),
        space=OuterRef("space"),
        ended_at=None,
        opened_at__gt=OuterRef("opened_at"),
    )
    silent = NodeSession.objects.filter(ended_at=None, last_heartbeat_at__lte=live_since())
    return silent.filter(Exists(later)).values_list("pk", flat=True)


def _left_behind() -> list[UUID]:
    """Of scheduler parts ("gpu-07/scheduler") that missed heartbeats since their ranks ("gpu-07")
    ended a session of the same space.

    An engine waits for its ranks' processes before it closes its scheduler part, and may be killed
    while it waits (vLLM: `--shutdown-timeout`). A part that lives after all makes a new handshake.
    """
    missed = timezone.now() - timedelta(seconds=2 * int(settings.ENV.heartbeat_s))
    parts = NodeSession.objects.filter(
        ended_at=None, last_heartbeat_at__lte=missed, node__endswith=SCHEDULER_PART
    )
    found = []
    for pk, node, space_id, heard_at in parts.values_list(
        "pk", "node", "space_id", "last_heartbeat_at"
    ):
        since = heard_at - timedelta(seconds=live_after_s())
        ranks = NodeSession.objects.filter(node=nodes.engine_of(node), space=space_id)
        if ranks.filter(ended_at__gte=since).exists():
            found.append(pk)
    return found


def end_access(*, tenant_id: int, key: ApiKey | None, **_: object) -> None:
    """Receives `tenants.announcements.access_ended`. A tenant's users go when it is provisioned."""
    end_all(tenant_id=tenant_id, key_id=None if key is None else key.pk)
    if key is not None:
        hot_access.remove_user_on_commit(key)


@transaction.atomic
def end_all(*, tenant_id: int, key_id: int | None = None) -> int:
    """Ends the open sessions of a tenant, or of one of its keys. Returns how many there were.

    The caller removes their Valkey users.
    """
    Tenant.objects.select_for_update().get(pk=tenant_id)
    with tenant_scope(tenant_id):
        rows = NodeSession.objects.filter(ended_at=None)
        if key_id is not None:
            rows = rows.filter(key_id=key_id)
        ended: int = rows.update(ended_at=timezone.now())
    if ended:
        nodes.tell(tenant_id, reason="cut")
    return ended
