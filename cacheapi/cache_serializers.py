"""Bodies of the cache endpoint. Every wrong member is named; bounds stand where the member does."""

from dataclasses import MISSING, Field, fields
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from cacheapi.fields import (
    NO_NUL,
    BlockIds,
    Choice,
    Counts,
    StrictSerializer,
    Text,
    Uuid,
    WholeNumber,
)
from catalog.models import NodeSession
from neve.errors import MissReason, Misuse
from neve.formats.space import MAX_CHUNK_TOKENS, SpaceIdentity
from neve.node.stats import COUNTERS, LOAD_NAMES


def _member(field: Field) -> dict[str, Any]:
    """A field of SpaceIdentity in the OpenAPI document."""
    if field.type is int:
        least = SpaceIdentity.least(field.name)
        return {"type": "integer", "minimum": least, "maximum": 2**31 - 1}
    return {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": NO_NUL}


@extend_schema_field(
    {
        "type": "object",
        "properties": {field.name: _member(field) for field in fields(SpaceIdentity)},
        "required": [field.name for field in fields(SpaceIdentity) if field.default is MISSING],
        "additionalProperties": False,
    }
)
class Identity(serializers.Field):
    """What neve.formats.space.SpaceIdentity says it is."""

    def to_internal_value(self, data: Any) -> SpaceIdentity:
        try:
            return SpaceIdentity.from_dict(data)
        except Misuse as error:
            if error.field in (None, "identity"):
                raise serializers.ValidationError(error.detail) from error
            raise serializers.ValidationError({str(error.field): error.detail}) from error

    def to_representation(self, value: SpaceIdentity) -> dict[str, Any]:
        return value.as_dict()


class EngineSerializer(StrictSerializer):
    name = Text(max_length=40)
    version = Text(max_length=60)


class HandshakeSerializer(StrictSerializer):
    node = Text(max_length=100)
    instance = Text(
        max_length=64,
        default="",
        help_text="tells engines of one name apart: only the same one replaces a live session",
    )
    engine = EngineSerializer()
    identity = Identity()
    space = Text(max_length=200, allow_null=True, default=None)
    max_chunk_tokens = WholeNumber(min_value=1, max_value=4096, default=MAX_CHUNK_TOKENS)


class HeartbeatSerializer(StrictSerializer):
    seq = WholeNumber(min_value=1)
    counters = Counts(COUNTERS, default=dict)
    misses = Counts(tuple(MissReason), default=dict)
    load_ms = Counts(LOAD_NAMES, default=dict, help_text="loads by upper bound, in ms")
    drops = Counts(tuple(MissReason), default=dict, help_text="blocks not stored, by reason")
    breaker = Choice(choices=NodeSession.Breaker.choices, default=NodeSession.Breaker.CLOSED)


class ContextReportSerializer(StrictSerializer):
    session = Uuid()
    name = Text(max_length=200)
    block_ids = BlockIds()
    tokens = WholeNumber(min_value=1)
    label = Text(max_length=100, allow_null=True, allow_blank=True, default=None)
    pin_s = WholeNumber(min_value=1, max_value=365 * 86400, allow_null=True, default=None)


class TenantRef(serializers.Serializer):
    id = serializers.IntegerField()
    slug = serializers.CharField()


class SpaceRef(serializers.Serializer):
    id = serializers.IntegerField()
    name = serializers.CharField()
    fingerprint = serializers.CharField(help_text="64 hex digits")
    chunk_tokens = serializers.IntegerField()


class ValkeyAddress(serializers.Serializer):
    seeds = serializers.ListField(child=serializers.CharField())
    tls = serializers.BooleanField()
    username = serializers.CharField()
    password = serializers.CharField()


class S3Location(serializers.Serializer):
    endpoint = serializers.CharField()
    bucket = serializers.CharField()
    prefix = serializers.CharField()
    probe = serializers.CharField(help_text="presigned URL of an object that anybody may read")


class PolicyNumbers(serializers.Serializer):
    flush_after_s = serializers.IntegerField(allow_null=True, help_text="0 is now, null is never")
    hot_idle_s = serializers.IntegerField(allow_null=True)
    cold_ttl_s = serializers.IntegerField(allow_null=True)


class SessionSerializer(serializers.Serializer):
    session = serializers.UUIDField()
    tenant = TenantRef()
    space = SpaceRef()
    buckets = serializers.IntegerField()
    valkey = ValkeyAddress()
    s3 = S3Location()
    policy = PolicyNumbers()
    heartbeat_s = serializers.IntegerField()
    topology = serializers.CharField()


class HeartbeatAnswerSerializer(serializers.Serializer):
    policy = PolicyNumbers()
    heartbeat_s = serializers.IntegerField()
    topology = serializers.CharField(help_text="when it changes, open a new session")


class SegmentsSerializer(serializers.Serializer):
    segments = serializers.DictField(child=serializers.CharField(), help_text="number → URL")
    expires_s = serializers.IntegerField()


class ContextRef(serializers.Serializer):
    id = serializers.UUIDField(source="pk")
    blocks = serializers.IntegerField()
    pinned_until = serializers.DateTimeField(
        allow_null=True, help_text="null: not pinned, also when the budget of pins refused it"
    )
