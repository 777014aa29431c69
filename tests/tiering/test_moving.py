"""Segments move between stores: copied, proven, flipped, and deleted from the old place later."""

from datetime import timedelta
from uuid import uuid4

import pytest
from botocore.exceptions import EndpointConnectionError
from django.utils import timezone

from catalog import stores
from catalog.models import Job, Segment, SegmentCopy, Store, Stray, UsageRollup
from catalog.occupancy import occupancy
from catalog.stores import Stores, objects_of
from neve.formats import block
from neve.index.tier import Location, Tier
from planning import moves
from storage import s3 as bucket
from support.servers import S3Server
from support.stores import keys_in, make_rule, make_store, rule_back
from tenants.models import Quota
from tenants.scope import tenant_scope
from tiering import adoption, rebuild, removal, upload
from tiering.compaction import sweep
from tiering.compaction.run import Compactor
from tiering.flush import Flusher
from tiering.moving import copying, plan, run
from tiering.reconcile import objects as object_side
from tiering.reconcile.run import reconcile
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

MIB = 1 << 20


@pytest.fixture
def archive(world):
    return make_store("archive")


@pytest.fixture
def ids(world):
    """Of blocks that are in one segment of the default store only."""
    return cold(world, 6)


def cold(world, count, **options):
    """Stores blocks, flushes them into one segment, and evicts them. Returns their ids."""
    found = world.store(count, **options)
    Flusher(world.tenant.pk).run()
    world.tier.evict(1 << 40)
    return found


def only_segment(world):
    (row,) = world.segments()
    return row


def copies(world):
    with tenant_scope(world.tenant.pk):
        return list(SegmentCopy.objects.all())


def move(world):
    """One pass, as the task does it. Returns its report."""
    tasks.move()
    job = Job.unscoped.filter(kind="move").order_by("-created_at").first()
    assert job is None or job.state == "done", job.error
    return None if job is None else job.detail


def end_grace():
    SegmentCopy.unscoped.update(since=timezone.now() - sweep.GRACE - timedelta(seconds=1))


def settle(world):
    """As if the last move was long ago."""
    Segment.unscoped.update(moved_at=timezone.now() - timedelta(days=1))


def assert_readable(world, ids, near=()):
    """As a node reads: look-up, presigned address, ranged GET, checks."""
    import urllib.request

    with tenant_scope(world.tenant.pk):
        found = objects_of(world.segments(), near=near)
        addresses = {number: each.presign_get() for number, each in found.items()}
    for id_, place in zip(ids, world.tier.match(ids), strict=True):
        assert isinstance(place, Location)
        span = f"bytes={place.offset}-{place.offset + place.size_bytes - 1}"
        request = urllib.request.Request(addresses[place.segment], headers={"Range": span})
        raw = urllib.request.urlopen(request, timeout=10).read()
        block.verify(raw, raw[block.HEADER_BYTES :], expect_id=id_)
        assert raw[block.HEADER_BYTES :] == world.payloads[id_]


def test_a_segment_moves_and_its_old_place_is_deleted_after_the_grace_time(world, ids, archive):
    make_rule(archive)
    report = move(world)
    assert (report["moved"], report["bytes"]) == (1, only_segment(world).size_bytes)
    row = only_segment(world)
    assert row.store == archive
    assert_readable(world, ids)
    (old,) = copies(world)
    assert (old.store_id, old.target, old.state) == (None, archive, "leaving")
    # Whoever got the old address still reads it.
    assert row.object_key in keys_in(None)
    assert row.object_key in keys_in(archive)
    jobs = Job.unscoped.filter(kind="move").count()
    tasks.move()  # the grace time runs: no work, no Job row
    assert Job.unscoped.filter(kind="move").count() == jobs
    end_grace()
    assert move(world)["deleted"] == 1
    assert copies(world) == []
    assert row.object_key not in keys_in(None)
    assert_readable(world, ids)


def test_a_segment_comes_back_on_heat_without_a_copy_while_the_old_place_is_there(
    world, ids, archive
):
    make_rule(archive, least_idle_s=0, name="out", position=2)
    rule_back(archive, least_heat=2.0, name="back", position=1)
    assert move(world)["moved"] == 1
    settle(world)
    Segment.unscoped.update(heat=3.0, read_at=timezone.now())
    report = move(world)
    assert (report["returned"], report["bytes"]) == (1, 0)
    assert only_segment(world).store is None
    assert [each.store for each in copies(world)] == [archive]
    assert_readable(world, ids)


