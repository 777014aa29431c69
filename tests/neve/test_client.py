"""The client against a real Valkey and a small cache endpoint; S3 is in test_cold.py."""

import os
import signal
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from neve.datapath.client import MATCH_S, Client, Match
from neve.datapath.status import BreakerState
from neve.errors import DeadlineExceeded, MissReason, Misuse, Refused, Unavailable
from neve.formats.keys import bucket_of
from neve.formats.samples import decode
from neve.index.tier import Location, Tier
from support.cache_endpoint import API_KEY, CacheEndpoint
from support.chains import (
    CHUNK_TOKENS,
    ENGINE,
    IDENTITY,
    PATIENCE_S,
    PAYLOAD,
    Chain,
    connect,
    counters,
    provision,
)
from support.servers import ValkeyServer, wait_until

pytestmark = pytest.mark.integration

# A call whose deadline is a fraction of a second came back by then, however busy the machine is;
# one that waits for the server's end takes longer.
LATE_S = 8.0


class TestRoundTrip:
    def test_what_was_put_is_found_loaded_and_counted(self, client):
        chain = Chain(client, 20)
        assert chain.put() == [None] * 20
        match = client.match(chain.ids)
        assert match.miss is None
        assert match.locations == [Location(Tier.HOT, 64 + PAYLOAD)] * 20
        assert chain.get(match) == [None] * 20
        assert (chain.back == chain.sent).all()
        assert counters(client) == {
            "requested_blocks": 20,
            "requested_tokens": 20 * CHUNK_TOKENS,
            "hit_hot_blocks": 20,
            "hit_hot_tokens": 20 * CHUNK_TOKENS,
            "hot_read_bytes": 20 * (64 + PAYLOAD),
            "hot_write_bytes": 20 * (64 + PAYLOAD),
            "put_blocks": 20,
        }
        totals = client.stats.totals()
        assert totals.misses.total() == 0
        assert totals.load_ms.total() == 1

    def test_the_tokens_of_a_chunk_in_several_blocks_count_once(self, client, endpoint):
        Chain(client, 20).put()
        with connect(endpoint, shards=4) as other:
            Chain(other, 20).get()
            counted = counters(other)
        assert counted["requested_blocks"] == counted["hit_hot_blocks"] == 20
        assert counted["requested_tokens"] == counted["hit_hot_tokens"] == 5 * CHUNK_TOKENS

    def test_another_node_finds_the_blocks_and_a_second_put_stores_nothing(self, client, endpoint):
        chain = Chain(client, 3)
        chain.put()
        with connect(endpoint) as other:
            same = Chain(other, 3)
            assert same.get() == [None] * 3
            assert (same.back == chain.sent).all()
            assert same.put() == [None] * 3
            assert "put_blocks" not in counters(other)

    def test_a_missing_tail_counts_under_the_reason_of_its_first_block(self, client):
        chain = Chain(client, 10)
        client.put_many(chain.blocks[:4], list(chain.sent[:4])).wait(30)
        match = client.match(chain.ids)
        assert len(match.locations) == 4
        assert match.miss is MissReason.NEVER_STORED
        assert client.stats.totals().misses == {"never_stored": 6}
        assert client.match([]) == Match()

    def test_who_asks_again_is_not_counted(self, client):
        chain = Chain(client, 10)
        client.put_many(chain.blocks[:4], list(chain.sent[:4])).wait(30)
        again = client.match_again(chain.ids)
        assert again == client.match(chain.ids)
        assert counters(client)["requested_blocks"] == 10
        assert client.stats.totals().misses == {"never_stored": 6}

    def test_each_block_is_located_whatever_the_others_are(self, client):
        chain = Chain(client, 5)
        client.put_many(chain.blocks[1:4:2], [chain.sent[1], chain.sent[3]]).wait(30)
        hit, miss = Location(Tier.HOT, 64 + PAYLOAD), MissReason.NEVER_STORED
        assert client.locate(chain.ids) == [miss, hit, miss, hit, miss]
        assert counters(client)["requested_blocks"] == 5
        assert client.stats.totals().misses == {"never_stored": 3}

    def test_a_look_up_that_nobody_waits_for_says_the_same(self, client):
        chain = Chain(client, 5)
        client.put_many(chain.blocks[1:4:2], [chain.sent[1], chain.sent[3]]).wait(30)
        ids = [*chain.ids, chain.ids[1]]
        finding = client.find_many(ids, deadline_s=PATIENCE_S)
        hit, miss = Location(Tier.HOT, 64 + PAYLOAD), MissReason.NEVER_STORED
        assert finding.wait(PATIENCE_S) == [miss, None, miss, None, miss, None]
        assert finding.locations == [None, hit, None, hit, None, hit]
        assert counters(client)["requested_tokens"] == 6 * CHUNK_TOKENS
        assert client.stats.totals().misses == {"never_stored": 3}
        assert client.find_many([]).wait(0) == []

    def test_it_asks_all_buckets_and_in_slices(self, clean_hot, endpoint):
        provision(clean_hot, buckets=3)
        endpoint.buckets = 3
        with connect(endpoint) as client:
            chain = Chain(client, 12)
            chain.put()
            others = [n.to_bytes(16, "big") for n in range(4000)]
            finding = client.find_many([*others, *chain.ids], deadline_s=PATIENCE_S)
            assert finding.wait(PATIENCE_S)[-12:] == [None] * 12
            assert finding.locations[:4000] == [None] * 4000
            load = client.get_many(
                chain.ids, list(chain.back), locations=finding.locations[-12:], deadline_s=10
            )
            assert load.wait(30) == [None] * 12

    def test_without_a_server_all_are_missed(self, client, clean_hot):
        clean_hot.kill()
        try:
            finding = client.find_many([bytes(16), bytes([1]) * 16], deadline_s=PATIENCE_S)
            assert set(finding.wait(30)) <= {MissReason.BREAKER, MissReason.TIMEOUT}
        finally:
            clean_hot.restart()

    def test_buckets_share_a_chain(self, clean_hot, endpoint):
        provision(clean_hot, buckets=3)
        endpoint.buckets = 3
        with connect(endpoint) as client:
            chain = Chain(client, 24)
            assert chain.put() == [None] * 24
            assert chain.get() == [None] * 24
            assert (chain.back == chain.sent).all()
            assert {bucket_of(id_, 3) for id_ in chain.ids} == {0, 1, 2}

    def test_a_python_thread_fetches_into_its_own_arrays(self, client):
        chain = Chain(client, 16)
        chain.put()
        done = threading.Event()
        seen: list[list[MissReason | None]] = []

        def fetch() -> None:
            match = client.match(chain.ids)
            transfer = client.get_many(
                chain.ids, list(chain.back), locations=match.locations, deadline_s=5
            )
            transfer.add_done_callback(lambda transfer: (seen.append(transfer.wait(0)), done.set()))

        threading.Thread(target=fetch).start()
        assert done.wait(30)
        assert seen == [[None] * 16]
        assert (chain.back == chain.sent).all()

    def test_many_threads_share_a_client(self, client):
        def work(seed: int) -> None:
            chain = Chain(client, 6, seed)
            results.append(chain.put() == [None] * 6)
            results.append(chain.get() == [None] * 6 and bool((chain.back == chain.sent).all()))

        results: list[bool] = []
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 12

    def test_loading_touches_so_that_the_oldest_are_evicted_first(self, clean_hot, endpoint):
        provision(clean_hot, hot_bytes=5 * (64 + PAYLOAD))
        with connect(endpoint) as client:
            used, idle, new = (Chain(client, n, seed=n) for n in (1, 4, 2))
            used.put()
            idle.put()
            used.get()
            new.put()
            assert len(client.match(used.ids).locations) == 1
            assert client.match(idle.ids).miss is MissReason.EVICTED


