"""Filters of the list of contexts."""

from typing import Any

import django_filters
from django import forms
from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from cacheapi.base.fields import MAX_INT
from cacheapi.base.filters import FlagFilter, RowFilter, TenantFilter, TextFilter
from cacheapi.base.moments import MomentFilter
from catalog.models import Context
from contexts import choosing

Rows = QuerySet[Context]

MOST_IDS_CHARACTERS = 37 * choosing.MOST_IDS


class _WholeField(forms.Field):
    def to_python(self, value: Any) -> int | None:
        if value is None:
            return None
        if not (value.isascii() and value.isdigit()) or len(value) > 19 or int(value) > MAX_INT:
            raise ValidationError(f"need a number from 0 to 2⁶³-1, got {value[:60]!r}")
        return int(value)


class WholeFilter(django_filters.NumberFilter):
    field_class = _WholeField  # type: ignore[assignment]  # any field of a form will do
    schema = {"type": "integer", "minimum": 0, "maximum": MAX_INT}

    def get_max_validator(self) -> None:
        return None


class _StateField(forms.Field):
    def to_python(self, value: str | None) -> str | None:
        if value is not None and value not in Context.State.values:
            raise ValidationError(
                f"need one of {', '.join(Context.State.values)}, got {value[:60]!r}"
            )
        return value


class StateFilter(django_filters.CharFilter):
    field_class = _StateField  # type: ignore[assignment]  # any field of a form will do
    schema = {"type": "string", "enum": list(Context.State.values)}


class IdsFilter(django_filters.CharFilter):
    schema = {"type": "string", "minLength": 36, "maxLength": MOST_IDS_CHARACTERS}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, max_length=MOST_IDS_CHARACTERS, **kwargs)


class ContextFilter(TenantFilter):
    name = TextFilter(help_text="exact name")
    glob = TextFilter(
        method="filter_glob",
        help_text="pattern of the name, with * for any text, ? for any character and sets such as "
        "[0-9]; upper and lower case differ",
    )
    search = TextFilter(field_name="name", lookup_expr="icontains", help_text="part of the name")
    label = TextFilter(help_text="what retention rules match")
    labels = TextFilter(
        method="filter_labels",
        help_text="labels that it has all of: team=blue,stage=test; a name alone: any value",
    )
    under = TextFilter(
        method="filter_under",
        help_text="unexpired ones with a beginning: the number of its ids in the chain, - and the "
        "last of these ids as 32 hex digits",
    )
    ids = IdsFilter(
        method="filter_ids",
        help_text=f"these contexts: ids with commas, at most {choosing.MOST_IDS}",
    )
    model = TextFilter(field_name="space__identity__model", help_text="model of its space")
    space = RowFilter(field_name="space_id", help_text="number of the space")
    state = StateFilter()
    owner = TextFilter(field_name="owner_name", help_text="as `owner` shows it")
    pinned = FlagFilter(method="filter_pinned")
    used_after = MomentFilter(field_name="last_used_at", lookup_expr="gte")
    used_before = MomentFilter(field_name="last_used_at", lookup_expr="lt")
    created_after = MomentFilter(field_name="created_at", lookup_expr="gte")
    created_before = MomentFilter(field_name="created_at", lookup_expr="lt")
    min_tokens = WholeFilter(field_name="tokens", lookup_expr="gte")
    max_tokens = WholeFilter(field_name="tokens", lookup_expr="lte")
    min_bytes = WholeFilter(field_name="size_bytes", lookup_expr="gte")
    max_bytes = WholeFilter(field_name="size_bytes", lookup_expr="lte")

    def filter_pinned(self, rows: Rows, name: str, value: bool) -> Rows:
        return choosing.pinned(rows, value)

    def filter_glob(self, rows: Rows, name: str, value: str) -> Rows:
        return choosing.with_name(rows, value)

    def filter_labels(self, rows: Rows, name: str, value: str) -> Rows:
        return choosing.with_labels(rows, value)

    def filter_under(self, rows: Rows, name: str, value: str) -> Rows:
        return choosing.under(rows, value)

    def filter_ids(self, rows: Rows, name: str, value: str) -> Rows:
        return choosing.with_ids(rows, value)
