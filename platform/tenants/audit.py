"""The audit trail: an event is written inside the transaction of its change."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Model

from base import live
from tenants.models import AuditEvent


@dataclass(frozen=True)
class Actor:
    """The key, person or system behind a change: a copied name, and the id of the request.

    `id` stays when the name changes (`key:7`, `user:3`): pins belong to it. `key_id`: of the key
    itself; a rotated key has its own.
    """

    name: str
    request_id: str = ""
    id: str = ""
    is_operator: bool = False
    address: str = ""
    key_id: int | None = None

    @property
    def owner(self) -> str:
        return self.id or self.name[:200]


SYSTEM = Actor("system", id="system", is_operator=True)


def record(
    *,
    actor: Actor,
    tenant_id: int | None,
    action: str,
    obj: Model,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> AuditEvent | None:
    """`before` and `after` hold JSON values of what changed; never secrets.

    A change that changes nothing leaves no event, and returns None. Open pages hear of the others.
    """
    if before is not None and before == after:
        return None
    live.hint_on_commit(tenant_id)
    return AuditEvent.unscoped.create(
        tenant_id=tenant_id,
        actor_name=actor.name[:200],
        request_id=actor.request_id,
        address=actor.address[:64],
        key_id=actor.key_id,
        is_by_operator=actor.is_operator,
        action=action,
        object_type=obj._meta.model_name or "",
        object_id=str(obj.pk),
        before=before,
        after=after,
    )
