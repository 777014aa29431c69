"""POST /contexts: a context before any request."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.access import caller
from cacheapi.base.fields import Text
from cacheapi.base.labels import Labels
from cacheapi.base.viewsets import checked
from cacheapi.teams.contexts.serializers import ContextSerializer
from cacheapi.teams.engines import require_writer
from cacheapi.teams.prompts import PromptSerializer, space_of, wanted_of
from contexts import making
from tenants.principal import actor_of


class ContextCreateSerializer(PromptSerializer):
    """Exactly one of `tokens`, `text` and `messages`. An engine of the space tokenises the last
    two. LoRA adapters and media can not be given: name such contexts in a request."""

    name = Text(max_length=200, help_text="as requests name it in kv_transfer_params")
    label = Text(  # type: ignore[assignment]  # DRF takes fields off the class
        max_length=100, allow_blank=True, default="", help_text="what retention rules match"
    )
    labels = Labels(default=dict)

    def validate_name(self, name: str) -> str:
        if not name.isprintable():
            raise serializers.ValidationError("need printable characters")
        return name


class CreateAction:
    """Of `ContextsView`."""

    @extend_schema(request=ContextCreateSerializer, responses={201: ContextSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Makes a context before any request. Its state says what of it is stored already; `warm`
        computes the rest. The platform keeps the token ids, sealed, until it is deleted."""
        who = caller(request)
        require_writer(who)
        body = checked(ContextCreateSerializer, request)
        space = space_of(who, body["space"])
        if not who.may_write(space.tenant_id):
            raise Problem("forbidden", "Your role in this tenant lets you look, not change.")
        wanted = wanted_of(body)
        assert wanted is not None  # the serializer demands one
        context = making.make(
            space=space,
            name=body["name"],
            tokens=making.tokens_of(space, wanted),
            label=body["label"],
            labels=body["labels"],
            actor=actor_of(request),
        )
        return Response(ContextSerializer(context).data, status=201)