class TestRefusals:
    def test_a_full_quota_is_an_outcome(self, clean_hot, endpoint):
        hot = provision(clean_hot, hot_bytes=2 * (64 + PAYLOAD))
        with connect(endpoint) as client:
            chain = Chain(client, 3)
            chain.put()
            hot.pin(chain.ids, int(time.time()) + 1000)
            more = Chain(client, 1, seed=2)
            assert more.put() == [MissReason.QUOTA]
            assert client.match(more.ids).miss is MissReason.QUOTA
            assert counters(client)["put_refused"] == 1

    def test_what_another_writer_pushes_out_before_the_commit_is_not_corrupt(
        self, clean_hot, endpoint
    ):
        """Two nodes store the same chain into a tier that has room for a third of it."""
        hot = provision(clean_hot, hot_bytes=4 * (64 + PAYLOAD))
        outcomes: Counter[MissReason | None] = Counter()
        with connect(endpoint) as one, connect(endpoint) as other, ThreadPoolExecutor(2) as pool:
            chains = [Chain(client, 12) for client in (one, other)]
            for _ in range(40):
                for each in pool.map(Chain.put, chains):
                    outcomes.update(each)
            dropped = one.stats.totals().drops + other.stats.totals().drops
        assert outcomes.keys() <= {None, MissReason.EVICTED}
        assert outcomes[None] > 12 * 40
        assert dropped.total() == outcomes[MissReason.EVICTED]
        assert hot.usage().hot_blocks == 4

    def test_a_server_without_memory_refuses_and_keeps_the_breaker_closed(
        self, clean_hot, endpoint
    ):
        provision(clean_hot)
        with clean_hot.client() as admin, connect(endpoint) as client:
            admin.config_set("maxmemory-clients", "25mb")  # not a tenth of what follows
            admin.config_set("maxmemory", "1mb")
            try:
                assert set(Chain(client, 5).put()) == {MissReason.QUOTA}
                assert client.breaker is BreakerState.CLOSED
            finally:
                admin.config_set("maxmemory", clean_hot.maxmemory)
                admin.config_set("maxmemory-clients", "10%")

    def test_puts_beyond_the_bytes_in_flight_are_dropped_and_counted(self, hot, endpoint):
        with connect(endpoint, put_bytes_in_flight=2 * PAYLOAD) as client:
            assert Chain(client, 5).put() == [None, None] + [MissReason.BREAKER] * 3
            assert counters(client)["dropped"] == 3
            assert client.stats.totals().drops == {"breaker": 3}
            assert Chain(client, 2, seed=2).put() == [None, None]  # the room came back

    def test_calls_that_cannot_be_right_are_misuse(self, client):
        chain = Chain(client, 1)
        location = Location(Tier.HOT, 64 + PAYLOAD)
        with pytest.raises(Misuse):
            client.get_many(chain.ids, [], locations=[location])
        with pytest.raises(Misuse):
            client.get_many(chain.ids, [bytes(PAYLOAD)], locations=[location])
        with pytest.raises(Misuse):
            client.put_many(chain.blocks, [np.zeros((4, 4))[:, 1]])
        with pytest.raises(Misuse):
            client.put_many(chain.blocks, [b""])


