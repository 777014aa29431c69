"""The lists of the page Tiers & segments."""

from typing import Any

from django.db.models import F, FloatField, Q, QuerySet
from django.db.models.functions import Cast, NullIf

from catalog.models import Segment
from catalog.stores import name_of
from dashboard.lists import Choice, Column, List
from dashboard.pages.tiers.reclaim import is_due
from dashboard.scope import Scope
from dashboard.usage import Tenants
from tenants.principal import rows_of

WORDS = {"live": "● live", "uploading": "○ uploading", "deleting": "○ waiting"}


def _explore(measure: str) -> Any:
    def address(row: Any, scope: Scope) -> str:
        return scope.link("explorer", tenant=row.tenant.slug, measure=measure, split="space")

    return address


def _segments(**changes: str) -> Any:
    def address(row: Any, scope: Scope) -> str:
        return scope.link("tiers", tenant=row.tenant.slug, tab="segments", **changes)

    return address


def _tenant(row: Any, scope: Scope) -> str:
    return scope.link("tenant", row.tenant.slug, tenant=None)


class FillingList(List):
    """Rows are `filling.FillingRow`."""

    name = "filling"
    title = "Who fills them"
    columns = (
        Column("tenant", "Tenant", path="tenant.slug",
               link=lambda row, scope: scope.link("tiers", tenant=row.tenant.slug)),
        Column("hot", "Hot", kind="size", path="use.hot_bytes", link=_explore("hot_used")),
        Column("hot_ratio", "Of quota", kind="percent", path="use.hot_ratio", link=_tenant),
        Column("dirty", "Not yet in S3", kind="size", path="use.dirty_bytes",
               link=_explore("dirty_age")),
        Column("cold", "Cold", kind="size", path="use.cold_bytes", link=_explore("cold_used")),
        Column("cold_ratio", "Of quota", kind="percent", path="use.cold_ratio", link=_tenant),
        Column("growth", "Grows an hour", kind="size", path="cold_per_hour",
               hint="cold bytes, over the last hour", link=_explore("cold_used")),
        Column("full_in", "Full in", kind="duration", path="full_in_s",
               hint="until the cold quota is reached if it goes on as in the last hour",
               link=lambda row, scope: scope.link("what_if", tenant=row.tenant.slug)),
        Column("dead", "Dead", kind="size", path="dead_bytes",
               hint="in segments that still have live blocks", link=_segments(dead="some")),
        Column("waiting", "Waiting", kind="size", path="waiting_bytes",
               hint="in segments that are deleted once no reader needs them",
               link=_segments(state="deleting")),
        Column("unstored", "Refused by cold", kind="count", path="use.unstored_blocks",
               unit="blocks", shown=False, link=_explore("cold_refused")),
    )  # fmt: skip
    search = ("tenant.slug",)
    default_sort = "-cold_ratio"


def segment_rows(tenants: Tenants, space_id: int | None) -> QuerySet[Segment]:
    """With `dead_bytes` and `dead_share` of each."""
    rows = rows_of(Segment, tenants).select_related("tenant", "space", "store")
    if space_id is not None:
        rows = rows.filter(space_id=space_id)
    size = NullIf(F("size_bytes"), 0)
    dead = F("size_bytes") - F("live_bytes")
    share = Cast(dead, FloatField()) / Cast(size, FloatField())
    found: QuerySet[Segment] = rows.annotate(dead_bytes=dead, dead_share=share)
    return found


def _with_dead(rows: Any, value: str) -> Any:
    return rows.filter(
        is_due() if value == "due" else Q(dead_bytes__gt=0, state=Segment.State.LIVE)
    )


class SegmentList(List):
    """Rows are of `segment_rows`."""

    name = "segments"
    title = "Segments"
    columns = (
        Column("pk", "No.", kind="number"),
        Column("tenant", "Tenant", path="tenant.slug",
               link=lambda row, scope: scope.link("tiers", tenant=row.tenant.slug, tab="segments")),
        Column("space", "Space", path="space.name",
               link=lambda row, scope: scope.link("tiers", space=row.space_id, tab="segments")),
        Column("state", "State", kind="state",
               value=lambda row: "live" if row.state == Segment.State.LIVE else "running",
               words=lambda row: WORDS[row.state], order="state"),
        Column("store", "Store", value=lambda row: name_of(row.store),
               hint="the S3 bucket that holds it", shown=False),
        Column("blocks", "Blocks", kind="count"),
        Column("size", "Size", kind="size", path="size_bytes"),
        Column("live", "Live", kind="size", path="live_bytes"),
        Column("dead", "Dead", kind="size", path="dead_bytes"),
        Column("dead_share", "Dead share", kind="percent"),
        Column("generation", "Merged", kind="count", hint="times", shown=False),
        Column("runs", "Pieces", kind="count", hint="of chains: fewer are faster to read"),
        Column("object", "Object", path="object_key", shown=False),
        Column("waiting_since", "Waiting since", kind="ago", path="unreferenced_at", shown=False),
        Column("checked", "Checked", kind="ago", path="checked_at", hint="against S3", shown=False),
        Column("made", "Made", kind="ago", path="created_at"),
    )  # fmt: skip
    filters = (
        Choice("state", "State", tuple(WORDS.items())),
        Choice("dead", "Dead", (("due", "half or more"), ("some", "some")), apply=_with_dead),
    )  # fmt: skip
    search = ("object_key", "space__name")
    search_label = "Object or space"
    default_sort = "-pk"
    rows = 50
    nothing = "pages/tiers/no_segment.html"
