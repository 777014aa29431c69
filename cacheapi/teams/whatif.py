"""/api/v1/what-if: what other quotas and policies would give, and a recommendation."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import Duration, StrictSerializer, Text, WholeNumber
from cacheapi.base.queries import TEXT, malformed
from cacheapi.base.viewsets import ApiView, checked
from cacheapi.teams.jobs import JobSerializer
from catalog.models import Space
from neve.errors import Misuse
from neve.planner.changes import CHANGE_NAMES, Change
from planning import whatif
from tenants.models import Tenant
from tenants.principal import Principal, actor_of

_DAY_S = 86400
_HELP = {
    "hot": "hot quota: x2, +64GiB, -1GiB, 512GiB",
    "cold": "cold quota: the same, or unlimited, or none: never flush",
    "local": "a tier more on the nodes' own disks: 500GiB",
    "cold_lifetime": "cold_ttl_s: 30d, or unlimited",
    "hot_idle": "hot_idle_s: 6h, or unlimited",
    "eviction": "of the hot tier: lru, 2q, s3-fifo, lfu, gdsf",
    "promote": "of a cold block to hot: second (read), every, never",
    "promote_window": "promote_window_s: 1h",
    "codec": "bytes before ÷ after a codec, such as 2",
}


class ChangeSerializer(StrictSerializer):
    """Members together make one change; absent ones stay as today."""

    schema: dict[str, Any] = {"minProperties": 1}

    def get_fields(self) -> dict[str, Any]:
        return {
            name: Text(required=False, max_length=40, help_text=_HELP[name])
            for name in CHANGE_NAMES
        }

    def validate(self, attrs: dict[str, Any]) -> Change:
        try:
            return Change.of(attrs)
        except Misuse as error:
            raise serializers.ValidationError(error.detail) from error


class WhatIfSerializer(StrictSerializer):
    tenant = Text(required=False, help_text="slug; absent: your only tenant")
    space = WholeNumber(
        min_value=1, required=False, help_text="id: only its traffic; absent: all of the tenant"
    )
    changes = ChangeSerializer(  # type: ignore[call-arg]  # of lists; the stubs lack them
        many=True, min_length=1, max_length=whatif.MOST_CHANGES, help_text="each tried alone"
    )
    window = Duration(
        required=False,
        min_s=int(whatif.WINDOWS[0].total_seconds()),
        max_s=int(whatif.WINDOWS[1].total_seconds()),
        help_text="traffic of so long up to now; 24h unless given",
    )


class WhatIfView(ApiView):
    """What other quotas and policies would give."""

    verbs = {"post": "ask"}
    scopes_to_change = ApiView.scopes_to_read  # it changes nothing but makes a job

    @extend_schema(request=WhatIfSerializer, responses={202: JobSerializer})
    def post(self, request: Request) -> Response:
        """Requests a simulation of the tenant's sampled traffic on today's tiers and on each
        change. The job's `detail` will hold hit rates, bytes, GPU seconds and money of a month with
        their errors, against today."""
        body, who = checked(WhatIfSerializer, request), caller(request)
        tenant = tenant_asked(who, body.get("tenant"))
        space = None
        if "space" in body:
            space = who.rows(Space).filter(pk=body["space"], tenant=tenant).first()
            if space is None:
                raise Problem("malformed", "space: there is no such space.", field="space")
        job = whatif.request(
            tenant=tenant,
            changes=body["changes"],
            window_s=body.get("window", _DAY_S),
            space=space,
            actor=actor_of(request),
        )
        return Response(JobSerializer(job).data, status=202)


class RecommendationSerializer(serializers.Serializer[Any]):
    tenant = serializers.CharField()
    verdict = serializers.ChoiceField(choices=["change", "nothing", "unknown"])
    reason = serializers.CharField(help_text="a code, such as worth_it, below_error, samples_off")
    words = serializers.CharField()
    change = serializers.DictField(
        child=serializers.CharField(), help_text="as POST /what-if takes it; empty: none"
    )
    made_at = serializers.DateTimeField(allow_null=True, help_text="null: none was made yet")
    age_s = serializers.IntegerField(allow_null=True)
    is_outdated = serializers.BooleanField(
        help_text="quota or policy changed since, or it is older than 24 h"
    )
    result = serializers.DictField(
        help_text="the comparison of all changes tried, as a what-if job's detail; empty: none"
    )


class RecommendationView(ApiView):
    """The cheapest change with the largest net gain, or none."""

    takes = {"get": ("tenant",)}
    refusals = {"get": (404,)}  # of a tenant that the caller does not see

    @extend_schema(
        parameters=[OpenApiParameter("tenant", TEXT, description="slug; absent: your only tenant")],
        responses=RecommendationSerializer,
    )
    def get(self, request: Request) -> Response:
        """A recommendation from the tenant's own traffic, made anew every six hours."""
        tenant = tenant_asked(caller(request), request.query_params.get("tenant"))
        return Response(recommendation_of(tenant))


def recommendation_of(tenant: Tenant) -> dict[str, Any]:
    advice = whatif.advice_of(tenant.pk)
    made_at = advice.made_at
    age_s = None if made_at is None else int((timezone.now() - made_at).total_seconds())
    return {
        "tenant": tenant.slug,
        "verdict": advice.verdict,
        "reason": advice.reason,
        "words": advice.words,
        "change": advice.change or {},
        "made_at": made_at,
        "age_s": age_s,
        "is_outdated": advice.is_outdated,
        "result": advice.result or {},
    }


def tenant_asked(who: Principal, slug: str | None) -> Tenant:
    """Raises Problem: not-found for a tenant that the caller does not see, malformed without one
    for a caller who sees several."""
    if slug is not None:
        return who.tenant(slug)
    found = tuple(who.tenant_rows()[:2])
    if len(found) != 1:
        raise malformed("tenant", "name one: you see several, or none")
    return found[0]
