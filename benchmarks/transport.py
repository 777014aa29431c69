"""How fast blocks move: the client, beside raw sockets and a plain valkey-py, in one run.

    python benchmarks/transport.py [--connections 2] [--blocks 128] [--block-kib 2048]

Everything is on loopback, so the servers use the same cores as the client. Rows are measured in
turn, round by round, so that a slow moment of the machine hits all alike; medians are printed.
Puts go into an empty Valkey (its memory is fresh each round), gets read what stands there.
`get_many` and `put_many` include what a node needs: checksums, commit, touch.
"""

import argparse
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cache_endpoint import API_KEY, TENANT_ID, CacheEndpoint  # noqa: E402
from neve.block import HEADER_BYTES, checksum  # noqa: E402
from neve.client import BlockRef, Client  # noqa: E402
from neve.hot import HotTier, Location, Tier, load_functions  # noqa: E402
from neve.keys import BucketKeys  # noqa: E402
from neve.space import SpaceIdentity  # noqa: E402
from servers import ValkeyServer  # noqa: E402

ROUNDS = 5
PEER_CHUNK_BYTES = 1 << 20


def identity(payload_bytes: int) -> SpaceIdentity:
    return SpaceIdentity(
        model="benchmark",
        revision="1",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        layout="benchmark",
        layout_version=1,
        engine_block_tokens=256,
        bytes_per_token=payload_bytes // 256,
    )


