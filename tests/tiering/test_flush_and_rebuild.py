"""The cold tier end to end: flush, crash, loss of Valkey, rebuild; real Valkey, real S3."""

import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.utils import timezone

from catalog import jobs
from catalog.models import Context, Job, Segment, UsageRollup
from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES
from neve.formats.keys import segment_key
from neve.formats.segment import SegmentFooter, SegmentWriter, read_footer
from neve.index.tier import Admission, BlockTerms, HotTier, Location, Tier
from retention import provisioning
from retention import services as retention
from storage import hot
from storage import s3 as bucket
from support.cold_world import PAYLOAD_BYTES, World
from support.servers import wait_until
from tenants import services as tenants
from tenants.audit import SYSTEM
from tenants.models import Tenant
from tenants.scope import tenant_scope
from tiering import flush, recovery, segments, work
from tiering.flush import Flusher
from tiering.rebuild import rebuild_tenant
from tiering.reconcile.leftovers import ABANDONED, remove_abandoned_segments
from tiering.reconcile.report import Report
from workers import tasks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("storage"),
]

ROOM_FOR_3 = 3 * (HEADER_BYTES + PAYLOAD_BYTES) + 10  # bytes of blocks


def test_a_flush_moves_dirty_blocks_to_s3_and_makes_them_clean(world):
    ids = world.store(20)
    report = Flusher(world.tenant.pk).run()
    assert (report.segments, report.blocks, report.refused_blocks) == (1, 20, 0)
    usage = world.tier.usage()
    assert (usage.dirty_blocks, usage.cold_blocks, usage.hot_blocks) == (0, 20, 20)
    (row,) = world.segments()
    assert (row.state, row.blocks, row.live_bytes) == ("live", 20, report.bytes)
    world.assert_readable_from_s3(ids)
    assert Flusher(world.tenant.pk).run().segments == 0  # nothing is left to do


def test_a_lost_valkey_is_rebuilt_from_footers_with_no_accounting_drift(world, clean_hot):
    ids = world.store(12)
    Flusher(world.tenant.pk).run()
    before = world.tier.usage()
    never_flushed = world.store(3)
    clean_hot.wipe()
    call_command("rebuild_index")
    after = world.tier.usage()
    assert (after.cold_bytes, after.cold_blocks) == (before.cold_bytes, before.cold_blocks)
    assert (after.hot_bytes, after.dirty_blocks) == (0, 0)
    world.assert_readable_from_s3(ids)
    assert world.tier.match(never_flushed) == [MissReason.NEVER_STORED] * 3
    assert rebuild_tenant(world.tenant.pk).blocks == 0  # repeating it changes nothing
    assert world.tier.usage() == after


def test_the_worker_notices_a_lost_valkey_by_itself(world, clean_hot):
    ids = world.store(4)
    Flusher(world.tenant.pk).run()
    clean_hot.wipe()
    tasks.rebuild_index()
    assert recovery.index_is_whole()
    world.assert_readable_from_s3(ids)
    job = Job.unscoped.get(kind="rebuild_index")
    assert (job.state, job.blocks) == ("done", 4)
    tasks.rebuild_index()
    assert Job.unscoped.filter(kind="rebuild_index").count() == 1


def test_a_full_valkey_is_rebuilt_as_well(world, clean_hot):
    """Else who fills it before the rebuild would stop it, and with it the watch, for ever."""
    ids = world.store(4)
    Flusher(world.tenant.pk).run()
    recovery.forget_index()
    hot.admin().delete(*world.keys.bookkeeping, world.keys.live_bytes)
    provisioning.provision()  # its numbers
    hot.admin().config_set("maxmemory", "1mb")
    try:
        tasks.rebuild_index()
        assert recovery.index_is_whole()
    finally:
        hot.admin().config_set("maxmemory", clean_hot.maxmemory)
    world.assert_readable_from_s3(ids)


