"""Bodies and answers of contexts' operations."""

from datetime import timedelta
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from cacheapi.base.fields import (
    MAX_DURATION_S,
    Choice,
    DeprecatedNumber,
    Duration,
    Flag,
    Moment,
    StrictSerializer,
    Text,
    WholeNumber,
)
from cacheapi.base.labels import LabelChanges, Labels
from cacheapi.base.losses import LossSerializer
from cacheapi.base.schemas import exactly_one
from cacheapi.base.viewsets import TenantOwnedSerializer
from catalog.models import Context, Pin


class ContextSerializer(TenantOwnedSerializer):
    id = serializers.UUIDField(source="pk", read_only=True)
    labels = Labels(read_only=True)
    owner = serializers.CharField(
        source="owner_name", read_only=True, help_text="who recorded it first; empty: unknown"
    )
    state = serializers.ChoiceField(
        choices=Context.State.choices,
        read_only=True,
        help_text="expected: nothing is stored yet; stored: a request can go on behind its end; "
        "partial: behind a part of it; lost: behind none",
    )
    size_bytes = serializers.IntegerField(
        read_only=True, allow_null=True, help_text="of its stored blocks; null: not counted yet"
    )
    is_pinned = serializers.BooleanField(read_only=True)
    pin_tier = serializers.ChoiceField(
        choices=Pin.Tier.choices,
        read_only=True,
        allow_null=True,
        help_text="the most that a pin asks for: durable, hot or any; null: not pinned",
    )
    expires_at = serializers.DateTimeField(
        read_only=True, allow_null=True, help_text="when it will be expired; null: not scheduled"
    )
    last_used_at = serializers.DateTimeField(
        read_only=True, allow_null=True, help_text="when a request that named it ended last"
    )
    checked_at = serializers.DateTimeField(
        read_only=True, allow_null=True, help_text="when state and size were found"
    )

    loss = LossSerializer(
        source="space.loss",
        read_only=True,
        allow_null=True,
        help_text="of KV that its space stores with loss; null: its blocks are exact",
    )

    class Meta:
        model = Context
        fields: tuple[str, ...] = (
            *("id", "tenant", "space", "name", "label", "labels", "owner", "blocks", "tokens"),
            *("size_bytes", "state", "is_pinned", "pinned_until", "pin_tier", "extended_until"),
            *("expires_at", "expired_at", "last_used_at", "checked_at", "created_at", "updated_at"),
            "loss",
        )
        read_only_fields = fields


class BlockResidence(serializers.Serializer[Any]):
    id = serializers.CharField(help_text="32 hex digits")
    tier = serializers.CharField(allow_null=True, help_text="hot, cold, or null: not stored")
    reason = serializers.CharField(allow_null=True, help_text="why it is not stored")
    is_durable = serializers.BooleanField(help_text="whether a copy stands in S3")
    size_bytes = serializers.IntegerField(help_text="0: not stored")
    group = serializers.IntegerField(help_text="number of its KV group; 0 in a space without")
    is_needed = serializers.BooleanField(
        help_text="whether a request that goes on behind the context's end needs it"
    )


class ResidencyRun(serializers.Serializer[Any]):
    """Neighbouring chunks of tokens that are in one place."""

    first_token = serializers.IntegerField(help_text="counted from 0")
    tokens = serializers.IntegerField()
    bytes = serializers.IntegerField(help_text="of their stored blocks")
    tier = serializers.CharField(
        allow_null=True,
        help_text="hot: all that a request needs; cold: a part is in S3 only; null: a part is lost",
    )
    is_durable = serializers.BooleanField(help_text="whether copies stand in S3")
    reason = serializers.CharField(allow_null=True, help_text="why a part is lost")


class ResidencySerializer(serializers.Serializer[Any]):
    """Each block that a request needs behind the context's end is hot, cold or lost. A chunk of
    tokens is where the worst of these blocks is."""

    hot = serializers.IntegerField(help_text="blocks in Valkey, whether or not in S3 as well")
    cold = serializers.IntegerField(help_text="blocks in S3 only")
    lost = serializers.IntegerField(
        help_text="blocks that are stored nowhere, of those that a request needs behind the end"
    )
    durable = serializers.IntegerField(help_text="blocks in S3, whether or not in Valkey as well")
    hot_bytes = serializers.IntegerField()
    cold_bytes = serializers.IntegerField()
    durable_bytes = serializers.IntegerField()
    hot_tokens = serializers.IntegerField()
    cold_tokens = serializers.IntegerField()
    lost_tokens = serializers.IntegerField()
    durable_tokens = serializers.IntegerField()
    usable_tokens = serializers.IntegerField(
        help_text="the longest beginning behind which a request can go on"
    )
    usable_hot_tokens = serializers.IntegerField(
        help_text="the longest one for which nothing is read from S3"
    )
    states = serializers.IntegerField(
        allow_null=True,
        help_text="lengths at which the states of linear attention are stored; null in a space "
        "without",
    )
    blocks = BlockResidence(many=True, required=False)


class ResidencyRunsSerializer(ResidencySerializer):
    """The totals, and runs from the beginning of the context to its end."""

    runs = ResidencyRun(many=True)


class PinSerializer(serializers.ModelSerializer[Pin]):
    """A pin and who set it."""

    owner = serializers.CharField(source="owner_name", read_only=True)

    class Meta:
        model = Pin
        fields = ("id", "owner", "reason", "tier", "until", "created_at")
        read_only_fields = fields


