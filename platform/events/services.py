"""Events are emitted inside the transaction of their change: both commit, or neither does."""

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from base import live
from events.kinds import KINDS
from events.models import Event


class Subject(TypedDict):
    """The object that an event happened to. `id` as REST writes it; `name` as people do."""

    type: str
    id: str
    name: str


def emit(
    kind: str, *, tenant_id: int | None, subject: Subject, data: Mapping[str, Any] | None = None
) -> None:
    """One INSERT. `tenant_id` None: an event of the platform, which only operators read.

    `data` holds a few JSON values, as `events.kinds` lists them; never a key, a token or a prompt.
    Raises KeyError for an unknown kind.
    """
    new_event(kind, tenant_id=tenant_id, subject=subject, data=data)


def new_event(
    kind: str, *, tenant_id: int | None, subject: Subject, data: Mapping[str, Any] | None = None
) -> Event:
    """`emit`, for a caller that needs the row."""
    row = _row(kind, tenant_id, subject, data or {})
    row.save(force_insert=True)
    live.hint_events_on_commit()
    live.hint_on_commit(tenant_id)
    return row


def emit_many(
    kind: str, *, tenant_id: int | None, items: Iterable[tuple[Subject, Mapping[str, Any]]]
) -> None:
    """`emit` for many subjects, in one INSERT for each 500 of them."""
    rows = [_row(kind, tenant_id, subject, data) for subject, data in items]
    if rows:
        Event.unscoped.bulk_create(rows, batch_size=500)
        live.hint_events_on_commit()
        live.hint_on_commit(tenant_id)


def _row(kind: str, tenant_id: int | None, subject: Subject, data: Mapping[str, Any]) -> Event:
    return Event(
        tenant_id=tenant_id,
        kind=KINDS[kind].name,
        subject_type=subject["type"][:40],
        subject_id=str(subject["id"])[:64],
        subject_name=subject["name"][:200],
        data=dict(data),
    )