def test_a_valkey_that_was_started_again_is_rebuilt_whatever_it_remembers(world):
    ids = world.store(2)
    Flusher(world.tenant.pk).run()
    hot.admin().set(recovery.INDEXED, "of an earlier run")
    hot.admin().delete(*world.keys.bookkeeping, world.keys.live_bytes)  # as before the flush
    assert not recovery.index_is_whole()
    tasks.rebuild_index()
    assert recovery.index_is_whole()
    world.assert_readable_from_s3(ids)


@pytest.fixture
def broken_off(world, clean_hot, monkeypatch):
    """Ids in four segments, of which a rebuild did two."""
    ids = []
    for _ in range(4):
        ids += world.store(1)
        Flusher(world.tenant.pk).run()
    clean_hot.wipe()
    monkeypatch.setattr(recovery, "NOTED_SEGMENTS", 1)

    def die(tenant, report, total):
        if report.segments == 2:
            raise ConnectionError("killed")

    with pytest.raises(ConnectionError):
        recovery.rebuild_all(progress=die)
    assert not recovery.index_is_whole()
    return ids


def test_a_rebuild_that_was_broken_off_goes_on(world, broken_off):
    report = recovery.rebuild_all()
    assert (report.segments, report.blocks) == (2, 2)
    world.assert_readable_from_s3(broken_off)
    assert rebuild_tenant(world.tenant.pk).segments == 4  # a later one begins anew


def test_it_begins_anew_when_valkey_was_started_again(world, broken_off):
    hot.admin().hset(recovery.NOTES, "run", "an earlier one")
    assert recovery.rebuild_all().segments == 4
    world.assert_readable_from_s3(broken_off)


def test_one_worker_rebuilds_and_another_one_if_it_dies(world, clean_hot):
    clean_hot.wipe()
    assert recovery.claim()
    tasks.rebuild_index()
    assert not recovery.index_is_whole()
    hot.admin().delete(recovery.CLAIMED)  # as when the lease ends
    tasks.rebuild_index()
    assert recovery.index_is_whole()


def test_a_rebuild_brings_back_what_was_stored_after_it_went_and_nothing_else(world):
    earlier, later = world.store(2), world.store(2)
    Flusher(world.tenant.pk).run()
    world.tier.evict(1 << 40)
    world.tier.forget(Tier.COLD, [*earlier, *later])
    went_us = dict.fromkeys(earlier, 1e6) | dict.fromkeys(later, (time.time() + 60) * 1e6)
    hot.admin().zadd(world.keys.bookkeeping[5], went_us)
    assert rebuild_tenant(world.tenant.pk).blocks == 2
    world.assert_readable_from_s3(earlier)
    assert world.tier.match(later) == [MissReason.CORRUPT] * 2


def test_a_flush_waits_for_the_rebuild(world, clean_hot, monkeypatch):
    """Else it would charge a cold quota that says nothing of what stands in S3 already."""
    monkeypatch.setattr(flush, "GATHER_S", 0)
    clean_hot.wipe()
    provisioning.provision()
    world.store(1)
    tasks.flush()
    assert world.tier.usage().dirty_blocks == 1
    tasks.rebuild_index()
    tasks.flush()
    assert world.tier.usage().dirty_blocks == 0


def test_a_rebuild_keeps_what_people_decided(world, clean_hot):
    pinned, expired = world.store(3), world.store(3)
    Flusher(world.tenant.pk).run()
    far = timezone.now() + timedelta(days=1)
    with tenant_scope(world.tenant.pk):
        fields = {"space": world.space, "blocks": 3, "tokens": 768}
        Context.objects.create(name="a", chain=b"".join(pinned), pinned_until=far, **fields)
        gone = {"expired_at": timezone.now()}
        Context.objects.create(name="b", chain=b"".join(expired), **fields, **gone)
        # It shared two blocks with another context: expiring it spared them.
        Context.objects.create(
            name="c", chain=b"".join([*pinned[:2], expired[0]]), **fields, **gone
        )
    clean_hot.wipe()
    recovery.rebuild_all()
    assert all(p.pinned_until_s == int(far.timestamp()) for p in world.tier.match(pinned))
    assert set(world.tier.match(expired)) == {MissReason.NEVER_STORED}


