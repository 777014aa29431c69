"""Compares readers of S3 segments: ranged GETs into the caller's buffers, many in flight.

    python benchmarks/coldread.py [--streams 8] [--range-mib 16] [--mib 128] [--rounds 5] [--tls]

One weed, one object of incompressible blocks of 2 MiB; all libraries read the same ranges, in turn
in each round. `neve` is our reader, the only one that verifies every block. `raw` is as many plain
loopback sockets (raw.c): the ceiling of this machine. Column "needs": the credentials on a node;
Neve gives nodes presigned addresses. Results and choice: docs/decisions/005-cold-reads.md.
"""

import argparse
import http.client
import json
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import urllib3

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
# Peers' packages (obstore) come last, so that they replace none of neve's.
sys.path += [str(path) for path in ROOT.glob(".venv-bench/lib/python*/site-packages")]

import obstore  # noqa: E402
from cold_blocks import make_blocks, read_blocks  # noqa: E402
from datapath import Child, compile_raw  # noqa: E402
from obstore.store import HTTPStore, S3Store  # noqa: E402
from valkeys import free_ports, run_s  # noqa: E402

from neve.datapath.cold import ColdReader  # noqa: E402
from neve.datapath.transfer import JobPool  # noqa: E402
from support.certificates import issue, make_ca  # noqa: E402
from support.servers import S3Server  # noqa: E402

KEY = "segment"
PIECE_BYTES = 1 << 18  # read size of the former Python reader

Ranges = list[tuple[int, int]]  # first byte, number of bytes


@dataclass(frozen=True)
class Place:
    """Where the object is. `ca`: file of the certificate authority; None without TLS."""

    server: S3Server
    bucket: str
    streams: int
    ca: Path | None

    @property
    def endpoint(self) -> str:
        if self.ca is None:
            return self.server.endpoint
        return f"https://127.0.0.1:{self.server.https_port}"

    def client(self) -> Any:
        return self.server.client(endpoint=self.endpoint, verify=str(self.ca) if self.ca else None)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)


class Reader:
    """A library under test: each of `streams` threads reads one range at a time."""

    credentials = "presigned"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.threads = ThreadPoolExecutor(place.streams)
        self.url = str(
            place.client().generate_presigned_url(
                "get_object", Params={"Bucket": place.bucket, "Key": KEY}
            )
        )
        self.open()

    def open(self) -> None:
        pass

    def read(self, offset: int, view: memoryview) -> None:
        raise NotImplementedError

    def read_all(self, ranges: Ranges, target: memoryview) -> None:
        views = [target[first : first + size] for first, size in ranges]
        list(self.threads.map(self.read, [first for first, _ in ranges], views))


class Neve(Reader):
    """Our reader: plans the ranges itself, scatters the payloads, verifies each block."""

    def open(self) -> None:
        self.pool = JobPool(self.place.streams, "cold")
        self.reader = ColdReader(
            lambda numbers, timeout_s: (dict.fromkeys(numbers, self.url), 3600.0),
            ca_file=str(self.place.ca or ""),
        )

    def read_all(self, ranges: Ranges, target: memoryview) -> None:
        del ranges
        read_blocks(self.reader, self.pool, target, streams=self.place.streams)


class Boto3(Reader):
    """boto3, `readinto` of the streaming body."""

    credentials = "keys"

    def open(self) -> None:
        self.client = self.place.client()

    def read(self, offset: int, view: memoryview) -> None:
        span = f"bytes={offset}-{offset + len(view) - 1}"
        body = self.client.get_object(Bucket=self.place.bucket, Key=KEY, Range=span)["Body"]
        while view:
            view = view[body.readinto(view) :]
        body.close()


class Obstore(Reader):
    """obstore (Rust's object_store); its buffers are copied into ours."""

    credentials = "keys"

    def open(self) -> None:
        server = self.place.server
        self.store: Any = S3Store(
            self.place.bucket,
            endpoint=self.place.endpoint,
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
            region=server.region,
            client_options=self.options(),
            virtual_hosted_style_request=False,
        )

    def options(self) -> Any:
        """TLS options. obstore takes no CA file, so it skips verification: hardly cheaper."""
        return {"allow_http": True, "allow_invalid_certificates": True}

    def read(self, offset: int, view: memoryview) -> None:
        data = obstore.get_range(self.store, KEY, start=offset, length=len(view))
        np.frombuffer(view, np.uint8)[:] = np.frombuffer(data, np.uint8)


