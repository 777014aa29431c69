"""`make openapi`: writes the operations and records of `neve.api` from docs/openapi.json.

Operation `contexts_pin` becomes `AsyncContexts.pin`; an answer's schema becomes a frozen dataclass.
`neve.api._sync` is then made from `neve.api._async`. A test compares all of it with the schema.
"""

import json
import keyword
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy.installation import ROOT

SCHEMA = ROOT / "docs/openapi.json"
API = ROOT / "connector/src/neve/api"
PREFIX = "/api/v1"
# Resources with one operation, which is a method of the client itself: `neve.usage(…)`.
SINGLE = frozenset({"lookup", "me", "usage"})
# Answers that hold a secret: never in a repr.
SECRETS = frozenset({"key", "secret", "api_key", "password", "token", "webhook_secret"})
# Types of query parameters that have a form of their own in Python.
QUERY_TYPES = {"labels": "Labels", "types": "str | Sequence[str]"}
MADE = "Made by `make openapi` from docs/openapi.json: do not edit."

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method, and the name under which it is sent."""

    name: str
    sent_as: str
    type: str
    where: str  # "path", "query" or "body"
    is_required: bool = False
    is_nullable: bool = False
    description: str = ""

    def signature(self) -> str:
        if self.is_required:
            return f"{self.name}: {self.type}" + (" | None" if self.is_nullable else "")
        if self.is_nullable and self.where == "body":
            return f"{self.name}: {self.type} | Omit | None = OMIT"
        return f"{self.name}: {self.type} | None = None"


@dataclass(frozen=True)
class Operation:
    """A method of the client. `answer`: name of a record, "Any" or None; of rows for a list."""

    id: str
    resource: str
    name: str
    method: str
    path: str
    description: str
    parameters: tuple[Parameter, ...]
    answer: str | None
    is_list: bool
    is_export: bool
    takes_etag: bool
    has_body: bool


class Source:
    """The schema, and the records that its answers need."""

    def __init__(self, document: Schema) -> None:
        self.document = document
        self.components: Schema = document["components"]["schemas"]
        self.records: dict[str, Schema] = {}

    def resolve(self, schema: Schema) -> Schema:
        """Without `$ref`, `allOf` of one, and `oneOf` with "empty text" or null."""
        if "$ref" in schema:
            return self.resolve(self.components[schema["$ref"].rpartition("/")[2]])
        for word in ("allOf", "oneOf", "anyOf"):
            kinds = [one for one in schema.get(word, ()) if one.get("type") != "null"]
            if len(kinds) == 1 or (kinds and word == "oneOf" and "properties" not in schema):
                merged = self._merged([self.resolve(one) for one in kinds])
                rest = {name: value for name, value in schema.items() if name != word}
                is_nullable = len(kinds) < len(schema[word]) or merged.get("nullable", False)
                return {**merged, **rest, "nullable": rest.get("nullable", is_nullable)}
        return schema

    @staticmethod
    def _merged(kinds: list[Schema]) -> Schema:
        if all(one.get("type") == "object" for one in kinds) and len(kinds) > 1:
            required = set.intersection(*(set(one.get("required", ())) for one in kinds))
            properties = {
                name: value for one in kinds for name, value in one.get("properties", {}).items()
            }
            return {"type": "object", "properties": properties, "required": sorted(required)}
        types = {one.get("type") for one in kinds}
        return kinds[0] if len(types) == 1 else {}

    def answer_type(self, schema: Schema, name: str) -> str:
        """The Python type of an answer's value; `name` is for an object without a name."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
        elif len(schema.get("allOf", ())) == 1:
            return self.answer_type(schema["allOf"][0], name)
        resolved = self.resolve(schema)
        kind = resolved.get("type")
        if kind == "string":
            return "datetime" if resolved.get("format") == "date-time" else "str"
        if kind in ("integer", "number", "boolean"):
            return {"integer": "int", "number": "float", "boolean": "bool"}[kind]
        if kind == "array":
            singular = name.removesuffix("s")
            return f"tuple[{self.answer_type(resolved.get('items', {}), singular)}, ...]"
        if kind == "object" and resolved.get("properties"):
            self._need(name, resolved)
            return name
        if kind == "object":
            inner = resolved.get("additionalProperties")
            value = self.answer_type(inner, f"{name}Value") if isinstance(inner, dict) else "Any"
            return f"dict[str, {value}]"
        return "Any"

    def _need(self, name: str, schema: Schema) -> None:
        if name not in self.records:
            self.records[name] = schema
            for member, inner in schema["properties"].items():
                self.answer_type(inner, name + _camel(member))

    def request_type(self, schema: Schema) -> str:
        """The Python type of a parameter."""
        resolved = self.resolve(schema)
        kind, form = resolved.get("type"), resolved.get("format")
        if kind == "string":
            return {"date-time": "Moment", "neve-duration": "Duration", "uuid": "Id"}.get(
                str(form), "str"
            )
        if kind in ("integer", "number", "boolean"):
            return {"integer": "int", "number": "float", "boolean": "bool"}[kind]
        if kind == "array":
            return f"Sequence[{self.request_type(resolved.get('items', {}))}]"
        if kind == "object":
            inner = resolved.get("additionalProperties")
            value = self.request_type(inner) if isinstance(inner, dict) and inner else "Any"
            return f"Mapping[str, {value}]"
        return "Any"

    def operations(self) -> Iterator[Operation]:
        for path, methods in self.document["paths"].items():
            if path.startswith(PREFIX):
                for method, operation in methods.items():
                    if isinstance(operation, dict) and "operationId" in operation:
                        yield self._operation(path.removeprefix(PREFIX), method, operation)

    def _operation(self, path: str, method: str, operation: Schema) -> Operation:
        resource, name = _names(operation)
        given = [self.resolve_parameter(one) for one in operation.get("parameters", ())]
        answer, is_list, is_export = self._answer(operation, resource, name)
        parameters = [
            Parameter(_plain(one["name"]), one["name"], "Id", "path", is_required=True)
            for one in sorted(given, key=lambda one: path.find(f"{{{one['name']}}}"))
            if one["in"] == "path"
        ]
        parameters += [
            Parameter(
                _name(one["name"]),
                one["name"],
                QUERY_TYPES.get(one["name"]) or self.request_type(one["schema"]),
                "query",
                is_required=one.get("required", False),
                description=one.get("description", ""),
            )
            for one in given
            if one["in"] == "query" and not (is_list and one["name"] == "cursor")
        ]
        parameters += self._body(operation)
        return Operation(
            id=operation["operationId"],
            resource=resource,
            name=name,
            method=method.upper(),
            path=path,
            description=operation.get("description") or operation.get("summary") or "",
            parameters=tuple(parameters),
            answer=answer,
            is_list=is_list,
            is_export=is_export,
            takes_etag=any(one["name"] == "If-Match" for one in given),
            has_body="requestBody" in operation,
        )

    def resolve_parameter(self, parameter: Schema) -> Schema:
        if "$ref" not in parameter:
            return parameter
        found: Schema = self.document["components"]["parameters"][
            parameter["$ref"].rpartition("/")[2]
        ]
        return found

    def _body(self, operation: Schema) -> list[Parameter]:
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            return []
        schema = self.resolve(content["application/json"]["schema"])
        required = schema.get("required", ())
        parameters = []
        for name, member in schema.get("properties", {}).items():
            resolved = self.resolve(member)
            if resolved.get("deprecated") or resolved.get("readOnly"):
                continue
            if name == "for_s" and "for" in schema["properties"]:
                continue
            parameters.append(
                Parameter(
                    _name(name),
                    name,
                    self.request_type(member),
                    "body",
                    is_required=name in required,
                    is_nullable=bool(resolved.get("nullable")),
                    description=member.get("description") or resolved.get("description", ""),
                )
            )
        return sorted(parameters, key=lambda one: not one.is_required)

    def _answer(self, operation: Schema, resource: str, name: str) -> tuple[str | None, bool, bool]:
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                continue
            content = response.get("content", {})
            if "application/json" in content:
                schema = content["application/json"].get("schema", {})
                resolved = self.resolve(schema)
                properties = resolved.get("properties", {})
                if {"next", "results"} <= set(properties):
                    rows = self.resolve(properties["results"])["items"]
                    return self.answer_type(rows, _camel(f"{resource}_row")), True, False
                return self.answer_type(schema, _camel(f"{resource}_{name}")), False, False
            if content:
                return "str", False, True
        return None, False, False