def peer(port: int, streams: int) -> None:
    """The other end of the raw rows: sends or swallows as many bytes as each stream asks for."""
    buffer = memoryview(bytearray(PEER_CHUNK_BYTES))

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        while request := sock.recv(16, socket.MSG_WAITALL):
            left = int(request[1:])
            while left:
                part = buffer[: min(left, len(buffer))]
                left -= sock.send(part) if request[:1] == b"g" else sock.recv_into(part)
            if request[:1] == b"p":
                sock.sendall(b"!")

    with socket.create_server(("127.0.0.1", port)) as listener:
        threads = [
            threading.Thread(target=serve, args=(listener.accept()[0],)) for _ in range(streams)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Raw:
    """`streams` sockets that move the same bytes with nothing else to do."""

    def __init__(self, port: int, streams: int) -> None:
        self.streams = [self._connect(port) for _ in range(streams)]

    @staticmethod
    def _connect(port: int) -> socket.socket:
        deadline = time.monotonic() + 10
        while True:
            try:
                sock = socket.create_connection(("127.0.0.1", port))
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
            return sock

    def get(self, rows: np.ndarray) -> None:
        self._each(rows, self._get)

    def put(self, rows: np.ndarray) -> None:
        self._each(rows, self._put)

    def _each(self, rows: np.ndarray, act: Callable[[socket.socket, np.ndarray], None]) -> None:
        parts = np.array_split(rows, len(self.streams))
        threads = [
            threading.Thread(target=act, args=pair)
            for pair in zip(self.streams, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @staticmethod
    def _get(sock: socket.socket, rows: np.ndarray) -> None:
        sock.sendall(b"g%015d" % rows.nbytes)
        for row in rows:
            view = memoryview(row)
            while view:
                view = view[sock.recv_into(view) :]

    @staticmethod
    def _put(sock: socket.socket, rows: np.ndarray) -> None:
        sock.sendall(b"p%015d" % rows.nbytes)
        for row in rows:
            sock.sendall(row)
        sock.recv(1)


def timed(action: Callable[[], object], size: int) -> float:
    """GB/s (10⁹ bytes)."""
    started = time.perf_counter()
    action()
    return size / (time.perf_counter() - started) / 1e9


def note(rows: dict[str, list[float]], number: int, name: str, figure: float) -> None:
    """Keeps a round's figure; round 0 only warms up."""
    if number:
        rows.setdefault(name, []).append(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--block-kib", type=int, default=2048)
    options = parser.parse_args()
    payload = options.block_kib << 10
    size = options.blocks * payload
    random = np.random.default_rng(1)
    sent = random.integers(0, 256, (options.blocks, payload), dtype=np.uint8)
    back = np.zeros_like(sent)
    with tempfile.TemporaryDirectory() as folder:
        with ValkeyServer(Path(folder), maxmemory=str(4 * size)) as valkey:
            rows = measure(options.connections, valkey, sent, back)
            with valkey.client() as admin:
                version = admin.info("server").get("valkey_version", "?")
    print(
        f"{options.blocks} blocks of {options.block_kib} KiB, {options.connections} streams, "
        f"{os.cpu_count()} cores, Valkey {version}, Python {platform.python_version()}, "
        f"median of {ROUNDS}"
    )
    for name, figures in rows.items():
        low, high = min(figures), max(figures)
        middle = statistics.median(figures)
        print(f"{name:32} {middle:6.2f} GB/s   ({low:.2f} … {high:.2f})")


def measure(
    connections: int, valkey: ValkeyServer, sent: np.ndarray, back: np.ndarray
) -> dict[str, list[float]]:
    """GB/s of each row, round by round. Raises `RuntimeError` when a block did not come back."""
    size, payload = sent.nbytes, sent.shape[1]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = multiprocessing.Process(target=peer, args=(port, connections), daemon=True)
    process.start()
    admin = valkey.client()
    load_functions(admin)
    hot = HotTier(admin.execute_command, TENANT_ID)
    hot.set_policy(hot_bytes=1 << 40, cold_bytes=0, flush_after_s=None, ttl_s=None)
    rows: dict[str, list[float]] = {}
    with CacheEndpoint(f"127.0.0.1:{valkey.port}", heartbeat_s=60) as endpoint:
        client = Client.connect(
            endpoint.url,
            API_KEY,
            identity(payload),
            node="benchmark",
            engine={"name": "benchmark", "version": "1"},
            connections=connections,
            put_bytes_in_flight=4 * size,
        )
        raw = Raw(port, connections)
        ids = [i.to_bytes(16, "big") for i in range(1, len(sent) + 1)]
        blocks = [BlockRef(id_, bytes(16), 256) for id_ in ids]
        locations = [Location(Tier.HOT, HEADER_BYTES + payload)] * len(ids)
        keys = [BucketKeys(TENANT_ID, 0).block(client.session.space_id, id_) for id_ in ids]

        def get_many() -> None:
            transfer = client.get_many(ids, list(back), locations=locations, deadline_s=60)
            if any(transfer.wait()):
                raise RuntimeError("a block did not come back")

        def put_many() -> None:
            if any(client.put_many(blocks, list(sent), deadline_s=60).wait()):
                raise RuntimeError("a block was not stored")

        puts: dict[str, Callable[[], object]] = {
            "put  raw sockets": lambda: raw.put(sent),
            "put  put_many": put_many,
        }
        gets: dict[str, Callable[[], object]] = {
            "get  raw sockets": lambda: raw.get(back),
            "get  get_many": get_many,
            "get  valkey-py, one by one": lambda: [admin.get(key) for key in keys],
            "     checksum alone, one thread": lambda: [checksum(row) for row in sent],
        }
        for number in range(ROUNDS + 1):
            hot.evict(1 << 50)
            while admin.info("memory")["lazyfree_pending_objects"]:
                time.sleep(0.01)
            for name, action in puts.items():
                note(rows, number, name, timed(action, size))
        for number in range(ROUNDS + 1):
            for name, action in gets.items():
                back[:] = 0
                note(rows, number, name, timed(action, size))
                if action is get_many and not (back == sent).all():
                    raise RuntimeError("a block came back with other bytes")
        client.close()
    for sock in raw.streams:
        sock.close()
    process.join(5)
    admin.close()
    return rows


if __name__ == "__main__":
    main()
