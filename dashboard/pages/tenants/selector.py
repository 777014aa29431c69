"""What tenants hold, how well they hit, what that saved, how many nodes they run."""

from dataclasses import dataclass

from django.db.models import Count

from catalog.models import NodeSession
from catalog.nodes import live_since
from catalog.usage import bounded_sum
from catalog.windows import Window
from dashboard.storage import StorageUse, storage_use
from dashboard.usage import Tenants, buckets
from tenants.models import Tenant
from tenants.principal import rows_of

STATES = {
    "works": "● works",
    "inactive": "○ inactive",
    "cut-off": "✕ cut off",
    "leaving": "○ being removed",
}


@dataclass(frozen=True)
class TenantRow:
    """`hit_ratio`, `saved_tokens`: of the window, None when nothing was asked for. `nodes`: live.
    `hot_share`: of all active tenants' hot quotas that the reader sees."""

    tenant: Tenant
    use: StorageUse
    hit_ratio: float | None
    saved_tokens: int | None
    nodes: int
    hot_share: float | None

    @property
    def state(self) -> str:
        if self.tenant.is_leaving:
            return "leaving"
        if self.tenant.cut_off_at is not None:
            return "cut-off"
        return "works" if self.tenant.is_active else "inactive"

    @property
    def state_class(self) -> str:
        return {"works": "live", "cut-off": "revoked"}.get(self.state, "ended")


def tenant_rows(tenants: Tenants, window: Window) -> list[TenantRow]:
    uses = storage_use(tenants, window.now_s)
    asked = _asked(tenants, window)
    live = rows_of(NodeSession, tenants).filter(ended_at=None, last_heartbeat_at__gt=live_since())
    nodes = dict(
        live.order_by().values_list("tenant_id").annotate(nodes=Count("node", distinct=True))
    )
    promised = sum(uses[one.pk].hot_quota_bytes or 0 for one in tenants if one.is_active)
    return [
        TenantRow(
            tenant=one,
            use=uses[one.pk],
            hit_ratio=hit / requested if requested else None,
            saved_tokens=hit if requested else None,
            nodes=nodes.get(one.pk, 0),
            hot_share=_share(one, uses[one.pk], promised),
        )
        for one in tenants
        for requested, hit in (asked.get(one.pk, (0, 0)),)
    ]


def _share(one: Tenant, use: StorageUse, promised: int) -> float | None:
    if not one.is_active or not promised:
        return None
    return (use.hot_quota_bytes or 0) / promised


def _asked(tenants: Tenants, window: Window) -> dict[int, tuple[int, int]]:
    """(tokens asked for, tokens from stored blocks) by tenant id."""
    rows = (
        buckets(tenants, window)
        .order_by()
        .values("tenant_id")
        .annotate(
            requested=bounded_sum("requested_tokens", "tail_tokens"),
            hit=bounded_sum("hit_hot_tokens", "hit_cold_tokens", "hit_local_tokens"),
        )
    )
    return {row["tenant_id"]: (int(row["requested"]), int(row["hit"])) for row in rows}
