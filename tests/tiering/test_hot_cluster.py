"""The whole control plane on a real Valkey Cluster: from bootstrap to a failover and back."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db.models import Sum
from valkey.exceptions import ResponseError

from catalog import hot_access
from catalog.models import Segment
from dashboard import probes
from dashboard.storage import hot_server, storage_use
from neve.datapath.client import Client
from neve.errors import MissReason
from neve.formats.keys import BucketKeys
from neve.index.tier import Tier
from storage import hot
from support.chains import ENGINE, IDENTITY, Chain, PatientClient
from support.cluster import Cluster
from support.servers import wait_until
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import ApiKey, Quota, Tenant
from tiering import recovery
from tiering.flush import Flusher
from tiering.reconcile.run import reconcile
from tiering.watch import run as watching

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

BUCKETS = 16
COUNT = 60


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        for node in cluster.primaries():
            with node.client() as client:
                client.execute_command("FUNCTION", "FLUSH", "SYNC")
        yield cluster


@pytest.fixture
def key(cluster, settings, s3) -> Iterator[ApiKey]:
    """The key of a tenant on a platform that was made on this cluster."""
    settings.ENV = replace(
        settings.ENV,
        hot_url=f"valkey://{','.join(cluster.seeds)}/0",
        hot_seeds=list(cluster.seeds),
        hot_buckets=BUCKETS,
        heartbeat_s=3600,  # the threads of live_server share one SQLite connection
    )
    path = settings.VAR / "demo.key"
    path.unlink(missing_ok=True)
    call_command("bootstrap")
    yield ApiKey.unscoped.get(role="node")
    path.unlink()


def connect(url: str, plaintext: str) -> Client:
    return PatientClient.connect(
        url, plaintext, IDENTITY, node="gpu-1", engine=ENGINE, promote=False
    )


def blocks_of(cluster: Cluster, tenant: Tenant) -> list[int]:
    """How many of its block keys each primary holds."""
    counts = []
    for node in cluster.primaries():
        with node.client() as client:
            counts.append(sum(1 for _ in client.scan_iter(match=f"{{t{tenant.pk}.*}}:b:*")))
    return counts


def store_junk(cluster: Cluster, key: ApiKey) -> None:
    """More than its quota, on each primary in turn, as its node may."""
    size = Quota.unscoped.get(tenant=key.tenant).hot_bytes // 10
    with ExitStack() as stack:
        for n in range(18):
            junk = BucketKeys(key.tenant_id, n).block(1, b"junk".ljust(16))
            for node in cluster.primaries():
                login = hot_access.user_of(key).login
                client = stack.enter_context(node.client(**login))
                with suppress(ResponseError):  # MOVED
                    client.set(junk, bytes(size))


def test_the_platform_serves_flushes_recovers_and_survives_a_failover(
    cluster, key, settings, live_server
):
    tenant = key.tenant
    plaintext = (settings.VAR / "demo.key").read_text().strip()
    recovery.rebuild_all()
    assert recovery.index_is_whole()

    with connect(live_server.url, plaintext) as client:
        chain = Chain(client, COUNT)
        assert chain.put() == [None] * COUNT
        assert chain.get() == [None] * COUNT
        assert (chain.back == chain.sent).all()
        counts = blocks_of(cluster, tenant)
        assert sum(counts) == COUNT
        assert min(counts) > 0  # striped over all primaries
        assert hot.hot_tier(tenant.pk).usage().quota_hot_bytes == (
            Quota.unscoped.get(tenant=tenant).hot_bytes
        )

        memory, room = hot_server(), hot.capacity_bytes()
        assert memory.max_bytes == 3 * (512 << 20)  # of all primaries
        assert room == int(memory.max_bytes / hot.MEMORY_PER_BYTE)
        assert (
            storage_use((tenant,), 0)[tenant.pk].hot_bytes
            == hot.hot_tier(tenant.pk).usage().hot_bytes
        )
        assert probes.HOT.ask().is_well

        assert Flusher(tenant.pk).run().blocks == COUNT
        assert Segment.unscoped.aggregate(Sum("blocks"))["blocks__sum"] == COUNT
        report = reconcile([tenant.pk])
        assert report.looked_at["blocks"] == COUNT
        assert report.looked_at["keys"] >= COUNT
        assert report.as_dict()["repaired"] == {}, report.as_dict()

        hot.hot_tier(tenant.pk).evict(1 << 40)
        assert {at.tier for at in client.match(chain.ids).locations} == {Tier.COLD}
        assert chain.get() == [None] * COUNT

        fail_over(cluster)
        # The new primary knows the node already: nobody had to make a handshake.
        session = client.session.id
        again = Chain(client, COUNT, seed=2)
        wait_until(lambda: again.put() == [None] * COUNT, what="stored again")
        assert again.get() == [None] * COUNT
        assert client.session.id == session
        assert not recovery.index_is_whole()  # the replica may have missed the last changes
        recovery.rebuild_all()
        assert recovery.index_is_whole()
        assert chain.get() == [None] * COUNT
        assert Flusher(tenant.pk).run().blocks == COUNT

        cluster.primaries()[0].restart()  # sooner than it is replaced: it comes back empty
        cluster.wait_whole()
        assert not recovery.index_is_whole()
        recovery.rebuild_all()
        wait_until(lambda: chain.get() == [None] * COUNT, what="rebuilt")

        seen = watching.Memory()
        for _ in range(4):
            watching.look(seen)
        assert Tenant.objects.get(pk=tenant.pk).cut_off_at is None
        held = sum(blocks_of(cluster, tenant))
        store_junk(cluster, key)
        for _ in range(4):
            watching.look(seen)
        assert Tenant.objects.get(pk=tenant.pk).cut_off_at is not None
        assert sum(blocks_of(cluster, tenant)) == held  # its own are still there
        services.let_in(tenant=tenant, actor=SYSTEM)
        hot_access.provision_user(key)

        services.revoke_key(key=key, actor=SYSTEM)
        for node in cluster.nodes:
            if node.process is not None:
                with node.client() as admin:
                    assert admin.execute_command("ACL", "USERS") == [b"default"]
        wait_until(lambda: client.match(chain.ids).miss is MissReason.BREAKER, what="cut off")


def fail_over(cluster: Cluster) -> None:
    """Kills a primary; returns when its replica has taken over and the platform has seen it."""
    cluster.primaries()[0].kill()
    wait_until(lambda: len(cluster.primaries()) == 3, what="a new primary")
    cluster.wait_whole()
