"""Entries of the version before, nodes of the release before, and copies of releases to come."""

import pytest

from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES, SHUFFLE_ZSTD
from neve.formats.keys import BucketKeys
from neve.index import entry
from neve.index.library import call, functions_source, load_functions
from neve.index.recount import BucketAudit, Checked
from neve.index.scan import scan
from neve.index.tier import (
    BlockTerms,
    CommitOutcome,
    EncodedPlace,
    FlushOutcome,
    HotTier,
    Location,
    MovedBlock,
    RestoredBlock,
    Tier,
)
from support.version_1 import answers, as_version_1

pytestmark = pytest.mark.integration

TENANT, SPACE, SIZE, SEGMENT = 7, 3, 100, 9
KEYS = BucketKeys(TENANT, 0)
INDEX = KEYS.bookkeeping[0]
HOT, BOTH, COLD, EXPIRED, PINNED, ABSENT = IDS = [bytes([n]) * 16 for n in range(6)]


@pytest.fixture
def client(clean_hot):
    with clean_hot.client() as client:
        load_functions(client)
        yield client


@pytest.fixture
def tier(client):
    """A hot block, one in both tiers, a cold one, one that was expired, and a pinned one."""
    tier = HotTier(client.execute_command, TENANT)
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(ttl_s=9999))
    store(client, tier, IDS[:5])
    tier.open_segment(SEGMENT)
    assert set(tier.flushed(SEGMENT, [(BOTH, 64), (COLD, 164)])) == {FlushOutcome.FLUSHED}
    tier.forget(Tier.HOT, [COLD])
    tier.expire([EXPIRED])
    tier.pin([PINNED], 4_000_000_000)
    return tier


def store(client, tier, ids):
    for id_ in ids:
        client.set(KEYS.block(SPACE, id_), b"x" * SIZE, nx=True, px=60_000)
    return tier.commit(SPACE, [(id_, SIZE, 16) for id_ in ids])


def entries(client):
    return {e.id: e for page in scan(client.execute_command, TENANT, 1) for e in page.entries}


def make_older(client):
    for id_, raw in client.hgetall(INDEX).items():
        client.hset(INDEX, id_, as_version_1(raw))


def change(client, id_, **fields):
    """Writes an entry as a version to come may."""
    names = [field.name for field in entry.FIELDS]
    values = dict(zip(names, entry.ENTRY.unpack(client.hget(INDEX, id_)), strict=True))
    client.hset(INDEX, id_, entry.ENTRY.pack(*(values | fields).values()))


def test_a_hot_tier_of_the_version_before_is_used_as_it_stands(client, tier):
    found, known, usage = tier.match(IDS), entries(client), tier.usage()
    make_older(client)
    assert {len(raw) for raw in client.hvals(INDEX)} == {entry.ENTRY_1.size}
    assert tier.match(IDS) == found
    assert entries(client) == known
    assert BucketAudit(client.execute_command, TENANT, 0).discard(IDS) == 0
    assert store(client, tier, [HOT]) == [CommitOutcome.PRESENT]
    assert store(client, tier, [COLD, EXPIRED]) == [CommitOutcome.STORED] * 2
    assert tier.flushed(SEGMENT, [(HOT, 264)]) == [FlushOutcome.FLUSHED]
    assert tier.unpin([PINNED]) == 1
    audit = BucketAudit(client.execute_command, TENANT, 0)
    number = audit.begin()
    assert audit.recount(number, IDS) == Checked(0, 0)
    assert audit.settle(number) == []  # no counter was wrong
    assert tier.usage().hot_bytes == usage.hot_bytes + 2 * SIZE
    assert {len(raw) for raw in client.hvals(INDEX)} == {entry.ENTRY.size}  # each was saved anew
    assert tier.evict(10**9)[0] == 3


def test_a_node_of_the_release_before_finds_its_blocks(client, tier):
    expected = [
        ("hot", SIZE, 0, 0),
        ("hot", SIZE, SEGMENT, 64),
        ("cold", SIZE, SEGMENT, 164),
        "expired",
        ("hot", SIZE, 0, 0),
        "never_stored",
    ]
    for is_older in (False, True):
        if is_older:
            make_older(client)
        assert answers(client.execute_command(*call("match", KEYS, "1", *IDS))) == expected
        reply = client.execute_command(*call("match", KEYS, "0", *IDS))
        assert answers(reply) == expected[:4]  # stops at the first miss


