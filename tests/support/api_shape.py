"""What callers of the API depend on, read from an OpenAPI document, and what a change of it breaks.

`released_api.json` holds the shape of the last release. When a version is released:
PYTHONPATH=tests python -m support.api_shape <docs/openapi.json >tests/cacheapi/released_api.json

Not compared: patterns, bounds and formats, members deeper than two levels, refusals.
"""

import json
import re
import sys
from typing import Any

Shape = dict[str, dict[str, Any]]
DEPTH = 2


def shape_of(document: dict[str, Any]) -> Shape:
    """`GET /api/v1/contexts/{}` → its parameters, members of its body and of its answers."""
    found = {}
    for address, path in document["paths"].items():
        for method, operation in path.items():
            name = f"{method.upper()} {re.sub('{.*?}', '{}', address)}"
            found[name] = _operation(document, operation)
    return found


def broken(before: Shape, after: Shape) -> list[str]:
    """What a caller of `before` meets in `after` that it was not made for."""
    lines = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            lines.append(f"{name}: is gone")
            continue
        for part in ("parameters", "body"):
            lines += [f"{name}: {part}: {line}" for line in _asked(old[part], new[part])]
        if new["needs_body"] and not old["needs_body"]:
            lines.append(f"{name}: the body is required")
        for status, members in old["answers"].items():
            if status not in new["answers"]:
                lines.append(f"{name}: answer {status} is gone")
                continue
            gone = members.items() - new["answers"][status].items()
            lines += [
                f"{name}: answer {status}: {member} is gone, or no {kind}" for member, kind in gone
            ]
    return sorted(lines)


def _asked(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Strict as the API is, a member that it no longer knows is refused."""
    lines = [f"{name} is gone" for name in old.keys() - new.keys()]
    for name, (kind, is_required, words) in new.items():
        was = old.get(name)
        if is_required and (was is None or not was[1]):
            lines.append(f"{name} is required")
        if was is not None and was[0] != kind:
            lines.append(f"{name} is {kind}, was {was[0]}")
        if was is not None and words and set(was[2]) - set(words):
            lines.append(f"{name} refuses {', '.join(sorted(set(was[2]) - set(words)))}")
    return lines


def _operation(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {})
    answers = {
        status: _members(document, schema)
        for status, answer in operation["responses"].items()
        if status.startswith("2")
        and (schema := answer.get("content", {}).get("application/json", {}).get("schema"))
    }
    return {
        "parameters": {
            each["name"]: _asks(document, each["schema"], each.get("required", False))
            for each in operation.get("parameters", ())
            if each["in"] != "path"
        },
        "needs_body": body.get("required", False),
        "body": _body(document, body),
        "answers": answers,
    }


def _body(document: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    if not body:
        return {}
    schema = _resolved(document, body["content"]["application/json"]["schema"])
    required = schema.get("required", ())
    return {
        name: _asks(document, each, name in required)
        for name, each in schema.get("properties", {}).items()
    }


def _asks(document: dict[str, Any], schema: dict[str, Any], is_required: bool) -> list[Any]:
    resolved = _resolved(document, schema)
    return [resolved.get("type", "any"), is_required, sorted(map(str, resolved.get("enum", ())))]


def _members(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> dict[str, str]:
    """Path of each member → its type."""
    resolved = _resolved(document, schema)
    if resolved.get("type") == "array":
        return _members(document, resolved.get("items", {}), depth)
    found = {}
    for name, each in resolved.get("properties", {}).items():
        found[name] = _resolved(document, each).get("type", "any")
        if depth < DEPTH:
            inner = _members(document, each, depth + 1)
            found |= {f"{name}.{path}": kind for path, kind in inner.items()}
    return found


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without reference; of `allOf`, which adds remarks to one, that one."""
    for each in (schema, *schema.get("allOf", ()), *schema.get("oneOf", ())):
        if name := each.get("$ref"):
            named: dict[str, Any] = document["components"]["schemas"][name.rsplit("/", 1)[1]]
            return _resolved(document, named)
    return schema


if __name__ == "__main__":
    for line in json.dumps(shape_of(json.load(sys.stdin)), separators=(",", ":")).splitlines():
        print(line.replace('},"', '},\n"'))
