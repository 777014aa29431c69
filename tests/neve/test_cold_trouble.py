"""Cold reads when S3, the network, the resolver or the platform misbehave."""

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from neve.datapath.cold import (
    MOST_TRIES,
    AddressRefused,
    ColdBlock,
    ColdReader,
    Next,
    next_step,
    pause_s,
)
from neve.datapath.hedging import ReadStop
from neve.errors import DeadlineExceeded, MissReason, Refused, Unavailable
from neve.formats.block import HEADER_BYTES, BlockHeader, checksum, encode_header
from neve.node.session import Endpoint
from support.certificates import issue, make_ca
from support.scripted_http import ScriptedHttp, answer, partial

PAYLOAD = 3000
SIZE = HEADER_BYTES + PAYLOAD
FIRST = 64
FOREVER_S = 60.0


class Segment:
    """Bytes of a segment, and the blocks that stand in it one behind the other."""

    def __init__(self, count: int = 3) -> None:
        self.ids = [os.urandom(16) for _ in range(count)]
        self.payloads = [os.urandom(PAYLOAD) for _ in range(count)]
        self.body = b"".join(
            encode_header(BlockHeader(id_, bytes(16), 256, PAYLOAD, checksum(payload), bytes(4)))
            + payload
            for id_, payload in zip(self.ids, self.payloads, strict=True)
        )

    def blocks(self) -> list[ColdBlock]:
        return [
            ColdBlock(i, id_, 1, FIRST + i * SIZE, memoryview(bytearray(PAYLOAD)))
            for i, id_ in enumerate(self.ids)
        ]

    def partial(self, block: int = 0, *headers: str) -> bytes:
        """All from that block on."""
        return partial(FIRST + block * SIZE, self.body[block * SIZE :], *headers)

    def is_in(self, blocks: Sequence[ColdBlock]) -> bool:
        return [bytes(block.payload) for block in blocks] == self.payloads


