"""Cold reads from a real S3 through presigned addresses."""

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve import _core
from neve._core import FAILURES_TO_OPEN
from neve.datapath.client import Client, Match
from neve.datapath.cold import (
    GAP_BYTES,
    LEAST_RANGE_BYTES,
    RANGE_BYTES,
    ColdBlock,
    ColdReader,
    plan_ranges,
)
from neve.errors import MissReason
from neve.formats.block import (
    HEADER_BYTES,
    PLAIN,
    SHUFFLE_ZSTD,
    checksum,
    decode_header,
    encode_header,
)
from neve.formats.segment import SegmentHeader, SegmentWriter
from neve.index.tier import BlockTerms, EncodedPlace, HotTier, Tier
from support.cache_endpoint import TENANT_ID, CacheEndpoint
from support.certificates import issue, make_ca
from support.chains import GIB, PAYLOAD, Chain, connect, counters
from support.cutting_proxy import CuttingProxy
from support.proxy import Proxy
from support.scattered import BLOCKS, put_scattered, read_scattered
from support.servers import S3Server, ValkeyServer, wait_until
from torture.proxy import FaultProxy

SIZE = HEADER_BYTES + PAYLOAD


def wait_until_hot(chain: Chain) -> None:
    def is_hot() -> bool:
        return {at.tier for at in chain.client.match(chain.ids).locations} == {Tier.HOT}

    wait_until(is_hot, what="promoted")


class Store:
    """A bucket, and what a flush worker does: hot blocks into a segment, then into the index."""

    def __init__(self, s3: S3Server, valkey: ValkeyServer, hot: HotTier) -> None:
        self.server = s3
        self.s3 = s3.client()
        self.bucket = s3.bucket()
        self.valkey = valkey
        self.hot = hot
        self.keys: dict[int, str] = {}
        self.numbers = itertools.count(1)

    def url(self, number: int, *, expires_s: int = 600, endpoint: str | None = None) -> str | None:
        """`endpoint`: another way to it; the address is signed for that one."""
        if number not in self.keys:
            return None
        where = {"Bucket": self.bucket, "Key": self.keys[number]}
        client = self.s3 if endpoint is None else self.server.client(endpoint=endpoint)
        return client.generate_presigned_url("get_object", Params=where, ExpiresIn=expires_s)

    def flush(
        self,
        chain: Chain,
        *,
        spoil: int | None = None,
        cut_bytes: int = 0,
        evict: bool = True,
        encode: bool = False,
    ) -> int:
        """Returns the segment's number. Block `spoil` gets a flipped bit. `encode`: every second
        block is encoded.

        `cut_bytes` of the last blocks are missing, and all that follows them.
        """
        fingerprint = chain.client.session.fingerprint
        header = SegmentHeader(TENANT_ID, uuid4(), fingerprint, 3 if encode else 2)
        writer = SegmentWriter(header)
        body = bytearray(header.encode())
        places: list[tuple[bytes, int | EncodedPlace]] = []
        with self.valkey.client() as admin:
            for i, id_ in enumerate(chain.ids):
                value = bytearray(admin.get(chain.key(i)))
                if encode and i % 2 == 0:
                    value = encoded(value)
                    size = len(value) - HEADER_BYTES
                    row = writer.add(decode_header(value), encoded_bytes=size)
                    places.append((id_, EncodedPlace(row.offset, len(value), SHUFFLE_ZSTD)))
                else:
                    places.append((id_, writer.add(decode_header(value)).offset))
                if i == spoil:
                    value[1000] ^= 1
                body += value
        if cut_bytes:
            del body[-cut_bytes:]
        else:
            body += writer.footer()
        number = next(self.numbers)
        self.keys[number] = f"segment-{number}"
        self.s3.put_object(Bucket=self.bucket, Key=self.keys[number], Body=bytes(body))
        self.hot.open_segment(number)
        self.hot.flushed(number, places)
        if evict:
            self.hot.evict(1 << 40)
        return number


