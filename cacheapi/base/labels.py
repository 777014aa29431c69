"""Labels of contexts in bodies and in filters: names and texts, within the bounds of `contexts`."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from neve.formats.labels import MOST_LABELS, MOST_VALUE_CHARACTERS, is_name, is_value

_VALUE = {"type": "string", "maxLength": MOST_VALUE_CHARACTERS, "pattern": r"^[^\x00-\x1f\x7f]*$"}


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"at most {MOST_LABELS}; a name has letters, digits and ._/- and begins "
        "with a letter",
        "maxProperties": MOST_LABELS,
        "additionalProperties": value,
        "example": {"team": "blue"},
    }


@extend_schema_field(_schema(_VALUE))
class Labels(serializers.Field[dict[str, str], Any, dict[str, str], dict[str, str]]):
    """An object from names to texts."""

    may_remove = False

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise serializers.ValidationError(f"need an object, got {_shown(data)}")
        if len(data) > MOST_LABELS:
            raise serializers.ValidationError(f"need at most {MOST_LABELS}, got {len(data)}")
        for name, value in data.items():
            if not is_name(name):
                raise serializers.ValidationError(
                    f"{_shown(name)}: a name has 1 to 63 letters, digits and ._/- and begins with "
                    "a letter"
                )
            is_removal = self.may_remove and value is None
            if not is_removal and not (isinstance(value, str) and is_value(value)):
                raise serializers.ValidationError(
                    f"{name}: need a text of at most {MOST_VALUE_CHARACTERS} printable characters, "
                    f"got {_shown(value)}"
                )
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(_schema({**_VALUE, "nullable": True}))
class LabelChanges(Labels):
    """The same; null removes a label, and those not named stay (RFC 7396)."""

    may_remove = True


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