class Platform:
    """Gives addresses, one after the other, and counts how often it was asked."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls
        self.asked = 0

    def __call__(self, segments: Sequence[int], timeout_s: float) -> tuple[dict[int, str], float]:
        self.asked += 1
        url = self.urls[min(self.asked, len(self.urls)) - 1]
        return dict.fromkeys(segments, url), 600.0


@pytest.fixture
def segment() -> Segment:
    return Segment()


def read(
    reader: ColdReader, blocks: Sequence[ColdBlock], deadline_s: float = 10.0
) -> tuple[list[MissReason | None], object]:
    return reader.read(blocks, deadline=time.monotonic() + deadline_s)


def test_blocks_land_in_their_own_buffers_and_the_connection_is_kept(segment):
    with ScriptedHttp(segment.partial()) as server:
        reader = ColdReader(Platform(server.url))
        for _ in range(3):
            blocks = segment.blocks()
            assert read(reader, blocks) == ([None] * 3, None)
            assert segment.is_in(blocks)
        assert server.connections == 1
        assert server.ranges == [(FIRST, FIRST + 3 * SIZE - 1)] * 3
        assert server.requests[0].startswith(b"GET /segment?signed=yes HTTP/1.1\r\n")
        assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0]


def test_a_connection_that_died_without_a_word_does_not_cost_the_deadline(segment):
    with ScriptedHttp(segment.partial()) as server:
        reader, blocks = ColdReader(Platform(server.url)), segment.blocks()
        assert read(reader, segment.blocks()) == ([None] * 3, None)
        server.fall_silent()
        assert read(reader, blocks) == ([None] * 3, None)
        assert segment.is_in(blocks)
        assert server.connections == 2


def test_what_lies_between_blocks_is_thrown_away(segment):
    with ScriptedHttp(segment.partial()) as server:
        blocks = segment.blocks()
        reader = ColdReader(Platform(server.url))
        assert read(reader, [blocks[0], blocks[2]]) == ([None] * 2, None)
        assert bytes(blocks[2].payload) == segment.payloads[2]
        assert bytes(blocks[1].payload) == bytes(PAYLOAD)


@pytest.mark.parametrize(
    ("said", "outcome", "has_trouble"),
    [
        (answer(200, b"whole"), MissReason.BREAKER, True),
        (answer(206, bytes(SIZE)), MissReason.BREAKER, True),
        (partial(0, bytes(SIZE)), MissReason.BREAKER, True),
        (partial(FIRST, bytes(SIZE + 1)), MissReason.BREAKER, True),
        (partial(FIRST, bytes(SIZE)), MissReason.CORRUPT, False),
        (partial(FIRST, bytes(SIZE - 1)), MissReason.CORRUPT, False),
        (answer(404), MissReason.EVICTED, False),
        (answer(416), MissReason.CORRUPT, False),
        (answer(418), MissReason.BREAKER, True),
        (answer(307, b"", "Location: http://127.0.0.1:1/"), MissReason.BREAKER, True),
        (answer(400), MissReason.DENIED, True),
        (answer(403, b"<Error/>"), MissReason.DENIED, True),
        (answer(500), MissReason.BREAKER, True),
        (answer(503, bytes(100_000)), MissReason.BREAKER, True),
        (b"nonsense\r\n\r\n", MissReason.BREAKER, True),
        (b"", MissReason.BREAKER, True),
    ],
)
def test_what_is_no_range_is_a_miss(said: bytes, outcome: MissReason, has_trouble: bool):
    with ScriptedHttp(said) as server:
        block = Segment(1).blocks()[0]
        outcomes, trouble = read(ColdReader(Platform(server.url)), [block])
    assert outcomes == [outcome]
    assert isinstance(trouble, (Unavailable, AddressRefused)) == has_trouble


def test_a_segment_that_ends_too_early_has_its_first_blocks(segment):
    for cut in (1, PAYLOAD, SIZE + 1):
        with ScriptedHttp(partial(FIRST, segment.body[:-cut])) as server:
            blocks = segment.blocks()
            good = 3 - (cut + SIZE - 1) // SIZE
            expected = [None] * good + [MissReason.CORRUPT] * (3 - good)
            assert read(ColdReader(Platform(server.url)), blocks) == (expected, None)


@pytest.mark.parametrize("status", [302, 400, 403])
def test_an_address_that_has_expired_is_replaced_once(segment, status):
    with ScriptedHttp(answer(status, b"<Error/>"), segment.partial()) as server:
        platform = Platform("http://127.0.0.1:1/never", server.url)
        platform.asked = 1
        blocks = segment.blocks()
        assert read(ColdReader(platform), blocks) == ([None] * 3, None)
        assert platform.asked == 3
        assert server.connections == 1
    with ScriptedHttp(answer(status)) as server:
        platform = Platform(server.url)
        outcomes, _ = read(ColdReader(platform), segment.blocks())
        assert outcomes == [MissReason.BREAKER if status == 302 else MissReason.DENIED] * 3
        assert platform.asked == len(server.requests) == 2


def test_an_address_is_dropped_only_by_who_used_it(segment):
    with ScriptedHttp(segment.partial()) as server:
        platform = Platform(server.url)
        reader = ColdReader(platform)
        read(reader, segment.blocks())
        reader._addresses.forget(1, "http://the.one.before/")
        read(reader, segment.blocks())
        assert platform.asked == 1
        reader._addresses.forget(1, server.url)
        read(reader, segment.blocks())
        assert platform.asked == 2


def test_a_busy_s3_is_asked_again(segment):
    with ScriptedHttp(answer(503, b"SlowDown"), answer(500), segment.partial()) as server:
        assert read(ColdReader(Platform(server.url)), segment.blocks()) == ([None] * 3, None)
        assert len(server.requests) == 3


def test_a_busy_s3_is_left_alone_after_some_tries(segment):
    with ScriptedHttp(answer(503)) as server:
        outcomes, trouble = read(ColdReader(Platform(server.url)), segment.blocks())
        assert outcomes == [MissReason.BREAKER] * 3
        assert "503" in str(trouble)
        assert len(server.requests) == MOST_TRIES


def test_nobody_waits_longer_than_there_is_time(segment):
    with ScriptedHttp(answer(503, b"", "Retry-After: 100")) as server:
        started = time.monotonic()
        assert read(ColdReader(Platform(server.url)), segment.blocks())[0][0] is MissReason.BREAKER
        assert time.monotonic() - started < 50
        assert len(server.requests) == 1


@pytest.mark.parametrize("cut", [SIZE + 1, 2 * SIZE - 1, 2 * SIZE])
def test_a_broken_answer_is_continued_where_it_broke(segment, cut):
    whole = segment.partial()
    broken = whole[: len(whole) - len(segment.body) + cut]
    done = cut // SIZE

    def break_off(sock: socket.socket) -> None:
        sock.sendall(broken)

    with ScriptedHttp(break_off, segment.partial(done)) as server:
        blocks = segment.blocks()
        assert read(ColdReader(Platform(server.url)), blocks) == ([None] * 3, None)
        assert segment.is_in(blocks)
        assert [first for first, _ in server.ranges] == [FIRST, FIRST + done * SIZE]


def test_blocks_that_came_before_the_trouble_count(segment):
    with ScriptedHttp(
        lambda sock: sock.sendall(segment.partial()[: -SIZE - 1]),
        lambda sock: sock.sendall(segment.partial(1)[: -SIZE - 1]),
    ) as server:
        outcomes, trouble = read(ColdReader(Platform(server.url)), segment.blocks())
        assert outcomes == [None, MissReason.BREAKER, MissReason.BREAKER]
        assert isinstance(trouble, Unavailable)
        assert len(server.requests) == MOST_TRIES


class TestKeptConnections:
    def test_one_that_the_server_closed_costs_no_try(self, segment):
        busy = [answer(503)] * (MOST_TRIES - 1)
        with ScriptedHttp(
            segment.partial(), lambda sock: sock.close(), *busy, segment.partial()
        ) as server:
            reader = ColdReader(Platform(server.url))
            for _ in range(2):
                assert read(reader, segment.blocks()) == ([None] * 3, None)
            assert server.connections == 2
            assert len(server.requests) == 3 + len(busy)

    def test_a_server_that_says_close_is_believed(self, segment):
        with ScriptedHttp(segment.partial(0, "Connection: close")) as server:
            reader = ColdReader(Platform(server.url))
            for _ in range(2):
                assert read(reader, segment.blocks()) == ([None] * 3, None)
            assert server.connections == 2
            assert reader.kept_connections == 0

    def test_one_with_bytes_to_come_is_not_used_again(self, segment):
        with ScriptedHttp(answer(404, bytes(100_000)), segment.partial()) as server:
            reader = ColdReader(Platform(server.url))
            assert read(reader, segment.blocks())[0] == [MissReason.EVICTED] * 3
            assert reader.kept_connections == 0
            assert read(reader, segment.blocks()) == ([None] * 3, None)

    def test_closing_ends_them(self, segment):
        with ScriptedHttp(segment.partial()) as server:
            reader = ColdReader(Platform(server.url))
            read(reader, segment.blocks())
            assert reader.kept_connections == 1
            reader.close()
            assert reader.kept_connections == 0
            read(reader, segment.blocks())  # a job that was late
            assert reader.kept_connections == 0


def trickle(first: bytes, rest: bytes):
    """Sends `first`, then the rest byte by byte, for longer than any test waits."""

    def say(sock: socket.socket) -> None:
        sock.sendall(first)
        for byte in rest:
            sock.sendall(bytes([byte]))
            time.sleep(0.02)

    return say


class TestDeadlines:
    @pytest.mark.parametrize(
        "say",
        [
            trickle(b"", answer(206, bytes(SIZE))),
            trickle(partial(FIRST, bytes(SIZE))[:-SIZE], bytes(SIZE)),
            lambda sock: sock.recv(1),
        ],
        ids=["slow head", "slow body", "silent"],
    )
    def test_a_slow_server_is_left_at_the_deadline(self, say):
        with ScriptedHttp(say) as server:
            started = time.monotonic()
            outcomes, trouble = read(
                ColdReader(Platform(server.url)), Segment(1).blocks(), deadline_s=0.3
            )
            assert time.monotonic() - started < FOREVER_S / 2
        assert outcomes == [MissReason.TIMEOUT]
        assert isinstance(trouble, DeadlineExceeded)

    def test_a_platform_that_hangs_is_left_at_the_deadline(self):
        with ScriptedHttp(lambda sock: sock.recv(1)) as server:
            endpoint = Endpoint(server.url.partition("/segment")[0], "key", timeout_s=FOREVER_S)
            reader = ColdReader(
                lambda numbers, timeout_s: endpoint.segment_urls("s", numbers, timeout_s=timeout_s)
            )
            started = time.monotonic()
            outcomes, _ = read(reader, Segment(1).blocks(), deadline_s=0.3)
            assert time.monotonic() - started < FOREVER_S / 2
        assert outcomes == [MissReason.BREAKER]

    def test_a_read_can_be_stopped(self):
        with ScriptedHttp(lambda sock: sock.recv(1)) as server:
            stop = ReadStop()
            threading.Timer(0.2, stop.stop).start()
            reader = ColdReader(Platform(server.url))
            started = time.monotonic()
            ended = reader.read(Segment(1).blocks(), deadline=started + FOREVER_S, stop=stop)
            assert ended == ([MissReason.TIMEOUT], None)
            assert reader.read(Segment(1).blocks(), deadline=started + FOREVER_S, stop=stop) == (
                [MissReason.TIMEOUT],
                None,
            )
            assert time.monotonic() - started < FOREVER_S / 2


class TestAddresses:
    def test_a_store_that_is_away_is_a_miss_of_its_own_and_asked_for_again(self, segment):
        away = json.dumps({"segments": {}, "away": [1], "expires_s": 300}).encode()
        with ScriptedHttp(answer(200, away)) as platform:
            endpoint = Endpoint(platform.url.partition("/segment")[0], "key")
            reader = ColdReader(
                lambda numbers, timeout_s: endpoint.segment_urls("s", numbers, timeout_s=timeout_s)
            )
            for asked in (1, 2):
                assert read(reader, segment.blocks()) == ([MissReason.STORE_AWAY] * 3, None)
                assert len(platform.requests) == asked

    def test_a_renewal_forgets_addresses_in_a_store_that_is_away(self, segment):
        urls = {}
        with ScriptedHttp(segment.partial()) as server:
            urls[1] = server.url
            reader = ColdReader(lambda numbers, timeout_s: (urls, 600.0))
            assert read(reader, segment.blocks()) == ([None] * 3, None)
            urls[1] = ""
            assert read(reader, segment.blocks()) == ([None] * 3, None)  # it is known
            reader._addresses._known[1].renew_at = 0.0
            reader.renew_addresses(1.0)
            assert read(reader, segment.blocks())[0] == [MissReason.STORE_AWAY] * 3
            assert len(server.requests) == 2

    def test_a_known_address_does_not_wait_for_others(self, segment):
        """The platform hangs while it is asked for another segment, or for newer addresses."""
        asked, goes_on = threading.Event(), threading.Event()
        with ScriptedHttp(segment.partial()) as server:

            def urls(numbers, timeout_s):
                if 2 in numbers or asked.is_set():
                    asked.set()
                    assert goes_on.wait(FOREVER_S)
                return dict.fromkeys(numbers, server.url), 600.0

            reader = ColdReader(urls)
            assert read(reader, segment.blocks()) == ([None] * 3, None)
            other = replace(segment.blocks()[0], segment=2)
            waiting = threading.Thread(target=read, args=(reader, [other], FOREVER_S))
            waiting.start()
            assert asked.wait(FOREVER_S)
            assert read(reader, segment.blocks()) == ([None] * 3, None)
            goes_on.set()
            waiting.join()

    def test_nobody_listens(self):
        outcomes, trouble = read(
            ColdReader(Platform("http://127.0.0.1:1/segment")), Segment(1).blocks()
        )
        assert outcomes == [MissReason.BREAKER]
        assert isinstance(trouble, Unavailable)

    @pytest.mark.parametrize(
        "url",
        ["ftp://127.0.0.1/x", "http://127.0.0.1:port/x", "http://[::1/x", "http://h/a b", "x"],
    )
    def test_what_is_no_address_is_a_miss(self, url):
        outcomes, trouble = read(ColdReader(Platform(url)), Segment(1).blocks())
        assert outcomes == [MissReason.BREAKER]
        assert isinstance(trouble, Unavailable)

    def test_a_platform_that_refuses_is_a_miss(self):
        def refuse(numbers: Sequence[int], timeout_s: float) -> tuple[dict[int, str], float]:
            raise Refused("no such session")

        outcomes, trouble = read(ColdReader(refuse), Segment(1).blocks())
        assert outcomes == [MissReason.BREAKER]
        assert isinstance(trouble, Refused)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("certificates"))
    make_ca(folder, "ca")
    issue(folder, "ca", "server", "DNS:s3.test,IP:127.0.0.1")
    issue(folder, "ca", "other", "DNS:other.test")
    return folder


class TestTls:
    @staticmethod
    def server(certificates: Path, name: str, *answers: bytes) -> ScriptedHttp:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / f"{name}.crt", certificates / f"{name}.key")
        return ScriptedHttp(*answers, context=context)

    def test_blocks_come_over_one_kept_connection(self, segment, certificates, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))
        with self.server(certificates, "server", segment.partial()) as server:
            reader = ColdReader(Platform(server.url))
            for _ in range(2):
                blocks = segment.blocks()
                assert read(reader, blocks) == ([None] * 3, None)
                assert segment.is_in(blocks)
            assert server.connections == 1

    @pytest.mark.parametrize(
        ("name", "ca", "cause"),
        [
            ("other", "ca.crt", "IP address mismatch"),
            ("server", "other.crt", "unable to get local issuer certificate"),
        ],
    )
    def test_a_server_that_proves_nothing_is_not_asked(
        self, segment, certificates, monkeypatch, name, ca, cause
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / ca))
        with self.server(certificates, name, segment.partial()) as server:
            outcomes, trouble = read(ColdReader(Platform(server.url)), segment.blocks())
            assert outcomes == [MissReason.BREAKER] * 3
            assert cause in str(trouble)
            assert server.requests == []

    def test_a_broken_answer_is_continued(self, segment, certificates, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))
        broken = segment.partial()[: -SIZE - 1]

        with self.server(
            certificates, "server", lambda sock: sock.sendall(broken), segment.partial(1)
        ) as server:
            blocks = segment.blocks()
            assert read(ColdReader(Platform(server.url)), blocks) == ([None] * 3, None)
            assert segment.is_in(blocks)

    def test_a_silent_server_is_left_at_the_deadline(self, certificates, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))
        with ScriptedHttp(lambda sock: sock.recv(1)) as plain:  # it never shakes hands
            url = plain.url.replace("http:", "https:")
            with socket.create_server(("127.0.0.1", 0)) as mute:
                url = url.replace(str(plain.port), str(mute.getsockname()[1]))
                outcomes, trouble = read(
                    ColdReader(Platform(url)), Segment(1).blocks(), deadline_s=0.3
                )
        assert outcomes == [MissReason.TIMEOUT]
        assert isinstance(trouble, DeadlineExceeded)


class TestPlans:
    @pytest.mark.parametrize(
        ("status", "fits", "step"),
        [
            (206, True, Next.DONE),
            (206, False, Next.GIVE_UP),
            (200, False, Next.GIVE_UP),
            (404, False, Next.GONE),
            (416, False, Next.SHORT),
            (307, False, Next.NEW_ADDRESS),
            (429, False, Next.LATER),
            (501, False, Next.GIVE_UP),
        ],
    )
    def test_what_to_do_after_an_answer(self, status, fits, step):
        assert next_step(status, fits=fits) is step

    def test_pauses_grow_and_heed_the_server(self):
        assert pause_s(1, 0) <= pause_s(2, 0) <= pause_s(3, 0) <= 0.2
        assert pause_s(1, 7.0) == 7.0
