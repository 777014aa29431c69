"""The list of the page What-if: whose tiers to change, each tenant with its recommendation."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dashboard.lists import Column, List
from dashboard.scope import Scope
from planning import whatif
from tenants.models import Tenant


@dataclass(frozen=True)
class Row:
    """`words`, `made_at`: of the newest recommendation; None without one."""

    tenant: Tenant
    words: str | None
    made_at: datetime | None


def _page(row: Any, scope: Scope) -> str:
    return scope.link("what_if", tenant=row.tenant.slug, change=scope_change(scope))


def scope_change(scope: Scope) -> str | None:
    """The change that the address asks to try, which the choice of a tenant keeps."""
    return dict(scope.others).get("change")


class WhatIfList(List):
    """Of Tenants."""

    name = "what-if"
    title = "Of which tenant?"
    columns = (
        Column(
            *("slug", "Tenant"),
            path="tenant.slug",
            order="slug",
            link=_page,
            note=lambda row: row.tenant.name,
        ),
        Column("words", "Recommendation", order="", words=lambda row: row.words or ""),
        Column("made_at", "Made", "ago", order=""),
    )
    search = ("slug", "name")
    search_label = "Search tenants"
    nothing = "pages/what_if/nothing.html"

    def prepared(self, rows: Sequence[Tenant]) -> list[Row]:
        made = whatif.newest_of([each.pk for each in rows])
        return [Row(one, *made.get(one.pk, (None, None))) for one in rows]
