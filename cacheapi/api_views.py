"""/api/v1 for teams and operators. Views check and answer; services change."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import django_filters
from django.db.models import Q, QuerySet
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.cache import get_conditional_response
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework.decorators import action
from rest_framework.mixins import CreateModelMixin
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cacheapi import api_serializers as shapes
from cacheapi import openapi
from cacheapi.access import Operators, actor
from cacheapi.queries import TEXT, Flag, RowNumber, StrictQuery, Text, flag
from cacheapi.viewsets import SLUG, UUID, ApiView, ReadOnlyView, TenantFilter, checked, no_body
from catalog import contexts, jobs, pins, usage
from catalog.models import Context, Job, NodeSession, Segment, Space
from catalog.sessions import cut_session, live_since
from catalog.spaces import remove_space, weight_of
from controlplane.problems import Problem
from tenants import services
from tenants.audit import Actor
from tenants.models import ApiKey, AuditEvent, Tenant

# range → (seconds, resolution): at most 1,500 points
RANGES = {
    "15m": (900, 10),
    "1h": (3600, 10),
    "6h": (6 * 3600, 60),
    "24h": (86400, 60),
    "7d": (7 * 86400, 3600),
    "30d": (30 * 86400, 3600),
}


CONFIRM = OpenApiParameter(
    "confirm", TEXT, description="the name; without it the answer says what would be removed"
)


class ContextFilter(TenantFilter):
    name = Text(help_text="exact name")
    search = Text(field_name="name", lookup_expr="icontains", help_text="part of the name")
    label = Text()
    space = RowNumber(field_name="space_id", help_text="number of the space")
    pinned = Flag(method="filter_pinned")

    def filter_pinned(self, rows: QuerySet, name: str, value: bool) -> QuerySet:
        pinned = Q(pinned_until__gt=timezone.now())
        return rows.filter(pinned) if value else rows.exclude(pinned)


class ContextsView(ReadOnlyView):
    """Named chains of blocks."""

    model = Context
    lookup_field = "uuid"
    lookup_value_regex = UUID
    orderings = ("-created_at", "updated_at", "name")
    takes = {"retrieve": ("blocks",)}
    defer = ("chain",)
    serializer_class = shapes.ContextSerializer
    filterset_class = ContextFilter

    @extend_schema(
        parameters=[
            OpenApiParameter("blocks", OpenApiTypes.BOOL, description="list block by block")
        ],
        responses=shapes.ContextDetailSerializer,
    )
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """With its pins, and its residency: what of it is hot, cold, lost, durable."""
        with_blocks = flag(request, "blocks")
        context = self.get_object()
        try:
            residency = asdict(contexts.residency(context))
        except Problem:
            residency = None
        if residency and not with_blocks:
            del residency["blocks"]
        context.residency, context.live_pins = residency, pins.live_of(context)
        return Response(shapes.ContextDetailSerializer(context).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Forgets the context and its pins. Its blocks stay, as long as the terms of the other
        contexts that hold them say, or else those of their space."""
        context = self.object_to_change()
        no_body(request)
        contexts.delete(context=context, actor=actor(request))
        return Response(status=204)

    @extend_schema(request=shapes.PinSerializer, responses=shapes.PinnedSerializer)
    @action(methods=["post"], detail=True)
    def pin(self, request: Request, uuid: str) -> Response:
        """Keeps the blocks until then, whatever the quota pressure. The pin is yours: it replaces
        the one that you had, and the latest end of all pins counts."""
        context = self.object_to_change()
        body = checked(shapes.PinSerializer, request)
        pinned = pins.pin(
            context=context,
            until=body["until"],
            reason=body.get("reason", ""),
            actor=actor(request),
        )
        return Response(shapes.PinnedSerializer(pinned).data)

    @extend_schema(request=shapes.UnpinSerializer, responses=shapes.UnpinnedSerializer)
    @action(methods=["post"], detail=True)
    def unpin(self, request: Request, uuid: str) -> Response:
        """Ends your pin; blocks that another pin keeps stay pinned."""
        context = self.object_to_change()
        body = checked(shapes.UnpinSerializer, request)
        unpinned = pins.unpin(
            context=context,
            pin_id=body.get("pin"),
            everybody=body["all"],
            actor=actor(request),
        )
        return Response(shapes.UnpinnedSerializer(unpinned).data)

    @extend_schema(request=shapes.ExpireSerializer, responses=shapes.ExpiredSerializer)
    @action(methods=["post"], detail=True)
    def expire(self, request: Request, uuid: str) -> Response:
        """Removes the blocks from both tiers now, except those that another unexpired context
        holds. `dry_run` says which, and changes nothing."""
        context = self.object_to_change()
        dry_run = checked(shapes.ExpireSerializer, request)["dry_run"]
        expiry = contexts.expire(context=context, dry_run=dry_run, actor=actor(request))
        return Response(shapes.ExpiredSerializer({**asdict(expiry), "dry_run": dry_run}).data)

    @extend_schema(request=shapes.ExtendSerializer, responses=shapes.ExtendedSerializer)
    @action(methods=["post"], detail=True)
    def extend(self, request: Request, uuid: str) -> Response:
        """Lets the blocks live at least that long from now."""
        context = self.object_to_change()
        for_s = checked(shapes.ExtendSerializer, request)["for_s"]
        extended = contexts.extend(context=context, for_s=for_s, actor=actor(request))
        return Response(shapes.ExtendedSerializer(extended).data)