def test_a_flush_that_dies_before_its_end_loses_nothing(world, monkeypatch):
    ids = world.store(5)

    def die(*args, **kwargs):
        raise ConnectionError("S3 went away")

    monkeypatch.setattr(bucket.client(), "put_object", die)
    with pytest.raises(ConnectionError):
        Flusher(world.tenant.pk).run()
    assert world.tier.usage().dirty_blocks == 5
    assert all(isinstance(place, Location) for place in world.tier.match(ids))
    monkeypatch.undo()
    assert Flusher(world.tenant.pk).run().blocks == 5
    world.assert_readable_from_s3(ids)
    assert [row.state for row in world.segments()] == ["live", "uploading"]


def test_an_abandoned_upload_is_removed_with_its_object(world):
    key = "v1/t1/abandoned.seg"
    bucket.client().put_object(Bucket=settings.ENV.s3_bucket, Key=key, Body=b"half")
    with tenant_scope(world.tenant.pk):
        row = Segment.objects.create(space=world.space, object_key=key)
    report = Report()
    remove_abandoned_segments(report)
    assert not report.repaired  # young: its flush may be alive
    Segment.unscoped.filter(pk=row.pk).update(created_at=timezone.now() - 2 * ABANDONED)
    remove_abandoned_segments(report)
    assert report.repaired == {"abandoned_uploads": 1}
    listed = bucket.client().list_objects_v2(Bucket=settings.ENV.s3_bucket, Prefix=key)
    assert listed["KeyCount"] == 0


def test_flushes_at_the_same_time_never_take_the_same_block(world):
    """Two workers, interleaved at the lease: each block goes to exactly one segment."""
    ids = world.store(8)
    leases = {"lease_s": 60, "most_blocks": 4, "most_bytes": 1 << 30}
    taken = world.tier.lease_dirty(**leases)
    report = Flusher(world.tenant.pk).run()
    assert report.blocks == 4
    assert {b.id for b in taken}.isdisjoint(
        id_ for id_, place in zip(ids, world.tier.match(ids), strict=True) if place.is_cold
    )


def refuse_when_full(world):
    retention.set_policy(tenant=world.tenant, actor=SYSTEM, cold_full="refuse")


def test_a_policy_that_refuses_keeps_the_oldest_and_tells_the_refused_apart():
    world = World(cold_bytes=ROOM_FOR_3)
    refuse_when_full(world)
    world.store(3)
    Flusher(world.tenant.pk).run()
    new = world.store(2)
    report = Flusher(world.tenant.pk).run()
    assert (report.segments, report.blocks, report.refused_blocks) == (0, 0, 2)
    assert report.refused_bytes == 2 * (HEADER_BYTES + PAYLOAD_BYTES)
    usage = world.tier.usage()
    assert usage.cold_bytes <= usage.quota_cold_bytes
    assert (usage.dirty_blocks, usage.hot_blocks, usage.unstored_blocks) == (0, 5, 2)
    world.tier.evict(1 << 40)
    assert world.tier.match(new) == [MissReason.UNFLUSHED] * 2
    usage = world.tier.usage()
    assert (usage.unstored_blocks, usage.lost_blocks) == (0, 2)


def test_a_flush_that_was_refused_says_so_in_its_row_and_in_the_usage():
    world = World(cold_bytes=ROOM_FOR_3)
    refuse_when_full(world)
    world.store(4)
    hot.admin().zadd(world.keys.bookkeeping[2], dict.fromkeys(world.payloads, 1))
    tasks.flush()
    job = Job.unscoped.get(kind="flush")
    assert (job.state, job.blocks) == ("done", 3)
    size = HEADER_BYTES + PAYLOAD_BYTES
    assert (job.detail["refused_blocks"], job.detail["refused_bytes"]) == (1, size)
    tasks.sample()
    world.tier.evict(1 << 40)
    tasks.sample()
    rows = UsageRollup.unscoped.filter(tenant=world.tenant, resolution_s=3600)
    row = rows.values("cold_refused_blocks", "cold_evicted_blocks", "lost_blocks").get()
    assert row == {"cold_refused_blocks": 1, "cold_evicted_blocks": 0, "lost_blocks": 1}


