"""Samples from a node's heartbeat to a file and back: bounded, and each tenant's apart."""

import random
import time
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings

from base.counting import bus
from catalog import kinds
from catalog.models import NodeSession, Stray
from catalog.targets import Opener
from neve.formats.keys import samples_prefix
from neve.formats.samples import Batch, IdSampler, SampledRequest, Totals
from neve.planner.simulate.sampled import curve
from planning import samples
from storage.s3 import client, ensure_bucket
from support.rows import make_session, make_space, make_tenant
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import Tenant
from tiering.reconcile.objects import look_at_objects
from tiering.reconcile.report import Report
from tiering.removal import remove_tenant
from workers.tasks import store_samples

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_hot", "valkey_bus", "s3"),
]


@pytest.fixture(autouse=True)
def bucket(s3):
    ensure_bucket()


@pytest.fixture
def tenant():
    return make_tenant()


@pytest.fixture
def session(tenant):
    return make_session(make_space(tenant))


def sent(batch):
    return b64encode(batch.encode()).decode()


def batch_of(tenant, *, seed=0, blocks=200, rate_log=2, ago_s=1.0):
    """As a node of the tenant makes it, by the terms that it got."""
    ids = random.Random(seed).randbytes(16 * blocks)
    key = bytes.fromhex(samples.terms_of(tenant)["key"])
    chosen = IdSampler(key, rate_log=rate_log).choose(ids)
    places, published = zip(*chosen, strict=True)
    request = SampledRequest(-ago_s, blocks, places, published)
    return Batch(rate_log, [request], Totals.of([blocks]))


def accept(tenant, session, seq, batch):
    taken = batch if isinstance(batch, str) else sent(batch)
    return samples.accept(tenant=tenant, session=session, seq=seq, samples=taken)


def store(tenant, monkeypatch):
    monkeypatch.setattr(samples, "FILE_S", 0.0)
    samples.store(Opener(kinds.STORE_SAMPLES, tenant.pk), tenant.pk)


def read(tenant, **window):
    now = datetime.now(UTC)
    return samples.read(tenant.pk, now - timedelta(hours=1), now, **window)


def test_what_nodes_sent_is_read_from_files(tenant, session, monkeypatch):
    # Which ids are sampled depends on the key, and so does how far the rate lies off.
    monkeypatch.setattr(samples, "_key_of", lambda tenant_id: bytes(samples.KEY_BYTES))
    other_node = make_session(session.space, "node-2")
    first, second = batch_of(tenant), batch_of(tenant, ago_s=0.5)
    assert accept(tenant, session, 1, first)
    assert accept(tenant, other_node, 1, second)
    assert not read(tenant).requests  # not in a file yet
    store(tenant, monkeypatch)
    found = read(tenant)
    assert found.rate_log == 2
    assert found.totals == Totals.of([200, 200])
    assert [each.ids for each in found.requests] == [first.requests[0].ids] * 2
    assert {each.space for each in found.requests} == {session.space.name}
    assert abs(found.requests[0].at_s - time.time()) < 60
    # The second node asked for blocks of the first one: half of all are hits.
    assert curve(found).hit_rate(None) == pytest.approx(0.5, abs=0.02)
    there = samples.stored(tenant.pk)
    assert there.files == 1
    assert 0 < there.size_bytes < 10_000
    assert tenant.pk in samples.tenants_with_samples()
    assert samples.is_enabled(tenant.pk)


def test_samples_of_one_space_have_the_bytes_that_its_nodes_stored(tenant, session, monkeypatch):
    stored = {"hot_write_bytes": 10 * 1064, "put_blocks": 10}
    NodeSession.unscoped.filter(pk=session.pk).update(totals=stored)
    other = make_session(make_space(tenant, "other"))
    accept(tenant, session, 1, batch_of(tenant))
    accept(tenant, other, 1, batch_of(tenant, seed=2))
    store(tenant, monkeypatch)
    found = read(tenant, space_id=session.space_id)
    assert [(each.space, each.block_bytes) for each in found.requests] == [("space", 1000)]
    assert [each.block_bytes for each in read(tenant, space_id=other.space_id).requests] == [0]
    assert len(read(tenant).requests) == 2


def test_a_heartbeat_that_is_sent_again_counts_once(tenant, session, monkeypatch):
    for seq in (1, 1, 2):
        assert accept(tenant, session, seq, batch_of(tenant))
    store(tenant, monkeypatch)
    assert len(read(tenant).requests) == 2


@pytest.mark.parametrize(
    "wrong",
    [7, None, {}, "", "no base64!", "AAAA", "A" * 100_000, sent(Batch(4, [], Totals()))[:-4]],
)
def test_what_cannot_be_read_is_dropped(tenant, session, wrong):
    assert not samples.accept(tenant=tenant, session=session, seq=1, samples=wrong)
    assert not bus().exists(f"neve:samples:{tenant.pk}:waiting")


