"""Filters of the list of contexts."""

from django.db.models import Q, QuerySet
from django.utils import timezone

from cacheapi.base.filters import FlagFilter, RowFilter, TenantFilter, TextFilter
from catalog.models import Context


class ContextFilter(TenantFilter):
    name = TextFilter(help_text="exact name")
    search = TextFilter(field_name="name", lookup_expr="icontains", help_text="part of the name")
    label = TextFilter()
    space = RowFilter(field_name="space_id", help_text="number of the space")
    pinned = FlagFilter(method="filter_pinned")

    def filter_pinned(self, rows: QuerySet[Context], name: str, value: bool) -> QuerySet[Context]:
        pinned = Q(pinned_until__gt=timezone.now())
        return rows.filter(pinned) if value else rows.exclude(pinned)
