"""Shapes of /api/v1. Models are only read; each change has its own small serializer."""

from datetime import timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from cacheapi.fields import Choice, Flag, Moment, StrictSerializer, Text, WholeNumber
from catalog.kinds import KINDS
from catalog.limits import limit_of
from catalog.models import Context, Job, NodeSession, Pin, Segment, Space
from tenants.models import ApiKey, AuditEvent, Tenant

MAX_FOR_S = 365 * 86400


class Limit(serializers.IntegerField):
    """What holds: the quota's own number, or else the settings'."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(source="*", read_only=True, **kwargs)

    def to_representation(self, value: Any) -> int:
        return limit_of(value, str(self.field_name))


class QuotaSerializer(serializers.Serializer):
    hot_bytes = serializers.IntegerField()
    cold_bytes = serializers.IntegerField()
    space_limit = Limit(help_text="spaces")
    context_limit = Limit(help_text="contexts")
    context_block_limit = Limit(help_text="blocks of one context")


class RemovalSerializer(serializers.Serializer):
    """What goes."""

    contexts = serializers.IntegerField()
    segments = serializers.IntegerField()
    segment_bytes = serializers.IntegerField()


class RowLimit(WholeNumber):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_value=2**31 - 1, required=False, allow_null=True, **kwargs)


_LIMITS = ("hot_bytes", "cold_bytes", "space_limit", "context_limit", "context_block_limit")


class QuotaChangeSerializer(StrictSerializer):
    """What is absent stays."""

    schema = {"anyOf": [{"required": [name]} for name in _LIMITS]}
    hot_bytes = WholeNumber(required=False)
    cold_bytes = WholeNumber(required=False)
    overcommit = Flag(
        required=False, help_text="promise more hot memory than the servers have; default false"
    )
    space_limit = RowLimit(help_text="spaces; null: the default")
    context_limit = RowLimit(help_text="contexts; null: the default")
    context_block_limit = RowLimit(help_text="blocks of one context; null: the default")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs.keys() & set(_LIMITS):
            raise serializers.ValidationError(f"give at least one of {', '.join(_LIMITS)}")
        return attrs


class TenantSerializer(serializers.ModelSerializer):
    quota = QuotaSerializer(read_only=True)

    class Meta:
        model = Tenant
        fields = ("id", "slug", "name", "node_limit", "is_active", "created_at", "quota")
        read_only_fields = fields


class TenantOwnedSerializer(serializers.ModelSerializer):
    """Shows the tenant by its slug; the view selects it along."""

    tenant = serializers.CharField(source="tenant.slug", allow_null=True, read_only=True)


class SpaceSerializer(TenantOwnedSerializer):
    class Meta:
        model = Space
        fields = ("id", "tenant", "name", "fingerprint", "chunk_tokens", "identity", "created_at")
        read_only_fields = fields


class NodeSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)

    class Meta:
        model = NodeSession
        fields = (
            *("id", "tenant", "space", "node", "engine", "opened_at", "last_heartbeat_at"),
            *("ended_at", "breaker", "totals"),
        )
        read_only_fields = fields


class ContextSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)

    class Meta:
        model = Context
        fields = (
            *("id", "tenant", "space", "name", "label", "blocks", "tokens", "pinned_until"),
            *("extended_until", "expired_at", "created_at", "updated_at"),
        )
        read_only_fields = fields


class BlockResidence(serializers.Serializer):
    id = serializers.CharField(help_text="32 hex digits")
    tier = serializers.CharField(allow_null=True, help_text="hot, cold, or null: lost")
    reason = serializers.CharField(allow_null=True, help_text="why it is lost")
    is_durable = serializers.BooleanField(help_text="whether a copy stands in S3")
    size_bytes = serializers.IntegerField(help_text="0: lost")


class ResidencySerializer(serializers.Serializer):
    """Each block is hot, cold or lost. A chunk of tokens is where the worst of its blocks is."""

    hot = serializers.IntegerField(help_text="blocks in Valkey, whether or not in S3 as well")
    cold = serializers.IntegerField(help_text="blocks in S3 only")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere")
    durable = serializers.IntegerField(help_text="blocks in S3, whether or not in Valkey as well")
    hot_bytes = serializers.IntegerField()
    cold_bytes = serializers.IntegerField()
    durable_bytes = serializers.IntegerField()
    hot_tokens = serializers.IntegerField()
    cold_tokens = serializers.IntegerField()
    lost_tokens = serializers.IntegerField()
    durable_tokens = serializers.IntegerField()
    usable_tokens = serializers.IntegerField(
        help_text="from the beginning to the first lost block: what a request can load"
    )
    blocks = BlockResidence(many=True, required=False)


class PinRowSerializer(serializers.ModelSerializer):
    """A pin and who set it."""

    owner = serializers.CharField(source="owner_name", read_only=True)

    class Meta:
        model = Pin
        fields = ("id", "owner", "reason", "until", "created_at")
        read_only_fields = fields


class ContextDetailSerializer(ContextSerializer):
    pins = PinRowSerializer(many=True, source="live_pins", help_text="those that have not ended")
    residency = ResidencySerializer(
        read_only=True, allow_null=True, help_text="null while the hot tier does not answer"
    )

    class Meta(ContextSerializer.Meta):
        fields = (*ContextSerializer.Meta.fields, "pins", "residency")
        read_only_fields = fields


class PinSerializer(StrictSerializer):
    """Exactly one of `until` and `for_s`."""

    schema = {"oneOf": [{"required": ["until"]}, {"required": ["for_s"]}]}
    until = Moment(required=False)
    for_s = WholeNumber(min_value=1, max_value=MAX_FOR_S, required=False)
    reason = Text(max_length=200, required=False, help_text="shown to others")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len({"until", "for_s"} & set(attrs)) != 1:
            raise serializers.ValidationError({"until": "give either until or for_s"})
        if "for_s" in attrs:
            attrs["until"] = timezone.now() + timedelta(seconds=attrs["for_s"])
        return attrs


class ExtendSerializer(StrictSerializer):
    for_s = WholeNumber(min_value=1, max_value=MAX_FOR_S)


class UnpinSerializer(StrictSerializer):
    """Without members: your own pin. Operators may name any, or all."""

    schema = {"not": {"required": ["pin", "all"], "properties": {"all": {"enum": [True]}}}}
    pin = WholeNumber(min_value=1, required=False, help_text="number of the pin")
    all = Flag(default=False, help_text="those of everybody")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "pin" in attrs and attrs["all"]:
            raise serializers.ValidationError({"all": "give either pin or all"})
        return attrs


class ExpireSerializer(StrictSerializer):
    dry_run = Flag(default=False, help_text="true: say what would go, change nothing")


class PinnedSerializer(serializers.Serializer):
    pin = PinRowSerializer(help_text="yours")
    pinned_until = serializers.DateTimeField(help_text="the latest end of all pins")
    kept = serializers.IntegerField(help_text="blocks that are pinned now")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere any more")


class UnpinnedSerializer(serializers.Serializer):
    removed = serializers.IntegerField(help_text="pins that ended")
    pinned_until = serializers.DateTimeField(
        allow_null=True, help_text="the latest end of the pins that stay; null: none stays"
    )
    kept = serializers.IntegerField(help_text="blocks that other pins keep")


class ExpiredSerializer(serializers.Serializer):
    dry_run = serializers.BooleanField(help_text="whether nothing was changed")
    removed = serializers.IntegerField(help_text="blocks that leave both tiers")
    removed_bytes = serializers.IntegerField()
    shared = serializers.IntegerField(help_text="blocks that stay: other contexts hold them")
    shared_bytes = serializers.IntegerField()
    pinned = serializers.IntegerField(help_text="of the shared ones: pinned by another context")
    lost = serializers.IntegerField(help_text="blocks that were gone before")


class ExtendedSerializer(serializers.Serializer):
    extended = serializers.IntegerField(help_text="blocks that live so long now")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere any more")


class SegmentSerializer(TenantOwnedSerializer):
    class Meta:
        model = Segment
        fields = (
            *("id", "tenant", "space", "uuid", "object_key", "state", "blocks", "size_bytes"),
            *("live_bytes", "runs", "generation", "unreferenced_at", "created_at"),
        )
        read_only_fields = fields


class JobSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)
    duration_s = serializers.FloatField(read_only=True, allow_null=True)

    class Meta:
        model = Job
        fields = (
            *("id", "tenant", "kind", "state", "progress", "blocks", "bytes", "detail", "error"),
            *("attempts", "created_at", "started_at", "finished_at", "retry_at", "duration_s"),
            *("is_requested", "requested_by", "cancel_asked_at", "arguments", "log"),
        )
        read_only_fields = fields


class NewJobSerializer(StrictSerializer):
    kind = Choice(choices=[(kind.name, kind.about) for kind in KINDS.values() if kind.is_offered])
    tenant = Text(required=False, help_text="slug; kinds of the whole platform have none")


class AuditSerializer(TenantOwnedSerializer):
    class Meta:
        model = AuditEvent
        fields = (
            *("id", "tenant", "at", "actor_name", "request_id", "action", "object_type"),
            *("object_id", "before", "after"),
        )
        read_only_fields = fields


class KeySerializer(TenantOwnedSerializer):
    class Meta:
        model = ApiKey
        fields = (
            *("id", "tenant", "name", "role", "prefix", "created_at", "last_used_at"),
            *("expires_at", "revoked_at"),
        )
        read_only_fields = fields


class NewKeySerializer(StrictSerializer):
    name = Text(max_length=100)
    role = Choice(choices=ApiKey.Role.choices)
    tenant = Text(allow_null=True, default=None, help_text="slug; null for an operator key")
    expires_at = Moment(allow_null=True, default=None)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        is_operator = attrs["role"] == ApiKey.Role.OPERATOR
        if is_operator != (attrs["tenant"] is None):
            raise serializers.ValidationError(
                {"tenant": "an operator key has none, any other key needs one"}
            )
        if attrs["expires_at"] is not None and attrs["expires_at"] <= timezone.now():
            raise serializers.ValidationError({"expires_at": "needs to lie in the future"})
        return attrs


class IssuedKeySerializer(KeySerializer):
    key = serializers.CharField(
        help_text="the whole key: shown this once", read_only=True, allow_null=True
    )

    class Meta(KeySerializer.Meta):
        fields = (*KeySerializer.Meta.fields, "key")
        read_only_fields = fields


class UsagePointSerializer(serializers.Serializer):
    bucket_ts = serializers.IntegerField(help_text="first second of the bucket, Unix time")
    requested_tokens = serializers.IntegerField(help_text="of prompts, in whole blocks")
    tail_tokens = serializers.IntegerField(help_text="of prompts, after their last whole blocks")
    hit_hot_tokens = serializers.IntegerField()
    hit_cold_tokens = serializers.IntegerField()
    requested_blocks = serializers.IntegerField()
    hit_hot_blocks = serializers.IntegerField()
    hit_cold_blocks = serializers.IntegerField()
    hot_read_bytes = serializers.IntegerField()
    cold_read_bytes = serializers.IntegerField()
    hot_write_bytes = serializers.IntegerField()
    put_blocks = serializers.IntegerField()
    promoted_blocks = serializers.IntegerField(help_text="brought back from the cold tier")
    promoted_bytes = serializers.IntegerField(help_text="of hot_write_bytes")
    put_refused = serializers.IntegerField()
    dropped = serializers.IntegerField()
    corrupt = serializers.IntegerField()
    misses = serializers.DictField(child=serializers.IntegerField())
    load_ms = serializers.DictField(child=serializers.IntegerField())
    drops = serializers.DictField(
        child=serializers.IntegerField(), help_text="why `dropped` were not stored"
    )
    cold_refused_blocks = serializers.IntegerField(help_text="the cold tier had no room for them")
    cold_evicted_blocks = serializers.IntegerField(help_text="made room in the cold tier")
    lost_blocks = serializers.IntegerField(help_text="refused by the cold tier, then gone from hot")
    hot_used_bytes = serializers.IntegerField(allow_null=True)
    cold_used_bytes = serializers.IntegerField(allow_null=True)
    cold_dead_bytes = serializers.IntegerField(
        allow_null=True, help_text="of segments in S3, until they are merged"
    )
    cold_waiting_bytes = serializers.IntegerField(
        allow_null=True, help_text="of segments in S3 that nobody names, until they are deleted"
    )
    dirty_bytes = serializers.IntegerField(allow_null=True)
    dirty_blocks = serializers.IntegerField(allow_null=True)
    dirty_oldest_s = serializers.IntegerField(allow_null=True)
    unstored_blocks = serializers.IntegerField(
        allow_null=True, help_text="hot blocks that the cold tier refused"
    )


class UsageSerializer(serializers.Serializer):
    resolution_s = serializers.IntegerField()
    points = UsagePointSerializer(many=True)
