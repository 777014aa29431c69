"""After the loss of the database its tenants get their segments and blocks back from S3."""

import pytest
from django.conf import settings
from django.core.management import call_command

from catalog.models import Job, Segment
from neve.formats.block import HEADER_BYTES
from neve.formats.keys import tenant_prefix
from storage import s3 as bucket
from support.cold_world import PAYLOAD_BYTES
from tenants.scope import tenant_scope
from tiering import adoption, recovery
from tiering.adoption import adopt_tenant
from tiering.flush import Flusher

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("empty_bucket"),
]
SIZE = HEADER_BYTES + PAYLOAD_BYTES


@pytest.fixture
def ids(world):
    """Nine blocks in three segments, and not in Valkey."""
    ids = []
    for _ in range(3):
        ids += world.store(3, parent=ids[-1] if ids else bytes(16))
        Flusher(world.tenant.pk).run()
    world.tier.evict(1 << 40)
    return ids


def lose_rows(world):
    with tenant_scope(world.tenant.pk):
        Segment.objects.all().delete()


def test_rows_and_blocks_come_back_after_the_loss_of_the_database(world, ids, capsys):
    before = world.segments()
    lose_rows(world)
    call_command("adopt_segments")
    assert not recovery.index_is_whole()
    call_command("rebuild_index")
    assert recovery.index_is_whole()
    world.assert_readable_from_s3(ids)
    assert world.tier.usage().cold_bytes == 9 * SIZE
    for old, new in zip(before, sorted(world.segments(), key=lambda s: -s.pk), strict=True):
        facts = ("state", "blocks", "size_bytes", "space_id")
        assert [getattr(old, name) for name in facts] == [getattr(new, name) for name in facts]
    assert {old.uuid for old in before} == {new.uuid for new in world.segments()}
    job = Job.unscoped.get(kind="adopt_segments")
    assert (job.state, job.blocks, job.bytes > 9 * SIZE) == ("done", 9, True)
    job = Job.unscoped.get(kind="rebuild_index")
    assert (job.state, job.blocks) == ("done", 9)
    told = capsys.readouterr().out
    assert "adopted 3 segments with 9 blocks" in told
    assert "9 blocks had places of no segment" in told


def test_an_emptied_valkey_too(world, ids, clean_hot):
    lose_rows(world)
    clean_hot.wipe()
    call_command("adopt_segments", tenant=world.tenant.slug)
    call_command("rebuild_index")
    world.assert_readable_from_s3(ids)


def test_a_new_row_may_have_the_number_of_a_lost_one(world, ids):
    """The index names places in segments that other objects have become."""
    numbers = sorted(row.pk for row in world.segments())
    lose_rows(world)
    report = adopt_tenant(world.tenant.pk)
    assert (report.adopted, report.forgotten) == (3, 9)
    with tenant_scope(world.tenant.pk):
        for number, row in zip(numbers, Segment.objects.order_by("object_key"), strict=True):
            Segment.objects.filter(pk=row.pk).update(id=number)
    call_command("rebuild_index")
    world.assert_readable_from_s3(ids)


def test_repeating_it_looks_only_at_what_has_no_row(world, ids, monkeypatch):
    lose_rows(world)
    real, calls = adoption.look_at, []

    def die_at_the_third(key):
        calls.append(key)
        if len(calls) == 3:
            raise ConnectionError("killed")
        return real(key)

    monkeypatch.setattr(adoption, "look_at", die_at_the_third)
    monkeypatch.setattr(adoption, "LOOKS_AT_ONCE", 1)
    with pytest.raises(ConnectionError):
        adopt_tenant(world.tenant.pk)
    known = len(world.segments())
    assert known > 0
    monkeypatch.undo()
    report = adopt_tenant(world.tenant.pk)
    assert (report.known, report.looked_at, report.adopted) == (known, 3 - known, 3 - known)


def test_what_is_no_segment_and_what_is_nobodys_is_counted_and_left(world, ids):
    lose_rows(world)
    rubbish = f"{tenant_prefix(world.tenant.pk)}aa/rubbish.seg"
    bucket.client().put_object(Bucket=settings.ENV.s3_bucket, Key=rubbish, Body=b"x")
    with tenant_scope(world.tenant.pk):
        world.space.delete()
    report = adopt_tenant(world.tenant.pk)
    assert (report.adopted, report.unclaimed, report.rubbish) == (0, 3, 1)
    assert bucket.client().head_object(Bucket=settings.ENV.s3_bucket, Key=rubbish)