class ContextDetailSerializer(ContextSerializer):
    pins = PinSerializer(many=True, help_text="those that have not ended")
    residency = ResidencySerializer(
        read_only=True, allow_null=True, help_text="null while the hot tier does not answer"
    )

    class Meta(ContextSerializer.Meta):
        fields = (*ContextSerializer.Meta.fields, "pins", "residency")
        read_only_fields = fields


class ContextUpdateSerializer(StrictSerializer):
    """What to change; the rest stays."""

    schema = {"minProperties": 1}
    name = Text(max_length=200, required=False, help_text="once in its space")
    label = Text(  # type: ignore[assignment]  # DRF takes fields off the class
        max_length=100, required=False, allow_blank=True, help_text="what retention rules match"
    )
    labels = LabelChanges(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not attrs:
            raise serializers.ValidationError({"name": "give name, label or labels"})
        return attrs


class ForSerializer(StrictSerializer):
    """`for`, which no Python class can declare, and `for_s`, which it replaces."""

    def get_fields(self) -> Any:
        most = MAX_DURATION_S
        return {
            "for": Duration(required=False, help_text="counted from now"),
            "for_s": DeprecatedNumber(min_value=1, max_value=most, required=False),
            **super().get_fields(),
        }

    @staticmethod
    def seconds(attrs: dict[str, Any]) -> int | None:
        return attrs.get("for", attrs.get("for_s"))


class ContextPinSerializer(ForSerializer):
    """Exactly one of `until`, `for` and `for_s`."""

    schema = exactly_one("until", "for", "for_s")
    until = Moment(required=False)
    tier = Choice(
        choices=Pin.Tier.choices,
        default=Pin.Tier.ANY,
        help_text="any: blocks stay where they are; hot: those in S3 only are copied into Valkey; "
        "durable: those in Valkey only are written to S3",
    )
    reason = Text(max_length=200, required=False, help_text="shown to others")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len({"until", "for", "for_s"} & set(attrs)) != 1:
            raise serializers.ValidationError({"until": "give either until or for"})
        if (for_s := self.seconds(attrs)) is not None:
            attrs["until"] = timezone.now() + timedelta(seconds=for_s)
        return attrs


class PinnedSerializer(serializers.Serializer[Any]):
    pin = PinSerializer(help_text="yours")
    pinned_until = serializers.DateTimeField(help_text="the latest end of all pins")
    kept = serializers.IntegerField(help_text="blocks that are pinned now")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere any more")
    hot = serializers.IntegerField(
        allow_null=True, help_text="blocks in Valkey now; null for a pin of the tier any"
    )
    durable = serializers.IntegerField(
        allow_null=True, help_text="blocks in S3 now; null for a pin of the tier any"
    )


class ContextUnpinSerializer(StrictSerializer):
    """Without members: your own pin. Operators may name any, or all."""

    schema = {"not": {"required": ["pin", "all"], "properties": {"all": {"enum": [True]}}}}
    pin = WholeNumber(min_value=1, required=False, help_text="number of the pin")
    all = Flag(default=False, help_text="those of everybody")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "pin" in attrs and attrs["all"]:
            raise serializers.ValidationError({"all": "give either pin or all"})
        return attrs


class UnpinnedSerializer(serializers.Serializer[Any]):
    removed = serializers.IntegerField(help_text="pins that ended")
    pinned_until = serializers.DateTimeField(
        allow_null=True, help_text="the latest end of the pins that stay; null: none stays"
    )
    kept = serializers.IntegerField(help_text="blocks that other pins keep")


class ContextExpireSerializer(StrictSerializer):
    schema = {"not": {"required": ["dry_run", "at"], "properties": {"dry_run": {"enum": [True]}}}}
    dry_run = Flag(default=False, help_text="true: say what would go, change nothing")
    at = Moment(
        required=False,
        allow_null=True,
        help_text="not now but then, once no pin is left; null takes that back",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["dry_run"] and "at" in attrs:
            raise serializers.ValidationError({"at": "give either dry_run or at"})
        return attrs


class ExpiredSerializer(serializers.Serializer[Any]):
    dry_run = serializers.BooleanField(help_text="whether nothing was changed")
    removed = serializers.IntegerField(help_text="blocks that leave both tiers")
    removed_bytes = serializers.IntegerField()
    shared = serializers.IntegerField(help_text="blocks that stay: other contexts hold them")
    shared_bytes = serializers.IntegerField()
    pinned = serializers.IntegerField(help_text="of the shared ones: pinned by another context")
    lost = serializers.IntegerField(help_text="blocks that were gone before")
    expires_at = serializers.DateTimeField(
        allow_null=True,
        help_text="when it will be expired: then the numbers are those of an expiry now",
    )


class ContextExtendSerializer(ForSerializer):
    """Exactly one of `for` and `for_s`."""

    schema = exactly_one("for", "for_s")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len({"for", "for_s"} & set(attrs)) != 1:
            raise serializers.ValidationError({"for": "give for, such as 7d"})
        return {"for_s": self.seconds(attrs)}


class ExtendedSerializer(serializers.Serializer[Any]):
    extended = serializers.IntegerField(help_text="blocks that live so long now")
    lost = serializers.IntegerField(help_text="blocks that are stored nowhere any more")
