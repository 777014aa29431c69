"""The list of the page Audit: who did what, from where, to which object."""

from collections.abc import Sequence
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Case, CharField, F, QuerySet, Value, When

from catalog.models import Context, Job, NodeSession, Space
from dashboard.lists import Choice, Column, List
from dashboard.pages.audit.selector import audit_row
from dashboard.scope import Scope
from tenants.models import ApiKey, AuditEvent
from tenants.principal import Principal

KINDS = (
    ("login", "signing in"),
    ("second_factor", "second factors"),
    ("sign_in", "sessions ended"),
    ("identity", "identities"),
    ("user", "accounts"),
    ("membership", "members"),
    ("invitation", "invitations"),
    ("key", "keys"),
    ("quota", "quotas"),
    ("retention", "policies and rules"),
    ("tenant", "tenants"),
    ("context", "contexts"),
    ("space", "spaces"),
    ("job", "jobs"),
    ("webhook", "webhooks"),
    ("incident", "incidents"),
)
_MODELS: dict[str, tuple[Any, str]] = {  # object type → model, and the member that names a row
    "context": (Context, "name"),
    "space": (Space, "name"),
    "job": (Job, "kind"),
    "apikey": (ApiKey, "name"),
    "nodesession": (NodeSession, "node"),
}
_TABS = {
    **{"quota": "use", "retentionpolicy": "policy", "retentionrule": "policy"},
    **{"membership": "people", "invitation": "people"},
}


def audit_rows(person: Principal, scope: Scope) -> QuerySet[AuditEvent]:
    """Of the scope's tenants and time. Teams do not see addresses of operators, as in REST."""
    rows = person.rows(AuditEvent).select_related("tenant")
    if scope.tenant != "all" or scope.space is not None:
        rows = rows.filter(tenant__in=scope.tenants)
    if not scope.is_live:
        rows = rows.filter(at__gte=scope.start, at__lt=scope.end)
    if person.is_operator:
        return rows.annotate(shown_address=F("address"))
    shown = Case(
        When(is_by_operator=True, then=Value("")), default=F("address"), output_field=CharField()
    )
    return rows.annotate(shown_address=shown)


def _of_kind(rows: QuerySet[AuditEvent], kind: str) -> QuerySet[AuditEvent]:
    return rows.filter(action__startswith=kind if kind == "login" else f"{kind}.")


def object_link(event: Any, scope: Scope) -> str | None:
    """Where the object is; None if it has no page, or is gone."""
    kind, pk = event.object_type, event.object_id
    if kind in ("context", "space", "job") and event.object_name:
        return scope.link(kind, pk, tenant=None)
    if kind == "nodesession" and event.object_name:
        return scope.link("node", pk, tenant=None)
    if kind == "apikey":
        return scope.link("keys")
    if event.tenant is not None and kind in ("tenant", *_TABS):
        return scope.link("tenant", event.tenant.slug, tenant=None, tab=_TABS.get(kind))
    return None


def named(events: Sequence[Any], person: Principal) -> Sequence[Any]:
    """Adds names of objects and what changed: a query for each kind of object of the page."""
    names: dict[tuple[str, str], str] = {}
    for kind, (model, name) in _MODELS.items():
        ids = {event.object_id for event in events if event.object_type == kind}
        if ids:
            found = person.rows(model).filter(pk__in=ids).values_list("pk", name)
            names |= {(kind, str(pk)): str(words) for pk, words in found}
    if person.is_operator:
        ids = {event.object_id for event in events if event.object_type == "user"}
        people = get_user_model().objects.filter(pk__in=ids).values_list("pk", "username")
        names |= {("user", str(pk)): words for pk, words in people}
    for event in events:
        event.object_name = names.get((event.object_type, event.object_id), "")
        if event.object_type in ("tenant", *_TABS) and event.tenant is not None:
            event.object_name = event.tenant.slug
        event.changes = audit_row(event).changes
    return events


class AuditList(List):
    """Of AuditEvent, as `audit_rows` has them."""

    name = "audit"
    columns = (
        Column("at", "When", "moment"),
        Column("actor_name", "Who"),
        Column(
            "tenant",
            "Tenant",
            path="tenant.slug",
            link=lambda row, scope: (
                row.tenant and scope.link("tenant", row.tenant.slug, tenant=None)
            ),
        ),
        Column("action", "What"),
        Column(
            "object",
            "Object",
            value=lambda row: f"{row.object_type} {row.object_name or row.object_id[:16]}",
            order="object_type",
            link=object_link,
        ),
        Column(
            "changes", "Change", "html", order="", template="pages/audit/changes.html", in_csv=False
        ),
        Column("address", "Address", path="shown_address"),
        Column("request_id", "Request", shown=False),
        Column("object_id", "Number", shown=False),
    )
    filters = (Choice("kind", "About", KINDS, apply=_of_kind),)
    search = ("actor_name", "action", "object_id", "shown_address", "request_id")
    search_label = "Who, what, address or request"
    default_sort = "-at"
    rows = 50
    nothing = "pages/audit/nothing.html"

    def prepared(self, rows: Sequence[Any]) -> Sequence[Any]:
        return named(rows, self.scope.person)