def test_a_full_cold_tier_keeps_the_newest_and_refuses_nothing():
    """Twice as much as the cold quota goes through; what a node reads meanwhile stays."""
    world = World(cold_bytes=ROOM_FOR_3)
    read, *others = world.store(3)
    Flusher(world.tenant.pk).run()
    for _ in range(3):
        world.tier.evict(1 << 40)
        world.tier.promote([read])
        new = world.store(1)
        report = Flusher(world.tenant.pk).run()
        assert (report.blocks, report.refused_blocks, report.evicted_blocks) == (1, 0, 1)
    usage = world.tier.usage()
    assert usage.cold_bytes <= usage.quota_cold_bytes
    assert (usage.cold_blocks, usage.cold_evicted_blocks, usage.lost_blocks) == (3, 3, 0)
    world.tier.evict(1 << 40)
    assert world.tier.match(others) == [MissReason.EVICTED_COLD] * 2
    world.assert_readable_from_s3([read, *new])


def test_a_rebuild_holds_the_cold_quota_where_segments_name_what_was_evicted(clean_hot):
    world = World(cold_bytes=ROOM_FOR_3)
    world.store(3)
    Flusher(world.tenant.pk).run()
    new = world.store(2)
    Flusher(world.tenant.pk).run()
    clean_hot.wipe()
    provisioning.provision()
    rebuild_tenant(world.tenant.pk)
    usage = world.tier.usage()
    assert usage.cold_bytes <= usage.quota_cold_bytes
    world.assert_readable_from_s3(new)


def test_a_block_that_went_bad_in_valkey_is_not_flushed(world):
    ids = world.store(3)
    key = world.keys.block(world.space.pk, ids[1])
    hot.admin().setrange(key, HEADER_BYTES + 10, b"flipped")
    report = Flusher(world.tenant.pk).run()
    assert (report.blocks, report.unreadable_blocks) == (2, 1)
    assert world.tier.match(ids[1:2]) == [MissReason.CORRUPT]
    world.assert_readable_from_s3([ids[0], ids[2]])


def test_a_block_that_names_another_space_stops_no_other(world):
    fingerprint, world.fingerprint = world.fingerprint, bytes(32)
    (bad,) = world.store(1)
    world.fingerprint = fingerprint
    ids = world.store(3)
    assert Flusher(world.tenant.pk).run().blocks == 3
    assert not isinstance(world.tier.match([bad])[0], Location)
    assert world.tier.usage().dirty_bytes == 0
    world.tier.evict(1 << 40)
    world.assert_readable_from_s3(ids)


def test_blocks_of_a_deleted_space_are_forgotten_and_do_not_stop_the_flush(world):
    world.store(2)
    with tenant_scope(world.tenant.pk):
        world.space.delete()
    report = Flusher(world.tenant.pk).run()
    assert (report.blocks, report.unreadable_blocks) == (0, 2)
    assert world.tier.usage().hot_bytes == 0


def test_a_segment_that_s3_lost_is_counted_and_does_not_stop_the_rebuild(world, clean_hot):
    lost = world.store(2)
    Flusher(world.tenant.pk).run()
    kept = world.store(2)
    Flusher(world.tenant.pk).run()
    _, oldest = world.segments()
    bucket.client().delete_object(Bucket=settings.ENV.s3_bucket, Key=oldest.object_key)
    clean_hot.wipe()
    report = recovery.rebuild_all()
    assert (report.segments, report.lost_segments) == (1, 1)
    world.assert_readable_from_s3(kept)
    assert set(world.tier.match(lost)) == {MissReason.NEVER_STORED}


def test_a_pass_ends_after_its_time_and_the_next_one_goes_on(world, monkeypatch):
    world.store(3)
    monkeypatch.setattr(segments, "MOST_BYTES", 1)
    monkeypatch.setattr(flush, "PASS_S", 0)
    assert Flusher(world.tenant.pk).run().segments == 0
    monkeypatch.setattr(flush, "PASS_S", 60)
    seen = []
    report = Flusher(world.tenant.pk).run(progress=lambda report: seen.append(report.blocks))
    assert (report.segments, seen) == (3, [1, 2, 3])


