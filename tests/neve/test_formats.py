"""The formats: their documents' examples are read, and every changed byte is noticed."""

import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from valkey.crc import key_slot

from neve import _core
from neve.errors import Corrupt, Misuse
from neve.formats import block, segment
from neve.formats.block import HEADER_BYTES, BlockHeader, checksum
from neve.formats.ids import BlockHasher
from neve.formats.keys import BucketKeys, bucket_of, parse_key, segment_key
from neve.formats.segment import SegmentHeader, SegmentRow, SegmentWriter
from neve.formats.space import SpaceIdentity, choose_chunk_tokens

FORMATS = Path(__file__).parents[2] / "docs" / "formats"
FINGERPRINT = bytes(range(32))
ID = bytes.fromhex("00112233445566778899aabbccddeeff")
PAYLOAD = b"KV of one chunk!"


def hex_example(document: str, number: int = 0) -> bytes:
    """The bytes of the `number`th dump in a document."""
    dumps = re.findall(
        r"(?:^[0-9a-f]{4}  (?:[0-9a-f]{2} ?)+\n)+", (FORMATS / document).read_text(), re.M
    )
    return bytes.fromhex("".join(line[6:] for line in dumps[number].splitlines()))


def identity(**changes: object) -> SpaceIdentity:
    fields = {"model": "m", "revision": "r", "dtype": "bf16", "kv_dtype": "auto", "layout": "l"}
    numbers = {"layout_version": 1, "engine_block_tokens": 16, "bytes_per_token": 4096}
    return SpaceIdentity.from_dict({**fields, **numbers, **changes})


def test_a_lossy_codec_makes_another_space_and_no_codec_the_same_as_ever():
    exact, lossy = identity(), identity(codec="int8")
    assert exact == identity(codec="none")
    assert "codec" not in exact.as_dict()
    assert SpaceIdentity.from_dict(lossy.as_dict()) == lossy
    assert exact.differing_fields(lossy) == ["codec"]
    one, other = (i.fingerprint(tenant_id=1, chunk_tokens=256) for i in (exact, lossy))
    assert one != other


@pytest.mark.parametrize("bad", [1.5, True, "1", None, -1, 2**32, 2**70])
def test_only_integers_are_token_ids(bad):
    """numpy alone takes the first three for token 1: the id of another prompt."""
    hasher = BlockHasher(FINGERPRINT, 2)
    for tokens in ([1, bad], (bad, bad), np.array([bad, bad])):
        with pytest.raises(Misuse) as caught:
            hasher.chain(tokens, parent=hasher.root())
        assert caught.value.field == "tokens"


def test_token_ids_are_integers_of_any_kind():
    hasher = BlockHasher(FINGERPRINT, 2)
    ids = hasher.chain([1, 2, 3, 4], parent=hasher.root())
    for tokens in ((1, 2, 3, 4), range(1, 5), np.array([1, 2, 3, 4], "<u2"), [*np.arange(1, 5)]):
        assert hasher.chain(tokens, parent=hasher.root()) == ids


@pytest.mark.parametrize("bad", ["\ud800", "a\0b"])
def test_an_identity_holds_only_text_that_can_be_stored(bad):
    for name in ("model", "revision", "dtype", "kv_dtype", "layout"):
        with pytest.raises(Misuse) as caught:
            identity(**{name: bad})
        assert caught.value.field == name


def test_the_documented_block_is_what_the_module_writes_and_reads():
    raw = hex_example("block.md")
    header = block.verify(raw[:HEADER_BYTES], raw[HEADER_BYTES:], expect_id=ID)
    assert (header.tokens, header.space_tag, raw[HEADER_BYTES:]) == (16, FINGERPRINT[:4], PAYLOAD)
    assert block.encode_header(header) == raw[:HEADER_BYTES]


def test_the_documented_segment_is_what_the_module_writes_and_reads():
    raw = hex_example("segment.md")
    footer = segment.read_footer(lambda at, n: raw[at : at + n], len(raw))
    (row,) = footer.rows
    assert raw[row.offset : row.offset + row.length] == hex_example("block.md")
    uuid = UUID("12345678-9abc-def0-1234-56789abcdef0")
    assert footer.header == SegmentHeader(7, uuid, FINGERPRINT)
    writer = SegmentWriter(footer.header)
    writer.add(block.decode_header(raw[row.offset :]), stored_s=1_800_000_000)
    assert raw.endswith(writer.footer())


