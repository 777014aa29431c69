"""The page Policies: all tenants' policies side by side. A value leads to its field on the tenant's
page, where a change is tried before it is saved."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from dashboard.lists import Choice, Column, List
from dashboard.page import page, render_page
from dashboard.pages.keys.lists import link
from dashboard.pages.tenant.changes import with_changes
from dashboard.pages.tenant.policy import BY_NAME, in_words
from dashboard.pages.tenant.view import HISTORY, policy_defaults
from dashboard.scope import Scope, scope_of
from retention.models import RetentionPolicy, RetentionRule
from retention.presets import PRESETS
from retention.services import FIELDS
from tenants.models import AuditEvent, Tenant
from tenants.principal import Principal, rows_of


@dataclass(frozen=True)
class PolicyRow:
    """`preset`: its label, or "own". `words`: of each field."""

    tenant: Tenant
    policy: RetentionPolicy
    preset: str
    rules: int
    words: dict[str, str]

    @property
    def applied(self) -> str:
        return "live" if self.policy.is_applied else "silent"


def policy_rows(tenants: tuple[Tenant, ...]) -> list[PolicyRow]:
    rules = dict(
        rows_of(RetentionRule, tenants)
        .order_by()
        .values_list("tenant_id")
        .annotate(rules=Count("pk"))
    )
    defaults = policy_defaults()
    policies = rows_of(RetentionPolicy, tenants).select_related("tenant").order_by("tenant__slug")
    return [
        PolicyRow(
            tenant=each.tenant,
            policy=each,
            preset=_preset(each, defaults),
            rules=rules.get(each.tenant_id, 0),
            words={name: in_words(BY_NAME[name], getattr(each, name)) for name in FIELDS},
        )
        for each in policies
    ]


def _preset(policy: RetentionPolicy, defaults: dict[str, Any]) -> str:
    values = {name: getattr(policy, name) for name in defaults}
    for each in PRESETS:
        if {**defaults, **each.values} == values:
            return each.label
    return "own"


def _value(name: str, **fields: Any) -> Column:
    def address(row: Any, scope: Scope) -> str | None:
        slug = row.tenant.slug
        return link(scope, "tenant", slug, tenant=None, tab="policy", edit=name)

    return Column(
        name,
        BY_NAME[name].label,
        path=f"policy.{name}",
        words=lambda row: row.words[name],
        link=address,
        hint=BY_NAME[name].hint,
        **fields,
    )


class PolicyList(List):
    name = "policies"
    columns = (
        Column(
            *("slug", "Tenant"),
            path="tenant.slug",
            link=lambda row, scope: link(
                scope, "tenant", row.tenant.slug, tenant=None, tab="policy"
            ),
        ),
        Column("preset", "Preset"),
        _value("flush_mode"),
        _value("hot_idle_s"),
        _value("cold_ttl_s"),
        _value("max_age_s"),
        _value("pin_budget_bytes"),
        _value("priority"),
        _value("cold_full"),
        _value("eviction", shown=False),
        _value("cold_codec", shown=False),
        _value("lossy_codecs"),
        _value("promote_window_s", shown=False),
        Column(
            *("rules", "Rules", "count"),
            link=lambda row, scope: link(
                scope, "tenant", row.tenant.slug, tenant=None, tab="policy"
            ),
        ),
        Column(
            *("applied", "Stored blocks", "state"),
            words=lambda row: "● follow" if row.policy.is_applied else "◔ follow soon",
        ),
    )
    filters = (
        Choice(
            *("preset", "Preset", (*((one.label, one.label) for one in PRESETS), ("own", "own"))),
        ),
    )
    search = ("tenant.slug", "tenant.name")
    search_label = "Search tenants"
    default_sort = "slug"


@page(*PolicyList.takes())
@require_GET
def policies(request: HttpRequest, person: Principal) -> HttpResponse:
    scope = scope_of(request, person)
    listing = PolicyList(request, scope, policy_rows(scope.tenants))
    if listing.wants_csv:
        return listing.csv()  # type: ignore[return-value]
    events = rows_of(AuditEvent, scope.tenants).filter(action__startswith="retention.")
    history = [with_changes(each) for each in events.select_related("tenant")[:HISTORY]]
    facts = {"listing": listing, "presets": PRESETS, "history": history}
    return render_page(request, person, "policies", facts)