class ObstorePresigned(Obstore):
    """obstore's HTTP store over a presigned address: one store, thus one pool, per segment."""

    credentials = "presigned"

    def open(self) -> None:
        folder, _, query = self.url.partition(f"/{KEY}?")
        self.store = HTTPStore.from_url(f"{folder}?{query}", client_options=self.options())


class Urllib3(Reader):
    """urllib3, pieces copied into the buffer, like the former Python reader."""

    def open(self) -> None:
        self.pool = urllib3.PoolManager(
            maxsize=self.place.streams, retries=False, ssl_context=self.place.context()
        )

    def get(self, offset: int, size: int) -> Any:
        return self.pool.request(
            "GET",
            self.url,
            headers={"Range": f"bytes={offset}-{offset + size - 1}"},
            preload_content=False,
            decode_content=False,
        )

    def read(self, offset: int, view: memoryview) -> None:
        response = self.get(offset, len(view))
        filled = 0
        while filled < len(view):
            piece = response.read1(min(PIECE_BYTES, len(view) - filled))
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        response.drain_conn()
        response.release_conn()


class HttpClient(Reader):
    """http.client of the standard library: `readinto` receives into the caller's buffer."""

    def open(self) -> None:
        self.local = threading.local()
        parts = urlsplit(self.url)
        self.where, self.path = parts.netloc, f"{parts.path}?{parts.query}"

    def ask(self, offset: int, size: int) -> http.client.HTTPResponse:
        if not hasattr(self.local, "connection"):
            self.local.connection = (
                http.client.HTTPConnection(self.where)
                if self.place.ca is None
                else http.client.HTTPSConnection(self.where, context=self.place.context())
            )
        connection: http.client.HTTPConnection = self.local.connection
        span = f"bytes={offset}-{offset + size - 1}"
        connection.request("GET", self.path, headers={"Range": span})
        response = connection.getresponse()
        if response.status != 206:
            raise RuntimeError(f"S3 answered {response.status}")
        return response

    def read(self, offset: int, view: memoryview) -> None:
        response = self.ask(offset, len(view))
        while view:
            view = view[response.readinto(view) :]
        response.read()


class Recv(HttpClient):
    """http.client for the head, then one `recv` for the rest of the range (MSG_WAITALL).

    Takes the GIL once per range instead of once per piece. SO_RCVTIMEO would bound the wait.
    """

    def read(self, offset: int, view: memoryview) -> None:
        response = self.ask(offset, len(view))
        sock = self.local.connection.sock
        ahead = response.fp.peek()[: len(view)]  # body bytes that arrived with the head
        view[: len(ahead)] = ahead
        view = view[len(ahead) :]
        while view:
            view = view[sock.recv_into(view, len(view), socket.MSG_WAITALL) :]
        response.length = None
        response.close()


READERS: dict[str, type[Reader]] = {
    "neve": Neve,
    "boto3": Boto3,
    "obstore": Obstore,
    "obstore-http": ObstorePresigned,
    "urllib3": Urllib3,
    "http.client": HttpClient,
    "recv": Recv,
}


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def spinning() -> Iterator[None]:
    """Keep a Python thread of this process computing, as an engine does."""
    go_on = threading.Event()
    go_on.set()

    def spin() -> None:
        n = 0
        while go_on.is_set():
            for _ in range(10_000):
                n += 1

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        go_on.clear()
        thread.join()


