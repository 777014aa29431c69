"""Compaction on real servers: nothing lost, whatever happens meanwhile, and old segments go."""

import random
import struct
from datetime import timedelta
from itertools import pairwise

import pytest
from botocore.exceptions import ClientError
from django.conf import settings
from django.utils import timezone

from catalog.models import Job, Segment
from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES
from neve.index.tier import HotTier, Location
from retention import provisioning
from storage import hot
from storage import s3 as bucket
from support.cold_world import PAYLOAD_BYTES, World
from tenants.scope import tenant_scope
from tiering import recovery
from tiering.compaction import claims, run, sweep
from tiering.compaction.plan import Policy
from tiering.compaction.room import LEAST_DEAD_SHARE
from tiering.compaction.run import Compactor
from tiering.flush import Flusher
from tiering.objects import footer_of
from tiering.rebuild import rebuild_tenant
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("storage")]

SIZE = HEADER_BYTES + PAYLOAD_BYTES
EXPIRES = struct.Struct("<I")
EXPIRES_AT = 16  # in an entry: docs/formats/hot-tier.md
SMALL = Policy(least_bytes=3 * SIZE, most_bytes=6 * SIZE, range_bytes=SIZE)


def flush(world, *counts, **options):
    """A segment for each count, with a chain of so many new blocks."""
    chains = []
    for count in counts:
        chains.append(world.store(count, **options))
        Flusher(world.tenant.pk).run()
    return chains


def make_cold(world):
    world.tier.evict(1 << 40)


def compact(world, policy=SMALL):
    return Compactor(world.tenant.pk, policy).run()


def live(world):
    return [row for row in world.segments() if row.live_bytes]


def test_half_dead_segments_are_merged_and_accounts_stay_exact(world):
    chains = flush(world, 4, 4, 4)
    for ids in chains:
        world.tier.expire(ids[::2])
    kept = [id_ for ids in chains for id_ in ids[1::2]]
    before = world.tier.usage()
    report = compact(world)
    assert report.merges == {"dead": 1}
    assert (report.old_segments, report.new_segments, report.blocks) == (3, 1, 6)
    assert world.tier.usage() == before
    (row,) = live(world)
    assert (row.blocks, row.live_bytes) == (6, 6 * SIZE)
    make_cold(world)
    world.assert_readable_from_s3(kept)
    assert compact(world).merges == {}  # there is nothing left to do


@pytest.mark.parametrize("payload_bytes", [1, 300])
def test_a_segment_of_tiny_blocks_that_all_live_is_not_merged(world, payload_bytes):
    """Its header and footer are longer than its blocks, and a merge would write them again."""
    (ids,) = flush(world, 1, payload_bytes=payload_bytes)
    (row,) = world.segments()
    assert row.live_bytes < row.size_bytes * 0.9
    eager = Policy(least_bytes=1, dead_share=LEAST_DEAD_SHARE)
    assert compact(world).merges == compact(world, eager).merges == {}
    assert [each.pk for each in world.segments()] == [row.pk]
    make_cold(world)
    world.assert_readable_from_s3(ids)


def test_chains_scattered_over_segments_come_together(world):
    """Conversations that go on: each of eight turns is in another segment."""
    chains = [world.store(1) for _ in range(4)]
    Flusher(world.tenant.pk).run()
    for _ in range(7):
        for chain in chains:
            chain += world.store(1, parent=chain[-1])
        Flusher(world.tenant.pk).run()
    assert [row.links for row in world.segments()[:-1]] == [
        {str(row.pk): 4} for row in world.segments()[1:]
    ]
    report = compact(world, Policy(3 * SIZE, 6 * SIZE, range_bytes=2 * SIZE))
    assert report.merges == {"scatter": 1}
    rows = live(world)
    assert {row.generation for row in rows} == {1}
    assert sum(row.runs for row in rows) <= 4 + len(rows) - 1  # a cut may split a chain
    for chain in chains:
        places = world.tier.match(chain)
        pieces = sum(
            b.offset != a.offset + SIZE or a.segment != b.segment for a, b in pairwise(places)
        )
        assert pieces <= 1
        world.assert_readable_from_s3(chain)


def test_a_flush_lays_interleaved_chains_along_themselves(world):
    chains = [world.store(1) for _ in range(3)]
    for _ in range(4):
        for chain in chains:
            chain += world.store(1, parent=chain[-1])
    Flusher(world.tenant.pk).run()
    (row,) = world.segments()
    assert (row.blocks, row.runs) == (15, 3)


