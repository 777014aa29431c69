"""/api/v1/stores, /move-rules and /moves: where segments are, and how they move."""

from decimal import Decimal
from typing import Any, cast

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import Operators, caller
from cacheapi.base.fields import Flag, Number, StrictSerializer, Text, WholeNumber
from cacheapi.base.filters import RowFilter, TenantFilter, TextFilter
from cacheapi.base.viewsets import (
    ReadOnlyView,
    RowsView,
    TenantOwnedSerializer,
    checked,
    no_body,
)
from cacheapi.teams.prices import Amount
from cacheapi.teams.removal import CONFIRM, require_confirmed
from cacheapi.teams.tenants import Slug
from catalog import store_changes, stores
from catalog.models import MoveRule, SegmentCopy, Store
from planning import moves
from tenants.models import Tenant
from tenants.principal import actor_of

_ABOUT = {
    name: str(Store._meta.get_field(name).help_text)  # type: ignore[union-attr]
    for name in store_changes.PRICES
}
_LEAST_BYTES_PER_S = 1_000_000  # a part of 16 MiB then takes 17 s, well within a lease
MAX_S = 2**31 - 1


def _amounts(**options: Any) -> dict[str, Amount]:
    return {name: Amount(allow_null=True, help_text=_ABOUT[name], **options) for name in _ABOUT}


class StoreSerializer(serializers.ModelSerializer[Store]):
    """What it holds is of all tenants."""

    has_secret_key = serializers.SerializerMethodField(help_text="the key itself is never shown")
    locals().update(_amounts(read_only=True))
    segments = serializers.SerializerMethodField(help_text="whose own place it is")
    stored_bytes = serializers.SerializerMethodField(help_text="of these segments")
    copy_bytes = serializers.SerializerMethodField(help_text="of segments whose place is elsewhere")
    leaving_bytes = serializers.SerializerMethodField(
        help_text="of copies that arrive, or that are deleted after the grace time"
    )
    money_a_month = serializers.SerializerMethodField(help_text="of all its bytes, if they stay")

    class Meta:
        model = Store
        fields = (
            *("id", "name", "is_default", "endpoint", "bucket", "region", "access_key"),
            *("has_secret_key", "credentials_env", "storage_class", "priority"),
            *(*store_changes.PRICES, "move_bytes_per_s", "error", "failing_since"),
            *("segments", "stored_bytes", "copy_bytes", "leaving_bytes", "money_a_month"),
            *("created_at", "updated_at"),
        )
        read_only_fields = fields

    def to_representation(self, row: Store) -> Any:
        shown = super().to_representation(row)
        if row.is_default:
            bucket = stores.bucket_of(row)
            shown |= {
                "endpoint": bucket.endpoint,
                "bucket": bucket.name,
                "region": bucket.region,
                "access_key": bucket.access_key,
                "has_secret_key": True,
            }
        return shown

    def get_has_secret_key(self, row: Store) -> bool:
        return bool(row.sealed_secret)

    def get_segments(self, row: Store) -> int:
        return self._held(row).segments

    def get_stored_bytes(self, row: Store) -> int:
        return self._held(row).bytes

    def get_copy_bytes(self, row: Store) -> int:
        return self._held(row).copy_bytes

    def get_leaving_bytes(self, row: Store) -> int:
        return self._held(row).leaving_bytes

    def get_money_a_month(self, row: Store) -> str:
        return f"{self._held(row).money_a_month:.2f}"

    def _held(self, row: Store) -> moves.Held:
        """Summed once for an answer."""
        context = cast(dict[str, Any], self.root._context)  # `context` may be a copy
        if "held" not in context:
            context["held"] = {each.store.pk: each for each in moves.held()}
        found: moves.Held = context["held"].get(row.pk) or moves.Held(row)
        return found


