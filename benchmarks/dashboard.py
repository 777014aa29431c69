"""Pages of a large platform: server time, bytes and SQL statements of each, and how live they stay.

    .venv/bin/python benchmarks/dashboard.py [--quick] [--postgres URL] [--json FILE]

Fills a database with 60 tenants, 500 nodes and 100,000 contexts, and runs one web process over it,
as `make up` does, with its own Valkeys. Then:

1. each page is asked for, one after the other, with nothing else running: time at the client,
   processor time of the web process and its children (which a busy machine changes little), bytes
   as sent and compressed, SQL statements;
2. for `--seconds`, 500 nodes send heartbeats over HTTP and 200 browser sessions hold a WebSocket
   each, that of their page, and fetch as `static/dashboard/live.js` does: on a hint, at most once a
   second. A page shows a heartbeat of a tenant that it sees once it got an answer whose computation
   began after the heartbeat was acknowledged (`Neve-Computed`); pages without figures of nodes hear
   of none and do not count. Meanwhile somebody opens a whole page each half second.

Everything shares this machine: clients, Valkey, S3 and web process. The load is printed.
"""

import argparse
import asyncio
import gzip
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import websockets  # noqa: E402

from support.servers import ControlPlane, S3Server  # noqa: E402

LEAST_BETWEEN_S, MOST_BETWEEN_S = 1.0, 10.0  # of live.js
USAGE = "/usage"  # end of the address of a socket that hears of heartbeats
FILL = (
    "import sys; sys.path[:0] = ['tests', 'benchmarks']; import dashboard_rows; "
    "dashboard_rows.fill(tenants={tenants}, nodes={nodes}, contexts={contexts}, people={people}, "
    "out={out!r})"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the rows, 8 s")
    parser.add_argument("--tenants", type=int, default=60)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--page-processes", type=int, default=2, help="NEVE_PAGE_PROCESSES")
    parser.add_argument("--heartbeat-s", type=float, default=10.0, help="of each node")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--requests", type=int, default=30, help="of each page, one by one")
    parser.add_argument("--postgres", default="", help="URL of a PostgreSQL server")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    asked = parser.parse_args()
    if asked.quick:
        asked.tenants, asked.nodes, asked.contexts, asked.people = 6, 20, 2000, 20
        asked.seconds, asked.requests, asked.heartbeat_s = 8.0, 5, 2.0
    return asked


class Http:
    """One kept-open connection, as a browser's. One request at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        if self.streams is not None and self.streams[0].at_eof():
            self.streams[1].close()  # the server closed it while it was idle
            self.streams = None
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        reader, writer = self.streams
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}"] if body else []
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split()[1])
            answered = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head[1:] if line)
            }
            if "chunked" in answered.get("transfer-encoding", ""):
                content = b""
                while size := int(await reader.readline(), 16):
                    content += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            else:
                content = await reader.readexactly(int(answered.get("content-length", 0)))
        except BaseException:
            writer.close()
            self.streams = None
            raise
        return status, answered, content


class Viewer:
    """A browser session that keeps one page open."""

    def __init__(self, port: int, cookie: str, path: str, socket: str, beats: list[float]) -> None:
        self.http, self.port, self.cookie, self.path = Http(port), port, cookie, path
        self.socket = socket
        self.beats = beats  # when heartbeats that it shows were acknowledged, Unix s
        self.seq, self.shown_ms, self.asked_at = 0, 0, 0.0
        self.etag = ""
        self.wanted = asyncio.Event()
        self.lags: list[float] = []
        self.took: list[float] = []
        self.bytes = self.answers = self.unchanged = self.failures = self.closed = 0

    async def run(self, end: float) -> None:
        listening = asyncio.create_task(self._listen(end))
        while time.time() < end:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(MOST_BETWEEN_S, max(end - time.time(), 0.01))):
                    await self.wanted.wait()
            wait_s = self.asked_at + LEAST_BETWEEN_S - time.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self.wanted.clear()
            if time.time() < end:
                await self._refresh()
        listening.cancel()

    async def _listen(self, end: float) -> None:
        headers = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}"}
        while time.time() < end:
            with suppress(OSError, websockets.WebSocketException):
                async with websockets.connect(
                    f"ws://127.0.0.1:{self.port}{self.socket}", additional_headers=headers
                ) as socket:
                    async for message in socket:
                        self.seq = json.loads(message).get("seq", self.seq)
                        self.wanted.set()
            self.closed += 1
            await asyncio.sleep(random.uniform(0.75, 1.25))

    async def _refresh(self) -> None:
        self.asked_at = began = time.time()
        headers = {"Cookie": self.cookie, "Neve-Live": str(self.seq), "Accept-Encoding": "gzip"}
        if self.etag:
            headers["If-None-Match"] = self.etag
        try:
            async with asyncio.timeout(8):
                status, answered, body = await self.http.ask("GET", self.path, headers)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self.failures += 1
            self.wanted.set()
            return
        now = time.time()
        self.took.append(now - began)
        if status not in (200, 304):
            self.failures += 1
            return
        self.answers += 1
        self.unchanged += status == 304
        self.bytes += len(body)
        self.etag = answered.get("etag", "")
        computed_ms = int(answered.get("neve-computed", began * 1000))
        for beat in reversed(self.beats):  # those that this page shows for the first time
            if beat * 1000 <= self.shown_ms:
                break
            if beat * 1000 <= computed_ms:
                self.lags.append(now - beat)
        self.shown_ms = max(self.shown_ms, computed_ms)


async def beat(
    port: int, nodes: list[Any], every_s: float, end: float, beats: dict[int | None, list[float]]
) -> Counter[str]:
    """Heartbeats of all nodes, spread evenly, over 32 connections; returns failures by reason.
    `beats`: when they were acknowledged, by tenant and (None) all."""
    http, failures = [Http(port) for _ in range(32)], Counter[str]()
    free: asyncio.Queue[Http] = asyncio.Queue()
    for one in http:
        free.put_nowait(one)
    seqs = dict.fromkeys((session for session, *_ in nodes), 0)

    async def send(session: str, key: str, tenant: int) -> None:
        seqs[session] += 1
        counters = {"requested_tokens": 25_600, "hit_hot_tokens": 12_800, "requested_blocks": 100}
        counters |= {"hit_hot_blocks": 50, "hot_read_bytes": 100 << 20}
        body = {"seq": seqs[session], "counters": counters, "misses": {"never_stored": 50}}
        body |= {"load_ms": {"<=5": 10}, "breaker": "closed"}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        one = await free.get()
        try:
            path = f"/cache/v1/sessions/{session}/heartbeat"
            status, _, _ = await one.ask("POST", path, headers, json.dumps(body).encode())
            if status == 200:
                beats[tenant].append(time.time())
                beats[None].append(beats[tenant][-1])
            else:
                failures[str(status)] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            failures[type(error).__name__] += 1
        finally:
            free.put_nowait(one)

    tasks, number = set(), 0
    pause_s = every_s / len(nodes)
    began = time.time()
    while time.time() < end:
        task = asyncio.create_task(send(*nodes[number % len(nodes)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
        await asyncio.sleep(max(began + number * pause_s - time.time(), 0))
    await asyncio.gather(*tasks)
    return failures


async def ask_alone(
    platform: ControlPlane, cookie: str, path: str, requests: int
) -> dict[str, Any]:
    """Times of one page, asked for again and again, and the processor time that one costs."""
    http, found = Http(platform.port), {"s": []}
    await http.ask("GET", path, {"Cookie": cookie})  # templates are compiled once
    cpu_s = platform.cpu_s(with_children=True)
    for _ in range(requests):
        began = time.perf_counter()
        status, _, body = await http.ask("GET", path, {"Cookie": cookie})
        found["s"].append(time.perf_counter() - began)
    socket = re.search(r'data-socket="([^"]*)"', body.decode())
    found["socket"] = socket[1] if socket else ""
    found["cpu_ms"] = 1e3 * (platform.cpu_s(with_children=True) - cpu_s) / requests
    return found | {"status": status, "bytes": len(body), "zipped": len(gzip.compress(body, 6))}


async def warm(platform: ControlPlane, cookie: str, path: str, processes: int) -> None:
    """Returns once the processes that render pages have started, and are calm."""
    busy_s, cpu_s = 1.0, 0.0
    while busy_s > 0.1 or len(platform.children()) < processes:
        await Http(platform.port).ask("GET", path, {"Cookie": cookie})
        await asyncio.sleep(2)
        now_s = platform.cpu_s(with_children=True)
        busy_s, cpu_s = now_s - cpu_s, now_s


async def ask_pages(
    port: int, cookie: str, pages: dict[str, str], end: float
) -> dict[str, list[float]]:
    """Times of whole pages until `end`, of which somebody opens one each half second."""
    http, found = Http(port), {name: [] for name in pages}
    while True:
        for name, path in pages.items():
            if time.time() > end:
                return found
            began = time.perf_counter()
            await http.ask("GET", path, {"Cookie": cookie})
            found[name].append(time.perf_counter() - began)
            await asyncio.sleep(0.5)


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else float("nan")


async def live(
    platform: ControlPlane,
    told: dict[str, Any],
    sockets: dict[str, str],
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """The second part: heartbeats, viewers, and pages that somebody opens meanwhile.
    `sockets`: by path of the page."""
    pages, beats = told["pages"], defaultdict[int | None, list[float]](list)
    places = [path for name, path in pages.items() if not name.startswith("palette")]
    viewers = []
    for n, one in enumerate(told["viewers"]):  # half of them look at the overview
        path = places[0] if n % 4 < 2 or not one["is_operator"] else places[n // 4 % len(places)]
        cookie = f"{told['cookie']}={one['session']}"
        shown = beats[one["tenant"]] if sockets[path].endswith(USAGE) else []
        viewers.append(Viewer(platform.port, cookie, path, sockets[path], shown))
    cookie = viewers[0].cookie
    end = time.time() + asked.seconds
    cpu_s, hot_s = platform.cpu_s(with_children=True), platform.bus.cpu_s()
    own = sum(os.times()[:2])
    failed, under_load, *_ = await asyncio.gather(
        beat(platform.port, told["nodes"], asked.heartbeat_s, end, beats),
        ask_pages(platform.port, cookie, pages, end),
        *(one.run(end) for one in viewers),
    )
    answers = sum(one.answers for one in viewers)
    lags = [lag for one in viewers for lag in one.lags]
    took = [each for one in viewers for each in one.took]
    return {
        "heartbeats": len(beats[None]),
        "heartbeats_failed": failed,
        "answers": answers,
        "unchanged": sum(one.unchanged for one in viewers),
        "failures": sum(one.failures for one in viewers),
        "sockets_closed": sum(one.closed for one in viewers),
        "kb_each": sum(one.bytes for one in viewers) / max(answers, 1) / 1e3,
        "lag_s": {name: quantile(lags, part) for name, part in QUANTILES.items()},
        "answer_s": {name: quantile(took, part) for name, part in QUANTILES.items()},
        "late_2s": sum(lag > 2 for lag in lags) / max(len(lags), 1),
        "web_cores": (platform.cpu_s(with_children=True) - cpu_s) / asked.seconds,
        "bus_cores": (platform.bus.cpu_s() - hot_s) / asked.seconds,
        "client_cores": (sum(os.times()[:2]) - own) / asked.seconds,
        "pages": under_load,
    }


QUANTILES = {"p50": 0.5, "p99": 0.99, "worst": 1.0}


def main() -> None:
    asked = arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="neve-dashboard-") as folder, ExitStack() as stack:
        s3 = stack.enter_context(S3Server(Path(folder, "s3")))
        platform = ControlPlane(
            Path(folder, "web"), s3, maxmemory="1gb", postgres_url=asked.postgres
        )
        platform.settings |= {
            "HEARTBEAT_S": str(max(int(asked.heartbeat_s), 1)),
            "PAGE_PROCESSES": str(asked.page_processes),
        }
        stack.enter_context(platform)
        out, began = Path(folder, "told.json"), time.monotonic()
        call = FILL.format(**vars(asked), out=str(out))
        print(platform.manage("shell", "-v0", "-c", call, timeout_s=1800), end="", file=sys.stderr)
        told = json.loads(out.read_text())
        print(
            f"{asked.tenants} tenants, {asked.nodes} nodes, {asked.contexts:,} contexts, filled in "
            f"{time.monotonic() - began:.0f} s; {'PostgreSQL' if asked.postgres else 'SQLite'}; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        cookie = f"{told['cookie']}={told['viewers'][0]['session']}"
        asyncio.run(warm(platform, cookie, told["pages"]["overview"], asked.page_processes))
        quiet = {
            name: asyncio.run(ask_alone(platform, cookie, path, asked.requests))
            for name, path in told["pages"].items()
        }
        print(f"pages measured alone, load {os.getloadavg()[0]:.1f}")
        sockets = {path: quiet[name]["socket"] for name, path in told["pages"].items()}
        found = asyncio.run(live(platform, told, sockets, asked))
    print(f"\n{'page':18} {'p50':>5} {'p99':>5} {'CPU':>5} {'busy p50':>9} {'p99':>6}", end="")
    print(f" {'KB':>7} {'gzip':>6} {'SQL':>4}   (ms)")
    for name, row in quiet.items():
        busy = found["pages"][name]
        times = [1e3 * quantile(each, part) for each in (row["s"], busy) for part in (0.5, 0.99)]
        status = "" if row["status"] == 200 else f"  status {row['status']}"
        print(
            f"{name:18} {times[0]:5.0f} {times[1]:5.0f} {row['cpu_ms']:5.0f} {times[2]:9.0f}"
            f" {times[3]:6.0f} {row['bytes'] / 1e3:7.1f} {row['zipped'] / 1e3:6.1f}"
            f" {told['sql'][name]:4}{status}"
        )
    print(
        f"\n{asked.people} sessions, {asked.nodes} nodes each {asked.heartbeat_s:g} s, "
        f"{asked.seconds:g} s, load {os.getloadavg()[0]:.1f}: {found['heartbeats']} heartbeats "
        f"(failed: {dict(found['heartbeats_failed'])}), {found['answers']} answers "
        f"({found['unchanged']} unchanged, {found['failures']} failed), "
        f"{found['sockets_closed']} sockets closed, {found['kb_each']:.1f} KB each"
    )
    for name, words in (("lag_s", "heartbeat to page"), ("answer_s", "a live answer")):
        each = ", ".join(f"{key} {value:.2f} s" for key, value in found[name].items())
        print(f"{words}: {each}")
    print(
        f"later than 2 s: {100 * found['late_2s']:.2f} %; cores: web {found['web_cores']:.2f}, "
        f"valkey-bus {found['bus_cores']:.2f}, clients {found['client_cores']:.2f}"
    )
    if asked.json:
        asked.json.write_text(json.dumps({"pages": quiet, "sql": told["sql"], "live": found}))


if __name__ == "__main__":
    main()
