"""/api/v1/contexts: named chains of blocks, their residency, their pins."""

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import (
    MAX_DURATION_S,
    DeprecatedNumber,
    Duration,
    Flag,
    Moment,
    StrictSerializer,
    Text,
    WholeNumber,
)
from cacheapi.base.filters import FlagFilter, RowFilter, TenantFilter, TextFilter
from cacheapi.base.queries import flag
from cacheapi.base.viewsets import UUID, ReadOnlyView, TenantOwnedSerializer, checked, no_body
from catalog.models import Context, Pin
from contexts import pins
from contexts import services as contexts
from contexts.expiry import expire
from contexts.residency import residency_of
from tenants.principal import actor_of


class ContextFilter(TenantFilter):
    name = TextFilter(help_text="exact name")
    search = TextFilter(field_name="name", lookup_expr="icontains", help_text="part of the name")
    label = TextFilter()
    space = RowFilter(field_name="space_id", help_text="number of the space")
    pinned = FlagFilter(method="filter_pinned")

    def filter_pinned(self, rows: QuerySet[Context], name: str, value: bool) -> QuerySet[Context]:
        pinned = Q(pinned_until__gt=timezone.now())
        return rows.filter(pinned) if value else rows.exclude(pinned)


class ContextSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)

    class Meta:
        model = Context
        fields: tuple[str, ...] = (
            *("id", "tenant", "space", "name", "label", "blocks", "tokens", "pinned_until"),
            *("extended_until", "expired_at", "created_at", "updated_at"),
        )
        read_only_fields = fields


class BlockResidence(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="32 hex digits")
    tier = serializers.CharField(allow_null=True, help_text="hot, cold, or null: not stored")
    reason = serializers.CharField(allow_null=True, help_text="why it is not stored")
    is_durable = serializers.BooleanField(help_text="whether a copy stands in S3")
    size_bytes = serializers.IntegerField(help_text="0: not stored")
    group = serializers.IntegerField(help_text="number of its KV group; 0 in a space without")
    is_needed = serializers.BooleanField(
        help_text="whether a request that goes on behind the context's end needs it"
    )


class ResidencySerializer(serializers.Serializer[Any]):
    """Each block that a request needs behind the context's end is hot, cold or lost. A chunk of
    tokens is where the worst of these blocks is."""

    hot = serializers.IntegerField(help_text="blocks in Valkey, whether or not in S3 as well")
    cold = serializers.IntegerField(help_text="blocks in S3 only")
    lost = serializers.IntegerField(
        help_text="blocks that are stored nowhere, of those that a request needs behind the end"
    )
    durable = serializers.IntegerField(help_text="blocks in S3, whether or not in Valkey as well")
    hot_bytes = serializers.IntegerField()
    cold_bytes = serializers.IntegerField()
    durable_bytes = serializers.IntegerField()
    hot_tokens = serializers.IntegerField()
    cold_tokens = serializers.IntegerField()
    lost_tokens = serializers.IntegerField()
    durable_tokens = serializers.IntegerField()
    usable_tokens = serializers.IntegerField(
        help_text="the longest beginning behind which a request can go on"
    )
    usable_hot_tokens = serializers.IntegerField(
        help_text="the longest one for which nothing is read from S3"
    )
    states = serializers.IntegerField(
        allow_null=True,
        help_text="lengths at which the states of linear attention are stored; null in a space "
        "without",
    )
    blocks = BlockResidence(many=True, required=False)


class PinSerializer(serializers.ModelSerializer[Pin]):
    """A pin and who set it."""

    owner = serializers.CharField(source="owner_name", read_only=True)

    class Meta:
        model = Pin
        fields = ("id", "owner", "reason", "until", "created_at")
        read_only_fields = fields


class ContextDetailSerializer(ContextSerializer):
    pins = PinSerializer(many=True, help_text="those that have not ended")
    residency = ResidencySerializer(
        read_only=True, allow_null=True, help_text="null while the hot tier does not answer"
    )

    class Meta(ContextSerializer.Meta):
        fields = (*ContextSerializer.Meta.fields, "pins", "residency")
        read_only_fields = fields


