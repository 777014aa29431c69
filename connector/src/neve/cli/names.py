"""Objects by the names that people give: contexts, spaces, engines, keys,
webhooks, jobs, incidents.

An id is taken as it is. A name that fits none, or several, raises `NotFound`, which lists what is
there.
"""

import re
from collections.abc import Sequence
from typing import Any, NoReturn
from uuid import UUID

import click

from neve.cli.connection import Connection
from neve.cli.exits import NotFound
from neve.cli.text import printable

_MOST_CANDIDATES = 10
_SHORT_ID = re.compile(r"[0-9a-f]{4,32}")
_RECENT = 500


def is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def find_context(
    platform: Connection, name: str, *, space: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """`space`, `tenant`: where to look if several have the name."""
    if is_uuid(name):
        return dict(platform.get(f"/contexts/{UUID(name)}"))
    query: dict[str, Any] = {"name": name, "tenant": tenant}
    if space is not None:
        query["space"] = find_space(platform, space, tenant=tenant)["id"]
    found = list(platform.rows("/contexts", query, limit=_MOST_CANDIDATES + 1))
    if len(found) == 1:
        return found[0]
    if found:
        _ambiguous("contexts", name, found, "give the id, or --space")
    near = platform.rows("/contexts", {"search": name, "tenant": tenant}, limit=3)
    similar = ", ".join(repr(row["name"]) for row in near)
    raise NotFound(
        f"no context is named {name!r}; "
        + (f"there is {similar}" if similar else "`neve contexts ls` lists those there are")
    )


def find_space(platform: Connection, name: str, *, tenant: str | None = None) -> dict[str, Any]:
    """`name`: of the space, or its number."""
    if name.isascii() and name.isdigit():
        return dict(platform.get(f"/spaces/{int(name)}"))
    return _only(platform, "space", "/spaces", {"name": name, "tenant": tenant}, name)


def find_engine(platform: Connection, name: str) -> dict[str, Any]:
    if is_uuid(name) or (name.isascii() and name.isdigit()):
        return dict(platform.get(f"/engines/{name}"))
    rows = [row for row in platform.rows("/engines") if row["name"] == name]
    return _one_of(rows, "engine", name, "`neve engines` lists those there are")


def find_key(platform: Connection, name: str) -> dict[str, Any]:
    """`name`: of the key, its number, or the public part of the key itself."""
    if name.isascii() and name.isdigit():
        return dict(platform.get(f"/keys/{int(name)}"))
    rows = [
        row
        for row in platform.rows("/keys")
        if name in (row["name"], row.get("prefix")) and not row.get("revoked_at")
    ]
    return _one_of(rows, "key in force", name, "`neve keys ls` lists those there are")


def find_webhook(platform: Connection, name: str) -> dict[str, Any]:
    """`name`: an id, the beginning of one, or the whole address."""
    if is_uuid(name):
        return dict(platform.get(f"/webhooks/{UUID(name)}"))
    rows = [
        row
        for row in platform.rows("/webhooks")
        if row["url"] == name or str(row["id"]).startswith(name.lower())
    ]
    return _one_of(rows, "webhook", name, "`neve webhooks ls` lists those there are")


def find_store(platform: Connection, name: str) -> dict[str, Any]:
    return _only(platform, "store", "/stores", {"name": name}, name)


def find_move_rule(platform: Connection, name: str) -> dict[str, Any]:
    rows = list(platform.rows("/move-rules", {"name": name}))
    return _one_of(rows, "rule", name, "`neve stores rules` lists those there are")


def find_job(platform: Connection, name: str) -> dict[str, Any]:
    """`name`: an id, or the beginning of the id of a recent job."""
    if is_uuid(name):
        return dict(platform.get(f"/jobs/{UUID(name)}"))
    start = name.lower().replace("-", "")
    if not _SHORT_ID.fullmatch(start):
        raise NotFound(f"{name!r} is no job's id: `neve jobs ls` lists them")
    recent = platform.rows("/jobs", limit=_RECENT)
    rows = [row for row in recent if row["id"].replace("-", "").startswith(start)]
    return _one_of(rows, "recent job", name, "`neve jobs ls` lists them")


def find_incident(platform: Connection, name: str) -> dict[str, Any]:
    """`name`: an id, or the beginning of the id of a recent incident."""
    if is_uuid(name):
        return dict(platform.get(f"/incidents/{UUID(name)}"))
    start = name.lower().replace("-", "")
    if not _SHORT_ID.fullmatch(start):
        raise NotFound(f"{name!r} is no incident's id: `neve incidents ls` lists them")
    recent = platform.rows("/incidents", limit=_RECENT)
    rows = [row for row in recent if row["id"].replace("-", "").startswith(start)]
    return _one_of(rows, "recent incident", name, "`neve incidents ls` lists them")


def _only(
    platform: Connection, what: str, path: str, query: dict[str, Any], name: str
) -> dict[str, Any]:
    rows = list(platform.rows(path, query, limit=_MOST_CANDIDATES + 1))
    return _one_of(rows, what, name, f"`neve {what}s ls` lists those there are")


def _one_of(rows: Sequence[dict[str, Any]], what: str, name: str, hint: str) -> dict[str, Any]:
    if not rows:
        raise NotFound(f"no {what} is named {name!r}: {hint}")
    if len(rows) > 1:
        _ambiguous(f"{what}s", name, rows, "give the id")
    return rows[0]


def _ambiguous(what: str, name: str, rows: Sequence[dict[str, Any]], how: str) -> NoReturn:
    shown = [_candidate(row) for row in rows[:_MOST_CANDIDATES]]
    if len(rows) > len(shown):
        shown.append("…")
    lines = "".join(f"\n  {line}" for line in shown)
    raise NotFound(f"several {what} are named {name!r}; {how}:{lines}")


def _candidate(row: dict[str, Any]) -> str:
    words = [str(row["id"])]
    words += [
        f"{each} {row[each]}" for each in ("tenant", "space", "role", "kind") if row.get(each)
    ]
    return printable(", ".join(words))


def complete_context(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of contexts for the shell. Whatever fails, there are none: a shell shows no errors."""
    try:
        platform = Connection(ctx.params.get("profile"), ctx.params.get("endpoint"), as_json=False)
        platform.quick_api()
        try:
            rows = platform.rows("/contexts", {"search": incomplete or None}, limit=50)
            names = [str(row["name"]) for row in rows]
        finally:
            platform.close()
    except Exception:
        return []
    return [each for each in names if each.startswith(incomplete) and each == printable(each)]
