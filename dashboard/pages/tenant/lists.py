"""The lists of a tenant's tabs."""

from collections.abc import Sequence
from typing import Any

from dashboard.lists import Column, List
from dashboard.pages.contexts.listing import ContextList
from dashboard.pages.keys.lists import link
from dashboard.pages.tenant.changes import with_changes


class OwnContexts(ContextList):
    """Without the prefix tree beside it."""

    title = ""


class SpaceList(List):
    name = "spaces"
    columns = (
        Column("name", "Space", link=lambda row, scope: link(scope, "space", row.pk)),
        Column("model", "Model", path="identity.model", order=""),
        Column("kv_dtype", "KV", path="identity.kv_dtype", order=""),
        Column("chunk_tokens", "Chunk", kind="count", unit="tokens"),
        Column("created_at", "Since", kind="ago"),
    )
    search = ("name",)
    search_label = "Search spaces"
    default_sort = "-created_at"
    nothing = "pages/spaces/nothing.html"


def _engine(row: Any) -> str:
    return f"{row.engine.get('name', '')} {row.engine.get('version', '')}".strip()


class NodeList(List):
    name = "nodes"
    columns = (
        Column("node", "Node", link=lambda row, scope: link(scope, "node", row.pk)),
        Column(
            "space",
            "Space",
            path="space.name",
            link=lambda row, scope: link(scope, "space", row.space_id),
        ),
        Column("version", "Engine", value=_engine, order=""),
        Column("breaker", "Breaker", kind="state"),
        Column("last_heartbeat_at", "Last heartbeat", kind="ago"),
        Column("opened_at", "Connected", kind="ago"),
    )
    search = ("node", "space.name")
    search_label = "Search nodes"
    default_sort = "-last_heartbeat_at"
    nothing = "pages/nodes/nothing.html"


class AuditList(List):
    name = "audit"
    columns = (
        Column("at", "When", kind="moment"),
        Column("actor_name", "Who"),
        Column("action", "Change"),
        Column("object_type", "Of"),
        Column("object_id", "Number", shown=False),
        Column(
            "changes",
            "What changed",
            kind="html",
            order="",
            template="pages/tenant/changes.html",
            in_csv=False,
        ),
    )
    search = ("actor_name", "action", "object_id")
    search_label = "Search the audit"
    default_sort = "-at"
    nothing = "pages/audit/nothing.html"

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        return [with_changes(row) for row in rows]


class PeopleList(List):
    name = "people"
    columns = (
        Column("user", "Name", path="user.username"),
        Column("email", "Mail", path="user.email"),
        Column("role", "Role", kind="html", template="pages/tenant/role.html"),
        Column("last_login", "Last signed in", kind="ago", path="user.last_login"),
        Column(
            "remove",
            "Remove",
            kind="html",
            order="",
            is_head_silent=True,
            in_csv=False,
            template="pages/tenant/remove.html",
        ),
    )
    search = ("user.username", "user.email")
    search_label = "Search people"
    default_sort = "user"
    nothing = "pages/tenant/no_member.html"
