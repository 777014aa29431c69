"""/api/v1/explore: a measure by its parts, over time and against the time before."""

import time
from datetime import UTC, datetime
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.queries import TEXT, malformed
from cacheapi.base.viewsets import ApiView
from cacheapi.teams.usage import MOMENT, moment
from catalog import changes, slices
from catalog.measures import MEASURES, SPLITS, Latency
from catalog.models import Space
from catalog.windows import DEFAULT_RANGE, RANGES, range_named

MOST_GROUPS = 100
MOST_LINES = 5
MOST_TEXT = 200
NUMBER = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}


class SpanSerializer(serializers.Serializer[Any]):
    start = serializers.DateTimeField()
    end = serializers.DateTimeField()
    step_s = serializers.IntegerField(help_text="length of its buckets")


class LatencySerializer(serializers.Serializer[Any]):
    """Of all loads: percentiles of one merged histogram, in milliseconds."""

    loads = serializers.IntegerField()
    p1_ms = serializers.FloatField()
    p50_ms = serializers.FloatField()
    p99_ms = serializers.FloatField()
    p99_is_beyond = serializers.BooleanField(
        help_text="above the last bound, which p99_ms then is: how much is not counted"
    )
    within = serializers.FloatField(help_text="share of loads of at most 1 ms, the first bound")
    beyond = serializers.FloatField(help_text="share of loads above 5,000 ms, the last bound")


class PartSerializer(serializers.Serializer[Any]):
    name = serializers.CharField(help_text="of tenant, space, node, label, context, reason, tier")
    tenant = serializers.CharField(help_text="slug; empty: of a reason or tier")
    space = serializers.IntegerField(allow_null=True)
    is_rest = serializers.BooleanField(help_text="the sum of parts that have no row of their own")
    value = serializers.FloatField(allow_null=True, help_text="null: nobody counted")
    before = serializers.FloatField(
        allow_null=True, help_text="counts are scaled to the length of the window"
    )
    change = serializers.FloatField(allow_null=True)
    share = serializers.FloatField(
        allow_null=True, help_text="of prompt tokens; of a count: of its total"
    )
    prompt_tokens = serializers.IntegerField(help_text="the denominator of the hit rate")
    hit_tokens = serializers.IntegerField()
    main_reason = serializers.CharField(
        allow_null=True, help_text="of misses: the one that grew most if the value got worse"
    )
    latency = LatencySerializer(allow_null=True, help_text="with load_p50 and load_p99")
    points = serializers.ListField(
        child=serializers.FloatField(allow_null=True),
        help_text=f"a value a step, counts by second; of the first {MOST_LINES} groups only",
    )


