"""Peers that know nothing of neve read the very blocks that neve stores."""

from benchmarks.contestant import Plan
from neve.formats.keys import BucketKeys, bucket_of


def plan(buckets: int = 16) -> Plan:
    return Plan(
        block_bytes=1024,
        batch_blocks=4,
        batches=2,
        ports=[1, 2, 3, 4],
        homes=[n % 4 for n in range(buckets)],
        tags=[BucketKeys(7, n).tag.decode() for n in range(buckets)],
        connections=1,
        endpoint_url="",
        tenant_id=7,
        space_id=12,
    )


def test_keys_are_those_of_neve():
    each = plan()
    for id_ in each.ids(200):
        keys = BucketKeys(7, bucket_of(id_, 16))
        assert each.bucket(id_) == bucket_of(id_, 16)
        assert each.key(id_) == keys.block(12, id_)


def test_ids_are_text_and_spread_over_the_buckets():
    each = plan()
    ids = each.ids(4096)
    counts = [[each.bucket(id_) for id_ in ids].count(bucket) for bucket in range(16)]
    assert len(set(ids)) == len(ids)
    assert all(id_.isascii() and len(id_) == 16 for id_ in ids)
    assert min(counts) > 4096 / 16 / 2


def test_data_does_not_repeat():
    rows = plan().data()
    assert len({row.tobytes() for row in rows}) == 8
