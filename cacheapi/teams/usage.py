"""/api/v1/usage: counters over time, in all or split."""

import time
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.access import caller
from cacheapi.base.fields import Moment
from cacheapi.base.queries import DURATION, TEXT, duration, malformed
from cacheapi.base.viewsets import ApiView
from catalog import usage, usage_split
from catalog.models import RESOLUTIONS_S
from catalog.windows import DEFAULT_RANGE, RANGES, Period, period_of, range_named
from planning import moves


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
    decided_all = serializers.IntegerField(
        help_text="found prefixes that nodes chose to load whole"
    )
    decided_prefix = serializers.IntegerField(
        help_text="found prefixes of which nodes chose to load the first part"
    )
    decided_recompute = serializers.IntegerField(
        help_text="found prefixes that nodes chose to compute"
    )
    spared_tokens = serializers.IntegerField(help_text="of loads that ended sooner than computing")
    spared_gpu_us = serializers.IntegerField(
        help_text="prefill that those loads spared: microseconds × GPUs of the engine"
    )
    load_gpu_us = serializers.IntegerField(
        help_text="wait for those loads: microseconds × GPUs of the engine"
    )
    slower_tokens = serializers.IntegerField(help_text="of loads that took longer than computing")
    slower_gpu_us = serializers.IntegerField(
        help_text="time that those loads lost: microseconds × GPUs of the engine"
    )
    unpriced_tokens = serializers.IntegerField(
        help_text="loaded before the node had measured its prefill"
    )
    cold_requests = serializers.IntegerField(help_text="GETs of nodes to S3")
    cold_fetched_bytes = serializers.IntegerField(
        help_text="asked for by those GETs: with gaps between blocks, and tries that failed"
    )
    hit_local_tokens = serializers.IntegerField(help_text="from nodes' local tiers")
    hit_local_blocks = serializers.IntegerField()
    local_read_bytes = serializers.IntegerField()
    local_write_bytes = serializers.IntegerField()
    local_evicted_blocks = serializers.IntegerField(help_text="deleted there to make room")
    local_bad_blocks = serializers.IntegerField(
        help_text="files there that failed verification; the blocks came from another tier"
    )
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


class CountsSerializer(serializers.Serializer[Any]):
    """null: this split does not count it, or it is unknown."""

    requested_tokens = serializers.IntegerField(allow_null=True)
    hit_tokens = serializers.IntegerField(allow_null=True)
    requested_blocks = serializers.IntegerField(allow_null=True)
    hit_blocks = serializers.IntegerField(allow_null=True)
    read_bytes = serializers.IntegerField(allow_null=True)
    written_bytes = serializers.IntegerField(
        allow_null=True, help_text="into the hot tier; of the tiers cold and local: into them"
    )
    stored_blocks = serializers.IntegerField(allow_null=True)
    used_bytes = serializers.IntegerField(allow_null=True, help_text="the last sample")


class GroupPointSerializer(CountsSerializer):
    bucket_ts = serializers.IntegerField(help_text="first second of the step, Unix time")


class GroupSerializer(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="tenant's slug, number of the space, node, or tier")
    name = serializers.CharField()
    tenant = serializers.CharField(allow_null=True, help_text="slug; null: of a tier")
    totals = CountsSerializer(
        help_text="of the period; of a space or node: of the whole sessions that were open in it"
    )
    points = GroupPointSerializer(
        many=True, help_text="empty for spaces and nodes, whose roll-ups are not stored"
    )


class UsageSerializer(serializers.Serializer[Any]):
    resolution_s = serializers.IntegerField(help_text="length of a point")
    points = UsagePointSerializer(many=True)
    groups = GroupSerializer(
        many=True,
        required=False,
        help_text=f"with `by`: at most {usage_split.MOST_GROUPS}, most requested tokens first",
    )


SPLITS = ("tenant", "space", "node", "tier", "store")
MOMENT = {"type": "string", "format": "date-time"}
KEPT_S = {each: usage.KEPT.get(each, timedelta.max).total_seconds() for each in RESOLUTIONS_S}


