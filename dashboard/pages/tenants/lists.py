"""The list of tenants."""

from typing import Any

from dashboard.formats import bytes_quantity
from dashboard.lists import Choice, Column, List
from dashboard.pages.keys.lists import link
from dashboard.pages.tenants.selector import STATES
from dashboard.scope import Scope


def _page(row: Any, scope: Scope, **changes: Any) -> str | None:
    return link(scope, "tenant", row.tenant.slug, tenant=None, **changes)


def _explore(measure: str, split: str) -> Any:
    def address(row: Any, scope: Scope) -> str | None:
        slug = row.tenant.slug
        return link(scope, "explorer", tenant=slug, measure=measure, split=split) or _page(
            row, scope
        )

    return address


class TenantList(List):
    """Of `TenantRow`s."""

    name = "tenants"
    columns = (
        Column(
            *("slug", "Tenant"), path="tenant.slug", link=_page, note=lambda row: row.tenant.name
        ),
        Column(
            *("hit_ratio", "Hit rate", "percent"),
            hint="of prompt tokens in the chosen time",
            link=_explore("hit_rate", "space"),
        ),
        Column(
            *("saved_tokens", "Saved", "count"),
            unit="tok",
            hint="tokens not recomputed in the chosen time",
            link=lambda row, scope: _page(row, scope, tab="savings"),
        ),
        Column(*("hot_ratio", "Hot of quota", "bar"), path="use.hot_ratio", colour="hot"),
        Column(
            *("hot_bytes", "Hot", "size"),
            path="use.hot_bytes",
            note=lambda row: f"of {bytes_quantity(row.use.hot_quota_bytes)}",
            link=_explore("hot_used", "space"),
        ),
        Column(*("cold_ratio", "Cold of quota", "bar"), path="use.cold_ratio"),
        Column(
            *("cold_bytes", "Cold", "size"),
            path="use.cold_bytes",
            note=lambda row: f"of {bytes_quantity(row.use.cold_quota_bytes)}",
            link=_explore("cold_used", "space"),
        ),
        Column(
            *("hot_share", "Share of hot", "percent"),
            hint="its part of all hot quotas",
            link=lambda row, scope: _page(row, scope),
            shown=False,
        ),
        Column(
            *("dirty_bytes", "Dirty", "size"),
            path="use.dirty_bytes",
            shown=False,
            link=_explore("dirty_age", "space"),
        ),
        Column(
            *("nodes", "Nodes", "count"),
            note=lambda row: f"of {row.tenant.node_limit}",
            link=lambda row, scope: link(scope, "nodes", tenant=row.tenant.slug),
        ),
        Column(
            *("state", "State", "state"),
            value=lambda row: row.state_class,
            words=lambda row: STATES[row.state],
        ),
    )
    filters = (Choice("state", "State", tuple(STATES.items())),)
    search = ("tenant.slug", "tenant.name")
    search_label = "Search tenants"
    default_sort = "slug"
    nothing = "pages/tenants/nothing.html"
