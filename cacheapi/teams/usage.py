"""/api/v1/usage: counters over time."""

import time
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.access import caller
from cacheapi.base.queries import TEXT
from cacheapi.base.viewsets import ApiView
from catalog import usage
from catalog.windows import DEFAULT_RANGE, RANGES, range_named


class UsagePointSerializer(serializers.Serializer[Any]):
    bucket_ts = serializers.IntegerField(help_text="first second of the bucket, Unix time")
    requested_tokens = serializers.IntegerField(help_text="of prompts, in whole blocks")
    tail_tokens = serializers.IntegerField(help_text="of prompts, after their last whole blocks")
    hit_hot_tokens = serializers.IntegerField()
    hit_cold_tokens = serializers.IntegerField()
    requested_blocks = serializers.IntegerField()
    hit_hot_blocks = serializers.IntegerField()
    hit_cold_blocks = serializers.IntegerField()
    hot_read_bytes = serializers.IntegerField()
    cold_read_bytes = serializers.IntegerField()
    hot_write_bytes = serializers.IntegerField()
    put_blocks = serializers.IntegerField()
    put_states = serializers.IntegerField(help_text="of put_blocks: states of linear attention")
    promoted_blocks = serializers.IntegerField(help_text="brought back from the cold tier")
    promoted_bytes = serializers.IntegerField(help_text="of hot_write_bytes")
    put_refused = serializers.IntegerField()
    dropped = serializers.IntegerField()
    corrupt = serializers.IntegerField()
    misses = serializers.DictField(child=serializers.IntegerField())
    load_ms = serializers.DictField(child=serializers.IntegerField())
    drops = serializers.DictField(
        child=serializers.IntegerField(), help_text="why `dropped` were not stored"
    )
    cold_refused_blocks = serializers.IntegerField(help_text="the cold tier had no room for them")
    cold_evicted_blocks = serializers.IntegerField(help_text="made room in the cold tier")
    lost_blocks = serializers.IntegerField(help_text="refused by the cold tier, then gone from hot")
    hot_used_bytes = serializers.IntegerField(allow_null=True)
    cold_used_bytes = serializers.IntegerField(allow_null=True)
    cold_dead_bytes = serializers.IntegerField(
        allow_null=True, help_text="of segments in S3, until they are merged"
    )
    cold_waiting_bytes = serializers.IntegerField(
        allow_null=True, help_text="of segments in S3 that nobody names, until they are deleted"
    )
    dirty_bytes = serializers.IntegerField(allow_null=True)
    dirty_blocks = serializers.IntegerField(allow_null=True)
    dirty_oldest_s = serializers.IntegerField(allow_null=True)
    unstored_blocks = serializers.IntegerField(
        allow_null=True, help_text="hot blocks that the cold tier refused"
    )


class UsageSerializer(serializers.Serializer[Any]):
    resolution_s = serializers.IntegerField()
    points = UsagePointSerializer(many=True)


@extend_schema_view(
    get=extend_schema(
        parameters=[
            OpenApiParameter("range", str, enum=list(RANGES), default=DEFAULT_RANGE),
            OpenApiParameter("tenant", TEXT, description="slug; absent: all that you may see"),
        ],
        responses=UsageSerializer,
    )
)
class UsageView(ApiView):
    """Counters over time, summed over tenants."""

    takes = {"get": ("range", "tenant")}
    refusals = {"get": (404,)}

    def get(self, request: Request) -> Response:
        range_ = range_named(request.query_params.get("range", DEFAULT_RANGE))
        points = usage.series(
            tenant_ids=_tenants_asked(request),
            resolution_s=range_.resolution_s,
            since_ts=range_.since_ts(time.time()),
        )
        return Response({"resolution_s": range_.resolution_s, "points": points})


def _tenants_asked(request: Request) -> frozenset[int] | None:
    slug = request.query_params.get("tenant")
    if slug is None:
        return caller(request).tenant_ids
    return frozenset({caller(request).tenant(slug).pk})
