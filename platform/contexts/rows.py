"""Locking, checks, audit and events that all changes of a context's row share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.db import transaction

from base.preconditions import require_unchanged
from base.problems import Problem
from catalog.models import Context
from events.services import Subject, emit
from tenants.audit import Actor, record
from tenants.scope import tenant_scope

# Fields that an expiry clears.
ENDS = ("pinned_until", "hot_until", "durable_until", "extended_until", "expires_at")


@contextmanager
def changing(context: Context) -> Iterator[Context]:
    """The current row, locked, inside its tenant's scope and one transaction.

    Raises Problem: not-found (the row was deleted meanwhile), precondition-failed.
    """
    with tenant_scope(context.tenant_id), transaction.atomic():
        row = Context.objects.select_for_update().filter(pk=context.pk).first()
        if row is None:
            raise Problem("not-found", "This context was deleted.")
        require_unchanged(row)
        yield row


def save(context: Context, *fields: str) -> None:
    """Writes a change that somebody made to a locked row, as a new revision."""
    context.revision += 1
    context.save(update_fields=[*fields, "revision"])


def require_unexpired(context: Context) -> None:
    """Raises Problem (context-gone)."""
    if context.expired_at is not None:
        raise Problem(
            "context-gone",
            f"The context {context.name} was expired at {context.expired_at.isoformat()}.",
            state="expired",
            expired_at=context.expired_at.isoformat(),
        )


def lost(context: Context) -> Problem:
    """The refusal for a context none of whose blocks is stored."""
    return Problem(
        "context-gone",
        f"None of the {context.blocks} blocks of the context {context.name} is stored any more.",
        state="lost",
        lost=context.blocks,
    )


def facts(context: Context) -> dict[str, Any]:
    def iso(at: datetime | None) -> str | None:
        return at.isoformat() if at else None

    return {
        "name": context.name,
        "label": context.label,
        "labels": context.labels,
        "blocks": context.blocks,
        "tokens": context.tokens,
        "pinned_until": iso(context.pinned_until),
        "extended_until": iso(context.extended_until),
        "expires_at": iso(context.expires_at),
        "expired_at": iso(context.expired_at),
    }


def note(
    context: Context,
    action: str,
    actor: Actor,
    *,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    """Writes the audit event of a change."""
    record(
        actor=actor,
        tenant_id=context.tenant_id,
        action=action,
        obj=context,
        before=before,
        after=after,
    )


def announce(kind: str, context: Context, data: Mapping[str, Any] | None = None) -> None:
    """Emits an event of `events.kinds`. Inside the transaction of the change."""
    emit(kind, tenant_id=context.tenant_id, subject=subject(context), data=data)


def subject(context: Context) -> Subject:
    return {"type": "context", "id": str(context.pk), "name": context.name}


def stored_data(context: Context) -> dict[str, Any]:
    """Members of `context.stored`."""
    return {"space": context.space.name, "blocks": context.blocks, "tokens": context.tokens}