@extend_schema_view(
    get=extend_schema(
        parameters=[
            OpenApiParameter(
                "range", str, enum=list(RANGES), description=f"{DEFAULT_RANGE} without `from`"
            ),
            OpenApiParameter("from", MOMENT, description="in place of range: the beginning"),
            OpenApiParameter("to", MOMENT, description="with `from`: the end; now unless given"),
            OpenApiParameter(
                "step",
                DURATION,
                description="length of a point, from multiples of it; at most "
                "1,440 points. Absent: the shortest that fits",
            ),
            OpenApiParameter("by", str, enum=SPLITS, description="adds `groups`"),
            OpenApiParameter("tenant", TEXT, description="slug; absent: all that you may see"),
        ],
        responses=UsageSerializer,
    )
)
class UsageView(ApiView):
    """Counters over time, summed over tenants."""

    takes = {"get": ("range", "tenant", "by", "from", "to", "step")}
    refusals = {"get": (404,)}  # of a tenant that the caller does not see

    def get(self, request: Request) -> Response:
        tenant_ids, period = _tenants_asked(request), _period_asked(request)
        points = usage_split.merged(
            usage.series_of(tenant_ids=tenant_ids, period=period), period.step_s
        )
        answer = {"resolution_s": period.step_s, "points": points}
        match request.query_params.get("by"):
            case None:
                return Response(answer)
            case "tier":
                groups = usage_split.by_tier(points, usage_split.cold_writes(tenant_ids, period))
            case "store":
                groups = _by_store(tenant_ids)
            case "tenant":
                groups = usage_split.by_tenant(tenant_ids, period)
            case "space" | "node" as split:
                groups = usage_split.by_session(tenant_ids, period, of_spaces=split == "space")
            case other:
                raise malformed("by", f"need one of {', '.join(SPLITS)}, got {other[:60]!r}")
        return Response({**answer, "groups": [_shown(group) for group in groups]})


def _by_store(tenant_ids: Collection[int] | None) -> list[usage_split.Group]:
    """What each S3 store holds now, copies and old places too; nothing else is known by store."""
    found = moves.held(None if tenant_ids is None else list(tenant_ids))
    none: usage_split.Counts = dict.fromkeys(usage_split.COUNTS)
    return [
        usage_split.Group(
            str(each.store.pk), each.store.name, None, none | {"used_bytes": each.total_bytes}
        )
        for each in found
    ]


def _shown(group: usage_split.Group) -> dict[str, Any]:
    points = [{"bucket_ts": ts, **counts} for ts, counts in sorted(group.points.items())]
    return {**asdict(group), "points": points}


def _period_asked(request: Request) -> Period:
    """Raises Problem (malformed)."""
    now_s, given = time.time(), request.query_params
    start, end = moment(request, "from"), moment(request, "to")
    step_s = duration(request, "step")
    if start is None:
        if end is not None:
            raise malformed("to", "give from, too")
        range_ = range_named(given.get("range", DEFAULT_RANGE))
        if step_s is None:
            since_ts = range_.since_ts(now_s)
            return Period(since_ts, int(now_s) + 1, range_.resolution_s, range_.resolution_s)
        start_s, end_s = now_s - range_.seconds, now_s
    elif "range" in given:
        raise malformed("range", "give either range or from")
    else:
        start_s, end_s = start.timestamp(), now_s if end is None else end.timestamp()
    return period_of(start_s, end_s, step_s, now_s=now_s, kept_s=KEPT_S)


def moment(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return Moment().to_internal_value(text)
    except serializers.ValidationError as error:
        raise malformed(name, str(error.detail[0])) from None  # type: ignore[index]  # a list


def _tenants_asked(request: Request) -> frozenset[int] | None:
    slug = request.query_params.get("tenant")
    if slug is None:
        return caller(request).tenant_ids
    return frozenset({caller(request).tenant(slug).pk})
