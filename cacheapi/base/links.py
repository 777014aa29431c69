"""OpenAPI links: which operations take an id from which answer.

By rule instead of by hand, so that a new resource has its links: a row that is made or read leads
to every operation on it; a list leads to its first row; a change leads back to the row.
"""

import re
from collections.abc import Iterator
from typing import Any

# Name of an address's parameter → member of a row, where it is another.
MEMBERS = {"session_id": "session", "webhook": "id"}


def add_links(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A hook of the OpenAPI document, behind the one that gives addresses their final names."""
    by_collection: dict[str, list[tuple[str, str, str]]] = {}
    for address, _method, operation in _operations(result):
        if found := re.fullmatch(r"(/[a-z0-9/-]+)/\{(\w+)\}(/[a-z-]+)?", address):
            own = (operation["operationId"], found[2], found[3] or "")
            by_collection.setdefault(found[1], []).append(own)
    for address, method, operation in _operations(result):
        collection = address.partition("/{")[0]
        of_one = by_collection.get(collection, [])
        for status, answer in operation["responses"].items():
            if status not in ("200", "201", "202"):
                continue
            links = _links(operation["operationId"], method, address, of_one)
            if links:
                answer["links"] = links
    return result


def _links(
    name: str, method: str, address: str, of_one: list[tuple[str, str, str]]
) -> dict[str, Any]:
    is_of_one, is_read = "{" in address, method == "get"
    links = {}
    for target, parameter, tail in of_one:
        member = MEMBERS.get(parameter, parameter)
        if not is_of_one and is_read:
            if tail or not target.endswith("_get"):
                continue
            place = f"$response.body#/results/0/{member}"
        elif not is_of_one and name.endswith("_create"):
            place = f"$response.body#/{member}"
        elif is_of_one and (is_read or target.endswith("_get")) and target != name:
            own = re.findall(r"\{(\w+)\}", address)[0]
            place = f"$request.path.{own}"
        else:
            continue
        links[target] = {"operationId": target, "parameters": {parameter: place}}
    return links


def _operations(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for address, path in result["paths"].items():
        for method, operation in path.items():
            yield address, method, operation
