"""Contexts that requests named, reported by nodes."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from cacheapi.base.fields import BlockIds, StrictSerializer, Text, Uuid, WholeNumber
from cacheapi.base.labels import Labels
from cacheapi.base.viewsets import checked
from cacheapi.nodes.view import NodeView, open_session
from contexts import services as contexts
from tenants.principal import actor_of


class ContextReportSerializer(StrictSerializer):
    session = Uuid()
    name = Text(max_length=200)
    block_ids = BlockIds()
    tokens = WholeNumber(min_value=1)
    label = Text(  # type: ignore[assignment]  # DRF takes fields off the class
        max_length=100, allow_null=True, allow_blank=True, default=None
    )
    labels = Labels(required=False, default=dict)
    pin_s = WholeNumber(min_value=1, max_value=365 * 86400, allow_null=True, default=None)
    prompt_tokens = WholeNumber(
        min_value=0,
        default=0,
        help_text="that the request looked up: without those in the engine's own cache",
    )
    hit_tokens = WholeNumber(
        min_value=0, default=0, help_text="of prompt_tokens: loaded from a tier"
    )


class ContextRef(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="pk")
    blocks = serializers.IntegerField()
    pinned_until = serializers.DateTimeField(
        allow_null=True, help_text="null: not pinned, also when the budget of pins refused it"
    )


class ContextsView(NodeView):
    verbs = {"post": "record"}
    refusals = {"post": (404, 409)}

    @extend_schema(
        request=ContextReportSerializer,
        responses={200: ContextRef, 201: ContextRef},
        tags=["cache"],
    )
    def post(self, request: Request) -> Response:
        """A finished request's chain, under the name that the request carried."""
        body = checked(ContextReportSerializer, request)
        context, created = contexts.record(
            session=open_session(body["session"]),
            name=body["name"],
            ids=body["block_ids"],
            tokens=body["tokens"],
            label=body["label"],
            labels=body["labels"],
            pin_s=body["pin_s"],
            prompt_tokens=body["prompt_tokens"],
            hit_tokens=body["hit_tokens"],
            actor=actor_of(request),
        )
        return Response(ContextRef(context).data, status=201 if created else 200)
