"""/api/v1/spaces/{id}/lineage: the tree of the beginnings that a space's contexts share."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.fields import MAX_INT
from cacheapi.base.queries import number
from catalog.models import Space
from contexts.lineage import MOST_LISTED, lineage

# name → default, least, most
BOUNDS = {"limit": (100, 1, 1000), "depth": (8, 1, 40), "min_tokens": (1, 1, MAX_INT)}
WORDS = {
    "limit": "nodes below the root, those of the most contexts first",
    "depth": "levels below the root",
    "min_tokens": "leave out beginnings of fewer tokens",
}


class LineageContextSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    tokens = serializers.IntegerField()


@extend_schema_field({"type": "array", "items": {"$ref": "#/components/schemas/LineageNode"}})
class Children(serializers.Field[Any, Any, Any, Any]):
    def to_representation(self, value: Any) -> Any:
        return [LineageNodeSerializer(child).data for child in value]


class LineageNodeSerializer(serializers.Serializer[Any]):
    """A beginning that several contexts share; the root is the empty one."""

    tokens = serializers.IntegerField(help_text="length of the beginning")
    blocks = serializers.IntegerField(help_text="of all shards and KV groups")
    context_count = serializers.IntegerField(help_text="contexts that begin so")
    contexts = LineageContextSerializer(
        many=True,
        help_text=f"of those that share no more than this, the {MOST_LISTED} longest",
    )
    children = Children(help_text="longer beginnings, those of the most contexts first")
    more = serializers.IntegerField(
        help_text="contexts that are neither in `contexts` nor below `children`: cut by the "
        "limits; 0: all are shown"
    )


class LineageAction:
    """For the view of spaces."""

    @extend_schema(
        parameters=[
            OpenApiParameter(
                name,
                {"type": "integer", "minimum": least, "maximum": most, "default": default},
                description=WORDS[name],
            )
            for name, (default, least, most) in BOUNDS.items()
        ],
        responses=LineageNodeSerializer,
    )
    @action(methods=["get"], detail=True)
    def lineage(self, request: Request, pk: str) -> Response:
        """The tree of the beginnings that the unexpired contexts of this space share, such as a
        common system prompt. It is bounded; `more` says where it was cut."""
        space: Space = self.get_object()  # type: ignore[attr-defined]  # of the view
        bounds = {
            name: number(request, name, default=default, least=least, most=most)
            for name, (default, least, most) in BOUNDS.items()
        }
        return Response(LineageNodeSerializer(lineage(space, **bounds)).data)
