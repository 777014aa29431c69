"""Recent requests as a list, and an answer's strips as they are drawn."""

from dataclasses import dataclass
from datetime import timedelta

from django.db.models import QuerySet
from django.utils import timezone

from catalog.models import KeptRequest
from contexts.why import Answer, Strip
from dashboard.lists import Choice, Column, List
from dashboard.scope import Scope
from neve.errors import MissReason
from neve.node.requests import Kept
from neve.planner.causes import cause_of
from tenants.principal import rows_of

_KEPT = (
    (Kept.SLOW, "slow"),
    (Kept.FAILED, "failed"),
    (Kept.SAMPLED, "sampled"),
    (Kept.ASKED, "asked"),
)


def label_of(reason: str) -> str:
    cause = cause_of(reason)
    return cause.label if cause is not None else reason.replace("_", " ")


class RequestList(List):
    """Recent requests, the newest first; each opens its answer."""

    name = "requests"
    title = "Recent requests"
    columns = (
        Column("request", "Request", path="name", link=lambda row, scope: _ask(row, scope)),
        Column("at", "When", kind="ago"),
        Column("tenant", "Tenant", path="tenant.slug", order="tenant__slug", shown=False),
        Column(
            "node",
            "Node",
            path="session.node",
            order="session__node",
            link=lambda row, scope: scope.link("node", row.session_id),
        ),
        Column(
            "space",
            "Space",
            path="space.name",
            order="space__name",
            link=lambda row, scope: scope.link("space", row.space_id),
        ),
        Column(
            "reason",
            "First miss",
            value=lambda row: label_of(row.reason) if row.reason else None,
            order="reason",
        ),
        Column("asked", "Asked", kind="count", path="asked_tokens", unit="tok"),
        Column("found", "Found", kind="count", path="found_tokens", unit="tok"),
        Column("loaded", "Loaded", kind="count", path="loaded_tokens", unit="tok"),
        Column("match_ms", "Look-up", kind="ms"),
        Column("load_ms", "Load", kind="ms"),
        Column("outcome", "Decision", value=lambda row: row.outcome.replace("_", " ")),
        Column("kept", "Kept because"),
    )
    filters = (
        Choice("kept", "Kept because", tuple((each.value, words) for each, words in _KEPT)),
        Choice(
            "reason",
            "First miss",
            tuple((each.value, label_of(each)) for each in MissReason),
        ),
    )
    default_sort = "-at"
    nothing = "pages/why/nothing.html"


def _ask(row: KeptRequest, scope: Scope) -> str:
    return scope.link("why", q=row.name)


def requests_of(scope: Scope) -> QuerySet[KeptRequest]:
    """In the scope's tenants, space, node and window."""
    rows = rows_of(KeptRequest, scope.tenants).select_related("session", "space", "tenant")
    rows = rows.defer("chain", "kin", "session__marks", "session__totals")
    if scope.space is not None:
        rows = rows.filter(space=scope.space)
    if scope.node:
        rows = rows.filter(session__node=scope.node)
    return rows.filter(at__gte=scope.start, at__lte=scope.end + timedelta(seconds=60))


def examples(scope: Scope) -> list[tuple[str, str]]:
    """Words and address of requests worth a look, as far as there are some."""
    rows = rows_of(KeptRequest, scope.tenants)
    hour = rows.filter(at__gte=timezone.now() - timedelta(hours=1))
    found = []
    for words, chosen in (
        ("slowest load of the last hour", hour.filter(load_ms__isnull=False).order_by("-load_ms")),
        ("last failed", rows.filter(kept=Kept.FAILED).order_by("-at")),
        ("last miss", rows.filter(miss_chunk__isnull=False).order_by("-at")),
    ):
        name = chosen.values_list("name", flat=True).first()
        if name is not None:
            found.append((words, scope.link("why", q=name)))
    return found


@dataclass(frozen=True)
class Rect:
    x: str
    width: str
    mark: str
    words: str


@dataclass(frozen=True)
class Drawn:
    """A strip with its rectangles, in percent of its width."""

    strip: Strip
    rects: list[Rect]
    miss_x: str  # "" without one
    label: str


def drawn(answer: Answer) -> list[Drawn]:
    found = []
    for strip in answer.strips:
        step = 100 / max(1, len(strip.cells))
        rects = [
            Rect(f"{n * step:.3f}%", f"{step * 0.84:.3f}%", cell.mark, cell.words)
            for n, cell in enumerate(strip.cells)
        ]
        at = None if strip.first_miss is None else strip.first_miss // strip.stride
        if at is not None and at < len(rects):
            rects[at] = Rect(
                rects[at].x, rects[at].width, f"{rects[at].mark} first", rects[at].words
            )
        label = (
            f"{strip.stored} of {strip.chunks} blocks from the beginning: {strip.hot} cells hot, "
            f"{strip.cold} cold"
        )
        found.append(
            Drawn(strip, rects, rects[at].x if at is not None and at < len(rects) else "", label)
        )
    return found
