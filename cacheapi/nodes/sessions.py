"""A node's session: handshake, heartbeat, end."""

from dataclasses import MISSING, Field, fields
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from base.problems import Problem
from cacheapi.base.fields import (
    NO_NUL,
    Amounts,
    Choice,
    Counts,
    StrictSerializer,
    Text,
    WholeNumber,
)
from cacheapi.base.schemas import PART_GROUP
from cacheapi.base.viewsets import checked, no_body
from cacheapi.nodes import topology
from cacheapi.nodes.view import NodeView, open_session
from catalog import families, hot_access, kept_requests, sessions
from catalog.models import NodeSession
from engines import services as engines
from neve.errors import MissReason, Misuse
from neve.formats.parts import MOST_GROUPS, PartGroup
from neve.formats.space import MAX_CHUNK_TOKENS, SpaceIdentity
from neve.node.membership import Attested, MemberState
from neve.node.stats import COUNTERS, LOAD_NAMES, MOST_COUNT, SPEEDS
from planning import samples
from retention import provisioning
from retention.codecs import require_allowed
from storage import hot, s3
from tenants.audit import Actor
from tenants.principal import actor_of

# What a node may say of itself; the producer is known by its identity.
REPORTED = (MemberState.ATTESTING, MemberState.ATTACHED, MemberState.REFUSED)


def _member(field: Field[Any]) -> dict[str, Any]:
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
class Identity(serializers.Field[SpaceIdentity, Any, Any, SpaceIdentity]):
    """The fields and bounds of `neve.formats.space.SpaceIdentity`."""

    def to_internal_value(self, data: Any) -> SpaceIdentity:
        try:
            return SpaceIdentity.from_dict(data)
        except Misuse as error:
            if error.field in (None, "identity"):
                raise serializers.ValidationError(error.detail) from error
            raise serializers.ValidationError({str(error.field): error.detail}) from error

    def to_representation(self, value: SpaceIdentity) -> dict[str, Any]:
        return value.as_dict()


