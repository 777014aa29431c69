"""JSON members, checked strictly: a number is a number, and what is unknown is refused by name."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

MAX_INT = 2**63 - 1


class WholeNumber(serializers.IntegerField):
    """An integer as JSON writes it: neither "5" nor 5.0 nor true."""

    def __init__(self, *, min_value: int = 0, max_value: int = MAX_INT, **kwargs: Any) -> None:
        super().__init__(min_value=min_value, max_value=max_value, **kwargs)

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:
            raise serializers.ValidationError(f"need an integer, got {_shown(data)}")
        return data


class Text(serializers.CharField):
    """A string as JSON writes it, trimmed, not empty unless `allow_blank`."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError(f"need a string, got {_shown(data)}")
        return super().to_internal_value(data)


class StrictSerializer(serializers.Serializer):
    """Refuses members that it does not know: a misspelt one would be lost in silence."""

    def to_internal_value(self, data: Any) -> Any:
        values = super().to_internal_value(data)
        unknown = sorted(set(data) - set(self.fields))
        if unknown:
            raise serializers.ValidationError({unknown[0]: "unknown member, remove it"})
        return values


@extend_schema_field({"type": "object", "additionalProperties": {"type": "integer"}})
class Counts(serializers.Field):
    """An object of whole numbers ≥ 0. `names` are the members allowed; None allows any, bounded."""

    MOST = 64

    def __init__(self, names: tuple[str, ...] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = names

    def to_internal_value(self, data: Any) -> dict[str, int]:
        if not isinstance(data, dict):
            raise serializers.ValidationError(f"need an object, got {_shown(data)}")
        if len(data) > self.MOST:
            raise serializers.ValidationError(f"need at most {self.MOST} members, got {len(data)}")
        for name, value in data.items():
            if self.names is not None and name not in self.names:
                raise serializers.ValidationError({name: "unknown member, remove it"})
            if len(name) > 40:
                raise serializers.ValidationError({name[:40]: "names have at most 40 characters"})
            if type(value) is not int or not 0 <= value <= MAX_INT:
                raise serializers.ValidationError({name: f"need 0 or more, got {_shown(value)}"})
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(
    {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "minItems": 1}
)
class BlockIds(serializers.Field):
    """Block ids as 32 hex digits each, root first; inside, 16 bytes each."""

    MOST = 110_000

    def to_internal_value(self, data: Any) -> list[bytes]:
        if not isinstance(data, list) or not 1 <= len(data) <= self.MOST:
            raise serializers.ValidationError(f"need a list of 1 to {self.MOST} block ids")
        ids = []
        for n, text in enumerate(data):
            try:
                id_ = bytes.fromhex(text)
            except (TypeError, ValueError):
                id_ = b""
            if len(id_) != 16 or len(text) != 32:
                raise serializers.ValidationError(
                    f"need 32 hex digits at index {n}, got {_shown(text)}"
                )
            ids.append(id_)
        return ids

    def to_representation(self, value: list[bytes]) -> list[str]:
        return [id_.hex() for id_ in value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
