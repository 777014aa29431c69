"""/api/v1/samples: whether traffic of a tenant is sampled, what is stored, and the samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from base.turns import Turns
from cacheapi.base.access import caller
from cacheapi.base.exports import JSONL, STEP, sent
from cacheapi.base.fields import Flag, Moment, StrictSerializer
from cacheapi.base.queries import TEXT, malformed
from cacheapi.base.viewsets import ApiView, checked
from neve.planner.simulate.samples import Samples, write_lines
from planning import samples
from tenants import services
from tenants.models import Tenant
from tenants.principal import actor_of

DEFAULT_WINDOW = timedelta(hours=24)
FIRST = datetime(2000, 1, 1, tzinfo=UTC)
TENANT = OpenApiParameter("tenant", TEXT, description="slug; needed if you see several")
# Each holds up to 600,000 reads in memory, and is a minute's work at worst.
TURNS = Turns(1, "An export of this tenant's samples is being read in this web process: wait.")
MOMENT = {"type": "string", "format": "date-time"}


class SamplesSerializer(serializers.Serializer[Any]):
    tenant = serializers.CharField()
    enabled = serializers.BooleanField()
    rate = serializers.FloatField(help_text="share of block ids that nodes sample; 0: off")
    files = serializers.IntegerField()
    size_bytes = serializers.IntegerField()
    first = serializers.DateTimeField(allow_null=True, help_text="of the oldest file")
    last = serializers.DateTimeField(allow_null=True, help_text="of the newest file")
    keep_days = serializers.IntegerField()


class SwitchSerializer(StrictSerializer):
    enabled = Flag(help_text="false: nodes send no samples, and stored ones are deleted")


@contextmanager
def _s3_required() -> Iterator[None]:
    """Raises Problem (cold-tier-unavailable) for S3's errors."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Problem("cold-tier-unavailable", "S3 does not answer: try again.") from error


class SamplesView(ApiView):
    """Samples of a tenant's traffic, for estimates of what another setting would give."""

    takes = {"get": ("tenant",), "patch": ("tenant",)}
    refusals = {"get": (404,), "patch": (404,)}

    @extend_schema(parameters=[TENANT], responses=SamplesSerializer)
    def get(self, request: Request) -> Response:
        """Whether traffic is sampled, at which rate, and what is stored."""
        return Response(_shown(tenant_asked(request)))

    @extend_schema(parameters=[TENANT], request=SwitchSerializer, responses=SamplesSerializer)
    def patch(self, request: Request) -> Response:
        """Switches samples on or off. Off: stored ones are deleted within an hour."""
        tenant = tenant_asked(request)
        if not caller(request).may_write(tenant.pk):
            raise Problem("forbidden", "Your role in this tenant lets you look, not change.")
        body = checked(SwitchSerializer, request)
        services.switch_samples(tenant=tenant, enabled=body["enabled"], actor=actor_of(request))
        tenant.refresh_from_db()
        return Response(_shown(tenant))


class _JsonLines(JSONRenderer):  # of problem documents; the lines are rendered here
    media_type, format = JSONL, "jsonl"


class SamplesExportView(ApiView):
    """A window of samples."""

    renderer_classes = (JSONRenderer, _JsonLines)
    takes = {"get": ("tenant", "from", "to")}
    refusals = {"get": (404,)}

    @extend_schema(
        operation_id="samples_export",
        parameters=[
            TENANT,
            OpenApiParameter("from", MOMENT, description="the beginning; 24 hours ago"),
            OpenApiParameter("to", MOMENT, description="the end; now"),
        ],
        responses={
            (200, JSONL): OpenApiResponse(str, description="a header, then a request a line")
        },
    )
    def get(self, request: Request) -> HttpResponseBase:
        """A trace that `neve simulate` reads: keyed ids, places and times, and exact totals. Of a
        window with more than 64 MiB, the latest part; of more than 600,000 reads, a lower rate."""
        tenant = tenant_asked(request)
        until = _moment(request, "to") or datetime.now(UTC)
        since = _moment(request, "from") or until - DEFAULT_WINDOW
        if since >= until:
            raise malformed("from", "need a moment before `to`")
        with TURNS.turn(tenant.pk), _s3_required():
            found = samples.read(tenant.pk, since, until)
        about = {"tenant": tenant.slug, "from": since.isoformat(), "to": until.isoformat()}
        answer = sent(request, _steps(found, about), "jsonl")
        answer["Content-Disposition"] = f'attachment; filename="samples-{tenant.slug}.jsonl"'
        return answer


def _steps(found: Samples, about: dict[str, Any]) -> Iterator[bytes]:
    lines = write_lines(found, about) if found.requests else iter(())
    while step := "".join(islice(lines, STEP)):
        yield step.encode()


def tenant_asked(request: Request) -> Tenant:
    """The tenant of `tenant`, or the only one that the caller sees. Raises Problem."""
    slug = request.query_params.get("tenant")
    if slug is not None:
        return caller(request).tenant(slug)
    seen = caller(request).tenant_rows()[:2]
    if len(seen) != 1:
        raise malformed("tenant", "name one: you see several tenants, or none")
    return seen[0]


def _shown(tenant: Tenant) -> dict[str, Any]:
    with _s3_required():
        stored = samples.stored(tenant.pk)
    found = {
        **asdict(stored),
        "tenant": tenant.slug,
        "enabled": tenant.samples_enabled,
        "rate": 2.0**-tenant.sample_rate_log if tenant.samples_enabled else 0.0,
        "keep_days": samples.keep_days(),
    }
    return dict(SamplesSerializer(found).data)


def _moment(request: Request, name: str) -> datetime | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        moment = Moment().to_internal_value(text)
    except serializers.ValidationError as error:
        raise malformed(name, str(error.detail[0])) from None  # type: ignore[index]  # a list
    if moment < FIRST:  # windows reach before it
        raise malformed(name, f"need a moment from {FIRST.year} on")
    return moment
