"""A flush streams: bounded memory, checked parts, nothing left behind by an upload that failed."""

from io import StringIO

import pytest
from botocore.exceptions import ClientError
from django.conf import settings
from django.core.management import call_command

from neve.errors import Unavailable
from storage import s3 as bucket
from tiering import recovery, segments, upload
from tiering.flush import Flusher
from tiering.upload import MultipartUpload

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("storage")]

MIB = 1 << 20


def unfinished_uploads(prefix):
    listed = bucket.client().list_multipart_uploads(Bucket=settings.ENV.s3_bucket, Prefix=prefix)
    return listed.get("Uploads", [])


def test_a_segment_of_many_parts_is_whole(small_parts, world, monkeypatch):
    monkeypatch.setattr(segments, "FLOOR_BYTES", 64 * MIB)  # the tenant's quota is small
    ids = world.store(40, payload_bytes=300_000) + world.store(3, payload_bytes=1_700_000)
    report = Flusher(world.tenant.pk).run()
    assert (report.segments, report.blocks) == (1, 43)
    (row,) = world.segments()
    assert row.size_bytes > 3 * upload.PART_BYTES
    assert row.runs == 2  # two chains, each in one piece
    world.assert_readable_from_s3(ids)


def test_an_upload_that_fails_is_aborted_and_the_blocks_are_given_back(
    small_parts, world, monkeypatch
):
    ids = world.store(30, payload_bytes=500_000)
    put, client = bucket.client().upload_part, bucket.client()

    def refuse_the_second(**part):
        if part["PartNumber"] == 2:
            raise ClientError({"Error": {"Code": "SlowDown"}}, "UploadPart")
        return put(**part)

    with monkeypatch.context() as broken:
        broken.setattr(client, "upload_part", refuse_the_second)
        with pytest.raises(ClientError, match="SlowDown"):
            Flusher(world.tenant.pk).run()
    assert unfinished_uploads("v1/") == []
    assert world.tier.usage().dirty_blocks == 30
    assert Flusher(world.tenant.pk).run().blocks == 30
    world.assert_readable_from_s3(ids)


def test_a_part_that_changed_on_its_way_is_refused(small_parts, world, monkeypatch):
    world.store(15, payload_bytes=500_000)
    crc32 = upload._crc32

    def flip_a_bit_behind(part):
        check = crc32(part)
        part[1000] ^= 1
        return check

    with monkeypatch.context() as broken:
        broken.setattr(upload, "_crc32", flip_a_bit_behind)
        with pytest.raises(ClientError, match="BadDigest"):
            Flusher(world.tenant.pk).run()
    assert world.tier.usage().dirty_blocks == 15


def test_what_a_killed_worker_left_of_an_upload_can_be_ended(small_parts, storage):
    killed = bucket.default().object("v1/t1/killed.seg")
    dying = MultipartUpload(killed)
    dying.write(bytes(6 * MIB))
    bucket.client().create_multipart_upload(
        Bucket=settings.ENV.s3_bucket, Key="v1/t1/killed.seg.other"
    )
    assert killed.abort_uploads() == 1
    assert [each["Key"] for each in unfinished_uploads("v1/t1/")] == ["v1/t1/killed.seg.other"]
    assert bucket.default().object("v1/t1/killed.seg.other").abort_uploads() == 1


def test_an_object_is_what_was_written_whatever_the_pieces(small_parts, storage):
    pieces = [b"a" * n for n in (1, 0, 5 * MIB - 2, 3, 11 * MIB, 7)]
    with MultipartUpload(bucket.default().object("v1/t1/pieces")) as parts:
        for piece in pieces:
            parts.write(piece)
        parts.complete()
    got = bucket.client().get_object(Bucket=settings.ENV.s3_bucket, Key="v1/t1/pieces")
    body = got["Body"].read()
    assert len(body) == parts.size_bytes
    assert body == b"".join(pieces)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_flush_under_way_ends_when_valkey_was_started_again(world, monkeypatch, steps):
    """Its counters may have forgotten what fills the cold quota. `steps`: looks before that."""
    ids, whole = world.store(2), iter([True] * steps + [False])
    flusher = Flusher(world.tenant.pk)
    leases = flusher.lease()
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "index_is_whole", lambda tenant_id: next(whole))
        with pytest.raises(Unavailable):
            flusher.run(leases)
    assert world.tier.usage().cold_blocks == 0
    assert Flusher(world.tenant.pk).run().blocks == 2
    world.assert_readable_from_s3(ids)


def test_the_command_flushes_on_a_server_that_no_worker_has_seen_yet(world):
    ids = world.store(2)
    recovery.forget_index()
    call_command("flush_blocks", tenant=world.tenant.slug, stdout=StringIO())
    world.assert_readable_from_s3(ids)