def test_small_segments_are_merged(world):
    chains = flush(world, 1, 1, 1)
    assert compact(world).merges == {"small": 1}
    assert [row.live_bytes for row in live(world)] == [3 * SIZE]
    world.assert_readable_from_s3([id_ for ids in chains for id_ in ids])


def footer(segment):
    return footer_of(bucket.default().object(segment.object_key))


def test_a_merge_keeps_when_blocks_were_stored_and_when_they_end(world):
    flush(world, 1, 1, 1)
    rows = [row for s in world.segments() for row in footer(s).rows]
    compact(world)
    (segment,) = live(world)
    merged = footer(segment).rows
    assert {(r.id, r.stored_s, r.expires_s, r.checksum) for r in merged} == {
        (r.id, r.stored_s, r.expires_s, r.checksum) for r in rows
    }
    assert all(row.stored_s > 0 for row in merged)


def test_a_bad_block_is_not_copied_and_the_index_forgets_it(world):
    (ids, _, _) = flush(world, 3, 1, 1)
    place = world.tier.match(ids)[1]
    spoil(place)
    make_cold(world)
    report = compact(world, Policy(least_bytes=4 * SIZE, most_bytes=9 * SIZE))
    assert (report.blocks, report.corrupt_blocks) == (4, 1)
    assert world.tier.match(ids[1:2]) == [MissReason.CORRUPT]
    assert world.tier.usage().cold_bytes == 4 * SIZE
    world.assert_readable_from_s3([ids[0], ids[2]])


def spoil(place):
    """Flips a bit of a block's payload in S3."""
    row = Segment.unscoped.get(pk=place.segment)
    where = {"Bucket": settings.ENV.s3_bucket, "Key": row.object_key}
    body = bytearray(bucket.client().get_object(**where)["Body"].read())
    body[place.offset + HEADER_BYTES + 100] ^= 1
    bucket.client().put_object(**where, Body=bytes(body))


def test_a_block_that_goes_while_it_is_copied_stays_gone(world, monkeypatch):
    chains = flush(world, 1, 1, 1)
    gone = chains[1][0]
    relocate = HotTier.relocate

    def expire_before(tier, segment, blocks):
        tier.expire([gone])
        return relocate(tier, segment, blocks)

    monkeypatch.setattr(HotTier, "relocate", expire_before)
    report = compact(world)
    assert (report.blocks, report.moved_meanwhile) == (3, 1)
    assert world.tier.match([gone]) == [MissReason.EXPIRED]
    (row,) = live(world)
    assert row.live_bytes == world.tier.usage().cold_bytes == 2 * SIZE


def test_a_merge_that_dies_at_any_point_loses_nothing(world, monkeypatch):
    chains = flush(world, 1, 1, 1)
    ids = [id_ for chain in chains for id_ in chain]
    make_cold(world)

    def die(*args, **kwargs):
        raise ConnectionError("killed")

    points = [
        ("tiering.compaction.merge.write_segment", die),
        ("tiering.upload.MultipartUpload.complete", die),
        ("tiering.segments.footer_of", die),
        ("neve.index.tier.HotTier.relocate", die),
        ("tiering.segments.find_links", die),
    ]
    for where, act in points:
        with monkeypatch.context() as broken:
            broken.setattr(where, act)
            with pytest.raises(ConnectionError):
                compact(world)
        assert world.tier.usage().cold_bytes == 3 * SIZE
        world.assert_readable_from_s3(ids)
        assert compact(world).merges == {}  # its segments are claimed until that lapses
        Segment.unscoped.update(leased_until=None)
    compact(world)
    world.assert_readable_from_s3(ids)
    assert sum(row.live_bytes for row in world.segments()) == 3 * SIZE


def test_half_of_a_relocation_is_finished_by_the_next_merge(world, monkeypatch):
    chains = flush(world, 1, 1, 1)
    ids = [id_ for chain in chains for id_ in chain]
    relocate = HotTier.relocate

    def die_halfway(tier, segment, blocks):
        relocate(tier, segment, blocks[:2])
        raise ConnectionError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(HotTier, "relocate", die_halfway)
        with pytest.raises(ConnectionError):
            compact(world)
    world.assert_readable_from_s3(ids)
    Segment.unscoped.update(leased_until=None)
    compact(world)
    world.assert_readable_from_s3(ids)
    assert [row.live_bytes for row in live(world)] == [3 * SIZE]