def test_a_move_that_was_killed_is_done_again(world, ids, archive, monkeypatch):
    make_rule(archive)
    with monkeypatch.context() as patch:

        def die(*_, **__):
            raise KeyboardInterrupt  # as a worker that is stopped: nothing cleans up

        patch.setattr(run.places, "flip", die)
        with pytest.raises(KeyboardInterrupt), tenant_scope(world.tenant.pk):
            run.Mover(world.tenant.pk, moves.all_prices(Stores())).run()
    (left,) = copies(world)
    assert left.state == "arriving"
    assert only_segment(world).store is None
    SegmentCopy.unscoped.update(leased_until=timezone.now() - timedelta(seconds=1))
    Segment.unscoped.update(leased_until=None)
    assert move(world)["moved"] == 1
    assert only_segment(world).store == archive
    assert_readable(world, ids)


def test_two_workers_move_a_segment_once(world, ids, archive, monkeypatch):
    make_rule(archive)
    prices = moves.all_prices(Stores())
    real = run.copy_segment

    def beside(*arguments, **options):
        """Another worker's pass, in the middle of this one."""
        monkeypatch.setattr(run, "copy_segment", real)
        other = run.Mover(world.tenant.pk, prices).run()
        assert (other.moved, other.copied) == (0, 0)
        return real(*arguments, **options)

    monkeypatch.setattr(run, "copy_segment", beside)
    assert run.Mover(world.tenant.pk, prices).run().moved == 1
    assert len(copies(world)) == 1


def test_a_segment_that_left_meanwhile_is_not_flipped(world, ids, archive, monkeypatch):
    make_rule(archive)
    real = run.copy_segment

    def end_first(*arguments, **options):
        real(*arguments, **options)
        Segment.unscoped.update(state="deleting")

    monkeypatch.setattr(run, "copy_segment", end_first)
    assert move(world)["given_up"] == 1
    assert only_segment(world).store is None
    move(world)
    assert copies(world) == []
    assert keys_in(archive) == set()


def test_damage_is_found_by_the_copy_and_does_not_move(world, ids, archive):
    make_rule(archive)
    row = only_segment(world)
    where = bucket.default().object(row.object_key)
    raw = bytearray(where.get("bytes=0-")["Body"].read())
    raw[200] ^= 1
    bucket.client().put_object(**where.where, Body=bytes(raw))
    assert move(world)["bad"] == 1
    row = only_segment(world)
    assert row.store is None
    assert row.damaged_at is not None
    assert copies(world) == []


def test_a_store_whose_etags_prove_nothing_is_read_back(world, ids, archive, monkeypatch):
    make_rule(archive)
    monkeypatch.setattr(
        upload.MultipartUpload, "_compare", lambda self, *_: setattr(self, "is_proven", False)
    )
    read = []
    real = copying._read
    monkeypatch.setattr(copying, "_read", lambda *a: (read.append(a[0].bucket.name), real(*a))[1])
    assert move(world)["moved"] == 1
    assert set(read) == {bucket.default().name, archive.bucket}


def test_a_kept_copy_that_was_damaged_does_not_become_the_segments_place(world, ids, archive):
    rule = make_rule(archive, is_copy=True)
    assert move(world)["copied"] == 1
    where = stores.bucket_of(archive).object(only_segment(world).object_key)
    raw = bytearray(where.get("bytes=0-")["Body"].read())
    raw[200] ^= 1
    where.bucket.client.put_object(**where.where, Body=bytes(raw))
    make_rule(archive, name="out", position=1)
    assert move(world)["bad"] == 1
    row = only_segment(world)
    assert (row.store, row.damaged_at, copies(world)) == (None, None, [])
    rule.delete()
    assert move(world)["moved"] == 1
    assert_readable(world, ids)


def test_a_large_segment_goes_in_parts(world, archive, monkeypatch, small_parts):
    monkeypatch.setattr(copying, "RANGE_BYTES", 2 * MIB)
    ids = cold(world, 16, payload_bytes=MIB)
    make_rule(archive)
    assert move(world)["moved"] >= 1
    assert_readable(world, ids)