def test_the_documented_footer_of_version_3_is_what_the_module_writes_and_reads():
    raw = hex_example("segment.md")[:0x90] + hex_example("segment.md", 1)
    footer = segment.read_footer(lambda at, n: raw[at : at + n], len(raw))
    uuid = UUID("12345678-9abc-def0-1234-56789abcdef0")
    assert footer.header == SegmentHeader(7, uuid, FINGERPRINT, version=3)
    writer = SegmentWriter(footer.header)
    writer.add(block.decode_header(raw[0x40:]), stored_s=1_800_000_000)
    assert raw.endswith(writer.footer())
    assert list(footer.rows) == writer.rows


def test_a_footer_says_what_is_encoded_and_what_this_version_cannot_read():
    writer = SegmentWriter(SegmentHeader(7, UUID(int=5), FINGERPRINT, version=3))
    plain = SegmentRow(ID, ID, 64, 100, 16, 1)
    rows = [
        plain,
        replace(plain, offset=164, length=1 << 20, encoded_length=36, codec=1),
        replace(plain, offset=200, kind=1),
        replace(plain, offset=200, codec=2, encoded_length=90),
    ]
    writer.rows += rows
    raw = bytes(300) + writer.footer()
    footer = segment.read_footer(lambda at, n: raw[at : at + n], len(raw))
    assert list(footer.rows) == rows
    assert [row.is_readable for row in footer.rows] == [True, True, False, False]
    assert [row.end for row in footer.rows] == [164, 200, 300, 290]


def test_a_segment_of_release_0_2_0_is_read():
    """tests/neve/data/segment-2.seg is as that release wrote it, and stays."""
    raw = (Path(__file__).parent / "data/segment-2.seg").read_bytes()
    footer = segment.read_footer(lambda at, n: raw[at : at + n], len(raw))
    assert (footer.header.tenant_id, footer.header.version) == (7001, 2)
    assert len(footer.rows) == 3
    for n, row in enumerate(footer.rows):
        stored = raw[row.offset : row.end]
        header = block.verify(stored[:HEADER_BYTES], stored[HEADER_BYTES:], expect_id=row.id)
        assert header.payload_checksum == row.checksum
        assert (row.stored_s, row.is_readable) == (1_800_000_000 + n, True)
    assert [row.expires_s for row in footer.rows] == [0, 0, 4_000_000_000]


def test_a_segment_of_version_1_is_read_and_does_not_say_when_its_blocks_were_stored():
    """As written until version 2: rows end with expires_s."""
    block_raw = hex_example("block.md")
    head = struct.pack("<4sHHII16s32s", b"NVSG", 1, 0, 7, 0, UUID(int=5).bytes, FINGERPRINT)
    sum_ = block.decode_header(block_raw).payload_checksum
    row = ID + ID + struct.pack("<QIIQI", 64, len(block_raw), 16, sum_, 1234)
    body = head + row
    raw = head + block_raw + body + struct.pack("<IIQ8s", 1, len(body), checksum(body), b"NVSGFOOT")
    footer = segment.read_footer(lambda at, n: raw[at : at + n], len(raw))
    assert footer.header == SegmentHeader(7, UUID(int=5), FINGERPRINT, version=1)
    assert footer.rows == [segment.SegmentRow(ID, ID, 64, len(block_raw), 16, sum_, 1234, 0)]


def test_the_encoded_block_of_the_document_is_decoded():
    raw = hex_example("block.md", 1)
    header = block.decode_header(raw)
    assert (header.codec, header.payload_bytes) == (block.SHUFFLE_ZSTD, 4 * len(PAYLOAD))
    assert header.payload_checksum == checksum(raw[HEADER_BYTES:])
    back = bytearray(header.payload_bytes)
    assert _core.shuffle_zstd_decode(raw[HEADER_BYTES:], back)
    assert back == 4 * PAYLOAD
    with pytest.raises(Corrupt, match="plain one"):
        block.verify(raw[:HEADER_BYTES], raw[HEADER_BYTES:], expect_id=ID)
    assert block.as_plain(header, back).payload_checksum == checksum(back)


def test_an_encoded_block_enters_a_segment_that_says_so_only():
    encoded = BlockHeader(ID, ID, 16, 100, 0, FINGERPRINT[:4], block.SHUFFLE_ZSTD)
    writer = SegmentWriter(SegmentHeader(1, UUID(int=5), FINGERPRINT))
    with pytest.raises(Misuse, match="version 3"):
        writer.add(encoded, encoded_bytes=50)
    writer = SegmentWriter(SegmentHeader(1, UUID(int=5), FINGERPRINT, version=3))
    row = writer.add(encoded, encoded_bytes=50)
    assert (row.length, row.stored_length, writer.size_bytes) == (164, 114, 64 + 114)
    with pytest.raises(Misuse, match="encoded_bytes"):
        writer.add(encoded)