class StoreChangeSerializer(StrictSerializer):
    """Absent members keep their value. Of the default store only priority, prices and the bound of
    moves can be changed."""

    schema = {"minProperties": 1}
    endpoint = Text(max_length=300, required=False, help_text="such as https://s3.example")
    bucket = Text(max_length=63, required=False, help_text="exists already; a store of its own")
    region = Text(max_length=60, required=False)
    access_key = Text(max_length=200, required=False)
    secret_key = Text(max_length=200, required=False, help_text="sealed, and never shown")
    credentials_env = Text(
        max_length=60,
        allow_blank=True,
        required=False,
        help_text="in place of keys: NEVE_STORE_NVME reads NEVE_STORE_NVME_ACCESS_KEY and "
        "NEVE_STORE_NVME_SECRET_KEY of the environment of web and workers",
    )
    storage_class = Text(
        max_length=40, allow_blank=True, required=False, help_text="such as STANDARD_IA"
    )
    priority = WholeNumber(
        max_value=32_767, required=False, help_text="readers take the smallest; the default has 100"
    )
    move_bytes_per_s = WholeNumber(
        min_value=_LEAST_BYTES_PER_S, required=False, help_text="bound of moves into it"
    )
    locals().update(_amounts(required=False))

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one member to change")
        return attrs


class NewStoreSerializer(StoreChangeSerializer):
    schema: dict[str, Any] = {}
    name = Slug(help_text="a to z, digits, hyphens; nodes name near stores by it")
    endpoint = Text(max_length=300, help_text="such as https://s3.example")
    bucket = Text(max_length=63, help_text="exists already; a store of its own")
    region = Text(max_length=60, default="us-east-1")


class RemovedStoreSerializer(serializers.Serializer[Any]):
    """What went with a store."""

    lost_segments = serializers.IntegerField(help_text="given up: no other store has a copy")
    rules = serializers.ListField(
        child=serializers.CharField(), help_text="names of the rules that named it"
    )


class StoreFilter(django_filters.FilterSet):
    name = TextFilter()


class _PlatformRows(ReadOnlyView):
    """Rows of the platform, for operators."""

    select: tuple[str, ...] = ()

    def get_permissions(self) -> Any:
        return [Operators()]

    def visible(self) -> QuerySet[Any]:
        return self.model._default_manager.all()


