"""Events as readers get them, and pages of them behind a position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base.problems import Problem
from events import order
from events.kinds import KINDS, matches
from events.models import Event


def envelope(event: Event) -> dict[str, Any]:
    """The one shape of an event, in REST, streams and webhooks. `tenant` must be loaded."""
    return {
        "id": str(event.uuid),
        "sequence": event.sequence,
        "type": event.kind,
        "at": event.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "tenant": None if event.tenant is None else event.tenant.slug,
        "subject": {
            "type": event.subject_type,
            "id": event.subject_id,
            "name": event.subject_name,
        },
        "data": event.data,
    }


@dataclass(frozen=True)
class Interest:
    """Which events a reader wants and may see. `tenant_ids` None: all; `kinds` None: all."""

    tenant_ids: frozenset[int] | None
    kinds: frozenset[str] | None = None
    subject: str | None = None

    def takes(self, event: Event) -> bool:
        return (
            (self.tenant_ids is None or event.tenant_id in self.tenant_ids)
            and (self.kinds is None or event.kind in self.kinds)
            and (self.subject is None or event.subject_id == self.subject)
        )


def kinds_of(patterns: Sequence[str]) -> frozenset[str]:
    """The kinds that match any of these names or patterns (`context.*`)."""
    return frozenset(kind for kind in KINDS if matches(kind, list(patterns)))


def page(interest: Interest, after: int, most: int) -> tuple[list[Event], int]:
    """The first events behind number `after`, and the number up to which nothing is missing.

    Raises Problem (events-gone) if such events were deleted.
    """
    until = order.last()
    rows = Event.unscoped.select_related("tenant").filter(sequence__gt=after, sequence__lte=until)
    if interest.tenant_ids is not None:
        rows = rows.filter(tenant_id__in=interest.tenant_ids)
    if interest.kinds is not None:
        rows = rows.filter(kind__in=interest.kinds)
    if interest.subject is not None:
        rows = rows.filter(subject_id=interest.subject)
    found = list(rows.order_by("sequence")[:most])
    require_kept(interest.tenant_ids, after)  # behind the query: a deletion in between is noticed
    whole = len(found) < most
    return found, max(until, after) if whole else found[-1].sequence or 0


def require_kept(tenant_ids: frozenset[int] | None, after: int) -> None:
    """Raises Problem (events-gone) if events behind number `after` are not kept any more, or if no
    event has had that number (the database was restored)."""
    kept_after, newest = order.horizon(tenant_ids), order.last()
    if kept_after <= after <= newest:
        return
    if after < kept_after:
        detail = f"Events up to {kept_after} were deleted, and you have read up to {after}."
    else:
        detail = f"The newest event is {newest}, and you ask for those behind {after}."
    raise Problem("events-gone", detail, kept_after=kept_after, newest=newest)
