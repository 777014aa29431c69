"""What the OpenAPI document says besides the views: how to authenticate, how errors look."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension

from controlplane.problems import CONTENT_TYPE, KINDS


class KeyScheme(OpenApiAuthenticationExtension):
    target_class = "cacheapi.access.KeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "neve_<prefix>_<secret>"}


class PersonScheme(OpenApiAuthenticationExtension):
    target_class = "cacheapi.access.PersonAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


def add_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Every operation answers what goes wrong with a problem document."""
    result["components"]["schemas"]["Problem"] = {
        "type": "object",
        "description": "RFC 9457. Some kinds have more members: expected, got, node_limit, errors, "
        "budget_bytes, used_bytes, asked_bytes.",
        "properties": {
            "type": {"type": "string", "enum": [f"/problems/{kind}" for kind in KINDS]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string", "description": "the member that is wrong"},
        },
        "required": ["type", "title", "status", "detail"],
    }
    reference = {"$ref": "#/components/schemas/Problem"}
    answer = {"description": "refused", "content": {CONTENT_TYPE: {"schema": reference}}}
    for path in result["paths"].values():
        for operation in path.values():
            operation["responses"]["default"] = answer
    return result
