"""Prompts in bodies: token ids, text, or messages of a chat."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from base.problems import Problem
from cacheapi.base.fields import Flag, StrictSerializer, Text, WholeNumber
from cacheapi.base.schemas import exactly_one
from catalog.models import Space
from contexts.making import Wanted
from engines import prompts
from tenants.principal import Principal

MOST_MESSAGES = 2000
_OF_TEXT = ("add_special_tokens",)
_OF_MESSAGES = (
    *("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    "add_special_tokens",
)


@extend_schema_field(
    {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        "minItems": 1,
        "maxItems": prompts.MOST_TOKENS,
    }
)
class TokenIds(serializers.Field[list[int], Any, list[int], list[int]]):
    """Integers from 0 to 2³²-1."""

    def to_internal_value(self, data: Any) -> list[int]:
        most = prompts.MOST_TOKENS
        if not isinstance(data, list) or not 1 <= len(data) <= most:
            raise serializers.ValidationError(f"need a list of 1 to {most} token ids")
        for n, token in enumerate(data):
            if type(token) is not int or not 0 <= token < 2**32:
                raise serializers.ValidationError(f"need 0 to 2³²-1 at index {n}")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"role": {"type": "string"}, "content": {}},
            "required": ["role"],
        },
        "minItems": 1,
        "maxItems": MOST_MESSAGES,
    }
)
class Messages(serializers.Field[list[Any], Any, list[Any], list[Any]]):
    """Messages as of /v1/chat/completions, of text alone: the ids of a prompt with media depend on
    the media's contents, which only the engine has."""

    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list) or not 1 <= len(data) <= MOST_MESSAGES:
            raise serializers.ValidationError(f"need a list of 1 to {MOST_MESSAGES} messages")
        for n, message in enumerate(data):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise serializers.ValidationError(f"need an object with a role at index {n}")
            content = message.get("content")
            if isinstance(content, list):
                if not all(isinstance(part, dict) and _is_text(part) for part in content):
                    raise serializers.ValidationError(
                        f"need parts of type text at index {n}: prompts with images, audio or "
                        "video become contexts by a request that names one"
                    )
            elif content is not None and not isinstance(content, str):
                raise serializers.ValidationError(f"need text as content at index {n}")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


def _is_text(part: dict[str, Any]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


@extend_schema_field({"type": "array", "items": {"type": "object"}, "maxItems": 500})
class Tools(serializers.Field[list[Any], Any, list[Any], list[Any]]):
    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list) or len(data) > 500:
            raise serializers.ValidationError("need a list of at most 500 tools")
        if not all(isinstance(tool, dict) for tool in data):
            raise serializers.ValidationError("need objects")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field({"type": "object"})
class Members(serializers.Field[dict[str, Any], Any, dict[str, Any], dict[str, Any]]):
    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("need an object")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class OptionalPromptSerializer(StrictSerializer):
    """At most one of `tokens`, `text` and `messages`. An engine of the space tokenises the last
    two. LoRA adapters and media can not be given: name such contexts in a request."""

    tokens = TokenIds(required=False, help_text="as the engine's tokeniser makes them")
    text = serializers.CharField(
        required=False, trim_whitespace=False, help_text="as the prompt of /v1/completions"
    )
    messages = Messages(required=False, help_text="as of /v1/chat/completions, of text alone")
    tools = Tools(required=False, help_text="with messages")
    chat_template_kwargs = Members(required=False, help_text="with messages")
    add_generation_prompt = Flag(required=False, help_text="with messages; default true")
    continue_final_message = Flag(required=False, help_text="with messages; default false")
    add_special_tokens = Flag(
        required=False, help_text="default: true with text, false with messages, as in vLLM"
    )
    salt = Text(
        max_length=prompts.MOST_SALT, required=False, help_text="cache_salt of the requests"
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        given = [name for name in ("tokens", "text", "messages") if name in attrs]
        if len(given) > 1:
            raise serializers.ValidationError({given[1]: f"give either this or {given[0]}"})
        known = {"text": _OF_TEXT, "messages": _OF_MESSAGES}.get(given[0] if given else "", ())
        for name in (*_OF_MESSAGES, *_OF_TEXT):
            if name in attrs and name not in known:
                raise serializers.ValidationError({name: "only with messages or text"})
        if attrs.get("add_generation_prompt") and attrs.get("continue_final_message"):
            raise serializers.ValidationError(
                {"continue_final_message": "not together with add_generation_prompt"}
            )
        return attrs


_ONE = exactly_one("tokens", "text", "messages")


class PromptSerializer(OptionalPromptSerializer):
    """Exactly one of `tokens`, `text` and `messages`. An engine of the space tokenises the last
    two. LoRA adapters and media can not be given: name such contexts in a request."""

    schema: dict[str, Any] = _ONE
    space = WholeNumber(min_value=1, help_text="number of the space")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        if not {"tokens", "text", "messages"} & set(attrs):
            raise serializers.ValidationError({"tokens": "give tokens, text or messages"})
        return attrs


def wanted_of(body: dict[str, Any]) -> Wanted | None:
    """None: the body has no prompt."""
    if not {"tokens", "text", "messages"} & set(body):
        return None
    options = {name: body[name] for name in _OF_MESSAGES if name in body}
    if options.get("continue_final_message"):
        options.setdefault("add_generation_prompt", False)
    return Wanted(
        tokens=body.get("tokens"),
        text=body.get("text"),
        messages=body.get("messages"),
        options=options,
        salt=body.get("salt", ""),
    )


def space_of(who: Principal, number: int) -> Space:
    """A space that the caller sees. Raises Problem (malformed)."""
    space = who.rows(Space).filter(pk=number, is_leaving=False).select_related("tenant").first()
    if space is None:
        raise Problem("malformed", f"space: there is no space {number}.", field="space")
    return space
