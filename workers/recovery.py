"""Notices that the hot Valkey lost its memory, and brings back what it must know.

The mark is a key that only a finished rebuild writes: the id of that run of the server. A rebuild
that dies leaves it unset, so the next tick begins again; that is safe because a rebuild may be
repeated. A server that was started again is rebuilt even when it kept its data: a snapshot, or a
log that lost its last second, says nothing of what was flushed since.
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
    """Whether a rebuild finished in this run of the Valkey. Raises valkey's errors."""
    return whole_run() is not None


def whole_run() -> bytes | None:
    """The id of this run of the Valkey if a rebuild finished in it. Raises valkey's errors.

    What was seen between two calls that return the same id was seen in a whole index.
    """
    run_id = _run_id()
    return run_id if hot.admin().get(INDEXED) == run_id else None


def rebuild_all(
    *, progress: Callable[[str, int, int], None] = lambda tenant, done, total: None
) -> RebuildReport:
    """Provisions the server and rebuilds every tenant's index. Returns the sum of all tenants.

    `progress` gets (tenant's slug, segments done, all segments of the tenant).
    """
    run_id = _run_id()
    hot.provision()
    total = RebuildReport()
    for tenant in Tenant.objects.order_by("pk"):
        report = rebuild_tenant(tenant.pk, progress=partial(progress, tenant.slug))
        total.segments += report.segments
        total.blocks += report.blocks
        total.lost_segments += report.lost_segments
    hot.admin().set(INDEXED, run_id)
    log.info("index_rebuilt segments=%s blocks=%s lost=%s", *vars(total).values())
    return total


def _run_id() -> bytes:
    """Another one after each start of the server."""
    return str(hot.admin().info("server")["run_id"]).encode()
