"""Filters of lists, as strict as bodies: a value that cannot be read is refused by name."""

import re
from typing import Any

import django_filters
from django import forms
from django.core.exceptions import ValidationError
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.contrib.django_filters import DjangoFilterExtension

from cacheapi.base.fields import MAX_INT
from cacheapi.base.queries import FLAGS, MOST_CHARACTERS, TEXT


class _FlagField(forms.Field):
    def to_python(self, value: Any) -> bool | None:
        if value is None:
            return None
        if value not in FLAGS:
            raise ValidationError(f"need true or false, got {value[:60]!r}")
        return FLAGS[value]


class _NumberField(forms.Field):
    def to_python(self, value: Any) -> int | None:
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,19}", value) or not 1 <= int(value) <= MAX_INT:
            raise ValidationError(f"need a number from 1 to 2⁶³-1, got {value[:60]!r}")
        return int(value)


class FlagFilter(django_filters.BooleanFilter):
    field_class = _FlagField  # type: ignore[assignment]  # any field of a form will do
    schema = {"type": "boolean"}


class RowFilter(django_filters.NumberFilter):
    """The primary key of a row."""

    field_class = _NumberField  # type: ignore[assignment]  # any field of a form will do
    schema = {"type": "integer", "minimum": 1, "maximum": MAX_INT}

    def get_max_validator(self) -> None:
        return None


class TextFilter(django_filters.CharFilter):
    schema = TEXT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, max_length=MOST_CHARACTERS, **kwargs)


class Filters(DjangoFilterBackend):
    """A class of its own, so that the OpenAPI document gets the bounds of the filters above."""


class _FilterBounds(DjangoFilterExtension):
    target_class = "cacheapi.base.filters.Filters"
    priority = 1

    def resolve_filter_field(self, *args: Any) -> Any:
        parameters = super().resolve_filter_field(*args)  # type: ignore[no-untyped-call]  # spectacular's
        for parameter in parameters:
            parameter["schema"] |= getattr(args[-1], "schema", {})
        return parameters


class TenantFilter(django_filters.FilterSet):
    """Filters that every list has."""

    tenant = TextFilter(field_name="tenant__slug", help_text="slug of the tenant")