def test_a_tenant_sends_so_much_in_a_minute(tenant, session, monkeypatch):
    monkeypatch.setattr(samples, "MINUTE_BYTES", 1000)
    for seq in range(5):
        accept(tenant, session, seq + 1, batch_of(tenant))
    assert bus().llen(f"neve:samples:{tenant.pk}:waiting") < 3
    other = make_tenant()
    accept(other, make_session(make_space(other)), 1, batch_of(other))
    assert bus().llen(f"neve:samples:{other.pk}:waiting") == 1


def test_so_many_batches_wait(tenant, session, monkeypatch):
    monkeypatch.setattr(samples, "WAITING_BATCHES", 3)
    for seq in range(6):
        accept(tenant, session, seq + 1, batch_of(tenant))
    assert bus().llen(f"neve:samples:{tenant.pk}:waiting") == 3


def test_a_bus_that_is_away_costs_samples_alone(tenant, session, monkeypatch):
    monkeypatch.setattr(samples, "_away", samples._Away())
    monkeypatch.setattr(settings, "ENV", replace(settings.ENV, bus_url="redis://127.0.0.1:1/0"))
    bus.cache_clear()
    try:
        accept(tenant, session, 1, batch_of(tenant))
        assert samples._away.until_s > time.monotonic()
        accept(tenant, session, 2, batch_of(tenant))
    finally:
        bus.cache_clear()


