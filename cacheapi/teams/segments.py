"""/api/v1/segments: S3 objects full of blocks."""

import django_filters

from cacheapi.base.filters import RowFilter, TenantFilter
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer
from catalog.models import Segment


class SegmentSerializer(TenantOwnedSerializer):
    class Meta:
        model = Segment
        fields = (
            *("id", "tenant", "space", "uuid", "object_key", "state", "blocks", "size_bytes"),
            *("live_bytes", "runs", "generation", "unreferenced_at", "created_at"),
        )
        read_only_fields = fields


class SegmentFilter(TenantFilter):
    space = RowFilter(field_name="space_id")
    state = django_filters.ChoiceFilter(choices=Segment.State.choices)


class SegmentsView(ReadOnlyView):
    """S3 objects full of blocks."""

    model = Segment
    orderings = ("-id", "size_bytes")
    serializer_class = SegmentSerializer
    filterset_class = SegmentFilter
