"""Times that were taken while a clock ran ahead do not hold anything up once it is set back."""

import time
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from catalog.models import Segment
from neve.index.entry import ENTRY, FIELDS
from neve.index.tier import Tier
from storage import hot
from storage import s3 as bucket
from tenants.scope import tenant_scope
from tiering.compaction import claims, sweep
from tiering.flush import Flusher
from tiering.reconcile.leftovers import ABANDONED, remove_abandoned_segments
from tiering.reconcile.report import Report

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("storage"),
]

AHEAD_S = 90_000
LONG = timedelta(seconds=AHEAD_S)
STORED = [field.name for field in FIELDS].index("stored")


def set_stored(world, id_, stored_s):
    values = list(ENTRY.unpack(hot.admin().hget(world.keys.bookkeeping[0], id_)))
    values[STORED] = int(stored_s)
    hot.admin().hset(world.keys.bookkeeping[0], id_, ENTRY.pack(*values))


def test_blocks_stored_in_the_future_are_flushed_when_the_policy_says(world):
    ids, until_s = world.store(3), time.time() + AHEAD_S
    for id_ in ids:
        set_stored(world, id_, until_s)
    hot.admin().zadd(world.keys.bookkeeping[2], dict.fromkeys(ids, until_s))
    assert Flusher(world.tenant.pk).run().blocks == 0
    world.tier.expire_due()
    assert Flusher(world.tenant.pk).run().blocks == 3
    world.assert_readable_from_s3(ids)


def test_blocks_that_policy_keeps_hot_for_long_wait_as_before(world):
    ids, due_s = world.store(2), int(time.time()) + AHEAD_S
    hot.admin().zadd(world.keys.bookkeeping[2], dict.fromkeys(ids, due_s))
    world.tier.expire_due()
    assert set(hot.admin().zmscore(world.keys.bookkeeping[2], ids)) == {due_s}


def test_blocks_that_policy_keeps_hot_for_long_hide_none_that_were_stored_in_the_future(world):
    (kept, late), until_s = world.store(2), time.time() + AHEAD_S
    set_stored(world, late, until_s)
    hot.admin().zadd(world.keys.bookkeeping[2], {kept: until_s + 1, late: until_s})
    world.tier.expire_due()
    assert hot.admin().zscore(world.keys.bookkeeping[2], kept) == until_s + 1
    assert hot.admin().zscore(world.keys.bookkeeping[2], late) <= time.time()


def test_of_many_blocks_that_wait_all_are_looked_at_sooner_or_later(world):
    ids, until_s = world.store(5), time.time() + AHEAD_S
    for id_ in ids:
        set_stored(world, id_, until_s)
    hot.admin().zadd(world.keys.bookkeeping[2], dict.fromkeys(ids, until_s))
    for _ in ids:
        world.tier.expire_due(1)
    assert max(hot.admin().zmscore(world.keys.bookkeeping[2], ids)) <= time.time()


def test_a_block_that_lost_its_cold_copy_is_due_by_when_it_was_stored(world):
    """And not by what the clock says then, since it may run ahead."""
    (id_,) = world.store(1)
    Flusher(world.tenant.pk).run()
    set_stored(world, id_, 1000)
    assert world.tier.forget(Tier.COLD, [id_]) == 1
    assert hot.admin().zscore(world.keys.bookkeeping[2], id_) == 1000


def test_a_lease_that_ends_too_far_ahead_is_void(world):
    world.store(2)
    leased = world.tier.lease_dirty(lease_s=AHEAD_S, most_blocks=1, most_bytes=1)
    assert Flusher(world.tenant.pk).run().blocks == 1
    world.tier.expire_due()
    assert Flusher(world.tenant.pk).run().blocks == len(leased) == 1


@pytest.mark.parametrize("ahead", [1, -1])
def test_an_upload_begun_long_ago_or_in_the_future_is_abandoned(world, ahead):
    key = "v1/t1/abandoned.seg"
    bucket.client().put_object(Bucket=settings.ENV.s3_bucket, Key=key, Body=b"half")
    with tenant_scope(world.tenant.pk):
        row = Segment.objects.create(space=world.space, object_key=key)
    begun = timezone.now() + ahead * (ABANDONED + timedelta(minutes=1))
    Segment.unscoped.filter(pk=row.pk).update(created_at=begun)
    report = Report()
    remove_abandoned_segments(report)
    assert report.repaired == {"abandoned_uploads": 1}
    listed = bucket.client().list_objects_v2(Bucket=settings.ENV.s3_bucket, Prefix=key)
    assert listed["KeyCount"] == 0


def test_segments_closed_in_the_future_are_deleted(world):
    ids = world.store(3)
    Flusher(world.tenant.pk).run()
    world.tier.expire(ids)
    ahead = timezone.now() + LONG
    Segment.unscoped.update(created_at=ahead, live_bytes=0)
    assert sweep.sweep(world.tier, world.tenant.pk).deleted_segments == 0
    assert Segment.unscoped.update(unreferenced_at=ahead) == 1
    assert sweep.sweep(world.tier, world.tenant.pk).deleted_segments == 1


@pytest.mark.parametrize(
    ("ahead", "is_claimed"), [(claims.LEASE + timedelta(seconds=5), False), (LONG, True)]
)
def test_a_claim_of_segments_holds_for_its_lease_and_not_until_a_wrong_clocks_time(
    world, ahead, is_claimed
):
    """A clock that is five seconds ahead is a fair one."""
    world.store(1)
    Flusher(world.tenant.pk).run()
    with tenant_scope(world.tenant.pk):
        segment = Segment.objects.get().pk
        Segment.objects.update(leased_until=timezone.now() + ahead)
        assert claims.claim([segment]) == is_claimed
