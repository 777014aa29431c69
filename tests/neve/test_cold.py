"""Cold reads from a real S3 through presigned addresses."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_endpoint import TENANT_ID, CacheEndpoint
from chains import PAYLOAD, Chain, connect, counters
from neve.block import HEADER_BYTES, decode_header
from neve.client import Client
from neve.cold import GAP_BYTES, RANGE_BYTES, ColdBlock, ColdReader, plan_ranges
from neve.errors import DeadlineExceeded, MissReason, Unavailable
from neve.hot import HotTier, Tier
from neve.segment import SegmentHeader, SegmentWriter
from servers import S3Server, ValkeyServer, wait_until

SIZE = HEADER_BYTES + PAYLOAD


class Store:
    """A bucket, and what a flush worker does: hot blocks into a segment, then into the index."""

    def __init__(self, s3: S3Server, valkey: ValkeyServer, hot: HotTier) -> None:
        self.s3 = s3.client()
        self.bucket = s3.bucket()
        self.valkey = valkey
        self.hot = hot
        self.keys: dict[int, str] = {}
        self.numbers = itertools.count(1)

    def url(self, number: int, *, expires_s: int = 600) -> str | None:
        if number not in self.keys:
            return None
        where = {"Bucket": self.bucket, "Key": self.keys[number]}
        return self.s3.generate_presigned_url("get_object", Params=where, ExpiresIn=expires_s)

    def flush(self, chain: Chain, *, spoil: int | None = None, evict: bool = True) -> int:
        """Returns the segment's number. Block `spoil` gets a flipped bit."""
        header = SegmentHeader(TENANT_ID, uuid4(), chain.client.session.fingerprint)
        writer = SegmentWriter(header)
        body, places = bytearray(header.encode()), []
        with self.valkey.client() as admin:
            for i, id_ in enumerate(chain.ids):
                value = bytearray(admin.get(chain.key(i)))
                places.append((id_, writer.add(decode_header(value)).offset))
                if i == spoil:
                    value[1000] ^= 1
                body += value
        number = next(self.numbers)
        self.keys[number] = f"segment-{number}"
        self.s3.put_object(
            Bucket=self.bucket, Key=self.keys[number], Body=bytes(body + writer.footer())
        )
        self.hot.flushed(number, places)
        if evict:
            self.hot.evict(1 << 40)
        return number


@pytest.fixture
def store(s3: S3Server, clean_hot: ValkeyServer, hot: HotTier, endpoint: CacheEndpoint) -> Store:
    store = Store(s3, clean_hot, hot)
    endpoint.segment_url = store.url
    return store


@pytest.fixture
def client(hot: HotTier, endpoint: CacheEndpoint) -> Iterator[Client]:
    """Without promotion, so that what is cold stays cold."""
    with connect(endpoint, promote=False) as client:
        yield client


