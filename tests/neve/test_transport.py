"""The native core behind `Transport`: a real Valkey, and servers that misbehave."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neve import _core
from neve.datapath.status import BreakerState, Status
from neve.datapath.transport import ReplyError, Transport, make_keyspace
from neve.errors import Closed, DeadlineExceeded, MissReason, Misuse, Unavailable
from neve.formats.block import HEADER_BYTES, BlockHeader, checksum, decode_header, encode_header
from neve.formats.keys import BucketKeys
from neve.index.tier import decode_match
from neve.node.address import ValkeyAddress
from support.chains import provision
from support.cutting_proxy import CuttingProxy
from support.servers import ValkeyServer, wait_until

MIB = 1 << 20
FINGERPRINT = bytes(range(32))
KEYS = make_keyspace(7, 1, 12, FINGERPRINT)
PARENT = bytes(16)
# Calls with a deadline of 0.3 s have ended by then, also on a busy machine.
LATE_S = 8.0
HELLO = b"%1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def block_id(number: int) -> bytes:
    return b"%016d" % number


def key_of(id_: bytes) -> bytes:
    return BucketKeys(7, 0).block(12, id_)


def block_of(id_: bytes, payload: bytes) -> bytes:
    header = BlockHeader(id_, PARENT, 256, len(payload), checksum(payload), FINGERPRINT[:4])
    return encode_header(header) + payload


def put(transport: Transport, ids: list[bytes], payloads: list[object]) -> list[Status]:
    count = len(ids)
    transfer = transport.put(KEYS, ids, [PARENT] * count, [256] * count, payloads, deadline=soon())
    return ended(transfer)


def get(
    transport: Transport, ids: list[bytes], payloads: list[object], *, deadline: float | None = None
) -> list[Status]:
    return ended(transport.get(KEYS, ids, payloads, deadline=deadline or soon()))


def ended(transfer: _core.Batch) -> list[Status]:
    assert transfer.wait(soon(30))
    return [Status(value) for value in transfer.statuses()]


@pytest.fixture
def transport(clean_hot: ValkeyServer) -> Iterator[Transport]:
    provision(clean_hot)
    transport = Transport(ValkeyAddress((f"127.0.0.1:{clean_hot.port}",)))
    yield transport
    transport.close()


@contextmanager
def answering(say: Callable[[socket.socket], None]) -> Iterator[Transport]:
    """A transport to a server that says HELLO, lets `say` use each connection, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(sock: socket.socket) -> None:
            with sock, suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if sock.recv(1000):
                    sock.sendall(HELLO)
                    say(sock)

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        transport = Transport(ValkeyAddress((f"127.0.0.1:{listener.getsockname()[1]}",)))
        yield transport
        transport.close()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_the_mirrored_statuses_are_those_of_the_core():
    assert {status.name: status.value for status in Status} == _core.statuses()
    assert {status.miss for status in Status} <= {None, *MissReason}


def test_the_core_hashes_as_the_format_says():
    for size in (0, 1, 59, 240, 241, 5000, 3 * MIB + 1):
        data = os.urandom(size)
        assert _core.checksum(data) == checksum(data)


def test_a_forked_child_is_refused_and_does_not_hang():
    asked = threading.Event()

    def keep_silent(sock: socket.socket) -> None:
        while sock.recv(1000):
            asked.set()

    with answering(keep_silent) as transport:
        transfer = transport.call("PING", deadline=soon(60))
        assert asked.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that hangs
            with pytest.raises(RuntimeError, match="fork"):
                transport.call("PING", deadline=soon(60))
            with pytest.raises(RuntimeError, match="fork"):
                transfer.wait(soon(60))
            del transfer
            transport.close()
            del transport
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        transfer.cancel()
        assert ended(transfer) == [Status.CANCELLED]