def _names(operation: Schema) -> tuple[str, str]:
    """Resource and method of an operation."""
    tag = operation["tags"][0].replace("-", "_")
    name: str = operation["operationId"]
    if tag in SINGLE:
        return "", tag
    prefix = tag if name.startswith(f"{tag}_") else name.partition("_")[0]
    return prefix, _name(name.removeprefix(f"{prefix}_"))


def _plain(name: str) -> str:
    return "id" if name in ("id", "uuid") else _name(name)


def _name(name: str) -> str:
    name = name.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[_-]", name))


def _wrapped(text: str, indent: int, *, first: int = 0) -> str:
    """Paragraphs of `text` in lines under 100 columns."""
    paragraphs = [
        textwrap.fill(
            " ".join(paragraph.split()),
            98 - indent,
            initial_indent=" " * first,
            break_long_words=False,
            break_on_hyphens=False,
        )[first:]
        for paragraph in re.split(r"\n\s*\n|\n(?=\* )", text.strip())
    ]
    return textwrap.indent("\n".join(paragraphs), " " * indent).strip()


def _models(source: Source) -> str:
    lines = [
        f'"""Answers of the platform. {MADE}"""\n',
        "from __future__ import annotations\n",
        "from dataclasses import dataclass, field\nfrom datetime import datetime",
        "from typing import Any\n\nfrom neve.api.records import Record\n",
    ]
    for name, schema in sorted(source.records.items()):
        text = schema.get("description", "") or f"{name}."
        lines += ["\n@dataclass(frozen=True, kw_only=True, slots=True)", f"class {name}(Record):"]
        lines += [f'    """{_docstring(text, 4)}"""\n']
        for member, inner in schema["properties"].items():
            resolved = source.resolve(inner)
            type_ = source.answer_type(inner, name + _camel(member))
            is_absent = member not in schema.get("required", ())
            if (resolved.get("nullable") or is_absent) and type_ != "Any":
                type_ += " | None"
            about = inner.get("description", "")
            if about:
                lines += [f"    # {line.strip()}" for line in _wrapped(about, 6).splitlines()]
            is_secret = member in SECRETS or resolved.get("format") == "password"
            hidden = " = field(repr=False)" if is_secret else ""
            lines.append(f"    {_name(member)}: {type_}{hidden}")
    return "\n".join(lines) + "\n"


