"""What a tenant's own hands do to its index hurts nobody else, and is put right by itself.

Nodes may write the bookkeeping of their tenant, because functions run with the rights of who calls
them; only its name is hidden. An operator's hands reach it, too. So it may hold anything.
"""

import os
import struct
from dataclasses import replace

import pytest
from django.conf import settings

from catalog.models import Job, Round, UsageRollup
from contexts.dry_run import dry_run, proposed_rulebook
from neve.formats import block
from neve.formats.block import HEADER_BYTES, BlockHeader
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.tier import CommitOutcome
from retention.models import RetentionPolicy
from storage import hot
from support.cold_world import World
from support.drift import assert_no_drift
from tiering import recovery
from tiering.flush import Flusher
from tiering.reconcile import blocks, rounds
from tiering.reconcile.report import Report
from workers import tasks
from workers.schedule import SCHEDULE

pytestmark = [pytest.mark.integration, pytest.mark.django_db(transaction=True)]

ENTRY = struct.Struct("<BBHIIIIIIIIIBB")
PAYLOAD = 3000


class TwoBuckets(World):
    """A tenant whose blocks lie in two buckets."""

    def store_in(self, bucket, count):
        ids = []
        while len(ids) < count:
            id_ = os.urandom(16)
            if bucket_of(id_, 2) != bucket:
                continue
            payload = os.urandom(PAYLOAD)
            sum_ = block.checksum(payload)
            header = BlockHeader(id_, bytes(16), 256, PAYLOAD, sum_, self.fingerprint[:4])
            self.payloads[id_] = payload
            key = BucketKeys(self.tenant.pk, bucket).block(self.space.pk, id_)
            hot.admin().set(key, block.encode_header(header) + payload, px=60_000)
            ids.append(id_)
        sizes = [(id_, HEADER_BYTES + PAYLOAD, 256) for id_ in ids]
        assert set(self.tier.commit(self.space.pk, sizes)) == {CommitOutcome.STORED}
        return ids


def key(tenant, letter):
    books = BucketKeys(tenant, 0).all_bookkeeping
    return next(name for name in books if name.endswith(letter))


def wrong_type(names):
    def damage(admin, tenant, ids):
        for name in names:
            admin.delete(key(tenant, name))
            admin.rpush(key(tenant, name), b"junk")

    return damage


def entry(raw, field=None):
    def damage(admin, tenant, ids):
        admin.hset(key(tenant, b"i"), field or ids[0], raw)
        for name in b"ldxepfc":
            admin.zadd(key(tenant, bytes([name])), {field or ids[0]: 1})

    return damage


def forged(state, size, **also):
    return entry(
        ENTRY.pack(state, 0, 0, also.get("space", 1), size, 256, 0, 0, 9**9, 0, 1, 0, 0, 0)
    )


def scores(admin, tenant, ids):
    for name in b"ldxepfsrc":
        admin.zadd(key(tenant, bytes([name])), {ids[0]: "-inf", ids[1]: "inf", b"junk": -1e300})


def counters(admin, tenant, ids):
    names = ("hot_bytes", "cold_bytes", "cold_blocks", "dirty_bytes", "recounts", "pinned_bytes")
    values = ("junk", "9223372036854775807", "1e300", "-3", " 7", "")
    admin.hset(key(tenant, b"u"), mapping=dict(zip(names, values, strict=True)))


def many_counters(admin, tenant, ids):
    admin.hset(key(tenant, b"u"), mapping={f"c{n}": n for n in range(2000)})


def blocks_of_another_type(admin, tenant, ids):
    for name in admin.scan_iter(match=BucketKeys(tenant, 0).tag + b":b:*"):
        admin.delete(name)
        admin.rpush(name, b"junk")


def strays_of_another_type(admin, tenant, ids):
    admin.rpush(BucketKeys(tenant, 0).block(1, os.urandom(16)), b"junk")


