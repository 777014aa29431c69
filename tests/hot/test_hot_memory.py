"""An empty server takes its memory at once, and only then."""

import pytest

from neve.index.hot_memory import PIECE_BYTES, touch_memory

pytestmark = pytest.mark.integration


def test_touches_most_of_an_empty_server_and_leaves_it_empty(clean_hot):
    with clean_hot.client() as client:
        most = int(client.info("memory")["maxmemory"])
        touched = touch_memory(client)
        assert most * 0.7 < touched < most
        assert touched % PIECE_BYTES == 0
        assert client.dbsize() == 0
        assert client.info("memory")["used_memory"] < PIECE_BYTES


def test_leaves_a_server_alone_that_holds_something(clean_hot):
    with clean_hot.client() as client:
        client.set("block", b"1")
        assert touch_memory(client) == 0
        assert client.get("block") == b"1"
