"""Walks rows in the order of a key and their primary key: a page begins behind a row, not at a
number, so that rows of equal keys, or without a value, are neither skipped nor shown twice.

Rows without a value count as the least, on each database.
"""

from typing import Any

from django.db.models import F, Field, Q, QuerySet


def field_of(rows: QuerySet[Any], key: str) -> "Field[Any, Any]":
    meta = rows.model._meta
    found: Field[Any, Any] = meta.pk if key == "pk" else meta.get_field(key)
    return found


def ordered(rows: QuerySet[Any], key: str, *, falling: bool) -> QuerySet[Any]:
    sign = "-" if falling else ""
    if key == "pk":
        return rows.order_by(f"{sign}pk")
    if not field_of(rows, key).null:
        return rows.order_by(f"{sign}{key}", f"{sign}pk")
    by = F(key).desc(nulls_last=True) if falling else F(key).asc(nulls_first=True)
    return rows.order_by(by, f"{sign}pk")


def behind(rows: QuerySet[Any], key: str, value: Any, pk: Any, *, falling: bool) -> QuerySet[Any]:
    """Rows that follow the one with this value (None: none) and this primary key."""
    side = "lt" if falling else "gt"
    later_pk = Q(**{f"pk__{side}": pk})
    if key == "pk":
        return rows.filter(later_pk)
    if value is None:
        same = Q(**{f"{key}__isnull": True}) & later_pk
        return rows.filter(same if falling else same | Q(**{f"{key}__isnull": False}))
    # The first condition says nothing new: an index serves it.
    bound = Q(**{f"{key}__{side}e": value})
    found = bound & (Q(**{f"{key}__{side}": value}) | (Q(**{key: value}) & later_pk))
    if falling and field_of(rows, key).null:
        found |= Q(**{f"{key}__isnull": True})
    return rows.filter(found)