DAMAGE = {
    "the index of another type": wrong_type([b"i"]),
    "counters of another type": wrong_type([b"u"]),
    "sets of another type": wrong_type([b"l", b"d", b"x", b"e", b"p", b"f", b"r", b"c"]),
    "live bytes of another type": wrong_type([b"s"]),
    "a short entry": entry(b"\x01short"),
    "a long entry": entry(bytes(43)),
    "an empty entry": entry(b""),
    "a field that is no id": entry(b"junk", b"field"),
    "an entry of no state": forged(0xF6, 5),
    "a dirty entry of 4 GiB": forged(5, 2**32 - 1),
    "a cold entry in no segment": forged(2, 5),
    "a dirty entry of no space": forged(5, 5, space=2**32 - 1),
    "impossible scores": scores,
    "impossible counters": counters,
    "many counters": many_counters,
    "blocks of another type": blocks_of_another_type,
    "strays of another type": strays_of_another_type,
}  # fmt: skip
# Entries that functions may write: the blocks whose entries they replaced may stay misses.
FORGERIES = ("a dirty entry of 4 GiB", "a dirty entry of no space")


@pytest.fixture
def two_buckets(world, monkeypatch):
    """`world` only brings the servers, provisioned and whole."""
    monkeypatch.setattr(settings, "ENV", replace(settings.ENV, hot_buckets=2))
    monkeypatch.setattr(rounds, "PAUSE", rounds.PAUSE * 0)
    monkeypatch.setattr("tiering.flush.GATHER_S", -1.0)


def run_the_schedule():
    for name in SCHEDULE:
        getattr(tasks, name)()


def failed_jobs():
    return list(Job.unscoped.filter(state="failed").values_list("kind", "tenant_id", "error"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_tenant_that_damages_its_index_hurts_nobody_and_gets_its_blocks_back(two_buckets, kind):
    hostile, neighbour = TwoBuckets(), TwoBuckets()
    cold = {each: [each.store_in(bucket, 3) for bucket in (0, 1)] for each in (hostile, neighbour)}
    for each in cold:
        assert Flusher(each.tenant.pk).run().blocks == 6
    dirty = {each: [each.store_in(bucket, 2) for bucket in (0, 1)] for each in cold}
    RetentionPolicy.unscoped.update(generation=7, applied_generation=0)
    UsageRollup.unscoped.all().delete()

    DAMAGE[kind](hot.admin(), hostile.tenant.pk, cold[hostile][0])
    assert dry_run(neighbour.tenant.pk, proposed_rulebook(neighbour.tenant)).looked_at == 10
    assert dry_run(hostile.tenant.pk, proposed_rulebook(hostile.tenant)).looked_at >= 4
    run_the_schedule()
    assert not failed_jobs()
    neighbour.assert_readable_from_s3([*dirty[neighbour][0], *dirty[neighbour][1]])
    if kind != "the index of another type":  # then the tenant's index is rebuilt first
        hostile.assert_readable_from_s3(dirty[hostile][1])
    assert UsageRollup.unscoped.filter(tenant=neighbour.tenant).exists()
    assert not RetentionPolicy.unscoped.filter(applied_generation__lt=7).exists()

    for _ in range(2):  # what was lost is restored, then counted
        run_the_schedule()
    assert not failed_jobs()
    assert not recovery.lost_tenants()
    hostile.assert_readable_from_s3(dirty[hostile][1])
    for each in (hostile, neighbour):
        for ids in cold[each]:
            each.assert_readable_from_s3(ids[each is hostile and kind in FORGERIES :])
    assert_no_drift(hot.admin())
    if kind not in ("many counters", "strays of another type"):
        told = Job.unscoped.filter(kind="reconcile").values_list("detail", flat=True)
        assert any(detail["repaired"] for detail in told) or hostile.tier.usage().mended > 0
    assert neighbour.tier.usage().mended == 0


def test_a_first_slice_that_failed_is_no_round(two_buckets, monkeypatch):
    world = TwoBuckets()
    world.store_in(0, 1)

    def fail(*args, **options):
        raise RuntimeError("trouble")

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "scan_tenant", fail)
        report = Report()
        blocks.look_at_blocks([world.tenant.pk], report)
    assert len(report.errors) == 1
    assert Round.unscoped.get(side="blocks", tenant=world.tenant).ended_at is None