def test_kept_copies_are_read_where_they_are_near_and_leave_when_they_cool(world, ids, archive):
    archive.priority = 50
    archive.save()
    make_rule(archive, is_copy=True, least_heat=2.0)
    Segment.unscoped.update(heat=3.0, read_at=timezone.now())
    assert move(world)["copied"] == 1
    row = only_segment(world)
    assert row.store is None
    with tenant_scope(world.tenant.pk):
        assert objects_of([row])[row.pk].bucket.name == archive.bucket
        assert objects_of([row], near=["default"])[row.pk].bucket == bucket.default()
        Store.objects.update(failing_since=timezone.now())
        Store.objects.filter(is_default=True).update(failing_since=None)
        assert objects_of([row])[row.pk].bucket == bucket.default()
    Store.objects.update(failing_since=None)
    assert_readable(world, ids)
    Segment.unscoped.update(heat=3.0, read_at=timezone.now() - timedelta(days=1))
    move(world)
    end_grace()
    move(world)
    assert copies(world) == []
    assert keys_in(archive) == set()


def test_reconcile_takes_the_copy_of_a_lost_object(world, ids, archive):
    make_rule(archive, is_copy=True)
    move(world)
    row = only_segment(world)
    bucket.default().object(row.object_key).delete()
    reconcile([world.tenant.pk])
    assert only_segment(world).store == archive
    assert_readable(world, ids)


def test_reconcile_forgets_a_kept_copy_that_is_gone(world, ids, archive):
    archive.priority = 50
    archive.save()
    make_rule(archive, is_copy=True)
    move(world)
    stores.bucket_of(archive).object(only_segment(world).object_key).delete()
    reconcile([world.tenant.pk])
    assert copies(world) == []
    assert_readable(world, ids)


def test_reconcile_knows_the_objects_of_every_store(world, ids, archive, empty_bucket):
    rubbish = "v1/t1/rubbish"
    stores.bucket_of(archive).client.put_object(
        Bucket=archive.bucket, Key=rubbish, Body=b"no segment"
    )
    row_before = only_segment(world) if world.segments() else None
    reconcile([world.tenant.pk])
    assert (archive.pk, rubbish) in Stray.objects.values_list("store_id", "object_key")
    Stray.objects.update(due_at=timezone.now())
    reconcile([world.tenant.pk])
    assert rubbish not in keys_in(archive)
    assert row_before is not None


def test_a_forgotten_copy_is_deleted_and_the_segment_stays(world, ids, archive):
    make_rule(archive)
    move(world)
    SegmentCopy.unscoped.all().delete()  # the row of the old place is lost
    object_side.look_at_objects(report := object_side.Report())
    Stray.objects.update(due_at=timezone.now())
    object_side.judge_strays(report)
    row = only_segment(world)
    assert row.object_key not in keys_in(None)
    assert row.object_key in keys_in(archive)
    assert_readable(world, ids)


def test_rebuild_and_adoption_read_every_store(world, ids, archive, clean_hot):
    make_rule(archive)
    move(world)
    row = only_segment(world)
    world.tier.forget(Tier.COLD, ids)
    assert rebuild.rebuild_tenant(world.tenant.pk).segments == 1
    with tenant_scope(world.tenant.pk):
        Segment.objects.filter(pk=row.pk).delete()
    report = adoption.adopt_tenant(world.tenant.pk)
    assert report.adopted == 1
    with tenant_scope(world.tenant.pk):
        assert Segment.objects.get().store_id in (None, archive.pk)


def test_removing_a_tenants_space_empties_every_store(world, ids, archive):
    make_rule(archive)
    move(world)
    assert keys_in(archive)
    removal.remove_space(world.tenant.pk, world.space.pk)
    assert keys_in(archive) == set()
    assert not any(key.startswith(f"v1/t{world.tenant.pk}/") for key in keys_in(None))


def test_compaction_merges_within_a_store(world, archive):
    for _ in range(2):
        cold(world, 3)
    make_rule(archive)
    assert move(world)["moved"] == 2
    cold(world, 3)
    with tenant_scope(world.tenant.pk):
        for _, merge in Compactor(world.tenant.pk).plans():
            rows = Segment.objects.filter(pk__in=merge.segments)
            assert len(set(rows.values_list("store_id", flat=True))) == 1


def test_the_loss_of_a_store_is_misses_and_no_errors(world, tmp_path, s3):
    with S3Server(tmp_path / "far") as server:
        far = make_store("far", server)
        moved = cold(world, 4)
        make_rule(far, name="far")
        assert move(world)["moved"] == 1
        end_grace()
        move(world)
    here = cold(world, 4)
    assert stores.check() == 1
    far.refresh_from_db()
    assert far.failing_since is not None
    tasks.move()
    reconcile([world.tenant.pk])
    tasks.sweep()
    assert not Job.unscoped.filter(state="failed").exists()
    assert rebuild.rebuild_tenant(world.tenant.pk).lost_segments == 1
    assert_readable(world, here)
    with tenant_scope(world.tenant.pk):
        lost = Segment.objects.get(store=far)
        address = objects_of([lost])[lost.pk]
    with pytest.raises(EndpointConnectionError):
        address.get("bytes=0-1")
    assert len(moved) == 4


