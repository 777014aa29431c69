"""The OpenAPI document: its parts that no view states, and its one build in each process.

docs/openapi.json holds it; `make openapi` writes that anew after a change of the API.
"""

import threading
from functools import cache
from hashlib import blake2b
from typing import Any

from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.renderers import OpenApiJsonRenderer

from base.problems import CONTENT_TYPE, KINDS, Problem
from cacheapi.base.fields import NO_NUL, NOT_BLANK
from cacheapi.base.idempotency import HEADER, PATTERN, REPLAYED
from neve.node.stats import MOST_COUNT

IDEMPOTENCY_KEY = {
    "name": HEADER,
    "in": "header",
    "description": "A new one for each change, such as a UUID. Repeated within 24 hours, the same "
    f"request with the same key gets the first one's answer again, with `{REPLAYED}: true`.",
    "schema": {"type": "string", "pattern": rf"^{PATTERN}$"},
}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


class Operations(AutoSchema):
    """Names operations `<resource>_<verb>`: `contexts_list`, `contexts_pin`, `usage_get`."""

    def get_operation_id(self) -> str:
        resource = self._tokenize_path()[0].replace("-", "_")
        return f"{resource}_{self._verb()}"

    def _verb(self) -> str:
        named: str | None = getattr(self.view, "verbs", {}).get(self.method.lower())
        action = getattr(self.view, "action", None) or self.method.lower()
        if action == "get" and self._is_list_view():
            return named or "list"
        return named or _VERBS.get(action, action)


_VERBS = {
    "retrieve": "get",
    "partial_update": "update",
    "destroy": "delete",
    "post": "create",
    "patch": "update",
}


class KeyScheme(OpenApiAuthenticationExtension):
    target_class = "cacheapi.base.access.KeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "neve_<prefix>_<secret>"}


class PersonScheme(OpenApiAuthenticationExtension):
    target_class = "cacheapi.base.access.PersonAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


class StrictBody(OpenApiSerializerExtension):
    """Unknown members are refused."""

    target_class = "cacheapi.base.fields.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        mapped = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        return {**mapped, "additionalProperties": False, **getattr(self.target, "schema", {})}


class PlainText(OpenApiSerializerFieldExtension):
    target_class = "cacheapi.base.fields.Text"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        mapped = auto_schema._map_serializer_field(self.target, direction, bypass_extensions=True)
        return {**mapped, "pattern": NO_NUL if self.target.allow_blank else NOT_BLANK}


class Replaced(OpenApiSerializerFieldExtension):
    target_class = "cacheapi.base.fields.DeprecatedNumber"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        mapped = auto_schema._map_serializer_field(self.target, direction, bypass_extensions=True)
        return {**mapped, "deprecated": True}


class CountsByName(OpenApiSerializerFieldExtension):
    target_class = "cacheapi.base.fields.Counts"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        count = {"type": "integer", "minimum": 0, "maximum": MOST_COUNT}
        names = {str(name): count for name in self.target.names}
        return {"type": "object", "properties": names, "additionalProperties": False}


def add_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Every operation answers what goes wrong with a problem document."""
    result["components"]["schemas"]["Problem"] = {
        "type": "object",
        "description": "RFC 9457. Some kinds have more members: expected, got, node_limit, errors, "
        "budget_bytes, used_bytes, asked_bytes.",
        "properties": {
            "type": {
                "type": "string",
                "enum": [Problem(kind, "").document()["type"] for kind in KINDS],
            },
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string", "description": "the member that is wrong"},
        },
        "required": ["type", "title", "status", "detail"],
    }
    schemas = result["components"]["schemas"]
    reference = {"$ref": "#/components/schemas/Problem"}
    answer = {"description": "refused", "content": {CONTENT_TYPE: {"schema": reference}}}
    result["paths"] = {
        address.replace("{uuid}", "{id}"): path for address, path in result["paths"].items()
    }
    for address, path in result["paths"].items():
        for method, operation in path.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] == "uuid":
                    parameter["name"] = "id"
            operation["responses"]["default"] = answer
            if body := operation.get("requestBody"):
                name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                needs = {"required", "minProperties", "oneOf", "anyOf"} & set(schemas[name])
                body["required"] = bool(needs)
            if address.startswith("/api/"):
                _add_limits(method, operation, answer)
    return result


def _add_limits(method: str, operation: dict[str, Any], answer: dict[str, Any]) -> None:
    """Rate limits, and the idempotency key of what changes something."""
    refusals = {"429": "too many requests"}
    if method != "get":
        operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
        refusals["409"] = f"conflict; or the first request with this {HEADER} is still running"
        refusals["422"] = f"another request had this {HEADER}"
    for status, description in refusals.items():
        headers = {} if status == "422" else {"headers": RETRY_AFTER}
        operation["responses"][status] = {**answer, "description": description, **headers}


_building = threading.Lock()


def document() -> tuple[bytes, str]:
    """The document as JSON, and its entity tag. Takes 0.1 s the first time, then nothing."""
    with _building:  # requests that come together wait for one
        return _built()


@cache
def _built() -> tuple[bytes, str]:
    raw = bytes(OpenApiJsonRenderer().render(SchemaGenerator().get_schema(public=True)))
    return raw, f'"{blake2b(raw, digest_size=16).hexdigest()}"'
