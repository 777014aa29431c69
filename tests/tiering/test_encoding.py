"""Blocks at rest without loss: flush, reading, compaction, promotion, rebuild."""

import os
from itertools import count

import numpy as np
import pytest
from django.core.management import call_command

from catalog.models import Segment
from catalog.stores import objects_of
from neve.formats.block import HEADER_BYTES, PLAIN, SHUFFLE_ZSTD
from neve.index.tier import Location, Tier
from neve.planner.codecs import Costs, is_worthwhile
from retention.services import add_rule, set_policy
from storage import s3 as bucket
from support.cold_world import PAYLOAD_BYTES
from support.rows import make_session
from tenants.audit import SYSTEM
from tenants.scope import tenant_scope
from tiering.compaction.merge import CompactReport, carry_out
from tiering.compaction.plan import Merge, Reason
from tiering.compaction.source import ColdCopy, ColdSource
from tiering.encoding import Encoder, width_of
from tiering.flush import Flusher
from tiering.objects import footer_of
from tiering.promotion import _row

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("storage"),
]


def kv_bytes(seed):
    """Numbers as KV has them: one byte of few values beside bytes of noise."""
    numbers = np.random.default_rng(seed).standard_normal(PAYLOAD_BYTES // 4, np.float32)
    return numbers.tobytes()


@pytest.fixture
def world(world, monkeypatch):
    """Its blocks hold such numbers."""
    noise, seeds = os.urandom, count()
    monkeypatch.setattr(
        "support.cold_world.os.urandom",
        lambda size: kv_bytes(next(seeds)) if size == PAYLOAD_BYTES else noise(size),
    )
    return world


def flush(world):
    return Flusher(world.tenant.pk).run()


def places(world, ids):
    found = world.tier.match(ids)
    assert all(isinstance(each, Location) for each in found)
    return found


def read_decoded(world, ids):
    """As workers promote blocks."""
    found = places(world, ids)
    source = ColdSource(objects_of(list(Segment.unscoped.all())))
    try:
        copies = [
            ColdCopy(at.segment, _row(id_, at), is_decoded=True)
            for id_, at in zip(ids, found, strict=True)
        ]
        return {each.header.id: bytes(each.raw) for each in source.read(copies)}
    finally:
        source.close()


def assert_same(world, ids):
    decoded = read_decoded(world, ids)
    assert {id_: raw[HEADER_BYTES:] for id_, raw in decoded.items()} == {
        id_: world.payloads[id_] for id_ in ids
    }


def test_blocks_are_encoded_and_charged_by_what_they_take(world):
    set_policy(tenant=world.tenant, actor=SYSTEM, cold_codec="always")
    ids = world.store(6)
    flush(world)
    found = places(world, ids)
    assert {at.codec for at in found} == {SHUFFLE_ZSTD}
    stored = sum(HEADER_BYTES + at.encoded_bytes for at in found)
    assert stored < 0.95 * 6 * (HEADER_BYTES + PAYLOAD_BYTES)
    usage = world.tier.usage()
    assert usage.cold_bytes == stored == sum(world.tier.live_bytes([found[0].segment]))
    assert usage.hot_bytes == 6 * (HEADER_BYTES + PAYLOAD_BYTES)
    (row,) = world.segments()
    footer = footer_of(bucket.default().object(row.object_key))
    assert footer.header.version == 3
    assert [each.stored_length for each in footer.rows] == [
        HEADER_BYTES + at.encoded_bytes for at in found
    ]
    assert_same(world, ids)


def test_a_policy_of_none_writes_what_older_nodes_read(world):
    ids = world.store(2)
    flush(world)
    assert {at.codec for at in places(world, ids)} == {PLAIN}
    assert footer_of(bucket.default().object(world.segments()[0].object_key)).header.version == 2
    world.assert_readable_from_s3(ids)


def test_a_rule_encodes_one_space(world):
    plain = world.store(2)
    world.add_space("other")
    add_rule(
        tenant=world.tenant, actor=SYSTEM, space=world.space, overrides={"cold_codec": "always"}
    )
    encoded = world.store(2)
    flush(world)
    assert {at.codec for at in places(world, plain)} == {PLAIN}
    assert {at.codec for at in places(world, encoded)} == {SHUFFLE_ZSTD}


@pytest.mark.parametrize(("far_bytes_per_s", "codec"), [(1e12, PLAIN), (12.5e6, SHUFFLE_ZSTD)])
def test_auto_encodes_for_the_slowest_link(world, far_bytes_per_s, codec):
    set_policy(tenant=world.tenant, actor=SYSTEM, cold_codec="auto")
    for node, bytes_per_s in (("near-1", 1e12), ("near-2", 1e12), ("far", far_bytes_per_s)):
        make_session(world.space, node, speeds={"cold_bytes_per_s": bytes_per_s})
    ids = world.store(2)
    flush(world)
    assert {at.codec for at in places(world, ids)} == {codec}
    assert_same(world, ids)


def test_noise_stays_as_it_is(world, monkeypatch):
    monkeypatch.undo()
    set_policy(tenant=world.tenant, actor=SYSTEM, cold_codec="always")
    ids = world.store(3)
    flush(world)
    assert {at.codec for at in places(world, ids)} == {PLAIN}
    world.assert_readable_from_s3(ids)


def test_compaction_copies_encoded_blocks_and_encodes_plain_ones(world):
    plain = world.store(3)
    flush(world)
    set_policy(tenant=world.tenant, actor=SYSTEM, cold_codec="always")
    encoded = world.store(3)
    flush(world)
    report = CompactReport()
    with tenant_scope(world.tenant.pk):
        merge = Merge(tuple(row.pk for row in world.segments()), Reason.SMALL, 1, 0)
        carry_out(world.tier, world.space, merge, report)
    ids = [*plain, *encoded]
    found = places(world, ids)
    assert len({at.segment for at in found}) == 1
    assert {at.codec for at in found} == {SHUFFLE_ZSTD}
    assert world.tier.usage().cold_bytes == sum(HEADER_BYTES + at.encoded_bytes for at in found)
    assert world.tier.live_bytes(list(merge.segments)) == [0, 0]
    assert_same(world, ids)


def test_a_rebuilt_index_knows_encoded_blocks(world, clean_hot):
    set_policy(tenant=world.tenant, actor=SYSTEM, cold_codec="always")
    ids = world.store(4)
    flush(world)
    before = [at._replace(tier=Tier.COLD) for at in places(world, ids)]
    clean_hot.wipe()
    call_command("rebuild_index")
    assert places(world, ids) == before
    assert world.tier.usage().cold_bytes == sum(HEADER_BYTES + at.encoded_bytes for at in before)
    assert_same(world, ids)


def test_an_encoded_block_goes_and_its_bytes_are_refunded(world):
    set_policy(tenant=world.tenant, actor=SYSTEM, cold_codec="always")
    ids = world.store(3)
    flush(world)
    world.tier.expire(ids)
    usage = world.tier.usage()
    assert (usage.cold_bytes, usage.hot_bytes, usage.cold_blocks) == (0, 0, 0)


def test_only_what_is_there_sooner_is_encoded():
    fast, slow = Costs(10e9, 1e9), Costs(0.5e9, 1e9)
    assert is_worthwhile(100, 70, slow)
    assert not is_worthwhile(100, 70, fast)
    assert not is_worthwhile(100, 99, slow)


def test_a_width_is_read_from_the_identity():
    assert width_of(["auto:torch.bfloat16", "float32"]) == 2
    assert width_of(["auto:torch.float32"]) == 4
    assert width_of(["fp8_e4m3:torch.uint8", "bfloat16"]) == 1
    assert width_of(["", ""]) == 1
    assert Encoder(width=1, read_bytes_per_s=1.0)
