"""Operations on contexts."""

from dataclasses import asdict
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import ScopesOfContexts
from cacheapi.base.exports import Exported
from cacheapi.base.queries import flag
from cacheapi.base.viewsets import UUID, ReadOnlyView, checked, no_body
from cacheapi.teams.contexts.bulk import BulkActions
from cacheapi.teams.contexts.diff import DiffAction
from cacheapi.teams.contexts.filters import ContextFilter
from cacheapi.teams.contexts.making import CreateAction
from cacheapi.teams.contexts.serializers import (
    ContextDetailSerializer,
    ContextExpireSerializer,
    ContextExtendSerializer,
    ContextPinSerializer,
    ContextSerializer,
    ContextUnpinSerializer,
    ContextUpdateSerializer,
    ExpiredSerializer,
    ExtendedSerializer,
    PinnedSerializer,
    PinSerializer,
    ResidencyRunsSerializer,
    ResidencySerializer,
    UnpinnedSerializer,
)
from cacheapi.teams.contexts.warming import WarmAction
from catalog.models import Context
from contexts import pins
from contexts import services as contexts
from contexts.expiry import NOTHING, expire, expire_at
from contexts.residency import residency_of
from tenants.principal import actor_of


class ContextsView(
    ScopesOfContexts, CreateAction, WarmAction, BulkActions, DiffAction, Exported, ReadOnlyView
):
    """Named chains of blocks."""

    model = Context
    select = ("tenant", "space")
    lookup_field = "uuid"
    lookup_value_regex = UUID
    orderings = ("-created_at", "updated_at", "last_used_at", "name", "tokens", "size_bytes")
    takes = {"retrieve": ("blocks",), "residency": ("blocks",), "diff": ("with",)}
    refusals = {"bulk": (404,)}  # of somebody else's preview
    unconditional = ("warm",)
    moving = (  # what nodes, the check and the clock change
        *("blocks", "tokens", "size_bytes", "state", "is_pinned", "pin_tier", "loss"),
        *("last_used_at", "checked_at", "updated_at"),
    )
    defer = ("chain",)
    serializer_class = ContextSerializer
    filterset_class = ContextFilter

    @extend_schema(
        parameters=[
            OpenApiParameter("blocks", OpenApiTypes.BOOL, description="list block by block")
        ],
        responses=ContextDetailSerializer,
    )
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """The context with its pins and its residency: its hot, cold, lost and durable blocks."""
        with_blocks = flag(request, "blocks")
        context = self.get_object()
        live = PinSerializer(pins.live_of(context), many=True).data
        residency = _residency(context, with_blocks=with_blocks)
        answer = {**ContextSerializer(context).data, "pins": live, "residency": residency}
        return Response(answer)

    @extend_schema(
        parameters=[
            OpenApiParameter("blocks", OpenApiTypes.BOOL, description="list block by block")
        ],
        responses=ResidencyRunsSerializer,
    )
    @action(methods=["get"], detail=True)
    def residency(self, request: Request, uuid: str) -> Response:
        """Where the context is stored: totals, and in runs of tokens."""
        with_blocks = flag(request, "blocks")
        found = asdict(residency_of(self.get_object()))
        if not with_blocks:
            del found["blocks"]
        return Response(ResidencyRunsSerializer(found).data)

    @extend_schema(request=ContextUpdateSerializer, responses=ContextSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Renames the context, or changes its label or labels. A request that still names the old
        name makes a new context."""
        context = self.object_to_change()
        body = checked(ContextUpdateSerializer, request)
        changed = contexts.change(context=context, actor=actor_of(request), **body)
        return Response(ContextSerializer(changed).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Forgets the context and its pins. Its blocks stay for as long as other contexts that
        hold them say, or else their space."""
        context = self.object_to_change()
        no_body(request)
        contexts.delete(context=context, actor=actor_of(request))
        return Response(status=204)

    @extend_schema(request=ContextPinSerializer, responses=PinnedSerializer)
    @action(methods=["post"], detail=True)
    def pin(self, request: Request, uuid: str) -> Response:
        """Keeps the blocks until then, under any quota pressure. You have one pin on a context: a
        new one replaces it. The latest end of all pins counts. `tier` asks for copies in Valkey or
        in S3, which are made after the answer."""
        context = self.object_to_change()
        body = checked(ContextPinSerializer, request)
        pinned = pins.pin(
            context=context,
            until=body["until"],
            reason=body.get("reason", ""),
            tier=body["tier"],
            actor=actor_of(request),
        )
        return Response(PinnedSerializer(pinned).data)

    @extend_schema(request=ContextUnpinSerializer, responses=UnpinnedSerializer)
    @action(methods=["post"], detail=True)
    def unpin(self, request: Request, uuid: str) -> Response:
        """Ends your pin; blocks that another pin keeps stay pinned."""
        context = self.object_to_change()
        body = checked(ContextUnpinSerializer, request)
        unpinned = pins.unpin(
            context=context,
            pin_id=body.get("pin"),
            everybody=body["all"],
            actor=actor_of(request),
        )
        return Response(UnpinnedSerializer(unpinned).data)

    @extend_schema(request=ContextExpireSerializer, responses=ExpiredSerializer)
    @action(methods=["post"], detail=True)
    def expire(self, request: Request, uuid: str) -> Response:
        """Removes the blocks from both tiers now or `at` a time, except those that another
        unexpired context holds. `dry_run` counts them and changes nothing."""
        context = self.object_to_change()
        body = checked(ContextExpireSerializer, request)
        dry_run, actor = body["dry_run"], actor_of(request)
        if "at" in body:
            found = expire_at(context=context, at=body["at"], actor=actor)
        else:
            found = expire(context=context, dry_run=dry_run, actor=actor)
        expiry = asdict(found or NOTHING)
        is_kept = dry_run or "at" in body
        answer = {
            **expiry,
            "dry_run": dry_run,
            "expires_at": context.expires_at if is_kept else None,
        }
        return Response(ExpiredSerializer(answer).data)

    @extend_schema(request=ContextExtendSerializer, responses=ExtendedSerializer)
    @action(methods=["post"], detail=True)
    def extend(self, request: Request, uuid: str) -> Response:
        """Extends the lifetime of the blocks: they end at that long from now at the earliest."""
        context = self.object_to_change()
        for_s = checked(ContextExtendSerializer, request)["for_s"]
        extended = contexts.extend(context=context, for_s=for_s, actor=actor_of(request))
        return Response(ExtendedSerializer(extended).data)


def _residency(context: Context, *, with_blocks: bool) -> dict[str, Any] | None:
    """None while the hot tier does not answer."""
    try:
        found = asdict(residency_of(context))
    except Problem:
        return None
    if not with_blocks:
        del found["blocks"]
    return dict(ResidencySerializer(found).data)