class TestCorruption:
    """Any doubt is a miss; what is bad is forgotten, so that it can be stored anew."""

    def spoil(self, client: Client, server: ValkeyServer, value: bytes | None) -> None:
        chain = Chain(client, 3)
        chain.put()
        match = client.match(chain.ids)
        with server.client() as admin:
            old = admin.get(chain.key(1))
            flipped = old[:5000] + bytes([old[5000] ^ 1]) + old[5001:]
            admin.set(chain.key(1), flipped if value is None else value)
        assert chain.get(match) == [None, MissReason.CORRUPT, None]
        assert (chain.back[[0, 2]] == chain.sent[[0, 2]]).all()
        assert counters(client)["corrupt"] == 1
        assert client.stats.totals().misses == {"corrupt": 1}
        wait_until(
            lambda: client.match(chain.ids).miss is MissReason.CORRUPT,
            what="the block is forgotten",
        )
        assert client.breaker is BreakerState.CLOSED
        assert chain.put() == [None] * 3
        assert chain.get() == [None] * 3
        assert (chain.back == chain.sent).all()

    def test_a_flipped_bit(self, client, clean_hot):
        self.spoil(client, clean_hot, None)

    def test_a_value_of_another_length(self, client, clean_hot):
        self.spoil(client, clean_hot, b"short")

    def test_a_value_that_is_no_block(self, client, clean_hot):
        self.spoil(client, clean_hot, bytes(64 + PAYLOAD))

    def test_another_blocks_value(self, client, clean_hot):
        chain = Chain(client, 2)
        chain.put()
        with clean_hot.client() as admin:
            admin.set(chain.key(1), admin.get(chain.key(0)))
        assert chain.get() == [None, MissReason.CORRUPT]

    def test_a_key_of_another_kind(self, client, clean_hot):
        chain = Chain(client, 1)
        chain.put()
        with clean_hot.client() as admin:
            admin.delete(chain.key(0))
            admin.sadd(chain.key(0), "x")
        assert chain.get() == [MissReason.CORRUPT]

    def test_a_vanished_value_is_evicted(self, client, clean_hot):
        chain = Chain(client, 2)
        chain.put()
        with clean_hot.client() as admin:
            admin.delete(chain.key(0))
        assert chain.get() == [MissReason.EVICTED, None]
        assert "corrupt" not in counters(client)
        wait_until(lambda: not client.match(chain.ids).locations, what="no longer promised")

    def test_a_buffer_that_does_not_fit_destroys_nothing(self, client):
        chain = Chain(client, 1)
        chain.put()
        transfer = client.get_many(
            chain.ids, [bytearray(10)], locations=client.match(chain.ids).locations
        )
        assert transfer.wait(30) == [MissReason.CORRUPT]
        assert chain.get() == [None]