@given(at=st.integers(0, HEADER_BYTES + len(PAYLOAD) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_block_is_corrupt(at, bit):
    raw = bytearray(hex_example("block.md"))
    raw[at] ^= 1 << bit
    with pytest.raises(Corrupt):
        block.verify(raw[:HEADER_BYTES], raw[HEADER_BYTES:], expect_id=ID)


@pytest.mark.parametrize("at", [5, 7])
def test_a_block_of_an_unknown_kind_or_codec_is_corrupt(at):
    """Its header checksum is right: a newer version wrote it."""
    raw = bytearray(hex_example("block.md"))
    raw[at] = 2
    raw[60:64] = (checksum(raw[:60]) & 0xFFFFFFFF).to_bytes(4, "little")
    with pytest.raises(Corrupt, match="unknown"):
        block.verify(raw[:HEADER_BYTES], raw[HEADER_BYTES:], expect_id=ID)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.integers(0, 400))
def test_any_flipped_bit_or_cut_of_a_footer_is_corrupt(at, bit, cut):
    raw = bytearray(hex_example("segment.md"))
    start = 0x90
    if cut:
        raw = raw[: max(0, len(raw) - cut)]
    else:
        at = start + at % (len(raw) - start)
        raw[at] ^= 1 << bit
    with pytest.raises(Corrupt):
        segment.read_footer(lambda at, n: bytes(raw[at : at + n]), len(raw))


def test_a_footer_larger_than_the_first_tail_read_takes_a_second_read():
    writer = SegmentWriter(SegmentHeader(1, UUID(int=5), FINGERPRINT))
    for i in range(3000):
        writer.add(BlockHeader(i.to_bytes(16, "big"), ID, 16, 100, i, FINGERPRINT[:4]))
    raw = b"\0" * writer.size_bytes + writer.footer()
    reads: list[int] = []

    def fetch(at: int, n: int) -> bytes:
        reads.append(n)
        return raw[at : at + n]

    assert list(segment.read_footer(fetch, len(raw)).rows) == writer.rows
    assert len(reads) == 2


def test_a_block_of_another_space_does_not_enter_a_segment():
    writer = SegmentWriter(SegmentHeader(1, UUID(int=5), FINGERPRINT))
    with pytest.raises(Misuse, match="another space"):
        writer.add(BlockHeader(ID, ID, 16, 100, 0, b"\xff" * 4))


def test_a_payload_without_bytes_is_misuse():
    with pytest.raises(Misuse, match="payload"):
        block.encode_header(BlockHeader(ID, ID, 16, 0, 0, FINGERPRINT[:4]))


def test_ids_do_not_depend_on_the_hash_seed_of_the_process():
    script = (
        "from neve.formats.ids import BlockHasher as H; h = H(bytes(range(32)), 4);"
        "print([i.hex() for i in h.chain(range(8), parent=h.root(salt=b's', lora=b'l'))])"
    )
    runs = [
        subprocess.check_output([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count(b"'") == 4


def test_an_id_stands_for_the_whole_prefix():
    hasher = BlockHasher(FINGERPRINT, 4)
    root = hasher.root()
    one = hasher.chain([1, 2, 3, 4, 5, 6, 7, 8, 9], parent=root)
    assert len(one) == 2  # the partial tail has no id
    assert hasher.chain([5, 6, 7, 8], parent=one[0]) == one[1:]  # grows incrementally
    other = hasher.chain([9, 2, 3, 4, 5, 6, 7, 8], parent=root)
    assert not set(one) & set(other)


@pytest.mark.parametrize(
    "changed",
    [
        {"parent": BlockHasher(FINGERPRINT, 4).root(salt=b"tenant secret")},
        {"parent": BlockHasher(FINGERPRINT, 4).root(lora=b"adapter")},
        {"extras": {0: b"image 7 at 2"}},
    ],
)
def test_salt_lora_and_images_change_the_id(changed):
    hasher = BlockHasher(FINGERPRINT, 4)
    plain = hasher.chain([1, 2, 3, 4], parent=hasher.root())
    assert hasher.chain([1, 2, 3, 4], **{"parent": hasher.root(), **changed}) != plain


def test_salt_and_lora_cannot_be_swapped():
    hasher = BlockHasher(FINGERPRINT, 4)
    assert hasher.root(salt=b"ab", lora=b"c") != hasher.root(salt=b"a", lora=b"bc")


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_that_is_no_u32_is_misuse(token):
    hasher = BlockHasher(FINGERPRINT, 1)
    with pytest.raises(Misuse, match="tokens"):
        hasher.chain([token], parent=hasher.root())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"}, {"revision": "s"}, {"dtype": "f16"}, {"kv_dtype": "fp8"},
        {"layout": "m"}, {"layout_version": 2}, {"engine_block_tokens": 32},
        {"bytes_per_token": 8192},
        {"tp_size": 2}, {"tp_size": 2, "tp_rank": 1}, {"pp_size": 2}, {"pp_size": 2, "pp_rank": 1},
    ],
)  # fmt: skip
def test_every_field_of_an_identity_changes_the_fingerprint(change):
    scope = {"tenant_id": 1, "chunk_tokens": 256}
    plain, changed = identity(), identity(**change)
    assert plain.fingerprint(**scope) != changed.fingerprint(**scope)
    assert plain.differing_fields(changed) == list(change)
    assert plain.fingerprint(tenant_id=2, chunk_tokens=256) != plain.fingerprint(**scope)
    assert plain.fingerprint(tenant_id=1, chunk_tokens=128) != plain.fingerprint(**scope)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": ""}, "model"), ({"model": 7}, "model"),
        ({"layout_version": "1"}, "layout_version"),
        ({"bytes_per_token": 0}, "bytes_per_token"), ({"tp_size": True}, "tp_size"),
        ({"tp_rank": 1}, "tp_rank"), ({"surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_a_bad_identity_names_the_field(change, field):
    with pytest.raises(Misuse) as caught:
        identity(**change)
    assert caught.value.field == field


def test_a_missing_field_is_named():
    with pytest.raises(Misuse) as caught:
        SpaceIdentity.from_dict({"model": "m"})
    assert caught.value.field == "bytes_per_token"


@given(block_tokens=st.integers(1, 512), per_token=st.integers(1, 1 << 22))
def test_a_chunk_is_whole_engine_blocks_and_small_enough_when_it_can_be(block_tokens, per_token):
    chunk = choose_chunk_tokens(block_tokens, per_token)
    assert chunk % block_tokens == 0
    if chunk > block_tokens:
        assert chunk <= 256
        assert chunk * per_token <= 2 << 20
    larger = chunk + block_tokens
    assert larger > 256 or larger * per_token > 2 << 20 or chunk == block_tokens


def test_sizes_are_those_of_the_documents():
    assert block._FIELDS.size + block._CHECK.size == segment._HEADER.size == HEADER_BYTES == 64
    assert (segment._TRAILER.size, segment.ROW_BYTES) == (24, {1: 60, 2: 64, 3: 70})


def test_keys_of_a_bucket_share_one_hash_tag():
    keys = BucketKeys(7, 3)
    assert keys.block(12, ID) == b"{t7.03.51}:b:12:" + ID
    assert all(key.startswith(b"{t7.03.51}:") for key in keys.bookkeeping)
    assert parse_key(keys.block(12, ID)) == (keys, b"b:12:" + ID)
    for foreign in (b"", b"x{t7.03.51}:i", b"{t7.03}:i", b"{t7.03.50}:i", b"{t7.3.51}:i"):
        assert parse_key(foreign) is None
    assert segment_key(7, FINGERPRINT, UUID(int=1)).startswith("v1/t7/0001020304050607/")


@pytest.mark.parametrize(
    ("primaries", "buckets", "most"),
    [(1, 4, 4), (2, 8, 4), (3, 16, 6), (4, 16, 4), (5, 32, 7), (6, 32, 6), (8, 32, 4), (16, 64, 4)],
)
def test_buckets_spread_evenly_over_the_primaries_of_a_cluster(primaries, buckets, most):
    for tenant_id in range(1, 20):
        tags = {BucketKeys(tenant_id, bucket).tag for bucket in range(buckets)}
        homes = [key_slot(tag) * primaries // 16384 for tag in tags]
        assert len(tags) == buckets
        assert max(homes.count(home) for home in range(primaries)) == most


def test_more_buckets_than_cells_have_tags_of_their_own():
    tags = {BucketKeys(7, bucket).tag for bucket in range(600)}
    assert len(tags) == 600


def test_ids_spread_over_buckets():
    hasher = BlockHasher(FINGERPRINT, 1)
    ids = hasher.chain(range(4000), parent=hasher.root())
    sizes = [sum(bucket_of(id_, 4) == bucket for id_ in ids) for bucket in range(4)]
    assert min(sizes) > 850