class StoresView(_PlatformRows):
    """S3 buckets that hold segments."""

    model = Store  # type: ignore[assignment]
    orderings = ("priority", "name")
    serializer_class = StoreSerializer
    filterset_class = StoreFilter
    takes = {"destroy": ("confirm",)}
    moving = (
        *("error", "failing_since", "segments", "stored_bytes", "copy_bytes", "leaving_bytes"),
        "money_a_month",
    )

    @extend_schema(request=NewStoreSerializer, responses={201: StoreSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Adds a store, after an object was written, read and deleted there."""
        fields = checked(NewStoreSerializer, request)
        row = store_changes.add_store(actor=actor_of(request), **fields)
        return Response(StoreSerializer(row).data, status=201)

    @extend_schema(request=StoreChangeSerializer, responses=StoreSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes a store. One that holds segments keeps endpoint and bucket."""
        row = self.get_object()
        fields = checked(StoreChangeSerializer, request)
        row = store_changes.change_store(store=row, actor=actor_of(request), **fields)
        return Response(StoreSerializer(row).data)

    @extend_schema(parameters=[CONFIRM], request=None, responses={200: RemovedStoreSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a store, and the rules that name it. Deletes nothing there: of segments that have
        no copy elsewhere the blocks become misses, so move them by a rule first. The answer says
        how many segments were given up, and which rules are gone."""
        row = self.get_object()
        no_body(request)
        weight = store_changes.removal_of(row)
        if any(weight.values()):
            require_confirmed(request, row.name, weight)
        removed = store_changes.remove_store(store=row, actor=actor_of(request))
        return Response(RemovedStoreSerializer(removed).data)


class MoveRuleSerializer(serializers.ModelSerializer[MoveRule]):
    tenant = serializers.CharField(
        source="tenant.slug", allow_null=True, read_only=True, help_text="null: all tenants"
    )
    source = serializers.CharField(  # type: ignore[assignment]
        source="source.name", allow_null=True, read_only=True, help_text="store; null: any other"
    )
    target = serializers.CharField(source="target.name", read_only=True, help_text="store")
    warnings = serializers.SerializerMethodField(help_text="in words; empty: none")

    class Meta:
        model = MoveRule
        fields = (
            *("id", "name", "position", "is_active", "tenant", "source", "target", "is_copy"),
            *("least_age_s", "least_idle_s", "least_heat", "payback_days", "warnings"),
            *("created_at", "updated_at"),
        )
        read_only_fields = fields

    def to_representation(self, row: MoveRule) -> Any:
        shown = super().to_representation(row)
        return {"tenant": None, "source": None} | shown

    def get_warnings(self, row: MoveRule) -> list[str]:
        return store_changes.warnings_of(row)


class MoveRuleChangeSerializer(StrictSerializer):
    """Absent members keep their value. Conditions that are null do not count; all others must
    hold."""

    schema = {"minProperties": 1}
    name = Text(max_length=100, required=False)
    position = WholeNumber(
        max_value=32_767, required=False, help_text="the rule with the smallest one decides"
    )
    is_active = Flag(required=False)
    source = Slug(  # type: ignore[assignment]
        allow_null=True, required=False, help_text="name of a store; null: any other"
    )
    target = Slug(required=False, help_text="name of a store")
    is_copy = Flag(required=False, help_text="the old place stays; else the segment moves")
    least_age_s = WholeNumber(
        max_value=MAX_S, allow_null=True, required=False, help_text="written so long ago"
    )
    least_idle_s = WholeNumber(
        max_value=MAX_S,
        allow_null=True,
        required=False,
        help_text="no node asked for its address for so long",
    )
    least_heat = Number(
        min_value=0,
        max_value=1e6,
        allow_null=True,
        required=False,
        help_text="minutes in which a node asked for its address, halved every six hours",
    )
    payback_days = WholeNumber(
        min_value=1,
        max_value=32_767,
        allow_null=True,
        required=False,
        help_text="the cheaper place pays for the move within so many",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError("name at least one member to change")
        return attrs


class NewMoveRuleSerializer(MoveRuleChangeSerializer):
    schema: dict[str, Any] = {}
    name = Text(max_length=100)
    tenant = Text(allow_null=True, required=False, help_text="slug; null: all tenants")
    target = Slug(help_text="name of a store")


@extend_schema_field({"type": "string", "pattern": r"^-?\d+(\.\d{1,12})?$"})
class Money(serializers.Field[Decimal, Any, str, Any]):
    """A sum as plain decimal text with at most 12 decimals."""

    def to_representation(self, value: Decimal) -> str:
        return f"{round(value, 12).normalize() + 0:f}"


class WaySerializer(serializers.Serializer[Any]):
    """What one rule would move from one store to another."""

    rule = serializers.CharField()
    source = serializers.CharField()  # type: ignore[assignment]
    target = serializers.CharField()
    segments = serializers.IntegerField()
    bytes = serializers.IntegerField()
    cost = Money(help_text="of requests and bytes out, once")
    saved_a_month = Money(help_text="of storage and of nodes' reads; negative: it costs more")
    seconds = serializers.FloatField(help_text="at the target's bound of bytes a second")
    away = serializers.ListField(
        child=serializers.CharField(),
        help_text="names of its stores that do not answer: the moves wait for them",
    )


class MoveDryRunSerializer(serializers.Serializer[Any]):
    currency = serializers.CharField()
    is_whole = serializers.BooleanField(help_text="false: there are more segments")
    ways = WaySerializer(many=True)
    fitting = serializers.IntegerField(
        help_text="segments that are old, idle and warm enough and not in the target; those that "
        "do not move are among the next three"
    )
    unpaid = serializers.IntegerField(help_text="of these: the move does not pay back in time")
    resting = serializers.IntegerField(help_text="of these: moved within the last hour")
    copied = serializers.IntegerField(help_text="of these: the target has a copy already")


class MoveRuleFilter(TenantFilter):
    name = TextFilter()


class MoveRulesView(_PlatformRows):
    """Which segments move, or are copied, to which store."""

    model = MoveRule  # type: ignore[assignment]
    select = ("tenant", "source", "target")
    orderings = ("position",)
    serializer_class = MoveRuleSerializer
    filterset_class = MoveRuleFilter
    reads = (*RowsView.reads, "dry_run")

    @extend_schema(request=NewMoveRuleSerializer, responses={201: MoveRuleSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Adds a rule. Add it inactive and ask for a dry run to see what it would do."""
        fields = _with_rows(checked(NewMoveRuleSerializer, request))
        row = store_changes.add_rule(actor=actor_of(request), **fields)
        return Response(MoveRuleSerializer(row).data, status=201)

    @extend_schema(request=MoveRuleChangeSerializer, responses=MoveRuleSerializer)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Changes a rule."""
        row = self.get_object()
        fields = _with_rows(checked(MoveRuleChangeSerializer, request))
        row = store_changes.change_rule(rule=row, actor=actor_of(request), **fields)
        return Response(MoveRuleSerializer(row).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Removes a rule. Segments stay where they are; copies that only it kept leave."""
        row = self.get_object()
        no_body(request)
        store_changes.remove_rule(rule=row, actor=actor_of(request))
        return Response(status=204)

    @extend_schema(request=None, responses=MoveDryRunSerializer)
    @action(methods=["post"], detail=True, url_path="dry-run", url_name="dry-run")
    def dry_run(self, request: Request, pk: str) -> Response:
        """Says what this rule alone would move now, with money. Moves nothing."""
        row = self.get_object()
        no_body(request)
        run = moves.dry_run_of(row)
        return Response(MoveDryRunSerializer(run).data)


class MoveSerializer(TenantOwnedSerializer):
    segment = serializers.IntegerField(source="segment_id", read_only=True)
    store = serializers.SerializerMethodField(help_text="name of the store that holds the copy")
    target = serializers.SerializerMethodField(
        help_text="name of the store where the segment went, if the copy is its old place"
    )
    reason = serializers.SerializerMethodField(help_text="name of the rule; empty for tenants")

    class Meta:
        model = SegmentCopy
        fields = (
            *("id", "tenant", "segment", "store", "state", "target", "size_bytes", "reason"),
            "since",
        )
        read_only_fields = fields

    def get_store(self, copy: SegmentCopy) -> str:
        return stores.name_of(copy.store)

    def get_reason(self, copy: SegmentCopy) -> str:
        return copy.reason if caller(self.context["request"]).is_operator else ""

    @extend_schema_field(serializers.CharField(allow_null=True))
    def get_target(self, copy: SegmentCopy) -> str | None:
        if copy.state not in (SegmentCopy.State.LEAVING, SegmentCopy.State.DELETING):
            return None
        return stores.name_of(copy.target)


class MoveFilter(TenantFilter):
    segment = RowFilter(field_name="segment_id")
    state = django_filters.ChoiceFilter(choices=SegmentCopy.State.choices)


class MovesView(ReadOnlyView):
    """Copies of segments in other stores: arriving, kept, or leaving after a move."""

    model = SegmentCopy
    select = ("tenant", "store", "target")
    orderings = ("-since",)
    serializer_class = MoveSerializer
    filterset_class = MoveFilter


def _with_rows(fields: dict[str, Any]) -> dict[str, Any]:
    """Replaces names of stores and the tenant's slug by rows. Raises Problem (malformed)."""
    for name in ("source", "target"):
        if fields.get(name) is not None:
            row = Store.objects.filter(name=fields[name]).first()
            if row is None:
                raise Problem(
                    "malformed", f"{name}: there is no store {fields[name]!r}.", field=name
                )
            fields[name] = row
    if fields.get("tenant") is not None:
        tenant = Tenant.objects.filter(slug=fields["tenant"]).first()
        if tenant is None:
            raise Problem("malformed", "tenant: there is no such tenant.", field="tenant")
        fields["tenant"] = tenant
    return fields