def _docstring(text: str, indent: int) -> str:
    wrapped = _wrapped(text, indent, first=3).replace("\\", "\\\\").replace('"""', "'''")
    wrapped = re.sub(r"[ \t]+$", "", wrapped, flags=re.M)
    return wrapped + (f"\n{' ' * indent}" if "\n" in wrapped else "")


def _method(operation: Operation) -> str:
    path = [one for one in operation.parameters if one.where == "path"]
    rest = [one for one in operation.parameters if one.where != "path"]
    signature = ["self", *(one.signature() for one in path)]
    if rest or operation.takes_etag:
        signature += ["*", *(one.signature() for one in rest)]
    if operation.takes_etag:
        signature.append("etag: str | None = None")
    docstring = _wrapped(operation.description or f"{operation.id}.", 8, first=3)
    described = [one for one in rest if one.description]
    if described or operation.takes_etag:
        docstring += "\n\n        Args:\n"
        docstring += "\n".join(
            "            " + _wrapped(f"{one.name}: {one.description}", 16) for one in described
        )
        if operation.takes_etag:
            docstring += (
                "\n            etag: of the version that is changed; refused if it is older."
            )
        docstring = docstring.replace("Args:\n\n", "Args:\n") + "\n        "
    elif "\n" in docstring:
        docstring += "\n        "
    docstring = docstring.replace("\\", "\\\\")
    address = re.sub(
        r"\{([^}]+)\}", lambda found: f"{{path_part({_plain(found[1])})}}", operation.path
    )
    address = f'f"{address}"' if path else f'"{address}"'
    query = _mapping(one for one in rest if one.where == "query")
    if operation.is_list:
        returned, call = (
            f"AsyncPages[models.{operation.answer}]",
            f"AsyncPages(self._transport, {address}, {query or '{}'}, models.{operation.answer})",
        )
        head = "def"
    elif operation.is_export:
        returned = "AsyncIterator[str]"
        call = f"self._transport.lines({address}, query={query or '{}'})"
        head = "def"
    else:
        arguments = [f'"{operation.method}"', address]
        is_record = bool(re.fullmatch(r"[A-Z]\w+", operation.answer or "")) and (
            operation.answer != "Any"
        )
        if is_record:
            arguments.append(f"models.{operation.answer}")
        if query:
            arguments.append(f"query={query}")
        if operation.has_body:
            body = [one for one in rest if one.where == "body"]
            members = _mapping(one for one in body if not one.is_nullable) or "{}"
            nullable = _mapping(one for one in body if one.is_nullable)
            arguments.append(
                f"body=members({members}{f', nullable={nullable}' if nullable else ''})"
            )
        if operation.takes_etag:
            arguments.append("etag=etag")
        call = f"await self._transport.{'call' if is_record else 'call_for_json'}"
        call += f"({', '.join(arguments)})"
        returned = f"models.{operation.answer}" if is_record else str(operation.answer and "Any")
        head = "async def"
    keep = "" if returned == "None" else "return "
    return (
        f"    {head} {operation.name}({', '.join(signature)}) -> {returned}:\n"
        f'        """{docstring}"""\n        {keep}{call}\n'
    )


def _mapping(parameters: Iterator[Parameter]) -> str:
    members = ", ".join(f'"{one.sent_as}": {one.name}' for one in parameters)
    return f"{{{members}}}" if members else ""