def measure(
    options: argparse.Namespace, server: S3Server, ca: Path | None, raw: Child
) -> dict[str, Any]:
    size = options.mib << 20
    data = make_blocks(size)
    bucket = server.bucket("bench")
    server.client().put_object(Bucket=bucket, Key=KEY, Body=data.tobytes())
    part = options.range_mib << 20
    ranges = [(first, min(part, size - first)) for first in range(0, size, part)]
    target = np.zeros(size, np.uint8)
    place = Place(server, bucket, options.streams, ca)
    names = [name for name in options.only if ca is None or name != "recv"]
    readers = {name: READERS[name](place) for name in names}
    rows: dict[str, list[tuple[float, float, float]]] = {}
    assert server.process is not None
    for number in range(options.rounds + 1):
        for name in [*names[number % len(names) :], *names[: number % len(names)]]:
            reader = readers[name]
            if number:
                with spinning():
                    began = time.perf_counter()
                    reader.read_all(ranges, memoryview(target))
                    took_s = time.perf_counter() - began
                rows.setdefault(f"{name}, spin", []).append((size / took_s / 1e9, 0.0, 0.0))
            target[:] = 0
            began, cpu_before, server_before = (
                time.perf_counter(), cpu_s(), run_s(server.process.pid),
            )  # fmt: skip
            reader.read_all(ranges, memoryview(target))
            took_s = time.perf_counter() - began
            numbers = (
                size / took_s / 1e9,
                (cpu_s() - cpu_before) / size * 1e9,
                (run_s(server.process.pid) - server_before) / size * 1e9,
            )
            if not np.array_equal(target, data):
                raise RuntimeError(f"{name} read other bytes")
            if number:
                rows.setdefault(name, []).append(numbers)
        answer = raw.ask("get", 0.3, 1)
        if number:
            moved = answer["bytes"] / 1e9
            rows.setdefault("raw", []).append(
                (moved / answer["wall_s"], answer["cpu_s"] / moved, 0.0)
            )
    return {
        "options": {k: str(v) for k, v in vars(options).items()},
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "rows": rows,
        "credentials": {name: reader.credentials for name, reader in readers.items()},
    }


def table(result: dict[str, Any]) -> str:
    options, rows = result["options"], result["rows"]

    def middle(name: str, column: int) -> float:
        return statistics.median(row[column] for row in rows[name])

    lines = [
        f"{options['mib']} MiB in ranges of {options['range_mib']} MiB, {options['streams']} at a "
        f"time, {'https' if options['tls'] == 'True' else 'http'}; {result['cores']} cores, "
        f"load {result['load'][0]:.1f}, {options['rounds']} rounds",
        f"{'':12} {'GB/s':>6} {'min … max':>13} {'/raw':>5} {'CPU s/GB':>9} {'of weed':>8} "
        f"{'GB/s, spin':>11}  needs",
    ]
    for name in [name for name in (*READERS, "raw") if name in rows]:
        speeds = [row[0] for row in rows[name]]
        spin = f"{middle(f'{name}, spin', 0):.2f}" if name != "raw" else "—"
        lines.append(
            f"{name:12} {middle(name, 0):6.2f} {f'{min(speeds):.2f} … {max(speeds):.2f}':>13} "
            f"{middle(name, 0) / middle('raw', 0):5.2f} {middle(name, 1):9.2f} "
            f"{middle(name, 2):8.2f} {spin:>11}  {result['credentials'].get(name, '')}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--range-mib", type=int, default=16)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tls", action="store_true", help="https; raw stays plain")
    parser.add_argument("--only", nargs="*", default=list(READERS))
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    program, port = compile_raw(options.out), free_ports(1)[0]
    serve = subprocess.Popen([program, "serve", str(port), str(1 << 20)])
    try:
        time.sleep(0.1)
        sizes = [options.streams, 2 << 20, options.streams * 4]
        raw = Child("raw", [str(program), "client", str(port), *map(str, sizes)], dict(os.environ))
        raw.wait_ready()
        with tempfile.TemporaryDirectory() as name:
            folder, tls = Path(name), None
            if options.tls:
                make_ca(folder, "ca")
                issue(folder, "ca", "server", "IP:127.0.0.1")
                tls = (folder / "server.crt", folder / "server.key")
            with S3Server(folder, tls=tls) as server:
                result = measure(options, server, folder / "ca.crt" if tls else None, raw)
        raw.end()
    finally:
        serve.kill()
        serve.wait()
    (options.out / "coldread.json").write_text(json.dumps(result))
    print(table(result))


if __name__ == "__main__":
    main()