def test_the_flush_task_makes_a_job_row_only_when_there_is_work(world, monkeypatch):
    monkeypatch.setattr(flush, "GATHER_S", 0)
    tasks.flush()
    assert not Job.unscoped.filter(kind="flush").exists()
    world.store(2)
    tasks.flush()
    job = Job.unscoped.get(kind="flush")
    assert (job.state, job.blocks, job.tenant_id) == ("done", 2, world.tenant.pk)
    assert job.detail["segments"] == 1


def test_one_tenants_trouble_does_not_stop_the_others(world, monkeypatch):
    monkeypatch.setattr(flush, "GATHER_S", 0)
    other = World()
    world.store(1), other.store(1)
    monkeypatch.setattr(
        Segment.objects, "create", lambda **row: (_ for _ in ()).throw(RuntimeError("boom"))
    )
    tasks.flush()
    monkeypatch.undo()
    failed = Job.unscoped.filter(kind="flush")
    assert [job.state for job in failed] == ["failed", "failed"]
    assert all("boom" in job.error and job.retry_at for job in failed)


def test_a_failed_flush_waits_and_is_tried_again_in_the_same_row(world, monkeypatch):
    monkeypatch.setattr(flush, "GATHER_S", 0)
    monkeypatch.setattr(jobs, "FIRST_RETRY_S", 3600)
    monkeypatch.setattr(jobs, "LAST_RETRY_S", 3600)
    world.store(2)
    with monkeypatch.context() as broken:
        broken.setattr(bucket.client(), "put_object", None)
        tasks.flush()
        tasks.flush()  # too early: nothing is tried
    job = Job.unscoped.get(kind="flush")
    assert (job.state, job.attempts) == ("failed", 1)
    Job.unscoped.update(retry_at=timezone.now())
    tasks.flush()
    job.refresh_from_db()
    assert (job.state, job.attempts, job.error, job.retry_at) == ("done", 2, "", None)
    assert (job.blocks, world.tier.usage().dirty_blocks) == (2, 0)


def test_expired_and_idle_blocks_leave_by_themselves(world):
    world.store(2)
    Flusher(world.tenant.pk).run()
    terms = BlockTerms(idle_s=3600)
    world.tier.retain(list(world.payloads), terms, held=False, join=False, flush=False)
    tasks.expire()
    assert world.tier.usage().hot_blocks == 2
    _, access, *_, looks = world.keys.bookkeeping
    hot.admin().zadd(access, dict.fromkeys(world.payloads, 0))  # an hour and more ago
    hot.admin().zadd(looks, dict.fromkeys(world.payloads, 0))
    tasks.expire()
    usage = world.tier.usage()
    assert (usage.hot_blocks, usage.cold_blocks) == (0, 2)
    short = BlockTerms(ttl_s=1)
    world.tier.retain(list(world.payloads), short, held=False, join=False, flush=False)

    def all_gone():
        tasks.expire()
        return world.tier.usage().cold_bytes == 0

    wait_until(all_gone, what="the end of the blocks")


def test_expiring_many_blocks_has_a_job_row_and_few_have_none(world, monkeypatch):
    monkeypatch.setattr(work, "EXPIRE_BLOCKS", 4)
    for count, has_job in ((3, False), (10, True)):
        world.store(count)
        looks = world.keys.bookkeeping[6]
        hot.admin().zadd(looks, dict.fromkeys(world.payloads, 0))
        tasks.expire()
        jobs_ = list(Job.unscoped.filter(kind="expire"))
        assert bool(jobs_) == has_job
    assert (jobs_[0].state, jobs_[0].blocks >= 10) == ("done", True)


