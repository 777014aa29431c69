"""The list of API keys, of all tenants or of one."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Case, Count, Q, QuerySet, Value, When
from django.urls import NoReverseMatch
from django.utils import timezone

from catalog.nodes import live_since
from dashboard.lists import Choice, Column, List
from dashboard.scope import Scope
from tenants.models import ApiKey


def keys_of(rows: QuerySet[ApiKey]) -> QuerySet[Any]:
    """With `state` (works, ended, revoked) and `nodes`, the live ones that use the key."""
    is_live = Q(sessions__ended_at=None, sessions__last_heartbeat_at__gt=live_since())
    return rows.select_related("tenant").annotate(
        state=Case(
            When(revoked_at__isnull=False, then=Value("revoked")),
            When(expires_at__lte=timezone.now(), then=Value("ended")),
            default=Value("works"),
        ),
        nodes=Count("sessions__node", filter=is_live, distinct=True),
    )


def link(scope: Scope, name: str, *args: Any, **changes: Any) -> str | None:
    """The address of a page, or None while there is no such page."""
    try:
        return scope.link(name, *args, **changes)
    except NoReverseMatch:
        return None


STATES = (("works", "Works"), ("ended", "Ended"), ("revoked", "Revoked"))
ROLES = (("node", "Node"), ("team", "Team"), ("operator", "Operator"))
_WORDS = {"works": "● works", "ended": "○ ended", "revoked": "✕ revoked"}
_CLASSES = {"works": "live", "ended": "ended", "revoked": "revoked"}


class KeyList(List):
    """Of ApiKey rows, annotated with `state` and `nodes` (`dashboard.pages.keys.selector`)."""

    name = "keys"
    columns = (
        Column("name", "Name", kind="html", template="pages/keys/name.html"),
        Column(
            "tenant",
            "Tenant",
            path="tenant.slug",
            link=lambda row, scope: (
                row.tenant and link(scope, "tenant", row.tenant.slug, tenant=None)
            ),
        ),
        Column("role", "Role"),
        Column(
            "scopes",
            "May",
            order="",
            value=lambda row: ", ".join(row.scopes),
            shown=False,
        ),
        Column(
            "state",
            "State",
            kind="state",
            value=lambda row: _CLASSES[row.state],
            words=lambda row: _WORDS[row.state],
        ),
        Column(
            "nodes",
            "Nodes",
            kind="count",
            hint="live nodes that use it now",
            link=lambda row, scope: row.nodes and link(scope, "nodes", tenant=row.tenant.slug),
        ),
        Column("last_used_at", "Last used", kind="ago"),
        Column("created_at", "Made", kind="ago"),
        Column("expires_at", "Ends", kind="moment"),
        Column(
            "actions",
            "Actions",
            kind="html",
            order="",
            is_head_silent=True,
            in_csv=False,
            template="pages/keys/actions.html",
        ),
    )
    filters = (Choice("state", "State", STATES), Choice("role", "Role", ROLES))
    search = ("name", "prefix", "tenant.slug")
    search_label = "Search keys"
    default_sort = "-created_at"
    nothing = "pages/keys/nothing.html"

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        """With `may_end`: whether the person may rotate and revoke it."""
        person = self.scope.person
        for row in rows:
            is_theirs = row.role == ApiKey.Role.TEAM and person.may_write(row.tenant_id)
            row.may_end = row.state == "works" and (person.is_operator or is_theirs)
        return rows