@pytest.mark.parametrize(
    "fields", [{"cold_codec": 1}, {"hot_codec": 1}, {"kind": 1}, {"offset": 1 << 32}]
)
def test_a_node_of_the_release_before_misses_what_it_cannot_read(client, tier, fields):
    change(client, COLD, **fields)
    reply = client.execute_command(*call("match", KEYS, "1", COLD, HOT))
    assert answers(reply) == ["corrupt", ("hot", SIZE, 0, 0)]


@pytest.mark.parametrize(
    ("id_", "fields", "answer"),
    [
        (HOT, {"hot_codec": 1}, MissReason.UNSUPPORTED),
        (HOT, {"kind": 1}, MissReason.UNSUPPORTED),
        (HOT, {"kind": 255, "hot_codec": 255}, MissReason.UNSUPPORTED),
        (COLD, {"cold_codec": 1}, MissReason.UNSUPPORTED),
        (COLD, {"cold_codec": 2}, MissReason.UNSUPPORTED),
        (COLD, {"kind": 1}, MissReason.UNSUPPORTED),
        (BOTH, {"hot_codec": 1}, Location(Tier.COLD, SIZE, SEGMENT, 64)),
        (BOTH, {"cold_codec": 1}, Location(Tier.HOT, SIZE)),
        (COLD, {"offset": 1 << 40}, Location(Tier.COLD, SIZE, SEGMENT, 1 << 40)),
    ],
)
def test_a_copy_of_an_unknown_codec_or_kind_is_not_read(client, tier, id_, fields, answer):
    change(client, id_, **fields)
    assert tier.match([id_]) == [answer]


def test_an_encoded_copy_is_told_and_counts_what_it_takes(client, tier):
    whole = tier.usage().cold_bytes
    place = EncodedPlace(264, SIZE - 30, SHUFFLE_ZSTD)
    assert tier.flushed(SEGMENT, [(HOT, place)]) == [FlushOutcome.FLUSHED]
    told = Location(Tier.HOT, SIZE, SEGMENT, 264, 0, SHUFFLE_ZSTD, SIZE - 30 - HEADER_BYTES)
    assert tier.match([HOT]) == [told]
    assert tier.usage().cold_bytes == whole + SIZE - 30
    audit = BucketAudit(client.execute_command, TENANT, 0)
    number = audit.begin()
    audit.recount(number, IDS)
    assert audit.settle(number) == []
    moved = MovedBlock(HOT, SEGMENT, 264, EncodedPlace(364, SIZE - 20, SHUFFLE_ZSTD))
    assert tier.relocate(SEGMENT, [moved]) == [FlushOutcome.FLUSHED]
    assert tier.usage().cold_bytes == whole + SIZE - 20
    tier.forget(Tier.COLD, [HOT])
    assert tier.usage().cold_bytes == whole
    tier.restore(SEGMENT, SPACE, [RestoredBlock(HOT, SIZE, 16, place)])
    assert tier.usage().cold_bytes == whole + SIZE - 30


def test_a_copy_that_leaves_takes_its_codec_with_it(client, tier):
    change(client, BOTH, hot_codec=1, cold_codec=2)
    tier.forget(Tier.COLD, [BOTH])
    change(client, BOTH, hot_codec=0)
    assert tier.match([BOTH]) == [Location(Tier.HOT, SIZE)]
    change(client, BOTH, hot_codec=1)
    assert tier.flushed(SEGMENT, [(BOTH, 64)]) == [FlushOutcome.FLUSHED]
    tier.evict(10**9)
    assert tier.match([BOTH]) == [Location(Tier.COLD, SIZE, SEGMENT, 64)]


def test_offsets_beyond_32_bits_are_kept(client, tier):
    far = (1 << 53) - 1
    assert tier.flushed(SEGMENT, [(HOT, far)]) == [FlushOutcome.FLUSHED]
    assert tier.match([HOT]) == [Location(Tier.HOT, SIZE, SEGMENT, far)]
    assert entries(client)[HOT].offset == far


def test_the_platform_of_the_release_before_has_no_function_that_new_nodes_misread(client):
    """Its library has no `locate`: the call fails, whatever the entries are."""
    source = functions_source()
    registration = next(
        line for line in source.splitlines() if line.startswith('register("locate"')
    )
    client.execute_command("FUNCTION", "LOAD", "REPLACE", source.replace(registration, ""))
    with pytest.raises(Exception, match="not found"):
        HotTier(client.execute_command, TENANT).match([HOT])
    load_functions(client)
