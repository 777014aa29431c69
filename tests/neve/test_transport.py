import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Closed, DeadlineExceeded, Unavailable
from neve.transport import (
    MAX_BULK_BYTES,
    Call,
    Get,
    Put,
    ReplyError,
    SocketTransport,
    ValkeyAddress,
    WrongLength,
)
from servers import ValkeyServer

HEADER = bytes(range(64))
MIB = 1 << 20


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def get(key: bytes, payload_bytes: int) -> Get:
    return Get(key, memoryview(bytearray(64)), memoryview(bytearray(payload_bytes)))


@pytest.fixture
def transport(clean_hot: ValkeyServer) -> Iterator[SocketTransport]:
    transport = SocketTransport(ValkeyAddress((f"127.0.0.1:{clean_hot.port}",)))
    yield transport
    transport.close()


@contextmanager
def answering(say: Callable[[socket.socket], None]) -> Iterator[SocketTransport]:
    """A transport to a server that lets `say` use each connection, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    with suppress(OSError):
                        say(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        transport = SocketTransport(ValkeyAddress((f"127.0.0.1:{listener.getsockname()[1]}",)))
        yield transport
        transport.close()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


class TestRealServer:
    pytestmark = pytest.mark.integration

    def test_a_batch_larger_than_any_buffer_comes_back_byte_for_byte(self, transport):
        sent = np.random.default_rng(1).integers(0, 256, (48, 2 * MIB), dtype=np.uint8)
        puts = [Put(b"k%d" % i, HEADER, memoryview(row)) for i, row in enumerate(sent)]
        assert transport.run(puts, deadline=soon(30)) == [b"OK"] * 48

        back = np.zeros_like(sent)
        headers = np.zeros((48, 64), dtype=np.uint8)
        gets = [
            Get(b"k%d" % i, memoryview(headers[i]), memoryview(back[i])) for i in range(len(back))
        ]
        results = transport.run([*gets, Call(["PING"])], deadline=soon(30))
        assert results == [2 * MIB + 64] * 48 + [b"PONG"]
        assert (back == sent).all()
        assert {row.tobytes() for row in headers} == {HEADER}

    def test_put_does_not_replace_and_expires_unless_committed(self, transport, clean_hot):
        first, second = memoryview(b"a" * 100), memoryview(b"b" * 100)
        results = transport.run(
            [Put(b"k", HEADER, first), Put(b"k", HEADER, second), Call(["PTTL", "k"])],
            deadline=soon(),
        )
        assert results[:2] == [b"OK", None]
        assert 0 < results[2] <= 60_000
        with clean_hot.client() as client:
            assert client.get("k") == HEADER + b"a" * 100

    def test_missing_and_ill_fitting_values_do_not_disturb_their_neighbours(self, transport):
        transport.run(
            [Put(b"short", HEADER, memoryview(b"x" * 10)), Call(["SADD", "set", "member"])],
            deadline=soon(),
        )
        missing, short, wrong, right, after = transport.run(
            [
                get(b"none", 10),
                get(b"short", 11),
                get(b"set", 10),
                get(b"short", 10),
                Call(["ECHO", "after"]),
            ],
            deadline=soon(),
        )
        assert missing is None
        assert isinstance(short, WrongLength)
        assert isinstance(wrong, ReplyError)
        assert wrong.code == "WRONGTYPE"
        assert right == 74
        assert after == b"after"

    def test_replies_of_every_shape(self, transport):
        results = transport.run(
            [
                Call(["EVAL", "return {1, {'a', 'b'}, {}}", 0]),
                Call(["EVAL", "return redis.error_reply('MY fault')", 0]),
                Call(["HELLO", 3]),
                Call(["EVAL", "redis.setresp(3); return {double=1.5}", 0]),
                Call(["GET", "nothing"]),
                Call(["CONFIG", "GET", "maxmemory-policy"]),
                Call(["EVAL", "redis.setresp(3); return true", 0]),
            ],
            deadline=soon(),
        )
        assert results[0] == [1, [b"a", b"b"], []]
        assert isinstance(results[1], ReplyError)
        assert results[1].code == "MY"
        assert results[3] == b"1.5"
        assert results[4] is None
        assert results[5] == [b"maxmemory-policy", b"noeviction"]
        assert results[6] is True

    def test_threads_share_a_transport(self, transport):
        def work(number: int) -> None:
            for i in range(20):
                value = b"%d-%d" % (number, i)
                done = transport.run([Call(["ECHO", value])], deadline=soon())
                answers.append(done == [value])

        answers: list[bool] = []
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [True] * 160

    def test_a_wrong_password_answers_for_every_operation(self, clean_hot):
        with clean_hot.client() as client:
            client.execute_command("ACL", "SETUSER", "t7", "on", ">right", "~{t7.*", "+get")
        seeds = (f"127.0.0.1:{clean_hot.port}",)
        transport = SocketTransport(ValkeyAddress(seeds, username="t7", password="wrong"))
        results = transport.run([Call(["GET", "{t7.00}x"])] * 2, deadline=soon())
        assert [error.code for error in results] == ["WRONGPASS"] * 2

        transport.readdress(ValkeyAddress(seeds, username="t7", password="right"))
        foreign, own = transport.run(
            [Call(["GET", "{t8.00}x"]), Call(["GET", "{t7.00}x"])], deadline=soon()
        )
        assert foreign.code == "NOPERM"
        assert own is None
        assert "right" not in repr(ValkeyAddress(seeds, password="right"))

    def test_a_unix_socket_is_an_address_too(self, tmp_path, monkeypatch):
        class OnSocket(ValkeyServer):
            def command(self) -> list[str]:
                return [*super().command(), "--unixsocket", str(tmp_path / "s")]

        with OnSocket(tmp_path):
            transport = SocketTransport(ValkeyAddress((f"unix:{tmp_path / 's'}",)))
            assert transport.run([Call(["PING"])], deadline=soon()) == [b"PONG"]

    def test_a_stopped_server_costs_no_more_than_the_deadline(self, tmp_path):
        with ValkeyServer(tmp_path) as server:
            transport = SocketTransport(ValkeyAddress((f"127.0.0.1:{server.port}",)))
            big = memoryview(bytes(4 * MIB))
            assert transport.run([Put(b"k", HEADER, big)], deadline=soon()) == [b"OK"]
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                for operations in (
                    [get(b"k", 4 * MIB)],
                    [Put(b"p%d" % i, HEADER, big) for i in range(8)],
                ):
                    started = time.monotonic()
                    results = transport.run(operations, deadline=soon(0.3))
                    assert time.monotonic() - started < 0.6
                    assert {type(result) for result in results} == {DeadlineExceeded}
                started = time.monotonic()
                transport.run([Call(["PING"])], deadline=soon(30))
                assert time.monotonic() - started < 3  # nothing moves: given up early
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            # Late replies of the old connection must not be taken for answers.
            assert transport.run([Call(["ECHO", "new"])], deadline=soon()) == [b"new"]

    def test_a_killed_server_is_unavailable_and_a_restarted_one_is_used_again(self, tmp_path):
        with ValkeyServer(tmp_path) as server:
            transport = SocketTransport(ValkeyAddress((f"127.0.0.1:{server.port}",)))
            assert transport.run([Call(["PING"])], deadline=soon()) == [b"PONG"]
            server.kill()
            (error,) = transport.run([Call(["PING"])], deadline=soon())
            assert isinstance(error, Unavailable)
            server.restart()
            assert transport.run([Call(["PING"])], deadline=soon()) == [b"PONG"]

    def test_after_close_nothing_runs(self, transport):
        transport.close()
        (error,) = transport.run([Call(["PING"])], deadline=soon())
        assert isinstance(error, Closed)


class TestBadServers:
    def test_a_deadline_in_the_past_asks_nobody(self):
        transport = SocketTransport(ValkeyAddress(("127.0.0.1:1",)))
        (error,) = transport.run([Call(["PING"])], deadline=soon(-1))
        assert isinstance(error, DeadlineExceeded)

    def test_nobody_listening_is_unavailable(self):
        transport = SocketTransport(ValkeyAddress(("127.0.0.1:1", "nonsense")))
        (error,) = transport.run([Call(["PING"])], deadline=soon())
        assert isinstance(error, Unavailable)

    def test_a_server_that_trickles_is_cut_off_at_the_deadline(self):
        def trickle(sock: socket.socket) -> None:
            sock.recv(100)
            sock.sendall(b"$1064\r\n")
            for _ in range(1064):
                sock.sendall(b"x")
                time.sleep(0.01)

        with answering(trickle) as transport:
            started = time.monotonic()
            (error,) = transport.run([get(b"k", 1000)], deadline=soon(0.3))
            assert time.monotonic() - started < 0.6
            assert isinstance(error, DeadlineExceeded)

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
            b"$%d\r\n" % (MAX_BULK_BYTES + 1),
            b"*99999999999\r\n",
            b"*1\r\n" * 20,
            b"!weird\r\n",
            b"x" * 40_000,
        ],
    )
    def test_what_is_no_reply_ends_the_connection(self, reply: bytes):
        def say(sock: socket.socket) -> None:
            sock.recv(100)
            sock.sendall(reply)

        with answering(say) as transport:
            (error,) = transport.run([get(b"k", 10)], deadline=soon(5))
            assert isinstance(error, Unavailable)

    @pytest.mark.parametrize("step", [1, 2, 3, 7, 70, 80])
    def test_replies_may_be_cut_anywhere(self, step: int):
        stream = b"$74\r\n" + b"h" * 64 + b"p" * 10 + b"\r\n$-1\r\n*2\r\n:7\r\n$2\r\nab\r\n+OK\r\n"

        def say(sock: socket.socket) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.recv(1000)
            for at in range(0, len(stream), step):
                sock.sendall(stream[at : at + step])
                time.sleep(0.001)

        with answering(say) as transport:
            hit, miss = get(b"k", 10), get(b"k", 10)
            results = transport.run([hit, miss, Call(["X"]), Call(["Y"])], deadline=soon())
            assert results == [74, None, [7, b"ab"], b"OK"]
            assert bytes(hit.header) + bytes(hit.payload) == b"h" * 64 + b"p" * 10

    @given(noise=st.binary(max_size=300))
    def test_noise_never_fills_a_block_by_accident_nor_hangs(self, noise: bytes):
        def say(sock: socket.socket) -> None:
            sock.recv(100)
            sock.sendall(noise)

        with answering(say) as transport:
            results = transport.run([get(b"k", 10), Call(["X"])], deadline=soon(5))
            assert len(results) == 2
            assert not isinstance(results[0], DeadlineExceeded)
