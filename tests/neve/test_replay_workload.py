"""The replay's workloads, payloads and model: deterministic, distinct, and ideal as claimed."""

import itertools
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.formats.ids import BlockHasher
from neve.planner.simulate import single
from neve.planner.simulate.policies import make
from neve.replay.generator import OPEN_CONVERSATIONS, Generator, Workload
from neve.replay.payload import Payloads
from neve.replay.trace import TRACE_BLOCK_TOKENS, Request, parse_request, read_trace, tokens_of

LINE = {"timestamp": 5, "input_length": 513, "output_length": 7, "hash_ids": [1, 2]}

PRINT_WORKLOAD = """
import itertools, sys
from hashlib import sha256
from neve.replay.generator import Generator, Workload
from neve.replay.payload import Payloads
from neve.replay.trace import tokens_of
import numpy as np
seen = sha256()
for request in itertools.islice(Generator(Workload.MIXED, seed=7), 300):
    seen.update(repr(request).encode() + tokens_of(request).tobytes())
block = np.empty(4096, dtype=np.uint8)
Payloads(4096).write(bytes(range(16)), block)
print(seen.hexdigest(), sha256(block).hexdigest())
"""


def test_a_workload_and_its_bytes_are_equal_in_every_process():
    seen = {
        subprocess.run(
            [sys.executable, "-c", PRINT_WORKLOAD],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert len(seen) == 1


@pytest.mark.parametrize("workload", list(Workload))
def test_another_seed_is_another_workload(workload):
    one, two = (list(itertools.islice(Generator(workload, seed=s), 50)) for s in (1, 2))
    assert one != two
    assert not {i for r in one for i in r.hash_ids} & {i for r in two for i in r.hash_ids}


@pytest.mark.parametrize("workload", list(Workload))
def test_a_hash_id_always_stands_for_the_same_prefix(workload):
    before: dict[int, tuple[int, ...]] = {}
    for request in itertools.islice(Generator(workload, seed=3), 1000):
        assert len(request.hash_ids) == -(-request.input_tokens // TRACE_BLOCK_TOKENS)
        for i, hash_id in enumerate(request.hash_ids):
            assert before.setdefault(hash_id, request.hash_ids[:i]) == request.hash_ids[:i]


def test_a_workload_has_hits_evictions_and_returns_in_any_cache_that_is_not_endless():
    requests = list(itertools.islice(Generator(Workload.MIXED, seed=1), 3000))
    rates = []
    for capacity in (200, 1000, None):
        asked = [request.hash_ids for request in requests]
        rates.append(single.run("lru", asked, capacity_bytes=capacity).rate)
    assert 0.2 < rates[0] < rates[1] < rates[2] < 0.95


def test_conversations_have_a_bounded_number_of_names_and_grow_by_turns():
    requests = list(itertools.islice(Generator(Workload.MIXED, seed=1), 2000))
    names = {request.conversation for request in requests}
    assert len(names) <= OPEN_CONVERSATIONS
    assert {request.label for request in requests} == {"chat", "agent"}
    grown = 0
    last: dict[str | None, Request] = {}
    for request in requests:
        previous = last.get(request.conversation)
        if previous and previous.hash_ids[:-1] == request.hash_ids[: len(previous.hash_ids) - 1]:
            grown += request.input_tokens > previous.input_tokens
        last[request.conversation] = request
    assert grown > len(requests) / 2


def test_nobody_asks_again_before_others_did():
    asked = [r.conversation for r in itertools.islice(Generator(Workload.CHAT, seed=1), 500)]
    for i in range(len(asked) - 8):
        assert len(set(asked[i : i + 8])) == 8


def test_equal_hash_ids_give_equal_tokens_and_block_ids_and_others_differ():
    hasher = BlockHasher(b"f" * 32, 256)
    one = Request(0, 1300, 1, (10, 11, 12))
    two = Request(0, 1536, 1, (10, 11, 13))
    ids = [hasher.chain(tokens_of(r).tolist(), parent=hasher.root()) for r in (one, two)]
    assert [len(chain) for chain in ids] == [5, 6]
    assert ids[0][:4] == ids[1][:4]
    assert ids[0][4] != ids[1][4]
    assert tokens_of(one).max() < 2**17


def test_a_partial_block_holds_the_first_tokens_of_the_whole_one():
    whole, part = (tokens_of(Request(0, n, 1, (2**64 - 1,))) for n in (512, 100))
    assert len(whole) == 512
    assert whole[:100].tolist() == part.tolist()


def test_a_valid_line_is_read():
    assert parse_request(json.dumps(LINE | {"more": 1})) == Request(5.0, 513, 7, (1, 2))


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"timestamp": "5"}, "timestamp", "milliseconds"),
        ({"timestamp": True}, "timestamp", "milliseconds"),
        ({"input_length": 0}, "input_length", "an integer from 1 up"),
        ({"input_length": 51.5}, "input_length", "an integer from 1 up"),
        ({"output_length": -1}, "output_length", "an integer from 0 up"),
        ({"hash_ids": "1,2"}, "hash_ids", "a list of integers, got a string"),
        ({"hash_ids": None}, "hash_ids", "a list of integers, got null"),
        ({"hash_ids": [1, "2"]}, r"hash_ids\[1\]", "an integer 0"),
        ({"hash_ids": [1, -2]}, r"hash_ids\[1\]", "an integer 0"),
        ({"hash_ids": [1]}, "hash_ids", "2 ids"),
    ],
)
def test_a_bad_line_names_file_line_field_and_what_was_expected(tmp_path, change, field, expected):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n\n{json.dumps(LINE | change)}\n")
    with pytest.raises(Misuse, match=rf"bad\.jsonl:3: {field}: expected {expected}"):
        read_trace(path)