class EngineVersionSerializer(StrictSerializer):
    """With `url` and `model`, the platform may tokenise and prefill there for this space."""

    name = Text(max_length=40)
    version = Text(max_length=60)
    url = Text(max_length=500, required=False, help_text="of its OpenAI-compatible server")
    model = Text(max_length=200, required=False, help_text="the name under which it is served")
    gpus = WholeNumber(min_value=1, max_value=65_536, required=False, help_text="TP × PP")
    shards = WholeNumber(
        min_value=1, max_value=4096, required=False, help_text="blocks of a chunk, one a KV head"
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("url" in attrs) != ("model" in attrs):
            raise serializers.ValidationError({"model": "give url and model together"})
        return attrs


@extend_schema_field(PART_GROUP)
class Group(serializers.Field[PartGroup, Any, Any, PartGroup]):
    """The fields and bounds of `neve.formats.parts.PartGroup`."""

    def to_internal_value(self, data: Any) -> PartGroup:
        try:
            return PartGroup.from_dict(data)
        except Misuse as error:
            raise serializers.ValidationError({str(error.field): error.detail}) from error

    def to_representation(self, value: PartGroup) -> dict[str, Any]:
        return value.as_dict()


class FamilyNameSerializer(StrictSerializer):
    name = Text(max_length=100)
    device = Text(
        max_length=100, allow_blank=True, default="", help_text="its kind, such as NVIDIA H200"
    )


class HandshakeSerializer(StrictSerializer):
    node = Text(max_length=100)
    instance = Text(
        max_length=64,
        default="",
        help_text="tells engines of one name apart: only the same one replaces a live session",
    )
    engine = EngineVersionSerializer()
    identity = Identity()
    space = Text(max_length=200, allow_null=True, default=None)
    family = FamilyNameSerializer(
        allow_null=True, default=None, help_text="in place of a space: share a producer's KV"
    )
    selective_weights = Text(
        max_length=64,
        allow_blank=True,
        default="",
        help_text="digest of the weights that only some tokens reach: rows of embeddings, experts",
    )
    max_chunk_tokens = WholeNumber(min_value=1, max_value=4096, default=MAX_CHUNK_TOKENS)
    groups = serializers.ListField(
        child=Group(),
        max_length=MOST_GROUPS,
        default=list,
        help_text="KV groups, if a chunk is stored as one part for each; the first one keeps the "
        "ids of the chain",
    )
    near_stores = serializers.ListField(
        child=Text(max_length=40),
        max_length=16,
        default=list,
        help_text="names of S3 stores to read from first, the nearest first",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["space"] is not None and attrs["family"] is not None:
            raise serializers.ValidationError({"family": "a family has its own space"})
        return attrs


class TenantRef(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    slug = serializers.CharField()


class SpaceRef(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    name = serializers.CharField()
    fingerprint = serializers.CharField(help_text="64 hex digits")
    chunk_tokens = serializers.IntegerField()


class ValkeyAddress(serializers.Serializer[Any]):
    seeds = serializers.ListField(child=serializers.CharField())
    tls = serializers.BooleanField()
    username = serializers.CharField()
    password = serializers.CharField()


class S3Location(serializers.Serializer[Any]):
    endpoint = serializers.CharField()
    bucket = serializers.CharField()
    prefix = serializers.CharField()
    probe = serializers.CharField(help_text="presigned URL of an object that anybody may read")


class PolicyNumbers(serializers.Serializer[Any]):
    flush_after_s = serializers.IntegerField(allow_null=True, help_text="0 is now, null is never")
    hot_idle_s = serializers.IntegerField(allow_null=True)
    cold_ttl_s = serializers.IntegerField(allow_null=True)


class MembershipSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    state = serializers.ChoiceField(choices=[each.value for each in MemberState])
    producer = Identity(help_text="whose fingerprint the space has")


class SampleTerms(serializers.Serializer[Any]):
    rate_log = serializers.IntegerField(help_text="sample one block of 2ⁿ")
    key = serializers.CharField(help_text="64 hex digits, the same for all nodes of the tenant")


class RingRate(serializers.Serializer[Any]):
    one_in = serializers.IntegerField(help_text="keep one request of so many")


class KinRef(serializers.Serializer[Any]):
    space = serializers.IntegerField()
    fingerprint = serializers.CharField(help_text="64 hex digits")
    chunk_tokens = serializers.IntegerField()
    heads = serializers.BooleanField(help_text="each KV head of a chunk is a block")


class RingTerms(RingRate):
    kin = KinRef(many=True, help_text="spaces in which the same prompt may be stored")


class SessionSerializer(serializers.Serializer[Any]):
    session = serializers.UUIDField()
    tenant = TenantRef()
    space = SpaceRef()
    family = MembershipSerializer(allow_null=True)
    buckets = serializers.IntegerField()
    valkey = ValkeyAddress()
    s3 = S3Location()
    policy = PolicyNumbers()
    heartbeat_s = serializers.IntegerField()
    topology = serializers.CharField()
    sample = SampleTerms(allow_null=True, help_text="null: do not sample")
    requests = RingTerms(allow_null=True, help_text="null: send no records of requests")


class _Anything(serializers.JSONField):
    """What cannot be read is dropped and counted, and the counts are kept."""


class HeartbeatSerializer(StrictSerializer):
    seq = WholeNumber(min_value=1)
    counters = Counts(COUNTERS, default=dict)
    misses = Counts(tuple(MissReason), default=dict)
    load_ms = Counts(LOAD_NAMES, default=dict, help_text="loads by upper bound, in ms")
    drops = Counts(tuple(MissReason), default=dict, help_text="blocks not stored, by reason")
    breaker = Choice(choices=NodeSession.Breaker.choices, default=NodeSession.Breaker.CLOSED)
    speeds = Amounts(
        SPEEDS, default=dict, help_text="as the engine measured them, by its own clock"
    )
    samples = _Anything(
        default=None,
        allow_null=True,
        help_text="blocks that sampled look-ups asked for, in Base64 (`neve.formats.samples`); "
        "what cannot be read is dropped",
    )
    requests = _Anything(
        default=None,
        allow_null=True,
        help_text="records of recent requests (`neve.node.requests`); what cannot be read is "
        "dropped",
    )
    about = _Anything(
        default=None,
        allow_null=True,
        help_text="clock_s, version, error, error_age_s; what cannot be read is dropped",
    )


class HeartbeatAnswerSerializer(serializers.Serializer[Any]):
    policy = PolicyNumbers()
    heartbeat_s = serializers.IntegerField()
    topology = serializers.CharField(help_text="when it changes, open a new session")
    sample = SampleTerms(allow_null=True, help_text="null: do not sample")
    requests = RingRate(allow_null=True, help_text="null: send no records of requests")


class SessionsView(NodeView):
    refusals = {"post": (404, 409)}

    @extend_schema(request=HandshakeSerializer, responses={201: SessionSerializer}, tags=["cache"])
    def post(self, request: Request) -> Response:
        """Handshake: which space this node's KV belongs to, and where its blocks live."""
        body = checked(HandshakeSerializer, request)
        try:
            return self._open(body, actor_of(request))
        except Problem as problem:
            if problem.status == 409:  # a person is needed: the layout, a limit
                sessions.note_refusal(
                    tenant=self.tenant,
                    node=body["node"],
                    instance=body["instance"],
                    problem=problem,
                    actor=actor_of(request),
                )
            raise

    def _open(self, body: dict[str, Any], actor: Actor) -> Response:
        require_allowed(self.tenant.pk, body["identity"])
        with hot.required():
            provisioning.provision_tenant(self.tenant)
        # The session holds the tenant's lock until its user is there: whoever revokes the key
        # meanwhile removes the user afterwards.
        with transaction.atomic():
            session = sessions.open_session(
                tenant=self.tenant,
                key=self.key,
                node=body["node"],
                instance=body["instance"],
                engine={name: body["engine"][name] for name in ("name", "version")},
                identity=body["identity"],
                space_name=body["space"],
                family=_applicant(body),
                max_chunk_tokens=body["max_chunk_tokens"],
                groups=body["groups"],
                selective_weights=body["selective_weights"],
                near_stores=body["near_stores"],
                actor=actor,
            )
            if "url" in body["engine"]:
                engines.announce(
                    session=session,
                    url=body["engine"]["url"],
                    model=body["engine"]["model"],
                    gpus=body["engine"].get("gpus"),
                    shards=body["engine"].get("shards"),
                )
            with hot.required():
                hot_access.provision_user(self.key)
        answer = {
            "session": session.pk,
            "tenant": self.tenant,
            "space": session.space,
            "family": _membership(session),
            "buckets": settings.ENV.hot_buckets,
            "valkey": topology.valkey_address(self.key),
            "s3": topology.s3_location(self.tenant.pk) | {"probe": s3.presign_get(s3.PROBE_KEY)},
            **topology.current_numbers(self.key, session),
            "requests": kept_requests.terms_of(self.tenant, session.space),
        }
        return Response(SessionSerializer(answer).data, status=201)


class SessionView(NodeView):
    @extend_schema(responses={204: None}, tags=["cache"])
    def delete(self, request: Request, session_id: UUID) -> Response:
        """Ends a session: the node is leaving."""
        no_body(request)
        sessions.end_session(session_id=session_id)
        return Response(status=204)


class HeartbeatView(NodeView):
    verbs = {"post": "heartbeat"}

    @extend_schema(
        request=HeartbeatSerializer, responses={200: HeartbeatAnswerSerializer}, tags=["cache"]
    )
    def post(self, request: Request, session_id: UUID) -> Response:
        """Counts since the last heartbeat; the answer holds what may have changed."""
        body = checked(HeartbeatSerializer, request)
        found, records = body.pop("samples"), body.pop("requests")
        session = sessions.record_heartbeat(
            session_id=session_id, heartbeat=sessions.Heartbeat(**body)
        )
        if found is not None:
            samples.accept(tenant=self.tenant, session=session, samples=found, seq=body["seq"])
        if records is not None:
            kept_requests.accept(tenant=self.tenant, session=session, records=records)
        return Response(topology.current_numbers(self.key, session))


class AttestationSerializer(StrictSerializer):
    state = Choice(choices=[each.value for each in REPORTED])
    weights = Text(max_length=64, allow_blank=True, default="")
    blocks = WholeNumber(max_value=MOST_COUNT, default=0)
    near = WholeNumber(max_value=MOST_COUNT, default=0)
    layer = Text(max_length=200, allow_blank=True, default="")
    first_token = WholeNumber(required=False)
    end_token = WholeNumber(required=False)


class AttestationAnswerSerializer(serializers.Serializer[Any]):
    state = serializers.ChoiceField(choices=[each.value for each in MemberState])


class AttestationView(NodeView):
    verbs = {"post": "attest"}
    refusals = {"post": (409,)}

    @extend_schema(
        request=AttestationSerializer, responses={200: AttestationAnswerSerializer}, tags=["cache"]
    )
    def post(self, request: Request, session_id: UUID) -> Response:
        """How this engine's KV compares with that of its family's producer."""
        body = checked(AttestationSerializer, request)
        found = Attested(**body | {"state": MemberState(body["state"])})
        member = families.note_attested(
            session=open_session(session_id), found=found, actor=actor_of(request)
        )
        return Response({"state": member.state})


def _applicant(body: dict[str, Any]) -> families.Applicant | None:
    if body["family"] is None:
        return None
    return families.Applicant(
        family=body["family"]["name"],
        device=body["family"]["device"],
        engine=f"{body['engine']['name']} {body['engine']['version']}",
        identity=body["identity"],
        max_chunk_tokens=body["max_chunk_tokens"],
        groups=body["groups"],
        selective_weights=body["selective_weights"],
    )


def _membership(session: NodeSession) -> dict[str, Any] | None:
    member = session.member
    if member is None:
        return None
    return {
        "name": member.family.name,
        "state": member.state,
        "producer": SpaceIdentity.from_dict(session.space.identity),
    }