def test_a_sample_shows_what_the_tenant_holds(world):
    world.store(3)
    tasks.sample()
    with tenant_scope(world.tenant.pk):
        rows = list(UsageRollup.objects.all())
    assert {row.resolution_s for row in rows} == {10, 60, 3600}
    assert {row.dirty_blocks for row in rows} == {3}
    assert {row.hot_used_bytes for row in rows} == {3 * (HEADER_BYTES + PAYLOAD_BYTES)}


def test_a_rebuild_leaves_out_what_the_cold_quota_had_refused(monkeypatch, clean_hot):
    world = World(cold_bytes=ROOM_FOR_3)
    refuse_when_full(world)
    ids = world.store(5)
    everything = lambda tier, blocks: Admission([True] * len(blocks), 0, 0)  # noqa: E731
    monkeypatch.setattr(HotTier, "admit", everything)
    assert Flusher(world.tenant.pk).run().refused_blocks == 2  # found when they stood in S3
    places = world.tier.match(ids)
    durable = [id_ for id_, place in zip(ids, places, strict=True) if place.is_cold]
    clean_hot.wipe()
    provisioning.provision()
    assert rebuild_tenant(world.tenant.pk).blocks == 3
    assert world.tier.usage().cold_blocks == 3
    world.assert_readable_from_s3(durable)


def test_segments_of_writers_that_died_come_back_last_and_within_the_quota(clean_hot):
    world = World(cold_bytes=ROOM_FOR_3)
    unsettled = world.store(2)
    Flusher(world.tenant.pk).run()
    Segment.unscoped.update(indexed_at=None)
    world.tier.expire(unsettled)
    durable = world.store(2)
    Flusher(world.tenant.pk).run()
    clean_hot.wipe()
    provisioning.provision()
    assert rebuild_tenant(world.tenant.pk).blocks == 3
    usage = world.tier.usage()
    assert usage.cold_bytes <= usage.quota_cold_bytes
    world.assert_readable_from_s3(durable)


@pytest.fixture
def old_segment(clean_hot, monkeypatch):
    """The world of tests/neve/data/segment-2.seg, which release 0.2.0 wrote, with its bytes."""
    raw = (Path(__file__).parents[1] / "neve/data/segment-2.seg").read_bytes()
    footer = read_footer(lambda at, n: raw[at : at + n], len(raw))
    with monkeypatch.context() as fixed:
        fixed.setattr(tenants, "Tenant", partial(Tenant, pk=footer.header.tenant_id))
        world = World()
    world.add_space("segment-2")
    assert world.fingerprint == footer.header.fingerprint
    for row in footer.rows:
        world.payloads[row.id] = raw[row.offset + HEADER_BYTES : row.end]
    return world, footer, raw


def add_segment(world: World, footer: SegmentFooter, raw: bytes) -> None:
    key = segment_key(world.tenant.pk, world.fingerprint, footer.header.uuid)
    bucket.client().put_object(Bucket=settings.ENV.s3_bucket, Key=key, Body=raw)
    Segment.unscoped.create(
        tenant=world.tenant,
        space=world.space,
        uuid=footer.header.uuid,
        object_key=key,
        size_bytes=len(raw),
        state=Segment.State.LIVE,
        blocks=len(footer.rows),
        indexed_at=timezone.now(),
    )


def test_a_segment_of_release_0_2_0_is_rebuilt_and_read(old_segment):
    world, footer, raw = old_segment
    add_segment(world, footer, raw)
    assert rebuild_tenant(world.tenant.pk).blocks == 3
    world.assert_readable_from_s3([row.id for row in footer.rows])


def test_a_rebuild_leaves_out_blocks_that_only_a_newer_version_can_read(old_segment):
    world, footer, raw = old_segment
    plain, encoded, piece = footer.rows
    writer = SegmentWriter(replace(footer.header, version=3))
    writer.rows += [plain, replace(encoded, codec=2, encoded_length=80), replace(piece, kind=1)]
    add_segment(world, footer, raw[: piece.end] + writer.footer())
    assert rebuild_tenant(world.tenant.pk).blocks == 1
    world.assert_readable_from_s3([plain.id])
    assert world.tier.match([encoded.id, piece.id]) == [MissReason.NEVER_STORED] * 2