def test_all_tenants_together_leave_the_bus_half_of_its_memory(tenant, session, monkeypatch):
    used = bus().info("memory")["used_memory"]
    before = bus().config_get("maxmemory")["maxmemory"]
    try:
        for most, kept in ((used * 3, True), (used * 3 // 2, False)):
            monkeypatch.setattr(samples, "_away", samples._Away())
            bus().config_set("maxmemory", most)
            accept(tenant, session, int(kept) + 1, batch_of(tenant))
            assert bus().llen(f"neve:samples:{tenant.pk}:waiting") == 1
    finally:
        bus().config_set("maxmemory", before)


def test_one_tenant_never_reads_anothers(tenant, session, monkeypatch):
    other = make_tenant()
    accept(tenant, session, 1, batch_of(tenant))
    store(tenant, monkeypatch)
    store(other, monkeypatch)
    assert not read(other).requests
    assert samples.stored(other.pk).files == 0
    mine, its = samples.terms_of(tenant)["key"], samples.terms_of(other)["key"]
    assert mine != its
    assert samples.terms_of(tenant)["key"] == mine  # for all of its nodes


def test_a_worker_that_died_behind_its_file_writes_the_same_one(tenant, session, monkeypatch):
    accept(tenant, session, 1, batch_of(tenant))
    with monkeypatch.context() as broken:
        broken.setattr(samples, "_choose_rate", lambda *_: 1 / 0)
        broken.setattr(samples, "FILE_S", 0.0)
        write = samples.write_file

        def die(*args):
            write(*args)
            raise KeyboardInterrupt

        broken.setattr(samples, "write_file", die)
        with pytest.raises(KeyboardInterrupt):
            samples.store(Opener(kinds.STORE_SAMPLES, tenant.pk), tenant.pk)
    store(tenant, monkeypatch)
    assert samples.stored(tenant.pk).files == 1
    assert len(read(tenant).requests) == 1


def test_two_workers_at_once_write_it_once(tenant, session, monkeypatch):
    accept(tenant, session, 1, batch_of(tenant))
    inside = []
    write = samples.write_file

    def second_comes(*args):
        samples.store(Opener(kinds.STORE_SAMPLES, tenant.pk), tenant.pk)
        inside.append(samples.stored(tenant.pk).files)
        return write(*args)

    monkeypatch.setattr(samples, "write_file", second_comes)
    store(tenant, monkeypatch)
    assert inside == [0]
    assert len(read(tenant).requests) == 1


def test_little_waits_for_more(tenant, session):
    accept(tenant, session, 1, batch_of(tenant))
    samples.store(Opener(kinds.STORE_SAMPLES, tenant.pk), tenant.pk)
    assert samples.stored(tenant.pk).files == 0
    assert bus().llen(f"neve:samples:{tenant.pk}:waiting") == 1


@pytest.mark.parametrize("is_active", [True, False])
def test_old_files_are_deleted_and_young_ones_stay(tenant, session, is_active):
    Tenant.objects.filter(pk=tenant.pk).update(is_active=is_active)
    now_ms = int(time.time() * 1000)
    data = batch_of(tenant).encode()
    for days in (20, 15, 3):
        entry = samples._ENTRY.pack(now_ms - days * 86_400_000, session.space_id, len(data)) + data
        samples.write_file(tenant.pk, [entry])
    assert samples.stored(tenant.pk).files == 3
    store_samples.apply()
    there = samples.stored(tenant.pk)
    assert there.files == 1
    assert there.first > datetime.now(UTC) - timedelta(days=4)


def test_switched_off_nothing_is_taken_and_all_is_deleted(tenant, session, monkeypatch):
    accept(tenant, session, 1, batch_of(tenant))
    store(tenant, monkeypatch)
    accept(tenant, session, 2, batch_of(tenant))
    batch = batch_of(tenant)
    services.switch_samples(tenant=tenant, enabled=False, actor=SYSTEM)
    tenant.refresh_from_db()
    assert samples.terms_of(tenant) is None
    assert not accept(tenant, session, 3, batch)
    store(tenant, monkeypatch)
    assert samples.stored(tenant.pk).files == 0
    assert not bus().exists(f"neve:samples:{tenant.pk}:waiting")


def test_reconcile_leaves_files_of_samples_alone(tenant, session, monkeypatch):
    accept(tenant, session, 1, batch_of(tenant))
    store(tenant, monkeypatch)
    look_at_objects(Report())
    assert not Stray.objects.filter(object_key__startswith=samples_prefix(tenant.pk)).exists()


def test_a_removed_tenants_samples_go(tenant, session, monkeypatch):
    accept(tenant, session, 1, batch_of(tenant))
    store(tenant, monkeypatch)
    remove_tenant(tenant.pk)
    assert samples.stored(tenant.pk).files == 0


def test_a_damaged_file_is_left_out(tenant, session, monkeypatch, log_lines):
    accept(tenant, session, 1, batch_of(tenant))
    store(tenant, monkeypatch)
    now_ms = int(time.time() * 1000)
    key = f"{samples_prefix(tenant.pk)}{datetime.now(UTC):%Y-%m-%d/%H}/{now_ms}-0"
    client().put_object(Bucket=settings.ENV.s3_bucket, Key=key, Body=b"not a file of samples")
    assert len(read(tenant).requests) == 1
    assert any("samples_damaged" in line for line in log_lines())


def test_a_flood_of_heartbeats_leaves_one_key_of_its_session(tenant, session):
    for seq in range(1, 30):
        accept(tenant, session, seq, batch_of(tenant))
    assert len(bus().keys(f"neve:samples:beat:{session.pk}*")) == 1


def test_so_many_bytes_wait_while_nothing_takes_them(tenant, session, monkeypatch):
    size = len(batch_of(tenant).encode()) + samples._ENTRY.size
    monkeypatch.setattr(samples, "WAITING_BYTES", 3 * size)
    for seq in range(1, 9):
        accept(tenant, session, seq, batch_of(tenant))
    assert bus().llen(f"neve:samples:{tenant.pk}:waiting") == 3
    store(tenant, monkeypatch)
    accept(tenant, session, 9, batch_of(tenant))
    assert bus().llen(f"neve:samples:{tenant.pk}:waiting") == 1


def hostile_file(tenant, session, *, entries):
    """A file that packs to a hundredth: requests of one block each, with ids that no rate leaves
    out."""
    requests = [SampledRequest(0.0, 1, (0,), (n % 50,)) for n in range(1000)]
    data = Batch(0, requests, Totals.of([1] * 1000)).encode()
    now_ms = int(time.time() * 1000)
    entry = samples._ENTRY.pack(now_ms, session.space_id, len(data)) + data
    samples.write_file(tenant.pk, [entry] * entries)


def test_what_a_hostile_node_packed_is_read_in_bounded_memory(tenant, session, monkeypatch):
    hostile_file(tenant, session, entries=20)
    assert len(read(tenant).requests) == 20_000
    monkeypatch.setattr(samples, "MOST_READ_ACCESSES", 5000)
    assert len(read(tenant).requests) == 5000
    packed_bytes = samples.stored(tenant.pk).size_bytes
    monkeypatch.setattr(samples, "MOST_READ_BYTES", 10 * packed_bytes)  # 20 × as large inside
    assert not read(tenant).requests


def test_busy_traffic_lowers_the_rate_and_quiet_traffic_raises_it_late(tenant):
    for asked, now, wanted in (
        (50_000, 4, 0),
        (60_000, 0, 0),
        (90_000, 1, 1),  # half of the target would not be enough: stays
        (1_600_000, 4, 4),
        (1_700_000, 4, 5),
        (10**12, 4, 12),
    ):
        assert samples.rate_for(asked, now=now) == wanted


def test_the_rate_follows_what_nodes_report(tenant, session, monkeypatch):
    busy = replace(batch_of(tenant), totals=Totals.of([200] + [100_000] * 100))
    accept(tenant, session, 1, busy)
    store(tenant, monkeypatch)
    tenant.refresh_from_db()
    assert tenant.sample_rate_log > 4
    assert samples.terms_of(tenant)["rate_log"] == tenant.sample_rate_log