def test_segments_whose_blocks_have_just_expired_are_merged_once_in_a_pass(world, monkeypatch):
    chains = flush(world, 1, 1, 1)
    index = world.keys.bookkeeping[0]
    for ids in chains:
        entry = bytearray(hot.admin().hget(index, ids[0]))
        EXPIRES.pack_into(entry, EXPIRES_AT, 1)
        hot.admin().hset(index, ids[0], bytes(entry))
    monkeypatch.setattr(run, "PASS_S", 1)
    report = compact(world)
    assert (report.merges, report.blocks) == ({"small": 1}, 0)


def test_two_workers_never_merge_the_same_segment(world):
    flush(world, 1, 1, 1)
    first, second = (Compactor(world.tenant.pk, SMALL) for _ in range(2))
    claimed = first.find()
    assert second.find() is None
    assert second.run().merges == {}
    assert first.run(claimed).merges == {"small": 1}


def test_claims_are_all_or_nothing_and_lapse(world):
    flush(world, 1, 1, 1)
    a, b, c = (row.pk for row in world.segments())
    with tenant_scope(world.tenant.pk):
        assert claims.claim([a, b])
        assert not claims.claim([b, c])
        assert claims.claim([c])
        Segment.objects.update(leased_until=timezone.now() - timedelta(seconds=1))
        assert claims.claim([a, b, c])
        claims.release([a, b, c])
        Segment.objects.filter(pk=a).update(state="deleting")
        assert not claims.claim([a, b])


def test_a_rebuild_after_a_merge_restores_every_block_once(world, clean_hot):
    chains = flush(world, 2, 2, 2)
    ids = [id_ for chain in chains for id_ in chain]
    compact(world)
    before = world.tier.usage()
    clean_hot.wipe()
    recovery.rebuild_all()
    world.assert_readable_from_s3(ids)
    assert world.tier.usage().cold_bytes == before.cold_bytes
    assert rebuild_tenant(world.tenant.pk).blocks == 0


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(sweep, "SETTLED", timedelta(0))
    monkeypatch.setattr(sweep, "GRACE", timedelta(0))


def sweep_once(world):
    return sweep.sweep(world.tier, world.tenant.pk).deleted_segments


def stands_in_s3(row):
    try:
        bucket.client().head_object(Bucket=settings.ENV.s3_bucket, Key=row.object_key)
    except ClientError:
        return False
    return True


def test_old_segments_are_deleted_after_a_grace_time_and_not_before(world, monkeypatch):
    chains = flush(world, 1, 1, 1)
    old = world.segments()
    compact(world)
    told = dict(Segment.unscoped.values_list("pk", "indexed_at"))
    Segment.unscoped.update(indexed_at=None)  # as if their writer had yet to tell the index
    assert sweep_once(world) == 0
    assert {row.state for row in world.segments()} == {"live"}  # too young for the first look
    for number, indexed_at in told.items():
        Segment.unscoped.filter(pk=number).update(indexed_at=indexed_at)
    monkeypatch.setattr(sweep, "SETTLED", timedelta(0))
    for _ in range(2):
        assert sweep_once(world) == 0
    states = [row.state for row in world.segments()]
    assert states.count("deleting") == 3
    assert all(stands_in_s3(row) for row in old)  # readers may hold the old places
    Segment.unscoped.update(unreferenced_at=timezone.now() - 2 * sweep.GRACE)
    assert sweep_once(world) == 3
    assert not any(stands_in_s3(row) for row in old)
    assert [row.state for row in world.segments()] == ["live"]
    world.assert_readable_from_s3([id_ for chain in chains for id_ in chain])


def test_a_sweep_has_a_job_row_when_there_is_something_to_delete(world, no_waiting):
    flush(world, 1, 1, 1)
    sizes = sum(row.size_bytes for row in world.segments())
    jobs_ = Job.unscoped.filter(kind="sweep")
    tasks.sweep()
    tasks.compact()
    assert not jobs_.exists()
    compact(world)
    for _ in range(2):
        tasks.sweep()
        tasks.compact()
    job = jobs_.latest("created_at")
    assert (job.state, job.bytes) == ("done", sizes)
    assert job.detail["deleted_segments"] == 3
    count = jobs_.count()
    tasks.sweep()
    tasks.compact()
    assert jobs_.count() == count