class TestRealServer:
    pytestmark = pytest.mark.integration

    @pytest.mark.parametrize("size", [1, 63, 4096, 64 << 10, 256 << 10, (2 << 20) + 1, 8 << 20])
    def test_blocks_of_any_size_come_back_byte_for_byte(self, transport, size):
        count = min(48, max(4, 96 * MIB // size // 4))
        sent = np.random.default_rng(1).integers(0, 256, (count, size), dtype=np.uint8)
        ids = [block_id(i) for i in range(count)]
        assert put(transport, ids, list(sent)) == [Status.OK] * count
        assert put(transport, ids, list(sent)) == [Status.PRESENT] * count
        back = np.zeros_like(sent)
        assert get(transport, ids, list(back)) == [Status.OK] * count
        assert (back == sent).all()

    def test_what_is_stored_is_the_documented_block(self, transport, clean_hot):
        payload = os.urandom(1000)
        put(transport, [block_id(1)], [payload])
        with clean_hot.client() as client:
            raw = client.get(key_of(block_id(1)))
            assert raw == block_of(block_id(1), payload)
            assert client.ttl(key_of(block_id(1))) == -1  # committed: it stays
        headers = bytearray(HEADER_BYTES)
        buffer = bytearray(1000)
        ended(transport.get(KEYS, [block_id(1)], [buffer], deadline=soon(), headers=headers))
        assert bytes(headers + buffer) == raw
        assert decode_header(headers).tokens == 256

    @pytest.mark.parametrize("make", [bytearray, np.zeros, lambda n: memoryview(bytearray(n))])
    def test_any_writable_memory_will_do(self, transport, make):
        put(transport, [block_id(1)], [b"p" * 100])
        buffer = make(100) if make is not np.zeros else np.zeros(100, dtype=np.uint8)
        assert get(transport, [block_id(1)], [buffer]) == [Status.OK]
        assert bytes(buffer) == b"p" * 100

    def test_memory_that_will_not_do_is_refused_before_anything_is_asked(self, transport):
        for wrong in (b"readonly", np.zeros((4, 4))[:, 1], "text", object()):
            with pytest.raises((TypeError, ValueError, BufferError, RuntimeError)):
                transport.get(KEYS, [block_id(1)], [wrong], deadline=soon())
        with pytest.raises(ValueError, match="16 bytes"):
            transport.get(KEYS, [b"short"], [bytearray(1)], deadline=soon())
        with pytest.raises(ValueError, match="one buffer"):
            transport.get(KEYS, [block_id(1)], [], deadline=soon())

    def test_missing_and_ill_fitting_values_do_not_disturb_their_neighbours(
        self, transport, clean_hot
    ):
        ids = [block_id(i) for i in range(6)]
        put(transport, ids, [b"x" * 50_000] * 6)
        with clean_hot.client() as client:
            client.delete(key_of(ids[0]), key_of(ids[3]))
            client.sadd(key_of(ids[3]), "member")
            client.set(key_of(ids[1]), b"x" * 70_000)
            client.set(key_of(ids[2]), b"")
            raw = bytearray(client.get(key_of(ids[4])))
            raw[40_000] ^= 1
            client.set(key_of(ids[4]), bytes(raw))
        buffers = [bytearray(50_000) for _ in ids]
        assert get(transport, ids, buffers) == [
            Status.EVICTED,
            Status.CORRUPT,
            Status.CORRUPT,
            Status.CORRUPT,
            Status.CORRUPT,
            Status.OK,
        ]
        assert buffers[5] == b"x" * 50_000
        assert buffers[1] == bytes(50_000)  # another length touches no memory

    def test_match_gives_the_prefix_and_the_first_miss(self, transport):
        ids = [block_id(i) for i in range(2500)]  # more than one call holds
        put(transport, ids, [b"x"] * 2500)
        status, rows, _ = transport.match(KEYS, ids, deadline=soon())
        assert status is Status.OK
        assert [place.size_bytes for place in decode_match(rows)] == [65] * 2500
        status, rows, _ = transport.match(KEYS, [*ids[:3], bytes(16), ids[4]], deadline=soon())
        assert status is Status.OK
        assert decode_match(rows)[3:] == [MissReason.NEVER_STORED]

    def test_replies_of_every_shape(self, transport):
        def run(*args: object) -> object:
            return transport.execute(*args, deadline=soon())

        assert run("EVAL", "return {1, {'a', 'b'}, {}}", 0) == [1, [b"a", b"b"], []]
        with pytest.raises(ReplyError) as caught:
            run("EVAL", "return redis.error_reply('MY fault')", 0)
        assert caught.value.code == "MY"
        assert run("EVAL", "redis.setresp(3); return {double=1.5}", 0) == b"1.5"
        assert run("GET", "nothing") is None
        assert run("CONFIG", "GET", "maxmemory-policy") == [b"maxmemory-policy", b"noeviction"]
        assert run("EVAL", "redis.setresp(3); return true", 0) is True
        assert run("ECHO", "x" * 1_000_000) == b"x" * 1_000_000
        assert run("PING") == b"PONG"

    def test_threads_share_a_transport(self, transport):
        def work(number: int) -> None:
            for i in range(20):
                value = b"%d-%d" % (number, i)
                answers.append(transport.execute("ECHO", value, deadline=soon()) == value)

        answers: list[bool] = []
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [True] * 160

    def test_a_wrong_password_is_refused_until_the_right_one_is_given(self, clean_hot):
        with clean_hot.client() as client:
            client.execute_command("ACL", "SETUSER", "t7", "on", ">right", "~{t7.*", "+get")
        seeds = (f"127.0.0.1:{clean_hot.port}",)
        transport = Transport(ValkeyAddress(seeds, username="t7", password="wrong"))
        with pytest.raises(ReplyError) as caught:
            transport.execute("GET", "{t7.00}x", deadline=soon())
        assert caught.value.code == "WRONGPASS"
        assert get(transport, [block_id(1)], [bytearray(1)]) == [Status.REFUSED]

        transport.readdress(ValkeyAddress(seeds, username="t7", password="right"))
        assert transport.execute("GET", "{t7.00}x", deadline=soon()) is None
        with pytest.raises(ReplyError, match="NOPERM"):
            transport.execute("GET", "{t8.00}x", deadline=soon())
        transport.close()
        assert "right" not in repr(ValkeyAddress(seeds, password="right"))

    def test_a_unix_socket_is_an_address_too(self, tmp_path):
        class OnSocket(ValkeyServer):
            def command(self) -> list[str]:
                return [*super().command(), "--unixsocket", str(tmp_path / "s")]

        with OnSocket(tmp_path) as server:
            provision(server)
            transport = Transport(ValkeyAddress((f"unix:{tmp_path / 's'}",)))
            payload, back = os.urandom(3 * MIB), bytearray(3 * MIB)
            assert put(transport, [block_id(1)], [payload]) == [Status.OK]
            assert get(transport, [block_id(1)], [back]) == [Status.OK]
            assert back == payload
            transport.close()

    def test_a_name_and_a_dead_seed_are_addresses_too(self, clean_hot):
        seeds = ("127.0.0.1:1", "nonsense", f"localhost:{clean_hot.port}")
        transport = Transport(ValkeyAddress(seeds))
        assert transport.execute("PING", deadline=soon()) == b"PONG"
        transport.close()

    def test_loads_overtake_stores_that_wait(self, transport):
        ids = [block_id(i) for i in range(100)]
        put(transport, ids[:1], [b"x" * 100])
        big = np.random.default_rng(1).integers(0, 256, 2 * MIB, dtype=np.uint8)
        count = 60
        stores = transport.put(
            KEYS, ids[1 : 1 + count], [PARENT] * count, [1] * count, [big] * count, deadline=soon()
        )
        assert get(transport, ids[:1], [bytearray(100)]) == [Status.OK]
        assert not stores.done()
        assert ended(stores) == [Status.OK] * count

    def test_dropping_a_transfer_under_way_ends_it_before_its_memory_is_free(self, transport):
        payload = bytearray(8 * MIB)
        for i in range(20):
            transfer = transport.put(KEYS, [block_id(i)], [PARENT], [1], [payload], deadline=soon())
            with pytest.raises(BufferError):
                payload.append(0)  # still lent
            del transfer
            payload.append(0)
            payload.pop()
        assert transport.execute("PING", deadline=soon()) == b"PONG"

    def test_after_close_nothing_runs(self, transport):
        transport.close()
        with pytest.raises(Closed):
            transport.execute("PING", deadline=soon())
        assert get(transport, [block_id(1)], [bytearray(1)]) == [Status.CLOSED]
        seen = threading.Event()
        transfer = transport.get(KEYS, [block_id(1)], [bytearray(1)], deadline=soon())
        transport.when_done(transfer, seen.set)
        assert seen.is_set()

    def test_what_is_under_way_when_it_closes_ends_as_closed(self, transport):
        big = bytes(8 * MIB)
        transfer = transport.put(
            KEYS, [block_id(i) for i in range(20)], [PARENT] * 20, [1] * 20, [big] * 20,
            deadline=soon(),
        )  # fmt: skip
        transport.close()
        assert transfer.done()
        assert set(ended(transfer)) <= {Status.OK, Status.CLOSED}


class TestStoppedServer:
    pytestmark = pytest.mark.integration

    @pytest.fixture
    def server(self, tmp_path) -> Iterator[ValkeyServer]:
        with ValkeyServer(tmp_path) as server:
            provision(server)
            yield server

    @pytest.fixture
    def transport(self, server) -> Iterator[Transport]:
        transport = Transport(ValkeyAddress((f"127.0.0.1:{server.port}",)))
        yield transport
        transport.close()

    def test_it_costs_no_more_than_the_deadline_and_late_replies_are_nobodys(
        self, transport, server
    ):
        big = os.urandom(4 * MIB)
        assert put(transport, [block_id(0)], [big]) == [Status.OK]
        assert server.process is not None
        buffers = [bytearray(4 * MIB) for _ in range(8)]
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            loading = transport.get(KEYS, [block_id(0)] * 8, buffers, deadline=soon(0.3))
            storing = transport.put(
                KEYS, [block_id(i) for i in range(1, 9)], [PARENT] * 8, [1] * 8, [big] * 8,
                deadline=soon(0.3),
            )  # fmt: skip
            assert ended(loading) == [Status.TIMEOUT] * 8
            assert ended(storing) == [Status.TIMEOUT] * 8
            assert time.monotonic() - started < LATE_S
            started = time.monotonic()
            with pytest.raises((DeadlineExceeded, Unavailable)):
                transport.execute("PING", deadline=soon(60))
            assert time.monotonic() - started < 30  # nothing moves: given up early
        finally:
            os.kill(server.process.pid, signal.SIGCONT)

        # Late replies of the old connections must not be taken for answers, nor touch memory.
        def is_served() -> bool:
            with suppress(Unavailable):
                return transport.execute("ECHO", "new", deadline=soon()) == b"new"
            return False

        wait_until(is_served, what="served again")
        assert all(buffer == bytes(4 * MIB) for buffer in buffers)

    def test_cancelling_frees_the_memory_at_once(self, transport, server):
        assert server.process is not None
        big = bytearray(16 * MIB)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            transfer = transport.put(KEYS, [block_id(1)], [PARENT], [1], [big], deadline=soon(60))
            assert not transfer.wait(soon(0.1))
            transfer.cancel()
            assert transfer.wait(soon(20))
            assert Status(transfer.statuses()[0]) in (Status.CANCELLED, Status.UNAVAILABLE)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)

    def test_three_batches_that_fail_open_the_breaker_and_a_probe_closes_it(
        self, transport, server
    ):
        assert transport.execute("PING", deadline=soon()) == b"PONG"
        server.kill()
        for _ in range(3):
            assert transport.breaker is BreakerState.CLOSED
            assert get(transport, [block_id(1)], [bytearray(9)]) == [Status.UNAVAILABLE]
        assert transport.breaker is BreakerState.OPEN
        assert transport.refuses
        assert get(transport, [block_id(1)], [bytearray(9)]) == [Status.BREAKER]
        server.restart()
        provision(server)
        probe = partial(get, transport, [block_id(1)], [bytearray(9)])
        wait_until(lambda: probe() == [Status.EVICTED], what="an answer")
        assert transport.breaker is BreakerState.CLOSED

    def test_a_restart_between_two_batches_costs_nothing(self, transport, server):
        assert transport.execute("PING", deadline=soon()) == b"PONG"
        server.restart()
        assert transport.execute("PING", deadline=soon()) == b"PONG"


class TestBadServers:
    def test_a_deadline_in_the_past_asks_nobody(self):
        transport = Transport(ValkeyAddress(("127.0.0.1:1",)))
        with pytest.raises(DeadlineExceeded):
            transport.execute("PING", deadline=soon(-1))
        transport.close()

    def test_nobody_listening_is_unavailable(self):
        for seeds in (("127.0.0.1:1", "nonsense"), (), ("no.such.host.invalid:1",)):
            transport = Transport(ValkeyAddress(seeds))
            with pytest.raises(Unavailable):
                transport.execute("PING", deadline=soon())
            transport.close()

    def test_a_server_that_trickles_is_cut_off_at_the_deadline(self):
        def trickle(sock: socket.socket) -> None:
            sock.recv(1000)
            sock.sendall(b"$1064\r\n")
            for _ in range(1064):
                sock.sendall(b"x")
                time.sleep(0.03)

        with answering(trickle) as transport:
            started = time.monotonic()
            assert get(transport, [block_id(1)], [bytearray(1000)], deadline=soon(0.3)) == [
                Status.TIMEOUT
            ]
            assert time.monotonic() - started < LATE_S

    @pytest.mark.parametrize(
        "reply",
        [
            b"",
            b"\r\n",
            b"$12",
            b"$74\r\nshort",
            b"$74\r\n" + b"x" * 74 + b"??",
            b"$-7\r\n",
            b"$many\r\n",
            b"$%d\r\n" % ((80 << 20) + 1),
            b"*99999999999\r\n",
            b"*1\r\n" * 20,
            b"!weird\r\n",
            b"x" * 40_000,
        ],
    )
    def test_what_is_no_reply_ends_the_connection(self, reply: bytes):
        def say(sock: socket.socket) -> None:
            sock.recv(1000)
            sock.sendall(reply)

        with answering(say) as transport:
            transfer = transport.get(
                KEYS, [block_id(1)], [bytearray(10)], deadline=soon(5), touch=False
            )
            assert ended(transfer) == [Status.UNAVAILABLE]
            assert transport.counters()["connections_opened"] == 2  # it was tried again

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 70, 80, 1000])
    def test_replies_may_be_cut_anywhere(self, step: int):
        value = block_of(block_id(1), b"p" * 10)
        push = b">2\r\n+message\r\n:1\r\n"
        stream = b"$74\r\n%b\r\n%b$-1\r\n$3\r\nbad\r\n|1\r\n+a\r\n:1\r\n:0\r\n" % (value, push)

        def say(sock: socket.socket) -> None:
            sock.recv(1000)
            for at in range(0, len(stream), step):
                sock.sendall(stream[at : at + step])
                time.sleep(0.001)
            sock.recv(1)

        with answering(say) as transport:
            buffers = [bytearray(10) for _ in range(3)]
            statuses = get(transport, [block_id(i) for i in (1, 2, 3)], buffers)
            assert statuses == [Status.OK, Status.EVICTED, Status.CORRUPT]
            assert bytes(buffers[0]) == b"p" * 10

    @settings(deadline=None, max_examples=60)
    @given(noise=st.binary(max_size=300))
    def test_noise_never_fills_a_block_by_accident_nor_hangs(self, noise: bytes):
        def say(sock: socket.socket) -> None:
            sock.recv(1000)
            sock.sendall(noise)

        with answering(say) as transport:
            (status,) = get(transport, [block_id(1)], [bytearray(10)], deadline=soon(5))
            assert status not in (Status.OK, Status.TIMEOUT)


