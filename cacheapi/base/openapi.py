"""The OpenAPI document: its parts that no view states, and its one build in each process.

docs/openapi.json holds it; `make openapi` writes that anew after a change of the API.
"""

import threading
from collections import defaultdict
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
from cacheapi.base.etags import LIST, Tagged
from cacheapi.base.fields import NO_NUL, NOT_BLANK
from cacheapi.base.idempotency import HEADER, PATTERN, REPLAYED
from cacheapi.base.pages import ordering_parameter
from cacheapi.base.viewsets import ApiView

IDEMPOTENCY_KEY = {
    "name": HEADER,
    "in": "header",
    "description": "A new one for each change, such as a UUID. Repeated within 24 hours, the same "
    f"request with the same key gets the first one's answer again, with `{REPLAYED}: true`.",
    "schema": {"type": "string", "pattern": rf"^{PATTERN}$"},
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "ETag of the object as you read it: if it has changed since, 412.",
    "schema": {"type": "string", "pattern": LIST},
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETag of the answer that you have: if it is still the same, 304.",
    "schema": {"type": "string"},
}
ETAG = {"ETag": {"description": "for If-Match and If-None-Match", "schema": {"type": "string"}}}
RATE = {
    f"RateLimit-{name}": {"description": about, "schema": {"type": "integer", "minimum": 0}}
    for name, about in (
        ("Limit", "requests of a window; absent where no limit is set"),
        ("Remaining", "of them, those that are left"),
        ("Reset", "seconds until the next window begins"),
    )
}
# What any request may be refused with. 405 is of addresses, not of operations.
_ANY = (400, 401, 403, 406, 411, 429)
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


class Operations(AutoSchema):
    """Names operations `<resource>_<verb>` (`contexts_list`, `contexts_pin`, `usage_get`), and
    says of each what every view's base does: refusals, entity tags, rates, idempotency keys."""

    view: Any  # an APIView of ours

    def get_operation_id(self) -> str:
        resource = self._tokenize_path()[0].replace("-", "_")
        return f"{resource}_{self._verb()}"

    def _verb(self) -> str:
        named: str | None = getattr(self.view, "verbs", {}).get(self.method.lower())
        action = getattr(self.view, "action", None) or self.method.lower()
        if action == "get" and self._is_list_view():
            return named or "list"
        return named or _VERBS.get(action, action)

    def get_paginated_name(self, serializer_name: str) -> str:
        return f"{serializer_name}List"

    def get_filter_backends(self) -> Any:
        if getattr(self.view, "action", None) == "export":
            return self.view.filter_backends
        return super().get_filter_backends()

    def get_operation(self, *args: Any) -> dict[str, Any] | None:
        operation = super().get_operation(*args)
        if operation is None:
            return None
        is_team, is_change = isinstance(self.view, ApiView), self.method != "GET"
        parameters = operation.setdefault("parameters", [])
        if getattr(self.view, "action", None) == "export":
            parameters.append(ordering_parameter(self.view.orderings))
        refusals = set(_ANY) | set(getattr(self.view, "refusals", {}).get(self._key(), ()))
        if "{" in self.path:
            refusals.add(404)
        if is_change:
            refusals |= {413, 415}
        if is_change and is_team:
            parameters.append(IDEMPOTENCY_KEY)
            refusals |= {409, 422}
        if self._is_conditional():
            parameters.append(IF_MATCH)
            refusals.add(412)
        if self._is_tagged():
            parameters.append(IF_NONE_MATCH)
            operation["responses"]["304"] = {"description": "as you have it", "headers": ETAG}
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                headers = RATE if self.view.throttle_classes else {}
                if status in ("200", "201") and self._answers_row(answer):
                    headers = {**headers, **ETAG}
                answer["headers"] = {**answer.get("headers", {}), **headers}
        for status in sorted(refusals):
            operation["responses"][str(status)] = {"$ref": f"#/components/responses/{status}"}
        operation["responses"]["5XX"] = {"$ref": "#/components/responses/5XX"}
        return operation

    def _key(self) -> str:
        return getattr(self.view, "action", None) or self.method.lower()

    def _is_conditional(self) -> bool:
        is_tagged = isinstance(self.view, Tagged)
        return self.method != "GET" and is_tagged and self.view.is_conditional()

    def _is_tagged(self) -> bool:
        return self.method == "GET" and self._key() in getattr(self.view, "tagged", ())

    def _answers_row(self, answer: dict[str, Any]) -> bool:
        if self._is_tagged():
            return True
        if not isinstance(self.view, Tagged) or self.method == "GET" or self._key() == "list":
            return False
        reference = str(answer.get("content", {}))
        name = self._get_serializer_name(self.view.serializer_class(), "response")
        return f"/{name}'" in reference


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
    match_subclasses = True

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        count = {"type": self.target.schema_type, "minimum": 0, "maximum": self.target.most}
        names = {str(name): count for name in self.target.names}
        return {"type": "object", "properties": names, "additionalProperties": False}


def allow_blank(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """drf-spectacular offers an empty string beside each pattern, as one of two: one that fits both
    would be refused. NO_NUL itself lets it through."""
    pending: list[Any] = [result]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            match node.get("oneOf"):
                case [{"pattern": pattern} as text, {"maxLength": 0}] if pattern == NO_NUL:
                    del node["oneOf"]
                    node |= text
            pending += node.values()
        elif isinstance(node, list):
            pending += node
    return result


def add_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """The document of a refusal, and one response for each status that refuses."""
    components = result["components"]
    components["schemas"]["Problem"] = {
        "type": "object",
        "description": "RFC 9457. Some kinds have more members: expected, got, node_limit, errors, "
        "budget_bytes, used_bytes, asked_bytes.",
        "properties": {
            "type": {
                "type": "string",
                "format": "uri-reference",
                "description": "A path on the platform: its page says what to do. More kinds may "
                "come: treat an unknown one by its `status`.",
                "x-extensible-enum": [Problem(kind, "").document()["type"] for kind in KINDS],
            },
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string", "description": "the member that is wrong"},
        },
        "required": ["type", "title", "status", "detail"],
    }
    content = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    names: defaultdict[str, list[str]] = defaultdict(list)
    for kind, known in KINDS.items():
        names["5XX" if known[0] >= 500 else str(known[0])].append(kind)
    components["responses"] = {
        status: dict[str, Any](description=", ".join(names[status]), content=content)
        for status in sorted(names)
    }
    for status in ("409", "429", "5XX"):
        components["responses"][status]["headers"] = RETRY_AFTER
    result["paths"] = {
        address.replace("{uuid}", "{id}"): path for address, path in result["paths"].items()
    }
    for path in result["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] == "uuid":
                    parameter["name"] = "id"
            if body := operation.get("requestBody"):
                name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
                schema = components["schemas"][name]
                needs = {"required", "minProperties", "oneOf", "anyOf"} & set(schema)
                body["required"] = bool(needs)
    return result


_building = threading.Lock()


def document() -> tuple[bytes, str]:
    """The document as JSON, and its entity tag. Takes 0.1 s the first time, then nothing."""
    with _building:  # requests that come together wait for one
        return _built()


@cache
def _built() -> tuple[bytes, str]:
    raw = bytes(OpenApiJsonRenderer().render(SchemaGenerator().get_schema(public=True)))
    return raw, f'"{blake2b(raw, digest_size=16).hexdigest()}"'