class ChangeSerializer(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    kind = serializers.ChoiceField(choices=sorted(changes.LETTERS))
    tenant = serializers.CharField()
    words = serializers.CharField()
    by = serializers.CharField(help_text="who; empty: nodes")


class ExploreSerializer(serializers.Serializer[Any]):
    measure = serializers.ChoiceField(choices=list(MEASURES))
    unit = serializers.CharField()
    split = serializers.ChoiceField(choices=list(SPLITS))
    window = SpanSerializer()
    before = SpanSerializer(allow_null=True, help_text="null: no longer kept")
    why_not = serializers.CharField(help_text="why nothing is counted by this split; else empty")
    total = PartSerializer()
    groups = PartSerializer(many=True, help_text=f"what changed most first, at most {MOST_GROUPS}")
    left_out = serializers.IntegerField(help_text="further groups")
    changes = ChangeSerializer(many=True, help_text="in the window, the newest first")


@extend_schema_view(
    get=extend_schema(
        parameters=[
            OpenApiParameter("measure", str, enum=list(MEASURES), description="hit_rate"),
            OpenApiParameter("split", str, enum=list(SPLITS), description="tenant"),
            OpenApiParameter("against", str, enum=list(slices.AGAINST), description="before"),
            OpenApiParameter("tenant", TEXT, description="slug; absent: all that you may see"),
            OpenApiParameter("space", NUMBER, description="id"),
            OpenApiParameter("node", TEXT, description="host"),
            OpenApiParameter("label", TEXT, description="a context's label, or name:text"),
            OpenApiParameter(
                "range", str, enum=list(RANGES), description=f"{DEFAULT_RANGE} without `from`"
            ),
            OpenApiParameter("from", MOMENT, description="in place of range: the beginning"),
            OpenApiParameter("to", MOMENT, description="with `from`: the end; now unless given"),
        ],
        responses=ExploreSerializer,
    )
)
class ExploreView(ApiView):
    """A measure by its parts: what changed most first, and what people and nodes changed."""

    takes = {
        "get": (
            *("measure", "split", "against", "tenant", "space", "node", "label"),
            *("range", "from", "to"),
        )
    }
    refusals = {"get": (404,)}  # of a tenant or space that the caller does not see

    def get(self, request: Request) -> Response:
        given, now_s = request.query_params, time.time()
        measure = slices.measure_named(given.get("measure", "hit_rate"))
        split = slices.split_named(given.get("split", "tenant"))
        start_s, end_s = _window(request, now_s)
        span, before = slices.spans_of(start_s, end_s, given.get("against", "before"), now_s=now_s)
        tenants, where = _where(request)
        table = slices.table(where, measure, split, span, before, now_s=now_s)
        rows = table.rows[:MOST_GROUPS]
        drawn = [row.key for row in rows[:MOST_LINES]]
        lines = slices.series(where, measure, split, span, drawn, now_s=now_s)
        whole = slices.series(where, measure, split, span, None, now_s=now_s)
        for row in rows:
            row.points = lines.get(row.key, [])
        table.total.points = whole.get(slices.ALL, [])
        answer = {
            "measure": measure.name,
            "unit": measure.unit,
            "split": split,
            "window": _span(span, now_s),
            "before": None if before is None else _span(before, now_s),
            "why_not": table.why_not,
            "total": _part(table.total),
            "groups": [_part(row) for row in rows],
            "left_out": len(table.rows) - len(rows) + table.left_out,
            "changes": changes.changes(tenants, span.start_ts, min(span.end_ts, now_s + 1)),
        }
        return Response(ExploreSerializer(answer).data)


def _where(request: Request) -> tuple[tuple[Any, ...], slices.Where]:
    """The caller's tenants, and what is counted. Raises Problem (not-found, malformed)."""
    given, who = request.query_params, caller(request)
    slug = given.get("tenant")
    tenants = who.tenants if slug is None else (who.tenant(slug),)
    space = None
    if (number := given.get("space")) is not None:
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            raise malformed("space", f"need its number, got {number[:60]!r}")
        rows = who.rows(Space).filter(pk=int(number), tenant__in=tenants)
        space = rows.select_related("tenant").first()
        if space is None:
            raise Problem("not-found", "There is no such space.")
        tenants = (space.tenant,)
    texts = {name: given.get(name, "") for name in ("node", "label")}
    for name, text in texts.items():
        if len(text) > MOST_TEXT:
            raise malformed(name, f"at most {MOST_TEXT} characters")
    return tenants, slices.Where.of(tenants, space=space, **texts)


def _window(request: Request, now_s: float) -> tuple[float, float]:
    start, end = moment(request, "from"), moment(request, "to")
    if start is None:
        if end is not None:
            raise malformed("to", "give from, too")
        range_ = range_named(request.query_params.get("range", DEFAULT_RANGE))
        return now_s - range_.seconds, now_s
    if "range" in request.query_params:
        raise malformed("range", "give either range or from")
    return start.timestamp(), now_s if end is None else end.timestamp()


def _span(span: slices.Span, now_s: float) -> dict[str, Any]:
    return {
        "start": datetime.fromtimestamp(span.start_ts, UTC),
        "end": datetime.fromtimestamp(min(span.end_ts, now_s), UTC),
        "step_s": span.step_s,
    }


def _part(row: slices.Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "tenant": row.tenant,
        "space": row.key.space_number or None,
        "is_rest": row.key.is_rest,
        "value": row.value,
        "before": row.before,
        "change": row.change,
        "share": row.share,
        "prompt_tokens": row.tokens,
        "hit_tokens": row.hit_tokens,
        "main_reason": row.main_reason,
        "latency": None if row.latency is None else _latency(row.latency),
        "points": row.points,
    }


def _latency(found: Latency) -> dict[str, Any]:
    return {
        "loads": found.loads,
        "p1_ms": found.p1.milliseconds,
        "p50_ms": found.p50.milliseconds,
        "p99_ms": found.p99.milliseconds,
        "p99_is_beyond": found.p99.is_beyond,
        "within": found.within,
        "beyond": found.beyond,
    }