class TestTrouble:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[ValkeyServer]:
        with ValkeyServer(tmp_path) as server:
            yield server

    @pytest.fixture
    def endpoint(self, server: ValkeyServer) -> Iterator[CacheEndpoint]:
        with CacheEndpoint(f"127.0.0.1:{server.port}") as endpoint:
            endpoint.on_open = lambda: provision(server)
            yield endpoint

    @pytest.fixture
    def client(self, endpoint: CacheEndpoint) -> Iterator[Client]:
        client = connect(endpoint)
        yield client
        client.close(deadline_s=1)

    def test_a_stopped_valkey_blocks_nobody_beyond_the_deadline(self, client, server):
        chain = Chain(client, 8)
        chain.put()
        match = client.match(chain.ids)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert client.match(chain.ids, deadline_s=MATCH_S).miss is MissReason.TIMEOUT
            assert chain.get(match, deadline_s=0.3) == [MissReason.TIMEOUT] * 8
            assert time.monotonic() - started < LATE_S
            # A load that waits behind stuck stores is given up when its time is over.
            for seed in range(2, 8):
                other = Chain(client, 8, seed)
                client.put_many(other.blocks, list(other.sent), deadline_s=30)
            started = time.monotonic()
            outcomes = chain.get(match, deadline_s=0.3)
            assert time.monotonic() - started < LATE_S
            assert set(outcomes) <= {MissReason.TIMEOUT, MissReason.BREAKER}

            def refuses() -> bool:
                """All calls but a probe after each pause."""
                missed = client.match(chain.ids, deadline_s=MATCH_S)
                refused = set(Chain(client, 1, 99).put(deadline_s=0.3))
                return missed == Match(miss=MissReason.BREAKER) and refused == {MissReason.BREAKER}

            wait_until(refuses, what="an open breaker")
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        wait_until(lambda: client.match(chain.ids).miss is None, what="served again")
        chain.back[:] = 0
        assert chain.get() == [None] * 8
        assert (chain.back == chain.sent).all()
        assert client.breaker is BreakerState.CLOSED

    def test_a_transfer_that_is_not_done_says_so(self, client, server):
        chain = Chain(client, 1)
        chain.put()
        match = client.match(chain.ids)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            transfer = client.get_many(
                chain.ids, list(chain.back), locations=match.locations, deadline_s=60
            )
            assert not transfer.done()
            with pytest.raises(DeadlineExceeded):
                transfer.wait(0.01)
            transfer.cancel()
            assert transfer.wait() == [MissReason.TIMEOUT]
        finally:
            os.kill(server.process.pid, signal.SIGCONT)

    def test_puts_under_way_leave_room_for_gets(self, endpoint, server, monkeypatch):
        monkeypatch.setattr("neve.datapath.client.GET_BYTES_IN_FLIGHT", 2 * PAYLOAD)
        client = connect(endpoint, put_bytes_in_flight=4 * PAYLOAD)
        chain = Chain(client, 1)
        chain.put()
        match = client.match(chain.ids)
        other = Chain(client, 4, seed=2)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            puts = client.put_many(other.blocks, list(other.sent), deadline_s=60)
            assert chain.get(match, deadline_s=0.2) == [MissReason.TIMEOUT]  # it was sent
            assert not puts.done()
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
            client.close(deadline_s=1)

    def test_kill_9_gives_misses_and_a_restart_is_provisioned_by_a_new_handshake(
        self, client, server, endpoint
    ):
        endpoint_opened = len(endpoint.opened)
        chain = Chain(client, 40)
        chain.put()
        match = client.match(chain.ids)
        killer = threading.Timer(0.05, server.kill)
        killer.start()
        allowed = {None, MissReason.BREAKER, MissReason.TIMEOUT}
        while killer.is_alive():
            outcomes = chain.get(match, deadline_s=2)
            assert set(outcomes) <= allowed
            good = [i for i, outcome in enumerate(outcomes) if outcome is None]
            assert (chain.back[good] == chain.sent[good]).all()
            chain.back[:] = 0
        killer.join()
        assert client.match(chain.ids).miss in allowed
        assert set(chain.put()) <= {MissReason.BREAKER, MissReason.TIMEOUT}

        server.restart()  # empty: no functions, as if the ACL users were gone too
        wait_until(
            lambda: client.match(chain.ids).miss is MissReason.NEVER_STORED,
            what="provisioned again",
        )
        assert len(endpoint.opened) > endpoint_opened
        assert chain.put() == [None] * 40
        assert chain.get() == [None] * 40
        assert (chain.back == chain.sent).all()

    def test_new_credentials_are_taken_over_from_a_new_handshake(self, endpoint, server):
        def give(password: str) -> None:
            with server.client() as admin:
                admin.execute_command("ACL", "DELUSER", "t7")
                admin.execute_command(
                    "ACL", "SETUSER", "t7", "on", f">{password}", "~{t7.*", "+@all"
                )
            endpoint.username, endpoint.password = "t7", password

        give("old")
        with connect(endpoint) as client:
            chain = Chain(client, 2)
            assert chain.put() == [None, None]
            give("new")  # DELUSER also drops the connections of the old one
            wait_until(lambda: chain.get() == [None, None], what="let in again")

    def test_calls_wait_for_no_deadline_while_the_breaker_is_open(self, client, server):
        chain = Chain(client, 1)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            missed = Counter(client.match(chain.ids, deadline_s=0.05).miss for _ in range(300))
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert missed[MissReason.TIMEOUT] < 100  # the first ones, then a probe after each pause
        assert missed[MissReason.BREAKER] == 300 - missed[MissReason.TIMEOUT]