@contextmanager
def http_server(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that lets `say` answer each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, suppress(OSError):
                        sock.recv(4096)
                        say(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/segment"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.integration
class TestS3:
    def test_cold_blocks_are_loaded_verified_and_counted(self, client, store, endpoint):
        chain = Chain(client, 40)
        assert chain.put() == [None] * 40
        number = store.flush(chain)
        match = client.match(chain.ids)
        assert {(at.tier, at.segment) for at in match.locations} == {(Tier.COLD, number)}
        assert chain.get(match) == [None] * 40
        assert (chain.back == chain.sent).all()
        counted = counters(client)
        assert counted["hit_cold_blocks"] == 40
        assert counted["cold_read_bytes"] == 40 * SIZE
        assert "hit_hot_blocks" not in counted
        chain.get(match)
        assert endpoint.segment_calls == [[number]]  # the address is kept

    def test_several_segments_cost_one_request_for_addresses(self, client, store, endpoint):
        chains = [Chain(client, 3, seed) for seed in (1, 2, 3)]
        for chain in chains:
            chain.put()
            store.flush(chain)
        ids = [id_ for chain in chains for id_ in chain.ids]
        buffers = [row for chain in chains for row in chain.back]
        locations = client.match(ids).locations
        assert client.get_many(ids, buffers, locations=locations).wait(10) == [None] * 9
        assert all((chain.back == chain.sent).all() for chain in chains)
        assert endpoint.segment_calls == [[1, 2, 3]]

    def test_hot_and_cold_blocks_mix_in_one_batch(self, client, store):
        cold, hot = Chain(client, 3, 1), Chain(client, 3, 2)
        cold.put()
        store.flush(cold)
        hot.put()
        ids = [id_ for pair in zip(cold.ids, hot.ids, strict=True) for id_ in pair]
        buffers = [row for pair in zip(cold.back, hot.back, strict=True) for row in pair]
        locations = client.match(ids).locations
        assert client.get_many(ids, buffers, locations=locations).wait(10) == [None] * 6
        assert (cold.back == cold.sent).all()
        assert (hot.back == hot.sent).all()
        assert counters(client)["hit_cold_blocks"] == counters(client)["hit_hot_blocks"] == 3

    def test_what_was_read_cold_becomes_hot_again(self, store, endpoint):
        with connect(endpoint) as client:
            chain = Chain(client, 4)
            chain.put()
            store.flush(chain)
            assert chain.get() == [None] * 4
            chain.back[:] = 0  # the caller's memory is free again; promotion has its own copy
            wait_until(
                lambda: {at.tier for at in client.match(chain.ids).locations} == {Tier.HOT},
                timeout_s=5,
                what="promoted",
            )
            assert chain.get() == [None] * 4
            assert (chain.back == chain.sent).all()
            assert counters(client)["hit_hot_blocks"] == 4

    def test_a_bad_hot_copy_is_replaced_by_the_cold_one(self, client, store, clean_hot):
        chain = Chain(client, 3)
        chain.put()
        store.flush(chain, evict=False)
        match = client.match(chain.ids)
        assert {at.tier for at in match.locations} == {Tier.HOT}
        with clean_hot.client() as admin:
            admin.set(chain.key(0), b"bad")
            admin.delete(chain.key(1))
        assert chain.get(match) == [None] * 3
        assert (chain.back == chain.sent).all()
        assert counters(client)["corrupt"] == 1
        assert counters(client)["hit_cold_blocks"] == 2

    def test_a_flipped_bit_in_s3_is_a_corrupt_miss_and_forgotten(self, client, store):
        chain = Chain(client, 3)
        chain.put()
        store.flush(chain, spoil=1)
        assert chain.get() == [None, MissReason.CORRUPT, None]
        wait_until(
            lambda: client.match(chain.ids).miss is MissReason.CORRUPT,
            timeout_s=5,
            what="forgotten",
        )
        assert len(client.match(chain.ids).locations) == 1
        assert counters(client)["corrupt"] == 1

    def test_an_expired_address_is_fetched_once_more(self, client, store, endpoint):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        expired = store.url(1, expires_s=1)
        addresses = iter([expired])
        endpoint.segment_url = lambda number: next(addresses, None) or store.url(number)
        time.sleep(2.1)  # S3 counts whole seconds
        assert chain.get() == [None, None]
        assert endpoint.segment_calls == [[1], [1]]

    def test_a_segment_that_is_gone_is_an_evicted_miss(self, client, store, endpoint):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        store.s3.delete_object(Bucket=store.bucket, Key=store.keys[1])
        assert chain.get() == [MissReason.EVICTED] * 2
        del store.keys[1]
        assert chain.get() == [MissReason.EVICTED] * 2

    def test_the_platform_away_is_a_miss(self, client, store, endpoint):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        endpoint.fail = (503, {})
        assert chain.get() == [MissReason.BREAKER] * 2

    def test_s3_away_is_a_miss_and_leaves_the_hot_tier_alone(self, client, store, endpoint):
        chain, hot = Chain(client, 2), Chain(client, 2, 2)
        chain.put()
        store.flush(chain)
        hot.put()
        endpoint.segment_url = lambda number: "http://127.0.0.1:1/segment"
        for _ in range(5):
            assert chain.get() == [MissReason.BREAKER] * 2
        assert hot.get() == [None] * 2

    def test_a_silent_s3_costs_no_more_than_the_deadline(self, client, store, endpoint):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        with http_server(lambda sock: sock.recv(1)) as url:
            endpoint.segment_url = lambda number: url
            started = time.monotonic()
            assert chain.get(deadline_s=0.3) == [MissReason.TIMEOUT] * 2
            assert time.monotonic() - started < 0.6

    def test_connections_are_reused(self, client, store):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        reader = ColdReader(lambda numbers: ({1: store.url(1)}, 600.0), connections=1)
        places = client.match(chain.ids).locations
        for _ in range(5):
            blocks = [
                ColdBlock(i, id_, 1, place.offset, memoryview(bytearray(PAYLOAD)))
                for i, (id_, place) in enumerate(zip(chain.ids, places, strict=True))
            ]
            assert reader.read(blocks, deadline=time.monotonic() + 5) == ([None, None], None)
        assert reader._pool.connection_from_url(store.url(1)).num_connections == 1


class TestBadServers:
    def read(self, url: str, deadline_s: float = 5) -> tuple[list[MissReason | None], object]:
        reader = ColdReader(lambda numbers: ({1: url}, 600.0), connections=1)
        block = ColdBlock(0, bytes(16), 1, 64, memoryview(bytearray(1000)))
        return reader.read([block], deadline=time.monotonic() + deadline_s)

    def test_a_server_that_trickles_is_cut_off_at_the_deadline(self):
        def trickle(sock: socket.socket) -> None:
            sock.sendall(b"HTTP/1.1 206 OK\r\nContent-Length: 1064\r\n\r\n")
            for _ in range(1064):
                sock.sendall(b"x")
                time.sleep(0.01)

        with http_server(trickle) as url:
            started = time.monotonic()
            outcomes, trouble = self.read(url, 0.3)
            assert time.monotonic() - started < 0.6
        assert outcomes == [MissReason.TIMEOUT]
        assert isinstance(trouble, DeadlineExceeded)

    @pytest.mark.parametrize(
        ("answer", "outcome"),
        [
            (b"HTTP/1.1 206 OK\r\nContent-Length: 1064\r\n\r\nshort", MissReason.BREAKER),
            (b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\n\r\n0123456789", MissReason.BREAKER),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole", MissReason.BREAKER),
            (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", MissReason.BREAKER),
            (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", MissReason.BREAKER),
            (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", MissReason.EVICTED),
            (
                b"HTTP/1.1 206 OK\r\nContent-Length: 1064\r\n\r\n" + bytes(1064),
                MissReason.CORRUPT,
            ),
            (b"nonsense\r\n\r\n", MissReason.BREAKER),
            (b"", MissReason.BREAKER),
        ],
    )
    def test_what_is_no_range_is_a_miss(self, answer: bytes, outcome: MissReason):
        with http_server(lambda sock: sock.sendall(answer)) as url:
            outcomes, trouble = self.read(url)
        assert outcomes == [outcome]
        assert isinstance(trouble, Unavailable) == (outcome is MissReason.BREAKER)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 60 << 20), st.integers(1, 20 << 20)),
        max_size=20,
    )
)
def test_ranges_hold_each_block_once_and_stay_small(places):
    blocks = [
        ColdBlock(i, bytes(16), segment, offset, _Long(size))
        for i, (segment, offset, size) in enumerate(places)
    ]
    groups = plan_ranges(blocks)
    assert sorted(block.index for group in groups for block in group) == list(range(len(blocks)))
    for group in groups:
        assert len({block.segment for block in group}) == 1
        assert len(group) == 1 or group[-1].end - group[0].offset <= RANGE_BYTES
        for left, right in itertools.pairwise(group):
            assert 0 <= right.offset - left.end <= GAP_BYTES


class _Long:
    """Stands for a payload: planning asks only for its length."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size
