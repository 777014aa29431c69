"""Notices that the hot Valkey lost its memory, and rebuilds the index.

Only a finished rebuild writes the mark: a key with the id of that run of the server and of the name
of the books. A rebuild that dies leaves it unset, so a later tick goes on; a rebuild may be
repeated. A restarted server is rebuilt even if it kept its data: a snapshot, or a log that lost its
last second, does not know the flushes since. So is a cluster after a failover: a replica may have
missed the last changes of its primary.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any

from django.utils import timezone
from valkey.exceptions import ResponseError

from base import log_events
from catalog.jobs import JobRun
from neve.formats.keys import books_name
from retention import provisioning
from storage import hot, hot_servers
from tenants.models import Tenant
from tiering.rebuild import RebuildReport, Start, rebuild_tenant

INDEXED = "neve:indexed"
NOTES = "neve:rebuilding"
CLAIMED = "neve:rebuilder"
NOTED_SEGMENTS = 16  # after so many a rebuild notes its progress
LEASE_S = 30.0  # of the worker that rebuilds: longer than NOTED_SEGMENTS take


def index_is_whole(tenant_id: int | None = None) -> bool:
    """Whether a rebuild finished in this run of the Valkey. Raises valkey's errors.

    With a tenant: and that its own index was not lost since, nor left out.
    """
    return whole_run(tenant_id) is not None


def whole_run(tenant_id: int | None = None) -> bytes | None:
    """The id of this run of the Valkey if a rebuild finished in it. Raises valkey's errors.

    Facts read between two calls that return the same id come from a whole index.
    """
    run = run_id()
    if hot_servers.admin().get(INDEXED) != _mark(run):
        return None
    is_lost = tenant_id is not None and hot_servers.admin().sismember(
        hot.INDEX_LOST, str(tenant_id)
    )
    return None if is_lost else run


def lost_tenants() -> list[int]:
    """Tenants whose own index must be rebuilt, though the server lost nothing.

    Their nodes damaged it (`storage.hot.mend`), or its rebuild failed.
    """
    return sorted(int(id_) for id_ in hot_servers.admin().smembers(hot.INDEX_LOST))


def rebuild_lost(
    *, progress: Callable[[str, RebuildReport, int], None] = lambda tenant, report, total: None
) -> RebuildReport:
    """Rebuilds the indexes of `lost_tenants`. Returns the sum. Raises their errors at the end."""
    total, errors = RebuildReport(), []
    for tenant_id in lost_tenants():
        tenant = Tenant.objects.filter(pk=tenant_id).first()
        try:
            if tenant is not None:
                show = partial(_show_one, progress, tenant.slug)
                total.add(rebuild_tenant(tenant_id, progress=show))
            hot_servers.admin().srem(hot.INDEX_LOST, tenant_id)
        except Exception as error:
            log_events.REBUILD_FAILED.log(tenant_id=tenant_id, exc_info=True)
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ExceptionGroup("of several tenants", errors)
    return total


def _show_one(
    progress: Callable[[str, RebuildReport, int], None],
    slug: str,
    report: RebuildReport,
    total: int,
    number: int,
) -> None:
    progress(slug, report, total)


def claim() -> bool:
    """Takes the lease of the rebuild, which ends LEASE_S after its last renewal."""
    return bool(hot.note("SET", CLAIMED, b"1", "NX", "PX", int(LEASE_S * 1000)))


def rebuild_all(
    *, progress: Callable[[str, RebuildReport, int], None] = lambda tenant, report, total: None
) -> RebuildReport:
    """Provisions the server and rebuilds every tenant's index. Returns the sum of all tenants.

    A rebuild that was broken off goes on behind the last segment that it noted, unless the server
    restarted. `progress` gets the tenant's slug, its report so far, and its number of segments. A
    tenant whose index Valkey refuses is left to `rebuild_lost`.
    """
    run = run_id()
    _remove_renamed(run)
    provisioning.provision()
    notes = _Notes(run)
    total = RebuildReport()
    for tenant in Tenant.objects.order_by("pk"):

        def show(report: RebuildReport, of: int, number: int, tenant: Tenant = tenant) -> None:
            if report.looked_at % NOTED_SEGMENTS == 0:
                notes.write(tenant.pk, number)
            progress(tenant.slug, report, of)

        try:
            total.add(rebuild_tenant(tenant.pk, start=notes.read(tenant.pk), progress=show))
            hot_servers.admin().srem(hot.INDEX_LOST, tenant.pk)
        except ResponseError:
            log_events.REBUILD_FAILED.log(tenant_id=tenant.pk, exc_info=True)
            hot.note("SADD", hot.INDEX_LOST, tenant.pk)
    hot.note("SET", INDEXED, _mark(run))
    hot_servers.admin().unlink(NOTES, CLAIMED)
    log_events.INDEX_REBUILT.log(
        segments=total.segments, blocks=total.blocks, lost=total.lost_segments
    )
    return total


def show_in_job(run: JobRun, tenant: str, report: RebuildReport, total: int) -> None:
    """Shows the progress of a rebuild in its job, every NOTED_SEGMENTS."""
    if report.looked_at % NOTED_SEGMENTS == 0:
        run.progress(report.looked_at / total, blocks=report.blocks)
        run.detail({"tenant": tenant, **vars(report)})


def forget_index() -> None:
    """Marks the index as not whole: the next tick rebuilds it."""
    hot_servers.admin().unlink(INDEXED, NOTES)


def _remove_renamed(run: bytes) -> None:
    """Empties the server if its books have another name, as after a new pepper or an update from a
    release whose nodes knew the name: old books and their blocks would fill it beside new ones."""
    mark = hot_servers.admin().get(INDEXED)
    if mark is None or not mark.startswith(run) or mark == _mark(run):
        return
    log_events.BOOKS_RENAMED.log()
    for client in hot_servers.primaries():
        for keys in _batched(client.scan_iter(match="{t*}:*", count=1000), 1000):
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.unlink(key)
            pipe.execute()


def _batched(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part


def _mark(run: bytes) -> bytes:
    """Names the run and the books: an index under another name is not this one."""
    return run + b" " + hashlib.sha256(books_name()).hexdigest()[:16].encode()


def run_id() -> bytes:
    """Changes with each start of a server, and with a failover in a cluster."""
    return hot_servers.run_id()


class _Notes:
    """Progress of a rebuild, in the server that it fills; void in another run of the server."""

    def __init__(self, run: bytes) -> None:
        if hot_servers.admin().hget(NOTES, "run") != run:
            hot_servers.admin().unlink(NOTES)
            begun = timezone.now().isoformat()
            hot.note("HSET", NOTES, "run", run, "begun_at", begun)
        self._begun_at = datetime.fromisoformat(
            hot_servers.admin().hget(NOTES, "begun_at").decode()
        )

    def read(self, tenant_id: int) -> Start:
        return Start(self._begun_at, int(hot_servers.admin().hget(NOTES, str(tenant_id)) or 0))

    def write(self, tenant_id: int, number: int) -> None:
        hot.note("HSET", NOTES, tenant_id, number)
        hot.note("SET", CLAIMED, b"1", "PX", int(LEASE_S * 1000))
