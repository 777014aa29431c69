"""/api/v1/spaces: KV layouts."""

from typing import Any

from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.filters import TenantFilter, TextFilter
from cacheapi.base.schemas import PART_GROUP
from cacheapi.base.viewsets import ReadOnlyView, TenantOwnedSerializer, no_body
from cacheapi.teams.lineage import BOUNDS, LineageAction
from cacheapi.teams.removal import CONFIRM, RemovalSerializer, require_confirmed
from catalog.models import Space
from catalog.spaces import remove_space, weight_of
from tenants.principal import actor_of


@extend_schema_field({"type": "array", "items": PART_GROUP})
class Groups(serializers.JSONField):
    pass


class SpaceSerializer(TenantOwnedSerializer):
    groups = Groups(
        read_only=True,
        help_text="of each chunk one part is stored for each of these KV groups; empty: one block "
        "with the KV of all its tokens",
    )

    class Meta:
        model = Space
        fields: tuple[str, ...] = (
            *("id", "tenant", "name", "fingerprint", "chunk_tokens", "identity", "groups"),
            "created_at",
        )
        read_only_fields = fields


class SpaceFilter(TenantFilter):
    name = TextFilter()
    fingerprint = TextFilter()


class SpacesView(LineageAction, ReadOnlyView):
    """KV layouts."""

    model = Space
    serializer_class = SpaceSerializer
    filterset_class = SpaceFilter
    orderings = ("-created_at", "name")
    operators_only = ("destroy",)
    takes = {"destroy": ("confirm",), "lineage": tuple(BOUNDS)}

    @extend_schema(parameters=[CONFIRM], responses={202: RemovalSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ends the space's sessions at once; its data is deleted within minutes."""
        space = self.get_object()
        no_body(request)
        weight = weight_of(space.tenant_id, space.pk)
        require_confirmed(request, space.name, weight)
        remove_space(space=space, actor=actor_of(request))
        return Response(weight, status=202)
