"""Contexts as the page shows them: with their pins, and where their blocks are."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from django.utils import timezone

from base.problems import Problem
from catalog.models import Context, Pin
from contexts import pins
from contexts.residency import Residency, residency_of
from dashboard.kv_groups import GroupRow, group_rows
from tenants.principal import Principal


@dataclass(frozen=True)
class ContextRow:
    """`residency` is None when the hot tier does not answer, or was not asked."""

    context: Context
    residency: Residency | None
    pins: list[Pin]
    has_own_pin: bool
    may_unpin_all: bool
    may_change: bool
    groups: list[GroupRow]

    @property
    def hot_ratio(self) -> float | None:
        return self._ratio(self.residency.hot) if self.residency else None

    @property
    def cold_ratio(self) -> float | None:
        return self._ratio(self.residency.cold) if self.residency else None

    @property
    def lost_ratio(self) -> float | None:
        return self._ratio(self.residency.lost) if self.residency else None

    def _ratio(self, blocks: int) -> float:
        found = self.residency
        return blocks / max(found.hot + found.cold + found.lost if found else 0, 1)


def context_rows(person: Principal, shown: Iterable[Context]) -> list[ContextRow]:
    """All of a page. Once the hot tier did not answer, it is not asked again."""
    shown = list(shown)
    live_pins, rows, answers = _live_pins(person, shown), [], True
    for context in shown:
        rows.append(_row(person, context, live_pins[context.pk], ask=answers))
        answers = rows[-1].residency is not None
    return rows


def context_row(person: Principal, context: Context) -> ContextRow:
    return _row(person, context, pins.live_of(context), ask=True)


def _row(person: Principal, context: Context, live: list[Pin], *, ask: bool) -> ContextRow:
    foreign = [pin for pin in live if pin.owner != person.id]
    return ContextRow(
        context=context,
        residency=_residency(context) if ask else None,
        pins=live,
        has_own_pin=len(foreign) < len(live),
        may_unpin_all=person.is_operator and bool(foreign),
        may_change=person.may_write(context.tenant_id),
        groups=group_rows(context.space),
    )


def _residency(context: Context) -> Residency | None:
    try:
        return residency_of(context)
    except Problem:
        return None


def _live_pins(person: Principal, shown: list[Context]) -> dict[UUID, list[Pin]]:
    """In one statement."""
    found: defaultdict[UUID, list[Pin]] = defaultdict(list)
    for pin in person.rows(Pin).filter(context__in=shown, until__gt=timezone.now()):
        found[pin.context_id].append(pin)
    return found