class TenantListFilter(django_filters.FilterSet):
    slug = Text()
    is_active = Flag()


class TenantsView(ReadOnlyView):
    """Tenants and their quotas, for operators."""

    model = Tenant
    select = ("quota",)
    permission_classes = (Operators,)
    serializer_class = shapes.TenantSerializer
    filterset_class = TenantListFilter
    lookup_field = "slug"
    lookup_value_regex = SLUG
    orderings = ("slug", "created_at")
    takes = {"destroy": ("confirm",)}

    @extend_schema(request=shapes.QuotaChangeSerializer, responses=shapes.QuotaSerializer)
    @action(methods=["patch"], detail=True)
    def quota(self, request: Request, slug: str) -> Response:
        """Sets hard limits; what is absent stays. All hot quotas must fit the hot tier's memory."""
        tenant = self.get_object()
        change = checked(shapes.QuotaChangeSerializer, request)
        limits = {"hot_bytes": tenant.quota.hot_bytes, "cold_bytes": tenant.quota.cold_bytes}
        quota = services.set_quota(tenant=tenant, actor=actor(request), **{**limits, **change})
        return Response(shapes.QuotaSerializer(quota).data)

    @extend_schema(parameters=[CONFIRM], responses={202: shapes.RemovalSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Cuts the tenant off at once; all that it holds goes within minutes."""
        tenant = self.get_object()
        no_body(request)
        weight = weight_of(tenant.pk)
        _require_confirmed(request, tenant.slug, weight)
        services.remove_tenant(tenant=tenant, actor=actor(request))
        return Response(weight, status=202)


class SpaceFilter(TenantFilter):
    name = Text()
    fingerprint = Text()


class SpacesView(ReadOnlyView):
    """KV layouts."""

    model = Space
    serializer_class = shapes.SpaceSerializer
    filterset_class = SpaceFilter
    orderings = ("-created_at", "name")
    takes = {"destroy": ("confirm",)}

    def get_permissions(self) -> Any:
        return [Operators()] if self.action == "destroy" else super().get_permissions()

    @extend_schema(parameters=[CONFIRM], responses={202: shapes.RemovalSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ends the space's sessions at once; its blocks, segments and contexts go in minutes."""
        space = self.get_object()
        no_body(request)
        weight = weight_of(space.tenant_id, space.pk)
        _require_confirmed(request, space.name, weight)
        remove_space(space=space, actor=actor(request))
        return Response(weight, status=202)


class NodeFilter(TenantFilter):
    node = Text()
    space = RowNumber(field_name="space_id")
    live = Flag(method="filter_live", help_text="with young heartbeats")

    def filter_live(self, rows: QuerySet, name: str, value: bool) -> QuerySet:
        live = Q(ended_at=None, last_heartbeat_at__gt=live_since())
        return rows.filter(live) if value else rows.exclude(live)


class NodesView(ReadOnlyView):
    """Node sessions, present and past."""

    model = NodeSession
    lookup_field = "uuid"
    lookup_value_regex = UUID
    orderings = ("-opened_at", "last_heartbeat_at")
    serializer_class = shapes.NodeSerializer
    filterset_class = NodeFilter

    def get_permissions(self) -> Any:
        return [Operators()] if self.action == "end" else super().get_permissions()

    @extend_schema(request=None, responses=shapes.NodeSerializer)
    @action(methods=["post"], detail=True)
    def end(self, request: Request, uuid: str) -> Response:
        """Ends the session and its Valkey access at once; revoke the key to keep the node out."""
        session = self.get_object()
        no_body(request)
        cut_session(session=session, actor=actor(request))
        return Response(shapes.NodeSerializer(self.get_object()).data)


class SegmentFilter(TenantFilter):
    space = RowNumber(field_name="space_id")
    state = django_filters.ChoiceFilter(choices=Segment.State.choices)


class SegmentsView(ReadOnlyView):
    """S3 objects full of blocks."""

    model = Segment
    orderings = ("-id", "size_bytes")
    serializer_class = shapes.SegmentSerializer
    filterset_class = SegmentFilter


class JobFilter(TenantFilter):
    kind = Text()
    state = django_filters.ChoiceFilter(choices=Job.State.choices)


class JobsView(CreateModelMixin, ReadOnlyView):
    """Background work: what ticks found, and what somebody asked for."""

    model = Job
    lookup_field = "uuid"
    lookup_value_regex = UUID
    serializer_class = shapes.JobSerializer
    filterset_class = JobFilter

    def get_permissions(self) -> Any:
        changes = self.action in ("create", "cancel", "retry")
        return [Operators()] if changes else super().get_permissions()

    @extend_schema(request=shapes.NewJobSerializer, responses={201: shapes.JobSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Asks a worker for a job, such as compacting a tenant now. Follow its address."""
        body = checked(shapes.NewJobSerializer, request)
        tenant = None
        if "tenant" in body:
            tenant = Tenant.objects.filter(slug=body["tenant"], is_active=True).first()
            if tenant is None:
                words = f"tenant: there is no active tenant {body['tenant']!r}."
                raise Problem("malformed", words, field="tenant")
        asked_by = actor(request)
        job = jobs.request(kind=body["kind"], tenant=tenant, actor=asked_by)
        return Response(shapes.JobSerializer(job).data, status=201)

    @extend_schema(request=None, responses=shapes.JobSerializer)
    @action(methods=["post"], detail=True)
    def cancel(self, request: Request, uuid: str) -> Response:
        """Ends a requested job: a waiting one now, a running one at its next step."""
        no_body(request)
        return self._changed(jobs.cancel_by, "what has ended cannot be cancelled")

    @extend_schema(request=None, responses=shapes.JobSerializer)
    @action(methods=["post"], detail=True)
    def retry(self, request: Request, uuid: str) -> Response:
        """Runs a requested job that failed or was cancelled once more."""
        no_body(request)
        return self._changed(jobs.retry_by, "only what failed or was cancelled runs again")

    def _changed(self, change: Callable[[Job, Actor], bool], refusal: str) -> Response:
        job = self.get_object()
        if not change(job, actor(self.request)):
            if not job.is_requested:
                refusal = "only jobs that somebody requested can be cancelled or retried"
            raise Problem("conflict", f"This {job.kind} job is {job.state}: {refusal}.")
        job.refresh_from_db()
        return Response(shapes.JobSerializer(job).data)


class AuditFilter(TenantFilter):
    action = Text()
    actor = Text(field_name="actor_name")
    object_id = Text()


class AuditView(ReadOnlyView):
    """Who changed what."""

    model = AuditEvent
    orderings = ("-at",)
    serializer_class = shapes.AuditSerializer
    filterset_class = AuditFilter


class KeyFilter(TenantFilter):
    role = django_filters.ChoiceFilter(choices=ApiKey.Role.choices)


class KeysView(CreateModelMixin, ReadOnlyView):
    """API keys, without their secrets. Operators issue and revoke them."""

    model = ApiKey
    serializer_class = shapes.KeySerializer
    filterset_class = KeyFilter
    secret_members = ("key",)

    def get_permissions(self) -> Any:
        if self.action in ("create", "revoke"):
            return [Operators()]
        return super().get_permissions()

    @extend_schema(request=shapes.NewKeySerializer, responses={201: shapes.IssuedKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Issues a key. The answer holds it whole, this once; a replayed answer holds null."""
        body = checked(shapes.NewKeySerializer, request)
        tenant = None
        if body["tenant"] is not None:
            tenant = Tenant.objects.filter(slug=body["tenant"]).first()
            if tenant is None:
                raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        key, plaintext = services.issue_key(
            tenant=tenant,
            role=body["role"],
            name=body["name"],
            expires_at=body["expires_at"],
            actor=actor(request),
        )
        key.key = plaintext
        return Response(shapes.IssuedKeySerializer(key).data, status=201)

    @extend_schema(request=None, responses=shapes.KeySerializer)
    @action(methods=["post"], detail=True)
    def revoke(self, request: Request, pk: str) -> Response:
        """The key is refused from now on."""
        key = self.get_object()
        no_body(request)
        key = services.revoke_key(key=key, actor=actor(request))
        return Response(shapes.KeySerializer(key).data)


@extend_schema_view(
    get=extend_schema(
        parameters=[
            OpenApiParameter("range", str, enum=list(RANGES), default="15m"),
            OpenApiParameter("tenant", TEXT, description="slug; absent: all that you may see"),
        ],
        responses=shapes.UsageSerializer,
        operation_id="usage",
    )
)
class UsageView(ApiView, APIView):
    """Counters over time, summed over tenants."""

    takes = {"get": ("range", "tenant")}

    def get(self, request: Request) -> Response:
        range_ = request.query_params.get("range", "15m")
        if range_ not in RANGES:
            raise Problem("malformed", f"range: need one of {', '.join(RANGES)}.", field="range")
        seconds, resolution_s = RANGES[range_]
        points = usage.series(
            tenant_ids=_tenants_asked(request),
            resolution_s=resolution_s,
            since_ts=int(timezone.now().timestamp()) - seconds,
        )
        return Response({"resolution_s": resolution_s, "points": points})


class SchemaView(StrictQuery, APIView):
    """The description of both APIs, for anybody."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponseBase:
        raw, etag = openapi.document()
        response = HttpResponse(raw, content_type="application/json")
        response["ETag"], response["Cache-Control"] = etag, "max-age=300"
        return get_conditional_response(request._request, etag=etag, response=response)


def _require_confirmed(request: Request, name: str, weight: dict[str, int]) -> None:
    """Raises Problem (unconfirmed) that says how much would go."""
    if request.query_params.get("confirm") != name:
        facts = ", ".join(f"{count} {what}" for what, count in weight.items())
        raise Problem(
            "unconfirmed", f"This removes {facts}. Repeat it with ?confirm={name}.", **weight
        )


def _tenants_asked(request: Request) -> frozenset[int] | None:
    visible: frozenset[int] | None = request.user.tenant_ids
    slug = request.query_params.get("tenant")
    if slug is None:
        return visible
    tenant = Tenant.objects.filter(slug=slug).first()
    if tenant is None or (visible is not None and tenant.pk not in visible):
        raise Problem("not-found", "There is no such tenant.")
    return frozenset({tenant.pk})
