"""Spaces of nodes: found by name or by layout, made on demand."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.db.models import Count, Sum
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from catalog import limits
from catalog.clashes import clash
from catalog.hot_access import remove_unused_users_on_commit
from catalog.models import Context, NodeSession, Segment, Space
from neve.errors import Misuse
from neve.formats.parts import PartGroup, chunk_tokens_of
from neve.formats.space import SpaceIdentity
from tenants.audit import Actor, record
from tenants.scope import tenant_scope


def note_loss(*, space_id: int, loss: Mapping[str, Any]) -> None:
    """What a node measured (`Loss.as_dict`); figures that it lacks stay. Inside the tenant's scope
    and a transaction."""
    space = Space.objects.select_for_update().filter(pk=space_id).first()
    if space is None or space.identity.get("codec") != loss["codec"]:
        return
    known = {name: value for name, value in loss.items() if value is not None}
    if space.measured_loss != (merged := {**space.measured_loss, **known}):
        space.measured_loss = merged
        space.save(update_fields=["measured_loss"])


def resolve_space(
    *,
    tenant_id: int,
    identity: SpaceIdentity,
    name: str | None,
    max_chunk_tokens: int,
    actor: Actor,
    groups: Sequence[PartGroup] = (),
) -> Space:
    """Inside the tenant's scope and a transaction that locks the tenant.

    A named space keeps the layout and chunk size that its first node gave it.
    Raises Problem: fingerprint-clash naming the first field that differs; limit-reached.
    """
    chunk_tokens = chunk_tokens_of(identity, groups, max_chunk_tokens=max_chunk_tokens)
    if name is not None:
        named = Space.objects.filter(name=name).first()
        if named is not None:
            _require_staying(named)
            _require_same_layout(named, identity, chunk_tokens)
            return named
    fingerprint = identity.fingerprint(tenant_id=tenant_id, chunk_tokens=chunk_tokens).hex()
    space = Space.objects.filter(fingerprint=fingerprint).first()
    if space is not None:
        _require_staying(space)
        if name is not None:
            raise clash("space", expected=space.name, got=name)
        return space
    limits.require_room_for_space()
    space = Space.objects.create(
        name=name or f"{identity.model.rstrip('/').rsplit('/', 1)[-1][:150]}-{fingerprint[:8]}",
        fingerprint=fingerprint,
        identity=identity.as_dict(),
        chunk_tokens=chunk_tokens,
    )
    record(
        actor=actor,
        tenant_id=tenant_id,
        action="space.create",
        obj=space,
        after={"name": space.name, "fingerprint": fingerprint, "chunk_tokens": chunk_tokens},
    )
    return space


def note_groups(space: Space, groups: Sequence[PartGroup]) -> None:
    """A space has the table of KV groups that its first node gives. Nodes without one may join.

    The caller holds the tenant's lock. Raises Problem (fingerprint-clash).
    """
    table = [group.as_dict() for group in groups]
    if table and not space.groups and not NodeSession.objects.filter(space=space).exists():
        space.groups = table
        space.save(update_fields=["groups"])
    elif table and space.groups != table:
        raise clash("groups", expected=space.groups, got=table)


@transaction.atomic
def remove_space(*, space: Space, actor: Actor) -> None:
    """Ends its sessions now, and Valkey users without another session; the kind of work
    `remove_space` deletes its data and its row."""
    require_unchanged(space)
    with tenant_scope(space.tenant_id):
        Space.objects.filter(pk=space.pk).update(is_leaving=True)
        sessions = NodeSession.objects.filter(space=space, ended_at=None)
        keys = set(sessions.values_list("key_id", flat=True))
        sessions.update(ended_at=timezone.now())
    remove_unused_users_on_commit(keys)
    record(
        actor=actor,
        tenant_id=space.tenant_id,
        action="space.remove",
        obj=space,
        before={"name": space.name, "fingerprint": space.fingerprint},
    )


def weight_of(tenant_id: int, space_id: int | None = None) -> dict[str, int]:
    """Counts what is deleted with a space, or with all spaces of the tenant."""
    of_space = {} if space_id is None else {"space_id": space_id}
    with tenant_scope(tenant_id):
        contexts = Context.objects.filter(**of_space).count()
        segments = Segment.objects.filter(**of_space)
        sums = segments.aggregate(count=Count("pk"), size_bytes=Sum("size_bytes"))
    return {
        "contexts": contexts,
        "segments": sums["count"],
        "segment_bytes": sums["size_bytes"] or 0,
    }


def _require_staying(space: Space) -> None:
    if space.is_leaving:
        raise Problem("conflict", f"The space {space.name} is being removed: try again later.")


def _require_same_layout(space: Space, identity: SpaceIdentity, chunk_tokens: int) -> None:
    stored = identity_of(space)
    for field in stored.differing_fields(identity):
        raise clash(field, expected=getattr(stored, field), got=getattr(identity, field))
    if space.chunk_tokens > chunk_tokens:
        raise clash("max_chunk_tokens", expected=space.chunk_tokens, got=chunk_tokens)


def identity_of(space: Space, *, owner: str = "space") -> SpaceIdentity:
    """Raises Problem: fingerprint-clash, if a version with other fields wrote it."""
    try:
        return SpaceIdentity.from_dict(space.identity)
    except Misuse as error:
        field = error.field or "identity"
        raise clash(field, expected=space.identity, got=None, owner=owner) from error
