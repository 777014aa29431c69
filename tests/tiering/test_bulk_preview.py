"""What the preview of an expiry says is what then leaves Valkey and S3: the counters agree."""

import pytest
from django.db.models import Sum

from catalog import jobs
from catalog.kinds import BULK
from catalog.models import Context, Segment
from catalog.targets import Opener
from contexts import bulk, choosing, prefixes
from neve.index.tier import Tier
from storage import s3 as bucket
from support.tenant_world import ACTOR, SIZE, World
from tiering import recovery
from tiering.flush import Flusher

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def world(clean_hot, valkey_bus, s3):
    bucket.ensure_bucket()
    recovery.rebuild_all()
    return World(flush_mode="now")


def test_what_leaves_both_tiers_is_what_the_preview_said(world):
    system, tools = world.store(3), world.store(2)
    tails = [world.store(n) for n in (4, 5)]
    both = Flusher(world.tenant.pk)
    both.run()  # these blocks are hot and in S3
    world.tier.forget(Tier.HOT, tails[0][:3])  # only in S3
    tails[1] += world.store(2)  # only hot
    world.record("system", system)
    for n, tail in enumerate(tails):
        world.record(f"agent-{n}", system + tools + tail)
    (head,) = prefixes.tree(world.space).root.children
    (agents,) = head.children
    rows = Context.unscoped.filter(space=world.space)
    found = bulk.preview(
        tenant_id=world.tenant.pk,
        found=choosing.under(rows, agents.key),
        action="expire",
        arguments={},
        filter_={"under": agents.key},
        actor=ACTOR,
    )
    assert (found.bulk.contexts, found.weight.sharers) == (2, 1)
    assert found.freed_bytes == agents.total.stored_bytes == 13 * SIZE
    assert found.weight.shared_bytes == head.own.stored_bytes == 3 * SIZE
    assert (found.freed_hot_bytes, found.freed_cold_bytes) == (10 * SIZE, 11 * SIZE)
    before = world.tier.usage()
    job = bulk.take(bulk=found.bulk, actor=ACTOR)
    with jobs.job_run(job.pk) as run:
        bulk.work(Opener(BULK, world.tenant.pk, run), world.tenant.pk, **job.arguments)
    after = world.tier.usage()
    assert before.hot_bytes - after.hot_bytes == found.freed_hot_bytes
    assert before.cold_bytes - after.cold_bytes == found.freed_cold_bytes
    assert after.cold_bytes == found.weight.shared_bytes  # of the prompt, which stays
    live = world.tier.live_bytes(
        list(Segment.unscoped.filter(space=world.space).values_list("pk", flat=True))
    )
    assert sum(live) == after.cold_bytes
    assert Segment.unscoped.filter(space=world.space).aggregate(n=Sum("blocks"))["n"] == 14