def test_a_connection_that_died_without_a_word_does_not_cost_the_deadline(clean_hot):
    provision(clean_hot)
    with CuttingProxy(clean_hot.port, ()) as proxy:
        transport = Transport(ValkeyAddress((f"127.0.0.1:{proxy.port}",)), connections=1)
        assert put(transport, [block_id(1)], [b"x" * MIB]) == [Status.OK]
        assert get(transport, [block_id(1)], [bytearray(MIB)]) == [Status.OK]
        proxy.fall_silent()
        assert get(transport, [block_id(1)], [bytearray(MIB)]) == [Status.OK]
        transport.close()


def test_a_call_that_a_function_refuses_is_misuse_and_opens_no_breaker(transport):
    keys = BucketKeys(7, 0).bookkeeping
    for _ in range(20):
        with pytest.raises(Misuse, match="TOOMANY"):
            transport.execute(
                "FCALL", "neve_touch", 7, *keys, *[block_id(1)] * 1001, deadline=soon()
            )
        with pytest.raises(Misuse, match="BADKEYS"):
            transport.execute("FCALL", "neve_touch", 7, *reversed(keys), deadline=soon())
    assert transport.breaker is BreakerState.CLOSED


def test_a_large_put_is_committed_in_parts(clean_hot, transport):
    """What is not yet committed is in nobody's quota, so it must not be much."""
    with clean_hot.client() as admin:
        ids = [block_id(n) for n in range(40)]
        before = admin.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"]
        assert set(put(transport, ids, [b"x" * MIB] * 40)) == {Status.OK}
        assert admin.info("commandstats")["cmdstat_fcall"]["calls"] - before == 5
