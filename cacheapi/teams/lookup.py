"""/api/v1/lookup: what of a prompt is stored."""

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from cacheapi.base.access import ScopesOfContexts, caller
from cacheapi.base.viewsets import ApiView, checked
from cacheapi.teams.prompts import PromptSerializer, space_of, wanted_of
from contexts import lookup, making


class SharingSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    shared_tokens = serializers.IntegerField(help_text="at the beginning of both, whole chunks")


class CostSerializer(serializers.Serializer[Any]):
    """Medians of what the space's live nodes measured; null as long as none did."""

    load_s = serializers.FloatField(allow_null=True, help_text="to load the usable tokens")
    compute_s = serializers.FloatField(allow_null=True, help_text="to compute them instead")
    verdict = serializers.CharField(allow_null=True, help_text="load, compute or null: unknown")
    basis = serializers.CharField(help_text="what the seconds stand on; unknown: nothing measured")
    nodes = serializers.IntegerField(help_text="that measured")


class LookupResultSerializer(serializers.Serializer[Any]):
    tokens = serializers.IntegerField(help_text="of the prompt")
    tail_tokens = serializers.IntegerField(
        help_text="after the last whole chunk: nothing can hold them"
    )
    hot_tokens = serializers.IntegerField(help_text="in Valkey")
    cold_tokens = serializers.IntegerField(help_text="in S3 only")
    lost_tokens = serializers.IntegerField(help_text="stored nowhere")
    usable_tokens = serializers.IntegerField(
        help_text="the longest beginning behind which a request can go on"
    )
    usable_hot_tokens = serializers.IntegerField(
        help_text="the longest one for which nothing is read from S3"
    )
    contexts = SharingSerializer(
        many=True, help_text=f"at most {lookup.MOST_SHOWN}, with the longest common beginning"
    )
    cost = CostSerializer()


class LookupView(ScopesOfContexts, ApiView, APIView):
    """What of a prompt is stored."""

    verbs = {"post": "prompt"}
    scopes_to_change = ScopesOfContexts.scopes_to_read  # it changes nothing

    @extend_schema(request=PromptSerializer, responses=LookupResultSerializer)
    def post(self, request: Request) -> Response:
        """How many tokens of a prompt are hot, cold or lost, how many a request would reuse, and
        which contexts begin alike. Changes nothing."""
        body = checked(PromptSerializer, request)
        space = space_of(caller(request), body["space"])
        wanted = wanted_of(body)
        assert wanted is not None  # the serializer demands one
        found = lookup.look_up(space, making.tokens_of(space, wanted))
        return Response(LookupResultSerializer(asdict(found)).data)