def _operations(operations: list[Operation]) -> str:
    groups: dict[str, list[Operation]] = {}
    for operation in operations:
        groups.setdefault(operation.resource, []).append(operation)
    own = groups.pop("", [])
    text = [
        f'"""Operations by resource. {MADE}"""\n',
        "from collections.abc import AsyncIterator, Mapping, Sequence\nfrom typing import Any\n",
        "from neve.api import models",
        "from neve.api._async.paging import AsyncPages",
        "from neve.api._async.resource import AsyncResource",
        "from neve.api._async.transport import AsyncTransport",
        "from neve.api.values import OMIT, Duration, Id, Labels, Moment, Omit, members",
        "from neve.api.values import path_part",
        "",
    ]
    for resource, methods in sorted(groups.items()):
        words = resource.replace("_", " ")
        text += [
            f'\nclass Async{_camel(resource)}(AsyncResource):\n    """Operations on {words}."""\n'
        ]
        # `list` hides the built-in in what follows it.
        text += [_method(one) for one in sorted(methods, key=lambda one: one.name == "list")]
    text += [
        '\nclass AsyncOperations(AsyncResource):\n    """All of the platform\'s resources."""\n'
    ]
    text += ["    def __init__(self, transport: AsyncTransport) -> None:"]
    text += ["        super().__init__(transport)"]
    text += [
        f"        self.{resource} = Async{_camel(resource)}(transport)"
        for resource in sorted(groups)
    ]
    text += ["", *(_method(one) for one in own)]
    return "\n".join(text)


def _remedies() -> str:
    sys.path.insert(0, str(ROOT / "platform"))
    kinds: Mapping[str, tuple[int, str, str]] = import_module("base.problems").KINDS
    lines = [
        '"""What to do about each kind of problem. Made by `make openapi`: do not edit."""\n',
        "REMEDIES = {",
    ]
    for kind, (_, _, remedy) in kinds.items():
        parts = textwrap.wrap(remedy, 84, drop_whitespace=False, break_on_hyphens=False)
        lines.append(f"    {kind!r}: (")
        lines += [f"        {json.dumps(part, ensure_ascii=False)}" for part in parts]
        lines.append("    ),")
    return "\n".join([*lines, "}"]) + "\n"


def write(folder: Path = API) -> None:
    """Writes what is made into `folder`, a copy of `neve/api`."""
    source = Source(json.loads(SCHEMA.read_text()))
    operations = sorted(source.operations(), key=lambda one: (one.resource, one.path, one.method))
    (folder / "remedies.py").write_text(_remedies())
    (folder / "models.py").write_text(_models(source))
    (folder / "_async/operations.py").write_text(_operations(operations))
    _write_sync(folder)
    for command in (
        ["check", "--quiet", "--fix-only", "--select", "I,F401,UP,RUF022"],
        ["format", "--quiet"],
    ):
        subprocess.run(
            [str(Path(sys.executable).parent / "ruff"), *command, "--config",
             str(ROOT / "pyproject.toml"), "--no-cache", str(folder)],
            check=True,
        )  # fmt: skip


def _write_sync(folder: Path) -> None:
    unasync = import_module("unasync")
    files = sorted((folder / "_async").glob("*.py"))
    names = {name for file in files for name in re.findall(r"\bAsync[A-Z]\w*", file.read_text())}
    replacements = {name: name.removeprefix("Async") for name in names}
    replacements |= {"_async": "_sync", "asyncio": "time", "aclose": "close", "aread": "read"}
    replacements |= {"aiter_lines": "iter_lines", "asynccontextmanager": "contextmanager"}
    replacements |= {"AsyncBaseTransport": "BaseTransport", "AsyncClient": "Client"}
    shutil.rmtree(folder / "_sync", ignore_errors=True)
    (folder / "_sync").mkdir()
    rule = unasync.Rule("/_async/", "/_sync/", additional_replacements=replacements)
    unasync.unasync_files([str(file) for file in files], [rule])
    (folder / "_sync/__init__.py").write_text(
        '"""The client in its synchronous form. Made from `neve.api._async`: do not edit."""\n'
    )


def made(folder: Path) -> dict[str, str]:
    """The files of `folder` that `write` makes, by name."""
    files = [folder / "remedies.py", folder / "models.py", folder / "_async/operations.py"]
    files += sorted((folder / "_sync").glob("*.py"))
    return {str(file.relative_to(folder)): file.read_text() for file in files}


def stale() -> list[str]:
    """Names of files that differ from what `write` would make now."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "api"
        shutil.copytree(API, copy, ignore=shutil.ignore_patterns("__pycache__"))
        write(copy)
        wanted, found = made(copy), made(API)
    return sorted(name for name in wanted | found if wanted.get(name) != found.get(name))


if __name__ == "__main__":
    write()
