"""Payloads in several runs of memory: hot and local tier; tests/neve/test_cold.py has S3."""

import numpy as np
import pytest

from neve import _core
from neve.errors import Misuse
from support.chains import connect, counters
from support.scattered import BLOCKS, put_scattered, read_scattered

pytestmark = pytest.mark.integration


def test_scattered_blocks_are_those_that_lie_in_one_run(client):
    chain = put_scattered(client, seed=1)
    assert chain.get(client.match(chain.ids)) == [None] * BLOCKS
    assert (chain.back == chain.sent).all()
    assert read_scattered(client, chain).holds(chain.sent)


def test_the_local_tier_keeps_and_reads_them(hot, endpoint, tmp_path):
    with connect(endpoint, local_dir=str(tmp_path / "local"), local_bytes=1 << 30) as client:
        assert client.local.flush(30)
        chain = put_scattered(client, seed=5)
        assert read_scattered(client, chain).holds(chain.sent)
        assert client.local.flush(30)
        assert read_scattered(client, chain).holds(chain.sent)
        assert counters(client)["hit_local_blocks"] == BLOCKS


def test_a_run_outside_the_memory_is_refused():
    memory = np.zeros(100, np.uint8)
    base = memory.ctypes.data
    for address, size in [(base - 1, 2), (base + 99, 2), (base, 101), (0, 1)]:
        with pytest.raises(ValueError, match="outside"):
            _core.scatter([memory], [address], [size], 1)
    for sizes, count in [([1, 1], 0), ([1], 1), ([1, 1, 1], 2)]:
        with pytest.raises(ValueError, match="one size for each address"):
            _core.scatter([memory], [base] * 2, sizes, count)


def test_memory_that_is_no_run_at_all_is_misuse(client):
    with pytest.raises(Misuse, match="contiguous"):
        client.get_many([b"i" * 16], [object()], locations=[None])
