"""What tenants hold, how well they hit, how many nodes they run."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count

from catalog.models import NodeSession
from catalog.sessions import live_since
from catalog.windows import RANGES, window_of
from dashboard.storage import StorageUse, storage_use
from dashboard.usage import Tenants, hit_ratios
from tenants.models import Tenant
from tenants.principal import rows_of


@dataclass(frozen=True)
class TenantRow:
    """`hit_ratio`: of the last hour, None when nothing was asked for. `nodes`: live ones."""

    tenant: Tenant
    use: StorageUse
    hit_ratio: float | None
    nodes: int


def tenant_rows(tenants: Tenants, *, now: datetime) -> list[TenantRow]:
    hour = window_of(RANGES["1h"], now.timestamp())
    uses, ratios = storage_use(tenants, hour.now_s), hit_ratios(tenants, hour)
    live = rows_of(NodeSession, tenants).filter(ended_at=None, last_heartbeat_at__gt=live_since())
    nodes = dict(
        live.order_by().values_list("tenant_id").annotate(nodes=Count("node", distinct=True))
    )
    return [
        TenantRow(one, uses[one.pk], ratios.get(one.pk), nodes.get(one.pk, 0)) for one in tenants
    ]