class ForSerializer(StrictSerializer):
    """`for`, which no Python class can declare, and `for_s`, which it replaces."""

    def get_fields(self) -> Any:
        most = MAX_DURATION_S
        return {
            "for": Duration(required=False, help_text="counted from now"),
            "for_s": DeprecatedNumber(min_value=1, max_value=most, required=False),
            **super().get_fields(),
        }

    @staticmethod
    def seconds(attrs: dict[str, Any]) -> int | None:
        return attrs.get("for", attrs.get("for_s"))


class ContextPinSerializer(ForSerializer):
    """Exactly one of `until`, `for` and `for_s`."""

    schema = {"oneOf": [{"required": [name]} for name in ("until", "for", "for_s")]}
    until = Moment(required=False)
    reason = Text(max_length=200, required=False, help_text="shown to others")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len({"until", "for", "for_s"} & set(attrs)) != 1:
            raise serializers.ValidationError({"until": "give either until or for"})
        if (for_s := self.seconds(attrs)) is not None:
            attrs["until"] = timezone.now() + timedelta(seconds=for_s)
        return attrs


class PinnedSerializer(serializers.Serializer[Any]):
    pin = PinSerializer(help_text="yours")
    pinned_until = serializers.DateTimeField(help_text="the latest end of all pins")
    kept = serializers.IntegerField(help_text="blocks that are pinned now")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere any more")


class ContextUnpinSerializer(StrictSerializer):
    """Without members: your own pin. Operators may name any, or all."""

    schema = {"not": {"required": ["pin", "all"], "properties": {"all": {"enum": [True]}}}}
    pin = WholeNumber(min_value=1, required=False, help_text="number of the pin")
    all = Flag(default=False, help_text="those of everybody")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "pin" in attrs and attrs["all"]:
            raise serializers.ValidationError({"all": "give either pin or all"})
        return attrs


class UnpinnedSerializer(serializers.Serializer[Any]):
    removed = serializers.IntegerField(help_text="pins that ended")
    pinned_until = serializers.DateTimeField(
        allow_null=True, help_text="the latest end of the pins that stay; null: none stays"
    )
    kept = serializers.IntegerField(help_text="blocks that other pins keep")


class ContextExpireSerializer(StrictSerializer):
    dry_run = Flag(default=False, help_text="true: say what would go, change nothing")


class ExpiredSerializer(serializers.Serializer[Any]):
    dry_run = serializers.BooleanField(help_text="whether nothing was changed")
    removed = serializers.IntegerField(help_text="blocks that leave both tiers")
    removed_bytes = serializers.IntegerField()
    shared = serializers.IntegerField(help_text="blocks that stay: other contexts hold them")
    shared_bytes = serializers.IntegerField()
    pinned = serializers.IntegerField(help_text="of the shared ones: pinned by another context")
    lost = serializers.IntegerField(help_text="blocks that were gone before")


class ContextExtendSerializer(ForSerializer):
    """Exactly one of `for` and `for_s`."""

    schema = {"oneOf": [{"required": ["for"]}, {"required": ["for_s"]}]}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len({"for", "for_s"} & set(attrs)) != 1:
            raise serializers.ValidationError({"for": "give for, such as 7d"})
        return {"for_s": self.seconds(attrs)}


class ExtendedSerializer(serializers.Serializer[Any]):
    extended = serializers.IntegerField(help_text="blocks that live so long now")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere any more")


class ContextsView(ReadOnlyView):
    """Named chains of blocks."""

    model = Context
    lookup_field = "uuid"
    lookup_value_regex = UUID
    orderings = ("-created_at", "updated_at", "name")
    takes = {"retrieve": ("blocks",)}
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
        new one replaces it. The latest end of all pins counts."""
        context = self.object_to_change()
        body = checked(ContextPinSerializer, request)
        pinned = pins.pin(
            context=context,
            until=body["until"],
            reason=body.get("reason", ""),
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
        """Removes the blocks from both tiers now, except those that another unexpired context
        holds. `dry_run` counts them and changes nothing."""
        context = self.object_to_change()
        dry_run = checked(ContextExpireSerializer, request)["dry_run"]
        expiry = expire(context=context, dry_run=dry_run, actor=actor_of(request))
        return Response(ExpiredSerializer({**asdict(expiry), "dry_run": dry_run}).data)

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