def test_a_rebuild_reads_any_copy_that_answers(world, ids, archive, clean_hot):
    make_rule(archive, is_copy=True)
    move(world)
    bucket.default().object(only_segment(world).object_key).delete()
    world.tier.forget(Tier.COLD, ids)
    report = rebuild.rebuild_tenant(world.tenant.pk)
    assert (report.segments, report.lost_segments) == (1, 0)


def test_copies_count_against_the_cold_quota_and_leave_first(world, ids, archive, monkeypatch):
    from tiering.compaction import room

    monkeypatch.setattr(room, "BASE_BYTES", 0)
    make_rule(archive, is_copy=True)
    row = only_segment(world)
    quota = Quota.unscoped.filter(tenant=world.tenant)
    quota.update(cold_bytes=2 * row.size_bytes - 1)
    assert move(world) is None
    quota.update(cold_bytes=2 * row.size_bytes)
    assert move(world)["copied"] == 1
    found = occupancy(world.tenant.pk)
    assert (found.copy_bytes, found.kept_bytes) == (row.size_bytes, 2 * row.size_bytes)
    quota.update(cold_bytes=row.size_bytes)  # pressed by now
    move(world)
    assert [each.state for each in copies(world)] == ["leaving"]
    assert occupancy(world.tenant.pk).waiting_bytes == row.size_bytes
    assert_readable(world, ids)


def test_a_removal_under_way_is_left_to_its_worker(world, ids, archive):
    make_rule(archive)
    move(world)
    jobs = Job.unscoped.filter(kind="move").count()
    row, soon = only_segment(world), timezone.now() + timedelta(seconds=60)
    SegmentCopy.unscoped.update(state="deleting", leased_until=soon)
    tasks.move()
    assert Job.unscoped.filter(kind="move").count() == jobs
    assert row.object_key in keys_in(None)
    SegmentCopy.unscoped.update(leased_until=None)  # it was killed
    move(world)
    assert row.object_key not in keys_in(None)
    assert copies(world) == []


def test_savings_count_reads_at_each_stores_prices(world, ids, archive):
    """A store that is cheap to store in, and dear to read from."""
    archive.gib_month, archive.get_1000, archive.egress_gb = "0", "1000", "0"
    archive.save()
    make_rule(archive, name="cold")
    now = timezone.now()
    a_month_ago = int((now - timedelta(days=29, hours=23)).timestamp()) // 3600 * 3600
    with tenant_scope(world.tenant.pk):
        UsageRollup.objects.create(resolution_s=3600, bucket_ts=a_month_ago, cold_requests=90)
    (idle,) = [each for each in moves.dry_run().ways if each.rule == "cold"]
    Segment.unscoped.update(heat=3.0, read_at=now)
    (read,) = [each for each in moves.dry_run().ways if each.rule == "cold"]
    assert idle.saved_a_month >= 0
    assert -91 < read.saved_a_month < -88


def test_a_dry_run_says_what_moves_and_what_it_costs(world, ids, archive):
    archive.gib_month, archive.put_1000 = "0.001", "1"
    archive.save()
    make_rule(archive, name="cold")
    (way,) = [each for each in moves.dry_run().ways if each.rule == "cold"]
    row = only_segment(world)
    assert (way.segments, way.bytes, way.source, way.target) == (
        1, row.size_bytes, "default", "archive",
    )  # fmt: skip
    assert way.saved_a_month > 0
    assert way.cost > 0
    assert only_segment(world).store is None
    assert plan.ZERO == 0


def test_a_bound_of_bytes_a_second_holds_for_all_workers(valkey_bus, monkeypatch):
    from tiering.moving import pace

    waits = []
    monkeypatch.setattr(pace.time, "sleep", waits.append)
    store = int(uuid4().int % 10**9)
    for _ in range(3):
        pace.Pace(store, 1_000_000).take(10_000_000)  # each ten seconds
    assert waits[0] == 0
    assert waits[1] > 5
    assert waits[2] > 15
    key = f"neve:move_pace:{store}"
    an_hour_ms = 3_600_000
    for name in ("free", "at"):  # as noted before the clock was set back by an hour
        pace.bus().hincrby(key, name, an_hour_ms)
    pace.Pace(store, 1_000_000).take(10_000_000)
    assert 20 < waits[3] < 60
