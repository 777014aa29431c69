"""/api/v1/spaces: KV layouts."""

import re
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import MAX_INT
from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.losses import LossSerializer
from cacheapi.base.queries import malformed
from cacheapi.base.schemas import PART_GROUP
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, no_body
from cacheapi.teams.lineage import BOUNDS, LineageAction
from cacheapi.teams.removal import CONFIRM, RemovalSerializer, require_confirmed
from cacheapi.teams.removals import RemovalsAction
from catalog.clashes import differences
from catalog.models import Space
from catalog.spaces import remove_space, weight_of
from contexts.break_even import AT_TOKENS, break_evens
from tenants.principal import actor_of

OTHER = {"type": "integer", "minimum": 1, "maximum": MAX_INT}


@extend_schema_field({"type": "array", "items": PART_GROUP})
class Groups(serializers.JSONField):
    pass


class SpaceSerializer(TenantOwnedSerializer):
    groups = Groups(
        read_only=True,
        help_text="of each chunk one part is stored for each of these KV groups; empty: one block "
        "with the KV of all its tokens",
    )

    loss = LossSerializer(
        read_only=True,
        allow_null=True,
        help_text="of KV that is stored with loss; null: its blocks are exact",
    )

    class Meta:
        model = Space
        fields: tuple[str, ...] = (
            *("id", "tenant", "name", "fingerprint", "chunk_tokens", "identity", "groups"),
            *("loss", "created_at"),
        )
        read_only_fields = fields


class TierSpeedSerializer(serializers.Serializer[Any]):
    bytes_per_s = serializers.FloatField(allow_null=True, help_text="median of what nodes measured")
    round_trip_s = serializers.FloatField(allow_null=True, help_text="what each load costs besides")
    moved_bytes_per_s = serializers.FloatField(
        allow_null=True, help_text="read by live nodes, over the last 5 to 10 minutes"
    )
    wins = serializers.BooleanField(
        allow_null=True, help_text="false: computing is faster at every length; null: unknown"
    )
    from_tokens = serializers.IntegerField(
        allow_null=True,
        help_text="whole chunks; a prefix at least this long is loaded 5 % faster than computed",
    )


class DecisionsSerializer(serializers.Serializer[Any]):
    load_all = serializers.IntegerField()
    load_prefix = serializers.IntegerField()
    recompute = serializers.IntegerField()


class BreakEvenSerializer(serializers.Serializer[Any]):
    """When loading beats computing, by live nodes. Bytes are of all ranks of an engine."""

    bytes_per_token = serializers.FloatField(allow_null=True, help_text="that a request loads")
    fixed_bytes = serializers.IntegerField(
        allow_null=True, help_text="for each request: tails of windows, and states"
    )
    at_tokens = serializers.IntegerField(help_text="prompt length of the next two")
    prefill_tokens_per_s = serializers.FloatField(allow_null=True)
    break_even_bytes_per_s = serializers.FloatField(
        allow_null=True, help_text="loading faster than this beats computing"
    )
    hot = TierSpeedSerializer()
    cold = TierSpeedSerializer()
    local = TierSpeedSerializer(help_text="nodes' own tiers")
    decisions_hour = DecisionsSerializer(
        help_text="found prefixes of the last 60 to 65 minutes, by what nodes did"
    )
    decisions_day = DecisionsSerializer(help_text="of the last 24 to 25 hours")
    nodes = serializers.IntegerField(help_text="live ones that measured; figures are their medians")
    basis = serializers.CharField()
    verdict = serializers.CharField(help_text="one sentence")


class SpaceDetailSerializer(SpaceSerializer):
    break_even = BreakEvenSerializer(read_only=True)

    class Meta(SpaceSerializer.Meta):
        fields = (*SpaceSerializer.Meta.fields, "break_even")
        read_only_fields = fields


class SpaceFilter(TenantFilter):
    name = TextFilter()
    model = TextFilter(field_name="identity__model", help_text="as `identity` names it")
    fingerprint = TextFilter()


class DifferenceSerializer(serializers.Serializer[Any]):
    """`this` and `other`: values of the field; null where a layout does not have it."""

    field = serializers.CharField()
    this = serializers.JSONField(allow_null=True)
    other = serializers.JSONField(allow_null=True)
    fix = serializers.CharField(help_text="what makes them equal: a setting of the engine")


class ComparisonSerializer(serializers.Serializer[Any]):
    is_equal = serializers.BooleanField(help_text="engines of both would share KV")
    differences = DifferenceSerializer(many=True)


class SpacesView(LineageAction, RemovalsAction, ReadOnlyView):
    """KV layouts."""

    model = Space
    serializer_class = SpaceSerializer
    filterset_class = SpaceFilter
    orderings = ("-created_at", "name")
    operators_only = ("destroy",)
    moving = ("loss",)
    takes = {
        **{"destroy": ("confirm",), "lineage": tuple(BOUNDS), "compare": ("with",)},
        "removals": ("after",),
    }

    @extend_schema(responses=SpaceDetailSerializer)
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """A space, with what its nodes measured of loading and computing."""
        space = self.get_object()
        even = break_evens([space])[space.pk]
        answer = {
            "bytes_per_token": even.size and even.size.per_token,
            "fixed_bytes": even.size and even.size.fixed,
            "at_tokens": AT_TOKENS,
            "prefill_tokens_per_s": even.prefill_tokens_per_s,
            "break_even_bytes_per_s": even.break_even_bytes_per_s,
            **{str(tier): found for tier, found in even.tiers.items()},
            "decisions_hour": even.decisions_hour,
            "decisions_day": even.decisions_day,
            "nodes": even.nodes,
            "basis": even.basis,
            "verdict": even.verdict,
        }
        row = self.get_serializer(space).data
        return Response(row | {"break_even": BreakEvenSerializer(answer).data})

    @extend_schema(
        parameters=[OpenApiParameter("with", OTHER, required=True, description="the other space")],
        responses=ComparisonSerializer,
    )
    @action(methods=["get"], detail=True)
    def compare(self, request: Request, pk: str) -> Response:
        """Says in which fields of the layout two spaces differ, and what to set on the engine so
        that both share KV."""
        space = self.get_object()
        number = request.query_params.get("with", "")
        if not re.fullmatch(r"[1-9][0-9]{0,17}", number):
            raise malformed("with", f"need the number of a space, got {number[:60]!r}")
        other = self.visible().select_related("tenant").filter(pk=number).first()
        if other is None:
            raise Problem("not-found", "with: there is no such space.", field="with")
        found = differences(space, other)
        answer = {"is_equal": not found, "differences": found}
        return Response(ComparisonSerializer(answer).data)

    @extend_schema(parameters=[CONFIRM], responses={202: RemovalSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ends the space's sessions at once; its data is deleted within minutes."""
        space = self.get_object()
        no_body(request)
        weight = weight_of(space.tenant_id, space.pk)
        require_confirmed(request, space.name, weight)
        remove_space(space=space, actor=actor_of(request))
        return Response(weight, status=202)
