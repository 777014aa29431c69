"""Fields of JSON bodies, checked strictly: no value is converted, unknown members are refused.

Lone surrogates, NUL and infinite numbers never come here: `cacheapi.base.parsers` refuses them.
"""

import re
from datetime import datetime
from difflib import get_close_matches
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from cacheapi.base import durations
from neve.node.stats import MOST_COUNT

MAX_INT = 2**63 - 1
# Patterns of the OpenAPI document: text without NUL, and not only white space.
NO_NUL = r"^[^\u0000]*$"
NOT_BLANK = r"^[^\u0000]*[^\s\u0000][^\u0000]*$"


class WholeNumber(serializers.IntegerField):
    """An integer as JSON writes it: neither "5" nor 5.0 nor true."""

    def __init__(self, *, min_value: int = 0, max_value: int = MAX_INT, **kwargs: Any) -> None:
        super().__init__(min_value=min_value, max_value=max_value, **kwargs)

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:
            raise serializers.ValidationError(f"need an integer, got {_shown(data)}")
        return data


class Number(serializers.FloatField):
    """A number as JSON writes it: neither "5" nor true."""

    def to_internal_value(self, data: Any) -> float:
        if type(data) not in (int, float):
            raise serializers.ValidationError(f"need a number, got {_shown(data)}")
        return super().to_internal_value(data)


class DeprecatedNumber(WholeNumber):
    """One that another member replaces; the OpenAPI document says so."""


class Text(serializers.CharField):
    """A string as JSON writes it, trimmed, not empty unless `allow_blank`."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            raise serializers.ValidationError(f"need a string, got {_shown(data)}")
        return super().to_internal_value(data)


class Flag(serializers.BooleanField):
    """true or false as JSON writes them: neither "false" nor 0."""

    def to_internal_value(self, data: Any) -> bool:
        if type(data) is not bool:
            raise serializers.ValidationError(f"need true or false, got {_shown(data)}")
        return data


class Choice(serializers.ChoiceField):
    """One of some words; a refusal lists them."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str) or data not in self.choices:
            words = ", ".join(map(str, self.choices))
            raise serializers.ValidationError(f"need one of {words}, got {_shown(data)}")
        return super().to_internal_value(data)


# Source: RFC 3339. The offset is required: without it, the caller's time zone is unknown.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Moment(serializers.DateTimeField):
    """A time with its offset from UTC (RFC 3339): neither a date alone nor a local time."""

    def to_internal_value(self, data: Any) -> datetime:
        if not isinstance(data, str) or not _MOMENT.fullmatch(data):
            raise serializers.ValidationError(
                f"need a time such as 2027-01-31T18:00:00Z, got {_shown(data)}"
            )
        try:
            moment: datetime = super().to_internal_value(data.upper())
        except OverflowError:  # an offset that leads out of the years 1 to 9999
            raise serializers.ValidationError(f"need a time, got {_shown(data)}") from None
        return moment


MAX_DURATION_S = 365 * 86400


@extend_schema_field(durations.SCHEMA)
class Duration(serializers.Field[int, Any, str, int]):
    """Text such as `90s`, `2h`, `1h30m`, `7d` or ISO 8601's `PT2H`; inside, whole seconds."""

    def __init__(
        self, *, min_s: int = 1, max_s: int = MAX_DURATION_S, help_text: str = "", **kwargs: Any
    ) -> None:
        forms = "such as 90s, 30m, 2h, 7d, 1h30m, or ISO 8601: PT2H, P7D"
        super().__init__(help_text=f"{help_text}: {forms}".removeprefix(": "), **kwargs)
        self.min_s, self.max_s = min_s, max_s

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, str):
            raise serializers.ValidationError(f"need text such as 2h, got {_shown(data)}")
        return duration_within(data, self.min_s, self.max_s)

    def to_representation(self, value: int) -> str:
        return f"{value}s"


def duration_within(text: str, min_s: int = 1, max_s: int = MAX_DURATION_S) -> int:
    """Whole seconds of a duration. Raises ValidationError."""
    try:
        seconds = durations.parse_duration(text)
    except ValueError as error:
        raise serializers.ValidationError(str(error)) from None
    if not min_s <= seconds <= max_s:
        raise serializers.ValidationError(f"need {min_s} s to {max_s} s, got {_shown(text)}")
    return seconds


class Uuid(serializers.UUIDField):
    """A UUID as the platform writes it: neither a number nor without hyphens."""

    def to_internal_value(self, data: Any) -> UUID:
        if not isinstance(data, str) or len(data) != 36:
            raise serializers.ValidationError(f"need a UUID, got {_shown(data)}")
        found: UUID = super().to_internal_value(data)
        return found


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses unknown members, so that a misspelt one is not ignored."""

    default_error_messages = {"invalid": "need a JSON object, got a {datatype}"}

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            for name in sorted(set(data) - set(self.fields)):
                shown = name if len(name) <= 60 else f"{name[:60]}…"
                raise serializers.ValidationError({shown: unknown(name, self.fields, "member")})
        return super().to_internal_value(data)


class EmptySerializer(StrictSerializer):
    """The body of an action without one: nothing, or {}."""


def unknown(name: str, known: Any, kind: str) -> str:
    """Words that refuse an unknown name: they suggest the nearest known one, or list all."""
    nearest = get_close_matches(name, known, n=1)
    if nearest:
        return f"unknown {kind}; did you mean {nearest[0]}?"
    names = ", ".join(sorted(known))
    return f"unknown {kind}; known are: {names}" if names else f"unknown {kind}, remove it"


class Counts(serializers.Field[dict[str, Any], Any, dict[str, Any], dict[str, Any]]):
    """An object from allowed names to whole numbers, 0 to `MOST_COUNT`."""

    types: tuple[type, ...] = (int,)
    schema_type = "integer"
    most: float = MOST_COUNT
    most_in_words = "2⁵³"

    def __init__(self, names: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = names

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError(f"need an object, got {_shown(data)}")
        for name, value in data.items():
            if name not in self.names:
                shown = name if len(name) <= 60 else f"{name[:60]}…"
                raise serializers.ValidationError({shown: unknown(name, self.names, "member")})
            if type(value) not in self.types or not 0 <= value <= self.most:
                words = f"need 0 to {self.most_in_words}, got {_shown(value)}"
                raise serializers.ValidationError({name: words})
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class Amounts(Counts):
    """The same with numbers that need not be whole, 0 to 10¹⁵."""

    types = (int, float)
    schema_type = "number"
    most = 1e15  # bytes or seconds: of no real engine or link
    most_in_words = "10¹⁵"


@extend_schema_field(
    {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "minItems": 1}
)
class BlockIds(serializers.Field[list[bytes], Any, list[str], list[bytes]]):
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