def encoded(value: bytearray) -> bytearray:
    """A block as it stands in S3."""
    out = bytearray(len(value))
    room = memoryview(out)[HEADER_BYTES:]
    size = _core.shuffle_zstd_encode(memoryview(value)[HEADER_BYTES:], 2, 1, room)
    assert size
    room.release()
    del out[HEADER_BYTES + size :]
    sum_ = checksum(memoryview(out)[HEADER_BYTES:])
    header = replace(decode_header(value), codec=SHUFFLE_ZSTD, payload_checksum=sum_)
    out[:HEADER_BYTES] = encode_header(header)
    return out


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
        assert 1 <= counted["cold_requests"] <= 40  # ranges of several blocks
        assert counted["cold_fetched_bytes"] >= 40 * SIZE  # headers too
        assert "hit_hot_blocks" not in counted
        chain.get(match)
        assert endpoint.segment_calls == [[number]]  # the address is kept

    def test_encoded_blocks_come_decoded_and_are_promoted_as_they_were(self, store, endpoint):
        with connect(endpoint) as client:
            chain = Chain(client, 8)
            chain.sent //= 16
            chain.put()
            store.flush(chain, encode=True)
            match = client.match(chain.ids)
            assert {at.codec for at in match.locations} == {PLAIN, SHUFFLE_ZSTD}
            assert {at.size_bytes for at in match.locations} == {SIZE}
            assert chain.get(match) == [None] * 8
            assert (chain.back == chain.sent).all()
            totals = counters(client)
            assert totals["cold_read_bytes"] == 8 * SIZE  # of KV
            assert totals["cold_fetched_bytes"] < 7 * SIZE
            assert chain.get(match) == [None] * 8
            chain.back[:] = 0
            wait_until_hot(chain)
            assert chain.get() == [None] * 8
            assert (chain.back == chain.sent).all()
            assert counters(client)["hit_hot_blocks"] == 8

    def test_the_local_tier_keeps_blocks_decoded(self, store, endpoint, tmp_path):
        options = {"local_dir": str(tmp_path), "local_bytes": 100 * SIZE, "promote": False}
        with connect(endpoint, **options) as client:
            chain = Chain(client, 8)
            chain.sent //= 16
            chain.put()
            store.flush(chain, encode=True)
            assert client.local.flush(60)
            chain.get()
            assert client.local.flush(60)
            chain.back[:] = 0
            assert chain.get() == [None] * 8
            assert (chain.back == chain.sent).all()
            counted = counters(client)
            assert (counted["hit_cold_blocks"], counted["hit_local_blocks"]) == (8, 8)
            assert "local_bad_blocks" not in counted

    def test_scattered_payloads_are_filled_decoded_and_promoted(self, store, endpoint):
        with connect(endpoint) as client:
            chain = put_scattered(client, seed=3, divide=16)
            store.flush(chain, encode=True)
            for _ in range(2):  # the second use promotes
                assert read_scattered(client, chain).holds(chain.sent)
            wait_until_hot(chain)
            assert read_scattered(client, chain).holds(chain.sent)
            assert counters(client)["hit_hot_blocks"] == BLOCKS

    def test_a_damaged_encoded_block_is_a_corrupt_miss(self, client, store):
        chain = Chain(client, 4)
        chain.sent //= 16
        chain.put()
        store.flush(chain, encode=True, spoil=2)
        assert chain.get() == [None, None, MissReason.CORRUPT, None]
        assert (chain.back[[0, 1, 3]] == chain.sent[[0, 1, 3]]).all()
        assert len(client.match(chain.ids).locations) == 2  # the index forgot it

    def test_an_index_that_lies_about_an_encoded_block_makes_misses(self, client, store):
        chain = Chain(client, 4)
        chain.sent //= 16
        chain.put()
        store.flush(chain, encode=True)
        good = client.match(chain.ids).locations
        lies = [
            good[0]._replace(codec=PLAIN, encoded_bytes=0),
            good[1]._replace(codec=SHUFFLE_ZSTD, encoded_bytes=PAYLOAD - 1),
            good[2]._replace(encoded_bytes=good[2].encoded_bytes - 1),
            good[3],
        ]
        assert chain.get(Match(lies)) == [MissReason.CORRUPT] * 3 + [None]

    def test_several_segments_cost_one_request_for_addresses(self, client, store, endpoint):
        chains = [Chain(client, 3, seed) for seed in (1, 2, 3)]
        for chain in chains:
            chain.put()
            store.flush(chain)
        ids = [id_ for chain in chains for id_ in chain.ids]
        buffers = [row for chain in chains for row in chain.back]
        locations = client.match(ids).locations
        assert client.get_many(ids, buffers, locations=locations).wait(30) == [None] * 9
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
        assert client.get_many(ids, buffers, locations=locations).wait(30) == [None] * 6
        assert (cold.back == cold.sent).all()
        assert (hot.back == hot.sent).all()
        assert counters(client)["hit_cold_blocks"] == counters(client)["hit_hot_blocks"] == 3

    def test_what_is_read_cold_a_second_time_becomes_hot_again(self, store, endpoint):
        with connect(endpoint) as client:
            chain = Chain(client, 4)
            chain.put()
            store.flush(chain)
            assert chain.get() == [None] * 4
            assert chain.get() == [None] * 4
            chain.back[:] = 0  # the caller's memory is free again; promotion has its own copy
            wait_until_hot(chain)
            assert chain.get() == [None] * 4
            assert (chain.back == chain.sent).all()
            client.close()  # a promotion counts after the index has it
            totals = counters(client)
            assert (totals["hit_cold_blocks"], totals["hit_hot_blocks"]) == (8, 4)
            assert (totals["put_blocks"], totals["promoted_blocks"]) == (4, 4)
            assert totals["promoted_bytes"] == totals["hot_write_bytes"] / 2

    def test_a_scan_that_reads_each_cold_block_once_leaves_the_hot_tier_alone(
        self, store, endpoint, hot
    ):
        with connect(endpoint) as client:
            scanned, kept = Chain(client, 12, seed=1), Chain(client, 4, seed=2)
            scanned.put()
            store.flush(scanned)
            kept.put()
            before = hot.usage()
            assert scanned.get() == [None] * 12
            client.close()  # with what was under way
            assert counters(client)["put_blocks"] == 16
        assert hot.usage() == before

    def test_of_nodes_that_read_the_same_cold_blocks_one_brings_each_back(self, store, endpoint):
        with connect(endpoint) as one, connect(endpoint) as other, connect(endpoint) as third:
            chain = Chain(one, 8)
            chain.put()
            store.flush(chain)
            assert chain.get() == [None] * 8  # the first read
            nodes = [Chain(client, 8) for client in (one, other, third)]
            matches = [node.client.match(node.ids) for node in nodes]  # all see them cold
            with ThreadPoolExecutor(3) as pool:
                outcomes = list(
                    pool.map(lambda pair: pair[0].get(pair[1]), zip(nodes, matches, strict=True))
                )
            assert outcomes == [[None] * 8] * 3
            wait_until_hot(chain)
            for client in (one, other, third):
                client.close()
            clients = (one, other, third)
            promoted = sum(counters(client).get("promoted_blocks", 0) for client in clients)
            assert (counters(one)["put_blocks"], promoted) == (8, 8)

    def test_two_cold_reads_far_apart_do_not_bring_a_block_back(self, store, endpoint, hot):
        hot.set_policy(hot_bytes=GIB, cold_bytes=GIB, terms=BlockTerms(), promote_window_s=0)
        with connect(endpoint) as client:
            chain = Chain(client, 2)
            chain.put()
            store.flush(chain)
            for _ in range(3):
                assert chain.get() == [None] * 2
            client.close()
            assert counters(client)["put_blocks"] == 2

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
            what="forgotten",
        )
        assert len(client.match(chain.ids).locations) == 1
        assert counters(client)["corrupt"] == 1

    def test_a_bit_that_flipped_on_its_way_costs_no_block(self, client, store, endpoint, s3):
        chain = Chain(client, 5)
        chain.put()
        store.flush(chain)
        with FaultProxy(s3.port) as proxy, proxy.trouble("s3_flip_answer", seed=1):
            endpoint.segment_url = lambda number: store.url(number, endpoint=proxy.url)
            assert chain.get() == [None] * 5
            assert (chain.back == chain.sent).all()
            assert proxy.hits["s3_flip_answer"] == 1
        assert counters(client).get("corrupt", 0) == 0

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

    def test_a_used_address_is_renewed_behind_a_heartbeat(self, client, store, endpoint):
        """Addresses live for minutes: no load shall wait for another one."""
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        endpoint.address_s = 0.2
        assert chain.get() == [None, None]
        wait_until(lambda: len(endpoint.segment_calls) == 2, what="renewed")
        seen = len(endpoint.heartbeats)
        wait_until(lambda: len(endpoint.heartbeats) > seen + 4, what="beats")
        assert endpoint.segment_calls == [[1], [1]]  # nobody used it since

    @pytest.mark.parametrize(
        ("trouble", "reason", "cause"),
        [
            ("behind", MissReason.CLOCK, r"Request has expired.* ahead of .* by 36\d\d s"),
            ("forged", MissReason.DENIED, "SignatureDoesNotMatch.*NEVE_S3_SECRET_KEY"),
        ],
    )
    def test_a_refused_address_has_its_own_reason_and_its_cause_in_the_log(
        self, client, store, endpoint, monkeypatch, caplog, trouble, reason, cause
    ):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)

        def refused(number: int) -> str:
            if trouble == "forged":
                return store.url(number).replace("Signature=", "Signature=0")
            with monkeypatch.context() as clock:
                now = datetime.now(UTC) - timedelta(hours=1)
                clock.setattr("botocore.auth.get_current_datetime", lambda: now)
                return store.url(number)

        endpoint.segment_url = refused
        for _ in range(FAILURES_TO_OPEN + 1):
            assert chain.get() == [reason] * 2
        (line,) = [r.getMessage() for r in caplog.records if "neve.cold.trouble" in r.message][:1]
        assert re.search(rf"reason={reason} .*{cause}", line)
        assert sum("neve.cold.trouble" in r.message for r in caplog.records) <= 2
        endpoint.segment_url = store.url
        wait_until(lambda: chain.get() == [None] * 2, what="read again")

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

    def test_a_store_that_is_away_keeps_no_block_of_another_from_being_read(
        self, client, store, endpoint
    ):
        away, there = Chain(client, 2), Chain(client, 2, 2)
        away.put()
        gone = store.flush(away)
        there.put()
        store.flush(there)
        endpoint.segment_url = lambda number: (
            "http://127.0.0.1:1/segment" if number == gone else store.url(number)
        )
        for _ in range(2 * FAILURES_TO_OPEN):
            assert away.get() == [MissReason.BREAKER] * 2
        assert there.get() == [None] * 2

    def test_known_addresses_serve_while_the_platform_is_away(self, client, store, endpoint):
        known, unknown = Chain(client, 2), Chain(client, 2, 2)
        for chain in (known, unknown):
            chain.put()
            store.flush(chain)
        assert known.get() == [None] * 2
        endpoint.fail = (503, {})
        for _ in range(2 * FAILURES_TO_OPEN):
            assert unknown.get() == [MissReason.BREAKER] * 2
        assert known.get() == [None] * 2

    def test_a_stopped_s3_costs_no_more_than_the_deadline(self, client, store, s3):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        assert chain.get() == [None] * 2  # on a connection that is kept
        os.kill(s3.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert chain.get(deadline_s=0.4) == [MissReason.TIMEOUT] * 2
            assert time.monotonic() - started < 20
        finally:
            os.kill(s3.process.pid, signal.SIGCONT)
        assert chain.get() == [None] * 2
        assert (chain.back == chain.sent).all()

    def test_a_slow_s3_is_not_taken_for_a_broken_one(self, hot, endpoint, store, s3):
        """What came in time came well; ranges whose turn never came say nothing."""
        with Proxy(s3.port) as way, connect(endpoint, promote=False, cold_connections=2) as client:
            chain = Chain(client, 200)
            chain.put()
            number = store.flush(chain)
            endpoint.segment_url = lambda _: store.url(
                number, endpoint=f"http://127.0.0.1:{way.port}"
            )
            way.bytes_per_s = 200 * SIZE / 12  # all of it takes 12 s, the first block 0.1 s
            for _ in range(FAILURES_TO_OPEN + 1):
                outcomes = chain.get(deadline_s=2.5)
                assert set(outcomes) == {None, MissReason.TIMEOUT}
            way.release()
            assert chain.get(deadline_s=60) == [None] * 200

    def test_cancelling_a_load_frees_its_buffers_soon(self, client, store, s3):
        chain = Chain(client, 60)
        chain.put()
        store.flush(chain)
        match = client.match(chain.ids)
        os.kill(s3.process.pid, signal.SIGSTOP)
        try:
            for _ in range(FAILURES_TO_OPEN):
                transfer = client.get_many(
                    chain.ids, list(chain.back), locations=match.locations, deadline_s=60
                )
                threading.Timer(0.1, transfer.cancel).start()
                assert transfer.wait(30) == [MissReason.TIMEOUT] * 60
        finally:
            os.kill(s3.process.pid, signal.SIGCONT)
        chain.back[:] = 0
        time.sleep(0.1)
        assert not chain.back.any()  # nobody reads into it any more
        assert chain.get() == [None] * 60  # and nobody was blamed

    # Fewer cuts than tries: one range may meet all of them.
    @pytest.mark.parametrize(
        "cuts", [[700, None, 300_000, 5_000_000], [131_072, 1, 2_000_000]], ids=["early", "late"]
    )
    @pytest.mark.parametrize("connections", [1, 3, 16])
    def test_ranges_of_a_bad_network_are_continued(
        self, hot, endpoint, store, s3, connections, cuts
    ):
        with connect(endpoint, promote=False, cold_connections=connections) as client:
            chain = Chain(client, 200)
            chain.put()
            number = store.flush(chain)
            with CuttingProxy(s3.port, cuts) as proxy:
                way = f"http://127.0.0.1:{proxy.port}"
                endpoint.segment_url = lambda _: store.url(number, endpoint=way)
                assert chain.get(deadline_s=60) == [None] * 200
                assert proxy.cuts > 0
            assert (chain.back == chain.sent).all()

    @pytest.mark.parametrize("lost_blocks", [1, 2, 5])
    def test_a_segment_that_was_cut_has_its_first_blocks(self, client, store, lost_blocks):
        chain = Chain(client, 5)
        chain.put()
        number = store.flush(chain, cut_bytes=lost_blocks * SIZE - 10)
        good = 5 - lost_blocks
        assert chain.get() == [None] * good + [MissReason.CORRUPT] * lost_blocks
        assert (chain.back[:good] == chain.sent[:good]).all()
        # Blocks wholly behind the end: S3 has no such range.
        reader = ColdReader(lambda numbers, timeout_s: ({number: store.url(number)}, 600.0))
        behind = ColdBlock(0, chain.ids[4], number, 1 << 30, memoryview(bytearray(PAYLOAD)))
        ended = reader.read([behind], deadline=time.monotonic() + 30)
        assert ended == ([MissReason.CORRUPT], None)

    def test_connections_are_reused(self, client, store):
        chain = Chain(client, 2)
        chain.put()
        store.flush(chain)
        reader = ColdReader(lambda numbers, timeout_s: ({1: store.url(1)}, 600.0))
        places = client.match(chain.ids).locations
        for _ in range(5):
            blocks = [
                ColdBlock(i, id_, 1, place.offset, memoryview(bytearray(PAYLOAD)))
                for i, (id_, place) in enumerate(zip(chain.ids, places, strict=True))
            ]
            assert reader.read(blocks, deadline=time.monotonic() + 30) == ([None, None], None)
            assert reader.kept_connections == 1


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = Path(tmp_path_factory.mktemp("https"))
    make_ca(folder, "ca")
    issue(folder, "ca", "server", "IP:127.0.0.1")
    with S3Server(folder, tls=(folder / "server.crt", folder / "server.key")) as server:
        yield server


@pytest.mark.integration
class TestHttps:
    @pytest.fixture
    def chain(self, https, clean_hot, hot, endpoint, monkeypatch) -> Iterator[Chain]:
        """In S3, with addresses that begin with https."""
        monkeypatch.setenv("SSL_CERT_FILE", str(https.tls[0].with_name("ca.crt")))
        store = Store(https, clean_hot, hot)
        way = f"https://127.0.0.1:{https.https_port}"
        endpoint.segment_url = lambda number: store.url(number, endpoint=way)
        with connect(endpoint, promote=False) as client:
            chain = Chain(client, 40)
            chain.put()
            store.flush(chain)
            yield chain

    def test_blocks_come_back_byte_for_byte(self, chain):
        for _ in range(2):
            chain.back[:] = 0
            assert chain.get() == [None] * 40
            assert (chain.back == chain.sent).all()

    def test_a_server_that_stops_costs_no_more_than_the_deadline(self, chain, https):
        assert chain.get() == [None] * 40
        os.kill(https.process.pid, signal.SIGSTOP)
        is_stopped = psutil.Process(https.process.pid).status
        wait_until(lambda: is_stopped() == psutil.STATUS_STOPPED, what="the server to stop")
        try:
            started = time.monotonic()
            assert chain.get(deadline_s=0.4) == [MissReason.TIMEOUT] * 40
            assert time.monotonic() - started < 20
        finally:
            os.kill(https.process.pid, signal.SIGCONT)
        assert chain.get() == [None] * 40


def planned(places: list[tuple[int, int, int]]) -> list[ColdBlock]:
    """Blocks by (segment, offset, payload bytes)."""
    return [
        ColdBlock(i, bytes(16), segment, offset, _Long(size))
        for i, (segment, offset, size) in enumerate(places)
    ]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(0, 60 << 20) | st.integers(0, 64).map(lambda n: n * 100_000),
            st.integers(1, 20 << 20) | st.integers(1, 99_000),
        ),
        max_size=30,
    ),
    st.integers(1, 64),
)
def test_ranges_hold_each_block_once_and_stay_small(places, streams):
    blocks = planned(places)
    groups = plan_ranges(blocks, streams=streams)
    assert sorted(block.index for group in groups for block in group) == list(range(len(blocks)))
    for group in groups:
        wanted = sum(block.end - block.offset for block in group)
        read = group[-1].end - group[0].offset
        assert len({block.segment for block in group}) == 1
        assert read <= 2 * wanted
        assert len(group) == 1 or read <= RANGE_BYTES
        for left, right in itertools.pairwise(group):
            assert 0 <= right.offset - left.end <= GAP_BYTES
    # What could be one request is one.
    for left, right in itertools.pairwise(groups):
        both = [*left, *right]
        wanted = sum(block.end - block.offset for block in both)
        assert (
            left[0].segment != right[0].segment
            or not 0 <= right[0].offset - left[-1].end <= GAP_BYTES
            or right[0].end - left[0].offset > LEAST_RANGE_BYTES
            or right[0].end - left[0].offset
            > 2 * (wanted - sum(block.end - block.offset for block in right[1:]))
        )


@pytest.mark.parametrize(("streams", "requests"), [(1, 4), (4, 4), (8, 8), (16, 16), (99, 16)])
def test_a_batch_keeps_all_streams_busy(streams, requests):
    size = (1 << 20) - HEADER_BYTES
    blocks = planned([(1, i << 20, size) for i in range(64)])
    assert len(plan_ranges(blocks, streams=streams)) == requests


class _Long:
    """Stands for a payload: planning asks only for its length."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size
