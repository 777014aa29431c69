"""/api/v1/segments: S3 objects full of blocks."""

import django_filters
from rest_framework import serializers

from cacheapi.base.filters import RowFilter, TenantFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer
from catalog.models import Segment
from catalog.stores import name_of


class SegmentSerializer(TenantOwnedSerializer):
    store = serializers.SerializerMethodField(help_text="name of the store that holds it")

    class Meta:
        model = Segment
        fields = (
            *("id", "tenant", "space", "uuid", "object_key", "state", "blocks", "size_bytes"),
            *("live_bytes", "runs", "generation", "store", "unreferenced_at", "created_at"),
        )
        read_only_fields = fields

    def get_store(self, row: Segment) -> str:
        return name_of(row.store)


class SegmentFilter(TenantFilter):
    space = RowFilter(field_name="space_id")
    state = django_filters.ChoiceFilter(choices=Segment.State.choices)


class SegmentsView(ReadOnlyView):
    """S3 objects full of blocks."""

    model = Segment
    select = ("tenant", "store")
    orderings = ("-id", "size_bytes")
    serializer_class = SegmentSerializer
    filterset_class = SegmentFilter
