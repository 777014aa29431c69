"""Second requests for ranges that S3 answers slowly."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from neve.datapath import hedging
from neve.datapath.cold import ColdBlock, ColdReader
from neve.datapath.hedging import PARTS, ReadStop
from neve.errors import MissReason
from neve.formats.block import HEADER_BYTES, BlockHeader, checksum, encode_header
from neve.node.stats import Stats
from support.scripted_http import ScriptedHttp, partial

PAYLOAD, BLOCKS = 3000, 8
SIZE = HEADER_BYTES + PAYLOAD


class Segments(ScriptedHttp):
    """Answers ranges of one segment. The next `stalls` answers stop in the middle until `go_on`."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.stalls = 0
        self.go_on = threading.Event()
        self.ids = [os.urandom(16) for _ in range(BLOCKS)]
        self.payloads = [os.urandom(PAYLOAD) for _ in range(BLOCKS)]
        self.body = b"".join(
            encode_header(BlockHeader(id_, bytes(16), 256, PAYLOAD, checksum(payload), bytes(4)))
            + payload
            for id_, payload in zip(self.ids, self.payloads, strict=True)
        )

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), sock:
            while request := self._read(sock):
                with self._lock:
                    self.requests.append(request)
                    first, last = self.ranges[-1]
                    stalls, self.stalls = self.stalls > 0, max(0, self.stalls - 1)
                answer = partial(first, self.body[first : last + 1])
                cut = len(answer) // 2 if stalls else len(answer)
                sock.sendall(answer[:cut])
                if stalls:
                    self.go_on.wait(60)
                    sock.sendall(answer[cut:])

    def blocks(self) -> list[ColdBlock]:
        return [
            ColdBlock(n, id_, 1, n * SIZE, memoryview(bytearray(PAYLOAD)))
            for n, id_ in enumerate(self.ids)
        ]

    def is_in(self, blocks: list[ColdBlock]) -> bool:
        return [bytes(block.payload) for block in blocks] == self.payloads


@pytest.fixture
def server() -> Iterator[Segments]:
    with Segments() as made:
        yield made
        made.go_on.set()


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def reader(server: Segments, stats: Stats) -> Iterator[ColdReader]:
    """It knows how long ranges take."""
    made = ColdReader(lambda numbers, _: (dict.fromkeys(numbers, server.url), 600.0), stats=stats)
    for _ in range(hedging._LEAST_SAMPLES):
        assert read(made, server.blocks()) == [None] * BLOCKS
    server.requests.clear()
    yield made
    made.close()


def read(reader, blocks, stop=None, deadline_s=60.0):
    outcomes, trouble = reader.read(blocks, deadline=time.monotonic() + deadline_s, stop=stop)
    assert trouble is None or any(outcomes)
    return outcomes


def test_a_stalled_range_is_asked_for_again_in_parts(server, reader, stats):
    server.stalls = 1
    blocks = server.blocks()
    assert read(reader, blocks) == [None] * BLOCKS
    assert server.is_in(blocks)
    assert [block.header[:16] for block in blocks] == [
        server.body[n * SIZE : n * SIZE + 16] for n in range(BLOCKS)
    ]
    assert (reader.hedges.begun, reader.hedges.won) == (1, 1)
    assert len(server.requests) == 1 + PARTS
    totals = stats.totals().counters
    assert totals["cold_requests"] == hedging._LEAST_SAMPLES + 1 + PARTS


def test_a_second_request_reads_the_same_bytes(server):
    block = replace(server.blocks()[1], codec=3, encoded_bytes=1000)
    again = block.copy()
    assert replace(again, payload=block.payload) == block
    assert (again.end, len(again.payload)) == (block.end, PAYLOAD)
    assert again.payload.obj is not block.payload.obj


def test_the_first_answer_counts_if_it_is_whole_first(server, reader):
    server.stalls = 1 + PARTS  # the second request hangs as well
    blocks = server.blocks()
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(read(reader, blocks)))
    thread.start()
    end = time.monotonic() + 60
    while len(server.requests) < 1 + PARTS and time.monotonic() < end:
        time.sleep(0.005)
    server.go_on.set()
    thread.join(60)
    assert ended == [[None] * BLOCKS]
    assert server.is_in(blocks)


def test_second_requests_are_bounded_in_number_and_in_bytes(server, reader, monkeypatch):
    reader.hedges._allowed_bytes = 1.5 * BLOCKS * SIZE
    server.stalls = 1
    assert read(reader, server.blocks()) == [None] * BLOCKS
    assert reader.hedges.begun == 1
    server.stalls = 1  # too few bytes are left
    assert MissReason.TIMEOUT in read(reader, server.blocks(), deadline_s=0.5)
    reader.hedges._allowed_bytes = 1e9
    monkeypatch.setattr(hedging, "MOST", 0)
    server.stalls = 1
    assert MissReason.TIMEOUT in read(reader, server.blocks(), deadline_s=0.5)
    assert reader.hedges.begun == 1


def test_a_read_that_is_stopped_ends_with_its_second_request(server, reader):
    server.stalls = 1 + PARTS
    stop = ReadStop()
    ended: list[object] = []
    blocks = server.blocks()
    thread = threading.Thread(target=lambda: ended.append(read(reader, blocks, stop)))
    thread.start()
    end = time.monotonic() + 60
    while len(server.requests) < 1 + PARTS and time.monotonic() < end:
        time.sleep(0.005)
    stop.stop()
    thread.join(60)
    assert ended[0][-1] is MissReason.TIMEOUT


def test_an_engine_that_knows_no_speed_yet_does_not_ask_twice(server):
    made = ColdReader(lambda numbers, _: (dict.fromkeys(numbers, server.url), 600.0))
    server.stalls = 1
    assert MissReason.TIMEOUT in read(made, server.blocks(), deadline_s=0.3)
    assert len(server.requests) == 1
    made.close()
