"""/api/v1/contexts/{id}/diff: two contexts compared."""

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.queries import uuid_of
from catalog.models import Context
from contexts.diff import diff


class ExtentSerializer(serializers.Serializer[Any]):
    tokens = serializers.IntegerField()
    blocks = serializers.IntegerField(help_text="of all shards and KV groups")


class DiffSerializer(serializers.Serializer[Any]):
    same_space = serializers.BooleanField(
        help_text="false: they share nothing, even if their tokens are equal"
    )
    shared_tokens = serializers.IntegerField(
        source="shared.tokens", help_text="the common beginning, in whole chunks of tokens"
    )
    shared_blocks = serializers.IntegerField(source="shared.blocks")
    parts_at_token = serializers.IntegerField(
        allow_null=True,
        help_text="first token of the chunk in which they differ; null: one is the beginning of "
        "the other, or they are of different spaces",
    )
    only_this = ExtentSerializer(help_text="what this context has behind the common beginning")
    only_other = ExtentSerializer(help_text="what the other context has behind it")


class DiffAction:
    """For the view of contexts."""

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "with", OpenApiTypes.UUID, required=True, description="id of the other context"
            )
        ],
        responses=DiffSerializer,
    )
    @action(methods=["get"], detail=True)
    def diff(self, request: Request, uuid: str) -> Response:
        """Compares this context with another: the beginning that they share, in tokens and blocks,
        and where they part. Blocks are shared only within one space."""
        context: Context = self.get_object()  # type: ignore[attr-defined]  # of the view
        other = caller(request).rows(Context).defer("chain").select_related("space")
        found = other.filter(pk=uuid_of(request, "with")).first()
        if found is None:
            raise Problem("not-found", "with: there is no such context.", field="with")
        return Response(DiffSerializer(diff(context, found)).data)