def test_a_segment_that_the_index_names_is_never_deleted(world, no_waiting):
    (ids,) = flush(world, 2)
    Segment.unscoped.update(live_bytes=0)  # a count that went wrong
    sweep_once(world)
    assert [row.live_bytes for row in world.segments()] == [2 * SIZE]
    Segment.unscoped.update(state="deleting", unreferenced_at=timezone.now())
    assert sweep_once(world) == 0
    assert [row.state for row in world.segments()] == ["live"]
    world.assert_readable_from_s3(ids)


def test_a_lost_index_deletes_nothing(world, no_waiting, clean_hot):
    (ids,) = flush(world, 2)
    clean_hot.wipe()
    provisioning.provision()
    assert sweep_once(world) == 0
    Segment.unscoped.update(live_bytes=0)
    assert sweep_once(world) == 0
    assert [row.state for row in world.segments()] == ["live"]
    Segment.unscoped.update(state="deleting", unreferenced_at=timezone.now())
    assert sweep_once(world) == 0
    Segment.unscoped.update(state="live")
    recovery.rebuild_all()
    sweep_once(world)
    world.assert_readable_from_s3(ids)


def test_a_worker_that_slept_while_its_segment_was_closed_loses_no_block(
    world, no_waiting, monkeypatch
):
    ids = world.store(2)
    flushed = HotTier.flushed

    def sleep_first(tier, segment, blocks):
        while sweep_once(world) == 0:
            pass
        return flushed(tier, segment, blocks)

    flusher = Flusher(world.tenant.pk)
    leases = flusher.lease()
    monkeypatch.setattr(flusher, "lease", lambda: None)  # once: it would try again for PASS_S
    with monkeypatch.context() as slow:
        slow.setattr(HotTier, "flushed", sleep_first)
        report = flusher.run(leases)
    assert report.blocks == 0
    assert world.tier.usage().dirty_blocks == 2
    assert Flusher(world.tenant.pk).run().blocks == 2
    world.assert_readable_from_s3(ids)


def test_the_task_merges_with_a_job_row_and_sweeps_without(world, monkeypatch):
    tasks.sweep()
    tasks.compact()
    assert not Job.unscoped.filter(kind="compact").exists()
    chains = flush(world, *[1] * 8)  # eight are merged however small
    tasks.sweep()
    tasks.compact()
    job = Job.unscoped.get(kind="compact")
    assert (job.state, job.blocks, job.tenant_id) == ("done", 8, world.tenant.pk)
    assert job.detail["merges"] == {"small": 1}
    monkeypatch.setattr(sweep, "SETTLED", timedelta(0))
    tasks.sweep()
    tasks.compact()
    assert Job.unscoped.filter(kind="compact").count() == 1
    assert Segment.unscoped.filter(state="deleting").count() == 8
    world.assert_readable_from_s3([id_ for chain in chains for id_ in chain])


def test_spaces_are_never_mixed(world):
    """Blocks of another space have another fingerprint: a segment holds one space's only."""
    other = World.__new__(World)
    other.__dict__.update(world.__dict__)
    other.add_space("other")
    flush(world, 1, 1), flush(other, 1, 1, 1)
    report = compact(world)
    assert (report.old_segments, report.new_segments) == (3, 1)


def test_random_lives_and_deaths_end_with_every_block_readable(world, no_waiting):
    rng = random.Random(5)
    alive: list[bytes] = []
    for _ in range(12):
        parent = rng.choice(alive) if alive and rng.random() < 0.7 else bytes(16)
        alive += world.store(rng.randrange(1, 5), parent=parent)
        Flusher(world.tenant.pk).run()
        doomed = rng.sample(alive, len(alive) // 4)
        world.tier.expire(doomed)
        alive = [id_ for id_ in alive if id_ not in doomed]
        compact(world)
        sweep_once(world)
        assert world.tier.usage().cold_bytes == len(alive) * SIZE
    make_cold(world)
    assert all(isinstance(place, Location) for place in world.tier.match(alive))
    world.assert_readable_from_s3(alive)
    live_bytes = sum(row.live_bytes for row in world.segments() if row.state == "live")
    assert live_bytes == len(alive) * SIZE
