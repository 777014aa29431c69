"""Reconcile finds orphans on every side of real servers, and repairs them; in bounded slices."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.conf import settings
from django.utils import timezone

from base.models import StoredAnswer
from catalog.models import Job, Round, Segment, Stray
from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES
from neve.formats.keys import BucketKeys, segment_key, tenant_prefix
from neve.index.tier import BlockTerms, Location
from retention import provisioning
from storage import hot
from storage import s3 as bucket
from support.cold_world import PAYLOAD_BYTES, World
from support.servers import wait_until
from tenants.scope import tenant_scope
from tiering import recovery
from tiering.compaction import sweep
from tiering.compaction.run import Compactor
from tiering.flush import Flusher
from tiering.reconcile import blocks, keys, objects, rounds
from tiering.reconcile import segments as damaged
from tiering.reconcile.report import Report
from tiering.reconcile.rounds import Turn
from workers import tasks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("empty_bucket", "in_a_hurry"),
]
SIZE = HEADER_BYTES + PAYLOAD_BYTES


@pytest.fixture
def in_a_hurry(monkeypatch):
    """What is found is aged at once; rounds follow each other."""
    for module in (objects, damaged):
        monkeypatch.setattr(module, "GRACE", timedelta())
    for name in ("SETTLED", "GRACE"):
        monkeypatch.setattr(sweep, name, timedelta())
    monkeypatch.setattr(rounds, "PAUSE", timedelta())


@pytest.fixture
def cold(world):
    """Six blocks, in S3 and in Valkey."""
    ids = world.store(6)
    Flusher(world.tenant.pk).run()
    return ids


def reconcile():
    """What the Job row says was repaired."""
    tasks.reconcile()
    job = Job.unscoped.filter(kind="reconcile").latest("created_at")
    assert (job.state, job.error) == ("done", "")
    return job.detail["repaired"]


def put(key, body):
    bucket.client().put_object(Bucket=settings.ENV.s3_bucket, Key=key, Body=body)


def get(key):
    answer = bucket.client().get_object(Bucket=settings.ENV.s3_bucket, Key=key)
    return answer["Body"].read()


def delete(key):
    bucket.client().delete_object(Bucket=settings.ENV.s3_bucket, Key=key)


def object_keys(tenant):
    listed = bucket.client().list_objects_v2(
        Bucket=settings.ENV.s3_bucket, Prefix=tenant_prefix(tenant.pk)
    )
    return {item["Key"] for item in listed.get("Contents", ())}


def test_a_healthy_platform_needs_no_repair_and_says_what_was_looked_at(world, cold):
    assert reconcile() == {}
    job = Job.unscoped.get(kind="reconcile")
    assert job.progress == 1
    assert job.blocks == 6
    looked = job.detail["looked_at"]
    assert (looked["blocks"], looked["segments"], looked["objects"] >= 1) == (6, 1, True)
    assert looked["keys"] >= 6


def test_drift_of_the_counters_is_corrected_in_bytes_and_blocks(world, cold):
    before = world.tier.usage()
    counters = world.keys.bookkeeping[3]
    hot.admin().hincrby(counters, "hot_bytes", -700)
    hot.admin().hincrby(counters, "cold_bytes", 30)
    hot.admin().hincrby(counters, "dirty_blocks", 2)
    (row,) = world.segments()
    hot.admin().zincrby(world.keys.live_bytes, 99, row.pk)
    Segment.unscoped.filter(pk=row.pk).update(live_bytes=5)
    repaired = reconcile()
    assert repaired == {"drift_bytes": 730, "drift_blocks": 2, "segment_drift_bytes": 99}
    assert world.tier.usage() == before
    assert world.tier.live_bytes([row.pk]) == [6 * SIZE]
    reconcile()
    assert world.segments()[0].live_bytes == 6 * SIZE


def test_a_hot_block_without_data_is_read_from_s3_or_missed(world, cold):
    only_hot = world.store(1)
    for id_ in (cold[0], only_hot[0]):
        hot.admin().delete(world.keys.block(world.space.pk, id_))
    assert reconcile()["hot_without_data"] == 2
    assert world.tier.match(only_hot) == [MissReason.CORRUPT]
    world.assert_readable_from_s3(cold)
    assert world.tier.usage().hot_blocks == 5


def test_a_key_that_no_entry_owns_gets_an_end(world, cold):
    stray = world.keys.block(world.space.pk, b"?" * 16)
    hot.admin().set(stray, b"x")
    assert reconcile() == {"stray_keys": 1}
    assert 0 < hot.admin().pttl(stray) <= 60_000


def test_places_in_segments_without_rows_are_forgotten_and_found_again(world, cold):
    """The rows are gone, the objects are not: they are adopted, and the blocks restored."""
    with tenant_scope(world.tenant.pk):
        Segment.objects.all().delete()
    world.tier.evict(1 << 40)
    assert reconcile() == {
        "cold_without_segment": 6, "segments_without_row": 1, "data_without_index": 6,
    }  # fmt: skip
    world.assert_readable_from_s3(cold)
    assert world.tier.usage().cold_bytes == 6 * SIZE
    assert reconcile() == {}


def test_what_is_restored_stays_within_the_cold_quota(world, cold):
    hot.admin().delete(*world.keys.bookkeeping[:4], world.keys.live_bytes)
    hot.admin().hset(world.keys.quota, "cold_bytes", 3 * SIZE)
    damaged.look_at_segments([world.tenant.pk], report := Report())
    assert report.repaired == {"data_without_index": 3}
    assert world.tier.usage().cold_bytes == 3 * SIZE


def test_a_row_without_object_is_confirmed_then_its_blocks_are_stored_anew(world, cold):
    """Those that are hot still go to S3 again; the others are misses, and the row goes."""
    (row,) = world.segments()
    delete(row.object_key)
    assert "cold_without_data" not in reconcile()  # S3 may have answered wrong once
    repaired = reconcile()
    assert (repaired["segments_without_object"], repaired["cold_without_data"]) == (1, 6)
    assert world.tier.usage().dirty_blocks == 6
    Flusher(world.tenant.pk).run()
    world.assert_readable_from_s3(cold)
    tasks.sweep()
    tasks.compact()
    tasks.sweep()
    tasks.compact()
    assert row.pk not in [left.pk for left in world.segments()]


def test_an_object_that_was_missing_once_keeps_its_blocks(world, cold):
    (row,) = world.segments()
    raw = get(row.object_key)
    delete(row.object_key)
    reconcile()
    put(row.object_key, raw)
    assert reconcile() == {}
    (row,) = world.segments()
    assert (row.damaged_at, row.readable_bytes) == (None, None)
    world.assert_readable_from_s3(cold)


def test_of_a_cut_segment_the_front_is_still_read(world, cold):
    (row,) = world.segments()
    world.tier.evict(1 << 40)
    places = world.tier.match(cold)
    cut = places[3].offset + 10
    put(row.object_key, get(row.object_key)[:cut])
    reconcile()
    repaired = reconcile()
    assert (repaired["damaged_segments"], repaired["cold_without_data"]) == (1, 3)
    world.assert_readable_from_s3(cold[:3])
    assert world.tier.match(cold[3:]) == [MissReason.CORRUPT] * 3


def test_a_damaged_segment_is_not_merged_and_stops_no_other_merge(world, cold):
    (row,) = world.segments()
    put(row.object_key, b"no segment")
    world.tier.expire(cold[:4])  # now it is worth a merge
    tasks.sweep()
    tasks.compact()
    (row,) = world.segments()
    assert row.damaged_at is not None
    Segment.unscoped.update(leased_until=None)
    assert Compactor(world.tenant.pk).find() is None


def test_data_that_the_index_never_heard_of_is_restored(world, cold):
    hot.admin().delete(*world.keys.bookkeeping[:4], world.keys.live_bytes)
    assert world.tier.match(cold) == [MissReason.NEVER_STORED] * 6
    assert reconcile()["data_without_index"] == 6
    world.assert_readable_from_s3(cold)


def test_what_expired_so_long_ago_that_nobody_remembers_is_not_restored(world):
    terms = BlockTerms(flush_after_s=0, ttl_s=4)  # time enough to flush
    world.tier.set_policy(hot_bytes=1 << 26, cold_bytes=1 << 26, terms=terms)
    ids = world.store(2)
    Flusher(world.tenant.pk).run()
    expired = []  # each may end a moment after the other

    def all_ended():
        expired.append(world.tier.expire_due())
        return sum(expired) == 2

    wait_until(all_ended, what="the end of the blocks")
    hot.admin().delete(*world.keys.bookkeeping[:4], world.keys.bookkeeping[5])
    provisioning.provision()  # the policy has no limit any more
    assert "data_without_index" not in reconcile()
    assert world.tier.match(ids) == [MissReason.NEVER_STORED] * 2


def test_rubbish_goes_when_it_is_found_again(world, cold, monkeypatch):
    monkeypatch.setattr(objects, "GRACE", timedelta(hours=1))
    key = f"{tenant_prefix(world.tenant.pk)}aa/stray.seg"
    put(key, b"rubbish")
    assert reconcile() == {}
    assert Stray.objects.get().object_key == key
    assert reconcile() == {}  # not aged yet
    Stray.objects.update(due_at=timezone.now())
    assert reconcile() == {"stray_objects": 1}
    assert object_keys(world.tenant) == {world.segments()[0].object_key}
    assert not Stray.objects.exists()


def test_a_segment_of_nobody_known_is_kept_for_days(world, cold):
    (row,) = world.segments()
    raw = get(row.object_key)
    elsewhere = segment_key(world.tenant.pk, bytes(32), uuid4())
    put(elsewhere, raw)
    for _ in range(3):
        assert reconcile() == {}
    assert Stray.objects.get().is_unclaimed
    Stray.objects.update(found_at=timezone.now() - objects.UNCLAIMED_KEPT)
    assert reconcile() == {"stray_objects": 1}
    assert elsewhere not in object_keys(world.tenant)


def test_an_upload_without_a_row_is_ended(world):
    where = {"Bucket": settings.ENV.s3_bucket, "Key": f"{tenant_prefix(world.tenant.pk)}x.seg"}
    begun = bucket.client().create_multipart_upload(**where)
    bucket.client().upload_part(
        **where, UploadId=begun["UploadId"], PartNumber=1, Body=b"x" * (5 << 20)
    )
    assert reconcile() == {"unfinished_uploads": 1}
    listed = bucket.client().list_multipart_uploads(
        Bucket=settings.ENV.s3_bucket, Prefix=where["Key"]
    )
    assert not listed.get("Uploads")


def test_a_walk_in_slices_is_exact_beside_traffic(world, monkeypatch):
    """Each slice is taken up by the next run; blocks come and go in between."""
    ids = world.store(300, payload_bytes=100)  # more than a hash keeps packed
    counters = world.keys.bookkeeping[3]
    before = world.tier.usage()
    hot.admin().hincrby(counters, "hot_bytes", 1000)
    monkeypatch.setattr("neve.index.scan.PAGE_ENTRIES", 10)
    turn, report, slices = Turn(None, True), Report(), 0
    while slices == 0 or turn.place is not None:
        blocks.look_at_slice(world.tenant.pk, turn, report, most=40)
        slices += 1
        world.store(2, payload_bytes=100)
        world.tier.expire(ids[slices * 3 : slices * 3 + 3])
    assert slices > 3
    assert report.repaired == {"drift_bytes": 1000}
    held = 2 * slices - 3 * slices
    assert world.tier.usage().hot_blocks == before.hot_blocks + held


def test_a_walk_begins_anew_when_valkey_was_started_again(world, monkeypatch):
    world.store(300, payload_bytes=100)
    monkeypatch.setattr("neve.index.scan.PAGE_ENTRIES", 10)
    turn = Turn(None, True)
    blocks.look_at_slice(world.tenant.pk, turn, Report(), most=40)
    assert turn.place["cursor"] != "0"
    turn.place["run"] = "an earlier one"
    report = Report()
    blocks.look_at_slice(world.tenant.pk, turn, report, most=1000)
    assert turn.place is None
    assert report.looked_at["blocks"] >= 300


def test_tenants_take_turns_until_the_run_has_looked_at_enough(world, monkeypatch):
    other = World()
    for each in (world, other):
        each.store(300, payload_bytes=100)
    monkeypatch.setattr(blocks.look_at_slice, "__defaults__", (20,))
    monkeypatch.setattr("neve.index.scan.PAGE_ENTRIES", 10)
    monkeypatch.setattr(blocks, "RUN_BLOCKS", 60)
    report = Report()
    blocks.look_at_blocks([world.tenant.pk, other.tenant.pk], report)
    assert 60 <= report.looked_at["blocks"] < 600
    assert Round.unscoped.filter(side="blocks", looked_at__isnull=False).count() == 2
    monkeypatch.setattr(blocks, "RUN_BLOCKS", 10_000)
    blocks.look_at_blocks([world.tenant.pk, other.tenant.pk], report)
    ended = Round.unscoped.filter(side="blocks", place__isnull=True, ended_at__isnull=False)
    assert ended.count() == 2


def test_no_run_looks_at_more_than_its_slice(world, monkeypatch):
    world.store(100, payload_bytes=100)
    for module, name in ((blocks, "RUN_BLOCKS"), (blocks, "TURN_BLOCKS"), (keys, "RUN_KEYS")):
        monkeypatch.setattr(module, name, 20)
    monkeypatch.setattr(keys, "PAGE_KEYS", 10)
    monkeypatch.setattr(keys.look_at_keys, "__defaults__", (20,))
    report = Report()
    keys.look_at_keys(report)
    assert 20 <= report.looked_at["keys"] < 60
    assert Round.unscoped.get(side="keys").place is not None


def test_one_worker_at_a_time_goes_around(world):
    with rounds.turn(Round.Side.BLOCKS, world.tenant.pk) as first:
        assert first is not None
        with rounds.turn(Round.Side.BLOCKS, world.tenant.pk) as second:
            assert second is None
    Round.unscoped.update(leased_until=timezone.now() - timedelta(seconds=1))  # it was killed
    with rounds.turn(Round.Side.BLOCKS, world.tenant.pk) as third:
        assert third is not None


def test_a_round_rests_after_it_ended(world, monkeypatch):
    monkeypatch.setattr(rounds, "PAUSE", timedelta(minutes=10))
    for expected in (True, False):
        with rounds.turn(Round.Side.KEYS) as turn:
            assert (turn is not None) is expected


def test_who_waited_longest_comes_first(world):
    other = World()
    with rounds.turn(Round.Side.BLOCKS, world.tenant.pk):
        pass
    tenants = [world.tenant.pk, other.tenant.pk]
    assert rounds.longest_ago(Round.Side.BLOCKS, tenants) == tenants[::-1]


def test_answers_that_are_older_than_a_day_go(world, cold):
    ages = {"old": timedelta(hours=25), "young": timedelta(hours=23)}
    for digest, age in ages.items():
        StoredAnswer.objects.create(digest=digest, claimed_at=timezone.now() - age)
    assert reconcile() == {"old_answers": 1}
    assert StoredAnswer.objects.get().digest == "young"


def test_trouble_on_one_side_does_not_stop_the_others(world, cold, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("S3 is away")

    monkeypatch.setattr("tiering.reconcile.run.look_at_segments", fail)
    stray = world.keys.block(world.space.pk, b"?" * 16)
    hot.admin().set(stray, b"x")
    tasks.reconcile()
    job = Job.unscoped.get(kind="reconcile")
    assert (job.state, job.error) == ("failed", "ConnectionError: S3 is away")
    assert job.detail["repaired"] == {"stray_keys": 1}
    assert hot.admin().pttl(stray) > 0


def test_other_tenants_keys_are_left_alone(world, cold):
    """Keys of no tenant in the database: their index owns them."""
    keys_ = BucketKeys(999_999, 0)
    hot.admin().set(keys_.quota, b"x")
    assert reconcile() == {}
    assert hot.admin().pttl(keys_.quota) == -1
    hot.admin().delete(keys_.quota)


def test_nothing_is_restored_while_the_index_is_not_whole(world, cold):
    hot.admin().delete(*world.keys.bookkeeping[:4], world.keys.live_bytes)
    hot.admin().delete(recovery.INDEXED)
    report = Report()
    damaged.look_at_segments([world.tenant.pk], report)
    assert report.repaired == {}
    assert not any(isinstance(place, Location) for place in world.tier.match(cold))
