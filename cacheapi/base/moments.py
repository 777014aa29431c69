"""Filters by time, as strict as bodies: RFC 3339 with its offset from UTC."""

from datetime import datetime
from typing import Any

import django_filters
from django import forms
from django.core.exceptions import ValidationError
from rest_framework import serializers

from cacheapi.base.fields import Moment


class _MomentField(forms.Field):
    def to_python(self, value: Any) -> datetime | None:
        if value is None:
            return None
        try:
            return Moment().to_internal_value(value)
        except serializers.ValidationError as error:
            raise ValidationError([str(each) for each in error.detail]) from None


class MomentFilter(django_filters.DateTimeFilter):
    """`…_after` includes the moment, `…_before` does not."""

    field_class = _MomentField  # type: ignore[assignment]  # any field of a form will do
    schema = {"type": "string", "format": "date-time"}
