"""Pins of the tiers hot and durable, to the end: copies in Valkey and in S3."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from catalog import jobs
from catalog.models import Context, Job
from contexts import checking, pins
from neve.formats.block import HEADER_BYTES
from neve.index.tier import BlockTerms, Location, Tier
from storage import hot, s3
from support.cold_world import PAYLOAD_BYTES, World
from support.rows import make_context
from tenants.audit import SYSTEM
from tiering import promotion
from tiering.flush import Flusher
from workers import tasks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("storage"),
]


def pin(context, tier):
    until = timezone.now() + timedelta(hours=1)
    return pins.pin(context=context, until=until, actor=SYSTEM, tier=tier)


def tiers(world, ids):
    return [answer.tier for answer in world.tier.match(ids) if isinstance(answer, Location)]


@pytest.fixture
def cold(world: World):
    """A context of six blocks that are in S3 only."""
    ids = world.store(6)
    Flusher(world.tenant.pk).run()
    world.tier.evict(1 << 40)
    assert tiers(world, ids) == [Tier.COLD] * 6
    return make_context(world.space, "cold", ids)


def test_a_hot_pin_has_cold_blocks_copied_into_valkey(world, cold):
    pinned = pin(cold, "hot")
    assert (pinned.hot, pinned.durable) == (0, 6)
    job = Job.unscoped.get(kind="promote")
    assert pin(cold, "hot").hot == 0  # the waiting job is enough
    assert Job.unscoped.filter(kind="promote").count() == 1
    tasks.promote(job_id=str(job.pk))
    job.refresh_from_db()
    assert (job.state, job.detail["promoted"], job.detail["refused"]) == ("done", 6, 0)
    assert tiers(world, cold.ids()) == [Tier.HOT] * 6
    for id_ in cold.ids():
        value = hot.admin().get(world.keys.block(world.space.pk, id_))
        assert value[HEADER_BYTES:] == world.payloads[id_]
    world.tier.evict(1 << 40)
    assert tiers(world, cold.ids()) == [Tier.HOT] * 6  # pinned


def test_the_check_of_a_hot_pin_asks_again(world, cold):
    pin(cold, "hot")
    jobs.cancel(Job.unscoped.get(kind="promote"))
    Context.unscoped.update(checked_at=None)
    assert checking.check(world.tenant.pk) == 1
    assert Job.unscoped.filter(kind="promote", state="queued").count() == 1


def test_a_full_hot_quota_ends_the_copying(world, cold):
    pin(cold, "hot")
    two = 2 * (HEADER_BYTES + PAYLOAD_BYTES)
    world.tier.set_policy(hot_bytes=two, cold_bytes=1 << 26, terms=BlockTerms())
    report = promotion.promote(world.tenant.pk, str(cold.pk), lambda report: None)
    assert (report.promoted, report.refused) == (2, 4)


def test_blocks_of_a_context_that_nobody_pins_stay_cold(world, cold):
    report = promotion.promote(world.tenant.pk, str(cold.pk), lambda report: None)
    assert report.promoted == 0


def test_a_damaged_block_is_not_copied(world, cold):
    pin(cold, "hot")
    (segment,) = world.segments()
    place = {"Bucket": settings.ENV.s3_bucket, "Key": segment.object_key}
    raw = bytearray(s3.client().get_object(**place)["Body"].read())
    raw[world.tier.match(cold.ids()[2:3])[0].offset + HEADER_BYTES] ^= 1
    s3.client().put_object(**place, Body=bytes(raw))
    report = promotion.promote(world.tenant.pk, str(cold.pk), lambda report: None)
    assert (report.promoted, report.bad) == (5, 1)


def test_a_durable_pin_ends_in_s3(world):
    context = make_context(world.space, "warm", world.store(3))
    assert pin(context, "durable").durable == 0
    Flusher(world.tenant.pk).run()
    assert pin(context, "durable").durable == 3
    world.assert_readable_from_s3(context.ids())
