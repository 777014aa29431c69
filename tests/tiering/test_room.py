"""What a tenant's segments take of S3 is bounded: live, dead and waiting bytes together."""

from datetime import timedelta

import pytest
from django.conf import settings

from catalog.models import Job, Segment
from catalog.occupancy import Occupancy, occupancy
from neve.formats.keys import tenant_prefix
from storage import s3 as bucket
from support.cold_world import World
from tenants.scope import tenant_scope
from tiering import segments
from tiering.compaction import room, sweep
from tiering.compaction.plan import Facts, plan
from tiering.compaction.room import Room
from tiering.compaction.run import Compactor
from tiering.flush import Flusher
from workers import tasks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("empty_bucket"),
]
KIB = 1 << 10
QUOTA = 1600 * KIB


@pytest.fixture
def small(storage, monkeypatch):
    """A tenant with a cold quota of 32 blocks, and bounds that are as small."""
    monkeypatch.setattr(room, "BASE_BYTES", 0)
    monkeypatch.setattr(segments, "FLOOR_BYTES", 1)
    monkeypatch.setattr("tiering.flush.GATHER_S", -1.0)
    return World(hot_bytes=QUOTA, cold_bytes=QUOTA)


def stored_bytes(world):
    """As S3 lists them."""
    where = {"Bucket": settings.ENV.s3_bucket, "Prefix": tenant_prefix(world.tenant.pk)}
    listed = bucket.client().list_objects_v2(**where).get("Contents", ())
    return sum(item["Size"] for item in listed)


def test_writing_many_times_the_quota_never_takes_more_than_the_bound(small, monkeypatch):
    """Ever new blocks, some of which stay in use: the cold tier evicts and dead bytes gather."""
    monkeypatch.setattr(sweep, "PRESSED_GRACE", timedelta())
    kept = small.store(8)
    most = 0
    for _ in range(20):
        small.store(6)
        small.tier.touch(kept)
        tasks.flush()
        most = max(most, stored_bytes(small))
        tasks.compact()
        tasks.sweep()
        most = max(most, stored_bytes(small))
    written = sum(Job.unscoped.filter(kind="flush").values_list("bytes", flat=True))
    assert written > 3 * QUOTA
    assert most <= 1.5 * QUOTA
    taken = occupancy(small.tenant.pk)
    assert taken.live_bytes == small.tier.usage().cold_bytes <= QUOTA
    small.assert_readable_from_s3(kept)
    assert not Job.unscoped.filter(state="failed").exists()


def test_a_flush_that_would_exceed_the_bound_waits_and_says_so(small):
    small.store(8)
    Flusher(small.tenant.pk).run()
    Segment.unscoped.update(size_bytes=int(1.5 * QUOTA))  # nothing of it may be deleted now
    ids = small.store(3)
    report = Flusher(small.tenant.pk).run()
    assert (report.blocks, report.waiting_blocks, report.refused_blocks) == (0, 3, 0)
    assert small.tier.usage().dirty_blocks == 3
    Segment.unscoped.update(size_bytes=QUOTA // 32)
    assert Flusher(small.tenant.pk).run().blocks == 3
    small.assert_readable_from_s3(ids)


def test_what_waits_is_deleted_sooner_where_room_is_scarce(small, monkeypatch):
    ids = small.store(8)
    Flusher(small.tenant.pk).run()
    small.tier.expire(ids)
    with tenant_scope(small.tenant.pk):
        Compactor(small.tenant.pk).count()
        assert sweep.close_empty(small.tier) == 8  # at once: the index answered for its blocks
    waiting = occupancy(small.tenant.pk)
    assert waiting.live_bytes == waiting.dead_bytes == 0
    assert waiting.waiting_bytes == stored_bytes(small) > 0
    monkeypatch.setattr(sweep, "PRESSED_GRACE", timedelta())
    tasks.sweep()
    assert stored_bytes(small) == waiting.waiting_bytes  # readers may still come
    monkeypatch.setattr(room, "PRESSED", 0.1)
    tasks.sweep()
    assert stored_bytes(small) == 0


def test_under_pressure_less_dead_segments_are_merged_the_deadest_first():
    quota = 8 << 30
    calm = Room(quota, Occupancy(live_bytes=quota))
    pressed = Room(quota, Occupancy(live_bytes=quota, dead_bytes=quota // 4))
    facts = [Facts(n, 100 << 20, live << 20, 100, 60.0) for n, live in ((1, 85), (2, 70), (3, 95))]
    assert (calm.is_pressed, pressed.is_pressed) == (False, True)
    assert plan(facts, calm.policy()) == []
    assert [merge.segments for merge in plan(facts, pressed.policy())] == [(2,)]
    most = 100 << 20
    facts = [Facts(n, most, live << 20, 100, 60.0) for n, live in ((1, 85), (2, 1), (3, 84))]
    first = plan(facts, Room(1 << 32, pressed.taken).policy())[0]
    assert 2 in first.segments


@pytest.mark.parametrize("quota", [0, 1 << 20, 128 << 20, 4 << 30, 1 << 40])
def test_a_merge_and_a_flush_fit_beside_a_full_quota(quota):
    """Else a tenant whose segments have little dead in them could never flush again."""
    piece = segments.most_bytes(quota)
    base = max(quota, room.BASE_BYTES)
    full = Room(quota, Occupancy(live_bytes=quota, dead_bytes=base // 5))
    assert full.is_pressed
    assert full.has_room_to_flush(piece)
    assert full.has_room_to_merge(piece)
    assert not full.has_room_to_flush(base)
