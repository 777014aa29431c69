"""Prices by UTC day: versions with a first day, so that past months keep the prices of their time.

The first version has list prices (`neve.planner.prices`); operators add others. A month has one
currency.
"""

from collections.abc import Sequence
from dataclasses import fields
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from base.preconditions import require_unchanged
from base.problems import Problem
from neve.errors import Misuse
from neve.planner.prices import LIST_PRICES_FROM, Prices
from planning.models import PriceVersion
from tenants.audit import Actor, record

AHEAD: Final = timedelta(days=366)
MOST_VERSIONS: Final = 1_000
NAMES: Final = tuple(each.name for each in fields(Prices))


def versions() -> list[PriceVersion]:
    """Newest first; never empty."""
    found = list(PriceVersion.objects.all())
    return found or [_list_prices()]


def _list_prices() -> PriceVersion:
    """The first version, which a migration makes; a database emptied since gets it again."""
    values = {name: getattr(Prices(), name) for name in NAMES}
    row, _ = PriceVersion.objects.get_or_create(valid_from=LIST_PRICES_FROM, defaults=values)
    return row


def version_of(prices: Prices, valid_from: date) -> PriceVersion:
    """A row that is not saved."""
    return PriceVersion(valid_from=valid_from, **{name: getattr(prices, name) for name in NAMES})


def in_force(day: date, among: Sequence[PriceVersion] | None = None) -> PriceVersion:
    """The version of a day. `among`: as from `versions`."""
    found = versions() if among is None else among
    return next((each for each in found if each.valid_from <= day), found[-1])


def prices_of(version: PriceVersion) -> Prices:
    """Raises Misuse with the wrong field."""
    return Prices(**{name: getattr(version, name) for name in NAMES})


def today() -> date:
    """The UTC day."""
    return timezone.now().date()


@transaction.atomic
def change_prices(
    *,
    actor: Actor,
    valid_from: date | None = None,
    seen: PriceVersion | None = None,
    **changes: Any,
) -> PriceVersion:
    """Changes the prices from a day on (None: today), until the next version's first day.

    `changes`: names of NAMES; others stay as they were on that day. `seen`: the version that a
    caller's If-Match means. Raises Problem: malformed, precondition-failed, limit-reached.
    """
    list(PriceVersion.objects.select_for_update().order_by("pk")[:1])  # one change at a time
    if seen is not None:
        require_unchanged(seen)
    first, now = today().replace(day=1), today()
    day = valid_from or now
    if not first <= day <= now + AHEAD:
        raise Problem(
            "malformed",
            f"valid_from: needs to lie between {first}, the first day of this month, and "
            f"{now + AHEAD}: past months keep their prices.",
            field="valid_from",
        )
    found = versions()
    old = in_force(day, found)
    row = old
    if old.valid_from != day:
        if len(found) >= MOST_VERSIONS:
            raise Problem("limit-reached", f"There are {len(found)} versions of prices.")
        row = version_of(prices_of(old), day)
    before = facts(old)
    for name, value in changes.items():
        setattr(row, name, value)
    try:
        prices_of(row)
    except Misuse as error:
        raise Problem("malformed", str(error), field=error.field) from error
    _require_one_currency([*(each for each in found if each.valid_from != day), row])
    row.updated_at = timezone.now()
    row.save()
    record(
        actor=actor, tenant_id=None, action="prices.change", obj=row, before=before,
        after=facts(row),
    )  # fmt: skip
    return row


def _require_one_currency(all_: Sequence[PriceVersion]) -> None:
    for earlier, later in pairwise(sorted(all_, key=lambda each: each.valid_from)):
        if later.valid_from.day != 1 and later.currency != earlier.currency:
            raise Problem(
                "malformed",
                "currency: a month has one. Change it with valid_from on the first day of a month, "
                f"and in the version from {later.valid_from} too.",
                field="currency",
            )


def facts(version: PriceVersion) -> dict[str, Any]:
    """JSON values of a version, for the audit."""
    return {
        "valid_from": version.valid_from.isoformat(),
        **{name: shown(getattr(version, name)) for name in NAMES},
    }


def shown(value: Decimal | str) -> str:
    """A price without zeros at its end; a currency as it is."""
    if isinstance(value, str):
        return value
    return f"{value.normalize():f}"