@pytest.mark.parametrize("name", list(LINE))
def test_a_missing_field_is_named(name):
    row = {key: value for key, value in LINE.items() if key != name}
    with pytest.raises(Misuse, match=f"^{name}: is missing$"):
        parse_request(json.dumps(row))


@pytest.mark.parametrize("line", ["{", "[1]", "7", "null", '{"timestamp": NaN}'])
def test_a_line_that_is_no_request_is_misuse(line):
    with pytest.raises(Misuse):
        parse_request(line)


def test_an_absent_or_empty_trace_is_misuse(tmp_path):
    with pytest.raises(Misuse, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(Misuse, match="holds no request"):
        read_trace(tmp_path / "empty.jsonl")


def test_reading_stops_at_the_limit(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n" * 3 + "not read\n")
    assert len(read_trace(path, limit=3)) == 3


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_payloads_match_their_own_id_only(one, two):
    payloads = PAYLOADS
    block = np.empty(payloads.payload_bytes, dtype=np.uint8)
    payloads.write(one, block)
    assert payloads.matches(one, block)
    assert payloads.matches(two, block) == (one == two)


PAYLOADS = Payloads(4096)


def test_every_byte_of_a_payload_counts():
    block = np.empty(4096, dtype=np.uint8)
    PAYLOADS.write(b"i" * 16, block)
    for position in range(0, 4096, 7):
        block[position] ^= 1
        assert not PAYLOADS.matches(b"i" * 16, block)
        block[position] ^= 1
    assert PAYLOADS.matches(b"i" * 16, block)


def test_payloads_of_many_ids_share_no_part_and_do_not_compress():
    payloads = Payloads(1 << 16)
    blocks = np.empty((64, 1 << 16), dtype=np.uint8)
    for i, block in enumerate(blocks):
        payloads.write(bytes([i]) * 16, block)
    words = blocks[:, 16:].copy().view(np.uint64).reshape(-1)
    assert len(np.unique(words)) == len(words)
    assert len(zlib.compress(blocks.tobytes(), 9)) > 0.999 * blocks.nbytes


@pytest.mark.parametrize("payload_bytes", [0, 16, 31, 36])
def test_a_payload_size_without_room_for_id_and_words_is_misuse(payload_bytes):
    with pytest.raises(Misuse, match="multiple of 8"):
        Payloads(payload_bytes)


def test_lru_hits_only_the_contiguous_prefix_and_evicts_after_the_insert():
    tier = single.SingleTier(make("lru", capacity_bytes=3))
    assert tier.hits.rate is None
    assert tier.ask(b"abc") == 0
    assert tier.ask(b"abd") == 2
    # "c" was the least recently touched and left when "d" came.
    assert tier.ask(b"cab") == 0
    assert tier.ask(b"ca") == 2
    # More blocks than fit: the first ones leave first.
    assert tier.ask(b"wxyz") == 0
    assert tier.ask(b"xyz") == 3
    assert tier.hits.rate == 7 / 18


def test_lru_of_no_blocks_is_misuse():
    with pytest.raises(Misuse):
        make("lru", capacity_bytes=0)
