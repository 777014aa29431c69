"""Removing a space or a tenant refunds every byte and leaves nothing behind."""

import pytest
from django.conf import settings
from django.utils import timezone

from base.problems import Problem
from catalog.models import Context, Job, Segment, Space
from catalog.spaces import remove_space
from neve.formats.keys import tenant_prefix
from storage import s3 as bucket
from support.rows import make_context, make_space
from support.tenant_world import World
from tenants import services
from tenants.audit import SYSTEM
from tenants.models import AuditEvent, Tenant
from tiering import recovery, removal
from tiering.flush import Flusher
from workers import tasks

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def servers(clean_hot, s3):
    bucket.ensure_bucket()
    recovery.rebuild_all()


@pytest.fixture
def world():
    return World(flush_mode="now")


def objects(tenant):
    listed = bucket.client().list_objects_v2(
        Bucket=settings.ENV.s3_bucket, Prefix=tenant_prefix(tenant.pk)
    )
    return [item["Key"] for item in listed.get("Contents", ())]


def test_a_removed_space_takes_its_blocks_segments_and_contexts_along(world):
    other = make_space(world.tenant, "other")
    gone, kept = world.store(4), world.store(2, other)
    Flusher(world.tenant.pk).run()
    gone += world.store(1)  # hot and dirty
    world.record("pinned", gone[:2], pin_s=3600)
    before = world.tier.usage()
    assert (before.cold_blocks, before.pinned_blocks) == (6, 2)
    remove_space(space=world.space, actor=SYSTEM)
    tasks.remove_space()
    tasks.remove_tenant()
    usage = world.tier.usage()
    assert (usage.hot_blocks, usage.cold_blocks, usage.dirty_blocks) == (2, 2, 0)
    assert usage.pinned_bytes == 0
    assert all(place.is_cold for place in world.tier.match(kept))
    assert [row.space_id for row in Segment.unscoped.all()] == [other.pk]
    assert objects(world.tenant) == [Segment.unscoped.get().object_key]
    assert not Context.unscoped.exists()
    assert Space.unscoped.get() == other
    job = Job.unscoped.get(kind="remove_space")
    assert (job.state, job.blocks) == ("done", 5)
    tasks.remove_space()
    tasks.remove_tenant()
    assert Job.unscoped.filter(kind="remove_space").count() == 1


def test_a_node_does_not_come_back_to_a_space_that_leaves(world):
    remove_space(space=world.space, actor=SYSTEM)
    world.session.refresh_from_db()
    assert world.session.ended_at is not None
    with pytest.raises(Problem) as refusal:
        world.open_session()
    assert refusal.value.kind == "conflict"
    tasks.remove_space()
    tasks.remove_tenant()
    assert world.open_session().space_id != world.space.pk


def test_a_removal_that_died_goes_on(world, monkeypatch):
    world.store(3)
    Flusher(world.tenant.pk).run()
    remove_space(space=world.space, actor=SYSTEM)

    def die(**_):
        raise ConnectionError("S3 went away")

    monkeypatch.setattr(bucket.client(), "delete_object", die)
    tasks.remove_space()
    tasks.remove_tenant()
    assert Job.unscoped.get(kind="remove_space").state == "failed"
    assert Space.unscoped.exists()
    assert world.tier.usage().cold_bytes == 0  # refunded as the blocks left
    monkeypatch.undo()
    Job.unscoped.update(retry_at=timezone.now())  # the pause is over
    tasks.remove_space()
    tasks.remove_tenant()
    assert not Space.unscoped.exists()
    assert objects(world.tenant) == []


def test_a_removed_tenant_leaves_nothing_but_its_audit_trail(world, clean_hot):
    world.store(3)
    Flusher(world.tenant.pk).run()
    world.store(2)
    stranger = World(flush_mode="never")
    kept = stranger.store(2)
    make_context(world.space)
    tenant_id = world.tenant.pk
    services.remove_tenant(tenant=world.tenant, actor=SYSTEM)
    tasks.remove_space()
    tasks.remove_tenant()
    with clean_hot.client() as client:
        assert list(client.scan_iter(match=f"{{t{tenant_id}.*")) == []
        assert f"t{tenant_id}".encode() not in client.execute_command("ACL", "USERS")
    assert (
        bucket.client().list_objects_v2(
            Bucket=settings.ENV.s3_bucket, Prefix=tenant_prefix(tenant_id)
        )["KeyCount"]
        == 0
    )
    assert list(Tenant.objects.all()) == [stranger.tenant]
    assert stranger.tier.usage().hot_blocks == len(kept)
    event = AuditEvent.unscoped.get(action="tenant.remove")
    assert (event.tenant_id, event.before["slug"]) == (None, world.tenant.slug)
    assert Job.unscoped.get(kind="remove_tenant").state == "done"


def test_removing_twice_at_once_is_safe(world):
    world.store(3)
    Flusher(world.tenant.pk).run()
    remove_space(space=world.space, actor=SYSTEM)
    assert removal.remove_space(world.tenant.pk, world.space.pk) == 3
    assert removal.remove_space(world.tenant.pk, world.space.pk) == 0
