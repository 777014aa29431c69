"""/api/v1/why: why a request missed, and where blocks are."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from base.problems import Problem
from cacheapi.base.access import ScopesOfContexts, caller
from cacheapi.base.queries import malformed
from cacheapi.base.viewsets import ApiView, checked
from cacheapi.teams.lookup import SharingSerializer
from cacheapi.teams.prompts import PromptSerializer, space_of, wanted_of
from contexts import making, why


class CellSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField(help_text="of its chunk, from 0")
    id = serializers.CharField()
    tier = serializers.CharField(allow_null=True, help_text="hot, cold or null: not there")
    segment = serializers.IntegerField(help_text="0: not in S3")
    reason = serializers.CharField(allow_null=True, help_text="why it is not there")
    gone_at = serializers.DateTimeField(allow_null=True, help_text="null: not remembered")


class StripSerializer(serializers.Serializer[Any]):
    title = serializers.CharField()
    space = serializers.IntegerField(source="space.pk")
    space_name = serializers.CharField(source="space.name")
    chunks = serializers.IntegerField()
    stride = serializers.IntegerField(help_text="each cell stands for so many chunks")
    stored = serializers.IntegerField(help_text="chunks from the beginning without a gap")
    first_miss = serializers.IntegerField(allow_null=True, help_text="chunk, when it was asked for")
    cells = CellSerializer(many=True)
    contexts = SharingSerializer(many=True)


class FactSerializer(serializers.Serializer[Any]):
    value = serializers.CharField()
    words = serializers.CharField()


class FieldSerializer(serializers.Serializer[Any]):
    field = serializers.CharField()
    this = serializers.JSONField(allow_null=True)
    other = serializers.JSONField(allow_null=True)
    differs = serializers.BooleanField()
    fix = serializers.CharField()


class KeptRequestSerializer(serializers.Serializer[Any]):
    """A request as its node told it."""

    id = serializers.CharField(source="name")
    tenant = serializers.CharField(source="tenant.slug")
    node = serializers.CharField(source="session.node")
    session = serializers.UUIDField(source="session_id")
    space = serializers.IntegerField(source="space_id")
    at = serializers.DateTimeField()
    kept = serializers.CharField(help_text="sampled, slow, failed or asked")
    prompt_tokens = serializers.IntegerField()
    local_tokens = serializers.IntegerField(help_text="in the engine's own cache")
    asked_tokens = serializers.IntegerField()
    found_tokens = serializers.IntegerField()
    loaded_tokens = serializers.IntegerField()
    reason = serializers.CharField(help_text="empty: it missed nothing")
    outcome = serializers.CharField()
    match_ms = serializers.FloatField(allow_null=True)
    load_ms = serializers.FloatField(allow_null=True)
    load_failed = serializers.BooleanField()


class OwnerSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField(source="pk")
    name = serializers.CharField()


class WhySerializer(serializers.Serializer[Any]):
    kind = serializers.CharField(help_text="request, context, block, text or nothing")
    tag = serializers.CharField()
    sentence = serializers.CharField(help_text="the answer")
    lever = serializers.CharField(help_text="what helps")
    reason = serializers.CharField()
    facts = FactSerializer(many=True)
    strips = StripSerializer(many=True, help_text="where blocks are now")
    other_space = serializers.IntegerField(
        source="other.pk", allow_null=True, default=None, help_text="where the same prefix stands"
    )
    fields_of_spaces = FieldSerializer(source="fields", many=True)
    flags = serializers.CharField(help_text="of vLLM, that give the other space's layout")
    request = KeptRequestSerializer(allow_null=True)
    owners = OwnerSerializer(many=True, help_text="contexts that hold the block")


ASKED = [
    OpenApiParameter(
        "q",
        {"type": "string", "minLength": 1},
        required=True,
        description="id of a request, context or block, or a context's name",
    ),
    OpenApiParameter("tenant", str, description="its slug"),
    OpenApiParameter("space", int, description="only of this space"),
]


class WhyView(ScopesOfContexts, ApiView, APIView):
    """Why a request missed."""

    verbs = {"get": "explain", "post": "explain_prompt"}
    scopes_to_change = ScopesOfContexts.scopes_to_read  # it changes nothing
    takes = {"get": ("q", "tenant", "space")}
    refusals = {"get": (404,)}

    @extend_schema(parameters=ASKED, responses=WhySerializer)
    def get(self, request: Request) -> Response:
        """One sentence about a request, context or block, and the blocks that prove it. 404: no
        such thing is known."""
        who, asked = caller(request), request.query_params
        text = asked.get("q", "").strip()
        if not text:
            raise malformed("q", "say what to explain")
        tenants = (who.tenant(asked["tenant"]),) if asked.get("tenant") else who.tenants
        number = asked.get("space", "")
        if number and not (number.isascii() and number.isdigit() and len(number) < 19):
            raise malformed("space", f"need a number, got {number[:60]!r}")
        found = why.ask(tenants, text, space=space_of(who, int(number)) if number else None)
        if found.kind == "nothing":
            raise Problem("not-found", found.sentence, field="q")
        return Response(WhySerializer(found).data)

    @extend_schema(request=PromptSerializer, responses=WhySerializer)
    def post(self, request: Request) -> Response:
        """The same for a prompt, which is not kept: where its blocks are, in its space and under
        other fingerprints."""
        body = checked(PromptSerializer, request)
        space = space_of(caller(request), body["space"])
        wanted = wanted_of(body)
        assert wanted is not None  # the serializer demands one
        found = why.of_prompt(space, making.tokens_of(space, wanted))
        return Response(WhySerializer(found).data)
