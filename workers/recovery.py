"""Notices that the hot Valkey lost its memory, and brings back what it must know.

The mark is a key that only a finished rebuild writes. A rebuild that dies leaves it unset, so the
next tick begins again; that is safe because a rebuild may be repeated.
"""

import logging
from collections.abc import Callable
from functools import partial

from controlplane import hot
from tenants.models import Tenant
from workers.rebuild import RebuildReport, rebuild_tenant

log = logging.getLogger("neve.recovery")

INDEXED = "neve:indexed"


def index_is_whole() -> bool:
    """Whether a rebuild finished since this Valkey was last empty. Raises valkey's errors."""
    return bool(hot.admin().exists(INDEXED))


def rebuild_all(
    *, progress: Callable[[str, int, int], None] = lambda tenant, done, total: None
) -> RebuildReport:
    """Provisions the server and rebuilds every tenant's index. Returns the sum of all tenants.

    `progress` gets (tenant's slug, segments done, all segments of the tenant).
    """
    hot.provision()
    total = RebuildReport()
    for tenant in Tenant.objects.order_by("pk"):
        report = rebuild_tenant(tenant.pk, progress=partial(progress, tenant.slug))
        total.segments += report.segments
        total.blocks += report.blocks
        total.lost_segments += report.lost_segments
    hot.admin().set(INDEXED, "1")
    log.info("index_rebuilt segments=%s blocks=%s lost=%s", *vars(total).values())
    return total