class TestSession:
    def test_a_wrong_key_is_refused_with_what_to_do(self, endpoint, hot):
        with pytest.raises(Refused, match="API key: check it"):
            Client.connect(endpoint.url, "neve_wrong", IDENTITY, node="n", engine=ENGINE)

    def test_a_problem_document_names_the_field(self, endpoint):
        endpoint.fail = (
            409,
            {"title": "Clash", "detail": "differs", "field": "dtype", "expected": "a", "got": "b"},
        )
        with pytest.raises(Refused, match="dtype: differs") as caught:
            connect(endpoint)
        assert caught.value.field == "dtype"
        assert caught.value.status == 409

    def test_another_server_is_told_from_a_refusal(self, endpoint):
        endpoint.fail = (405, {})
        with pytest.raises(Refused, match=r"no Neve endpoint \(HTTP 405\): check the URL"):
            connect(endpoint)

    @pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "neve.example", "htp://e", "http://"])
    def test_an_address_that_cannot_be_is_misuse(self, url):
        with pytest.raises(Misuse, match="need an address such as"):
            Client.connect(url, API_KEY, IDENTITY, node="n", engine=ENGINE)

    def test_a_key_is_taken_from_a_file_with_a_line_end_and_never_shown(self, endpoint):
        Client.connect(endpoint.url, API_KEY + "\n", IDENTITY, node="n", engine=ENGINE).close()
        with pytest.raises(Misuse) as caught:
            Client.connect(endpoint.url, "neve_a\nsecret", IDENTITY, node="n", engine=ENGINE)
        assert "secret" not in str(caught.value)

    def test_trouble_of_the_platform_is_unavailable(self, endpoint):
        endpoint.fail = (503, {"detail": "later"})
        with pytest.raises(Unavailable, match="later"):
            connect(endpoint)
        with pytest.raises(Unavailable):
            Client.connect("http://127.0.0.1:1", API_KEY, IDENTITY, node="n", engine=ENGINE)

    def test_a_fingerprint_that_we_compute_otherwise_is_refused(self, endpoint):
        endpoint.tenant_id = 8
        with pytest.raises(Refused, match="fingerprint"):
            connect(endpoint)

    def test_a_session_ends_though_its_last_counters_are_not_taken(self, client, endpoint):
        answer = endpoint.answer

        def without_heartbeats(method, path, *rest):
            return (500, {}) if path.endswith("/heartbeat") else answer(method, path, *rest)

        endpoint.answer = without_heartbeats
        client.close()
        assert endpoint.sessions == {}

    def test_a_session_ends_though_a_heartbeat_hangs(self, endpoint):
        answer, hangs, ends = endpoint.answer, threading.Event(), threading.Event()

        def slow_heartbeats(method, path, *rest):
            if path.endswith("/heartbeat"):
                hangs.set()
                ends.wait(60)
            return answer(method, path, *rest)

        endpoint.answer = slow_heartbeats
        client = connect(endpoint)
        assert hangs.wait(60)
        client.close(deadline_s=0)
        assert endpoint.sessions == {}
        ends.set()

    def test_heartbeats_carry_each_count_once_also_after_an_outage(self, client, endpoint):
        chain = Chain(client, 3)
        chain.put()
        endpoint.fail = (500, {})
        wait_until(lambda: endpoint.refused > 0, what="an outage")
        refused, beats = endpoint.refused, len(endpoint.heartbeats)
        chain.get()
        wait_until(lambda: endpoint.refused > refused + 1, what="tries")
        assert len(endpoint.heartbeats) == beats
        assert chain.get() == [None] * 3  # the data path needs no platform
        endpoint.fail = None
        wait_until(lambda: endpoint.counted("hit_hot_blocks") >= 6, what="counted")
        client.close()
        assert endpoint.counted("hit_hot_blocks") == 6
        assert endpoint.counted("put_blocks") == 3
        assert [beat["seq"] for beat in endpoint.heartbeats] == list(
            range(1, len(endpoint.heartbeats) + 1)
        )
        assert endpoint.heartbeats[0]["breaker"] == "closed"
        assert sum(sum(beat["load_ms"].values()) for beat in endpoint.heartbeats) == 2
        assert endpoint.sessions == {}

    def test_counts_that_are_refused_are_left_out_and_the_session_stays(
        self, client, endpoint, caplog
    ):
        answer = endpoint.answer

        def refuse_counts(method, path, key, body):
            if path.endswith("/heartbeat") and body["counters"]:
                return 400, {"detail": "counters.put_blocks: unknown", "field": "counters"}
            return answer(method, path, key, body)

        endpoint.answer = refuse_counts
        assert Chain(client, 2).put() == [None, None]
        wait_until(lambda: "counts_lost" in caplog.text, what="a refusal")
        beats = len(endpoint.heartbeats)
        wait_until(lambda: len(endpoint.heartbeats) > beats + 2, what="beats")
        assert len(endpoint.opened) == 1
        endpoint.answer = answer
        assert Chain(client, 3).put() == [None] * 3
        wait_until(lambda: endpoint.counted("put_blocks") > 0, what="counted")

    def test_samples_are_sent_once_the_platform_gives_terms(self, client, endpoint):
        asked = b"".join(Chain(client, 5).ids)
        client.stats.sampling.add(asked)
        beats = len(endpoint.heartbeats)
        wait_until(lambda: len(endpoint.heartbeats) > beats + 1, what="beats")
        assert not any("samples" in beat for beat in endpoint.heartbeats)
        endpoint.sample = {"rate_log": 0, "key": "07" * 32}
        wait_until(lambda: client.stats.sampling.is_on, what="terms")
        client.stats.sampling.add(asked)
        wait_until(lambda: "samples" in endpoint.heartbeats[-1], what="samples")
        (batch,) = (decode(b64decode(b["samples"])) for b in endpoint.heartbeats if "samples" in b)
        assert [each.places for each in batch.requests] == [(0, 1, 2, 3, 4)]
        endpoint.sample = None
        wait_until(lambda: not client.stats.sampling.is_on, what="the end")

    def test_samples_survive_an_outage_and_a_new_handshake_has_its_own_terms(
        self, client, endpoint
    ):
        endpoint.sample = {"rate_log": 0, "key": "07" * 32}
        wait_until(lambda: client.stats.sampling.is_on, what="terms")
        endpoint.fail = (500, {})
        client.stats.sampling.add(b"".join(Chain(client, 5).ids))
        refused = endpoint.refused
        wait_until(lambda: endpoint.refused > refused + 2, what="an outage")
        endpoint.fail = None
        wait_until(lambda: any("samples" in beat for beat in endpoint.heartbeats), what="samples")
        endpoint.sample = {"rate_log": 3, "key": "08" * 32}
        endpoint.sessions.clear()
        wait_until(lambda: len(endpoint.opened) == 2, what="a new session")
        wait_until(lambda: client.session.sample is not None, what="terms")
        wait_until(lambda: client.session.sample.rate_log == 3, what="the new terms")

    def test_samples_that_are_refused_are_left_out_and_counts_stay(self, client, endpoint, caplog):
        endpoint.sample = {"rate_log": 0, "key": "07" * 32}
        wait_until(lambda: client.stats.sampling.is_on, what="terms")
        answer = endpoint.answer

        def refuse_samples(method, path, key, body):
            if path.endswith("/heartbeat") and "samples" in body:
                return 400, {"detail": "samples: unknown", "field": "samples"}
            return answer(method, path, key, body)

        endpoint.answer = refuse_samples
        assert Chain(client, 2).put() == [None, None]
        client.stats.sampling.add(b"".join(Chain(client, 5).ids))
        wait_until(lambda: "samples_lost" in caplog.text, what="a refusal")
        wait_until(lambda: endpoint.counted("put_blocks") == 2, what="counted")
        assert len(endpoint.opened) == 1

    def test_an_unknown_session_is_opened_anew_without_losing_counts(self, client, endpoint):
        Chain(client, 2).put()
        endpoint.sessions.clear()
        first = client.session.id
        wait_until(lambda: client.session.id != first, what="a new session")
        wait_until(lambda: endpoint.counted("put_blocks") == 2, what="counted")

    def test_an_engine_says_in_each_handshake_which_of_its_name_it_is(self, client, endpoint):
        endpoint.sessions.clear()
        wait_until(lambda: len(endpoint.opened) == 2, what="renewed")
        with connect(endpoint):
            first, again, other = (body["instance"] for body in endpoint.opened)
        assert first == again != other

    def test_another_topology_renews_the_handshake(self, client, endpoint):
        wait_until(lambda: len(endpoint.heartbeats) > 1, what="a heartbeat")
        endpoint.topology, endpoint.space_id = "two", 13
        wait_until(lambda: client.session.space_id == 13, what="adopted")
        assert Chain(client, 2).put() == [None, None]

    def test_a_revoked_key_stops_the_node_until_it_is_accepted_again(self, client, endpoint):
        chain = Chain(client, 1)
        chain.put()
        endpoint.fail = (401, {"detail": "revoked"})
        wait_until(lambda: client.match(chain.ids).miss is MissReason.BREAKER, what="stopped")
        assert set(chain.put()) == {MissReason.BREAKER}
        endpoint.fail = None
        wait_until(lambda: client.match(chain.ids).miss is None, what="accepted")

    def test_a_context_is_reported_with_its_chain(self, client, endpoint):
        chain = Chain(client, 2)
        assert client.report_context("repo-42", chain.ids, tokens=600, label="agent") == "c-1"
        assert endpoint.contexts == [
            {
                "session": client.session.id,
                "name": "repo-42",
                "block_ids": [id_.hex() for id_ in chain.ids],
                "tokens": 600,
                "label": "agent",
                "pin_s": None,
            }
        ]

    def test_a_context_that_meets_a_session_being_renewed_is_to_be_told_again(self, endpoint):
        endpoint.heartbeat_s = 60  # nothing else notices
        with connect(endpoint) as client:
            old = client.session.id
            endpoint.sessions.clear()
            with pytest.raises(Unavailable, match="renewed"):
                client.report_context("repo-42", [], tokens=0)
            wait_until(lambda: client.session.id != old, what="renewed")
            assert client.report_context("repo-42", [], tokens=0) == "c-1"

    def test_close_stores_what_was_submitted_and_later_calls_find_nothing(self, endpoint, hot):
        client = connect(endpoint)
        chain = Chain(client, 30)
        transfer = client.put_many(chain.blocks, list(chain.sent), deadline_s=20)
        client.close()
        assert transfer.wait(0) == [None] * 30
        assert endpoint.counted("put_blocks") == 30
        assert client.match(chain.ids).miss is MissReason.BREAKER
        assert None not in chain.put()
        assert None not in chain.get(Match([Location(Tier.HOT, 64 + PAYLOAD)] * 30))
