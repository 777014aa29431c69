"""Marks on charts: what changed in a window, and the incidents that opened in it."""

from datetime import UTC, datetime
from typing import Any

from catalog.changes import LETTERS, Change, changes
from dashboard.scope import Scope
from incidents.kinds import KINDS
from incidents.models import Incident

MOST_INCIDENTS = 50


def marks_of(scope: Scope, start_s: float, end_s: float) -> list[Change]:
    """The newest first. Times are in seconds since 1970."""
    end_s = min(end_s, scope.window.now_s + 1)
    start, end = (datetime.fromtimestamp(each, UTC) for each in (start_s, end_s))
    rows = scope.person.rows(Incident).filter(
        opened_at__gte=start, opened_at__lt=end, tenant__in=scope.tenants
    )
    opened = [
        Change(
            row.opened_at or row.since,
            LETTERS["incident"],
            "incident",
            row.words or KINDS[row.kind].label,
            row.tenant.slug if row.tenant else "",
            "incident",
            str(row.pk),
        )
        for row in rows.select_related("tenant").order_by("-opened_at")[:MOST_INCIDENTS]
    ]
    found = [*changes(scope.tenants, start_s, end_s), *opened]
    return sorted(found, key=lambda mark: mark.at, reverse=True)


def url_of(mark: Change, scope: Scope) -> str:
    """Where a mark is seen."""
    return scope.link(mark.page, *([mark.argument] if mark.argument else []))


def words_of(mark: Change) -> str:
    return f"{mark.tenant}: {mark.words}" if mark.tenant else mark.words


def drawn(marks: list[Change]) -> list[dict[str, Any]]:
    """For the script that draws them."""
    return [{"at": mark.at_s, "letter": mark.letter, "words": words_of(mark)} for mark in marks]
