"""What the page Tiers & segments says of stores, for operators: of the chosen tenants' segments."""

from dataclasses import dataclass

from django.db.models import Count, Sum

from catalog.models import MoveRule, SegmentCopy
from dashboard.usage import Tenants
from neve.planner.savings import money_text
from planning import moves, prices


@dataclass(frozen=True)
class StoreRow:
    """`money`: a month, of all bytes there. `arriving_bytes`: of copies that are written now."""

    held: moves.Held
    arriving: int
    arriving_bytes: int
    leaving: int

    @property
    def money(self) -> str:
        return money_text(self.held.money_a_month)

    @property
    def ended_bytes(self) -> int:
        """Of old places in their grace time."""
        return self.held.leaving_bytes - self.arriving_bytes


@dataclass(frozen=True)
class Stores:
    rows: list[StoreRow]
    currency: str
    rules: int  # active ones


def stores(tenants: Tenants) -> Stores:
    ids = [tenant.pk for tenant in tenants]
    copies = SegmentCopy.unscoped.filter(tenant_id__in=ids).order_by()
    counted = {
        (store_id, state): (count, size or 0)
        for store_id, state, count, size in copies.values_list("store_id", "state").annotate(
            Count("pk"), Sum("size_bytes")
        )
    }
    state = SegmentCopy.State
    rows = []
    platform = prices.in_force(prices.today())
    for held in moves.held(ids, platform):
        store_id = None if held.store.is_default else held.store.pk
        arriving, arriving_bytes = counted.get((store_id, state.ARRIVING), (0, 0))
        leaving = sum(counted.get((store_id, each), (0, 0))[0] for each in _LEAVING)
        rows.append(StoreRow(held, arriving, arriving_bytes, leaving))
    return Stores(rows, platform.currency, MoveRule.objects.filter(is_active=True).count())


_LEAVING = (SegmentCopy.State.LEAVING, SegmentCopy.State.DELETING)
