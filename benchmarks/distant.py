"""Cold reads from a store far away: TLS and a round trip of 20 ms in front of weed.

    python benchmarks/distant.py [--mib 256] [--streams 16] [--round-trip-ms 20] [--stream-mbs 20]
                                 [--rounds 5] [--loads 100] [--stall-s 3] [--stall-gib 2]

A proxy (tests/support/distance.py) carries every connection; each gets at most `--stream-mbs`, as
one connection to S3 does. Two parts:

- `cold_vs_raw`: a load's speed against the faster of boto3 and urllib3, which read the same ranges
  on as many connections through the same proxy, in turn in each round, and verify nothing;
- `p99/median` of `--loads` loads, with and without second requests for late ranges
  (`neve.datapath.hedging`), in turn. Here the proxy stalls: about once in `--stall-gib` of what it
  carries, one connection pauses for `--stall-s`.

Server, proxy and readers share this machine: what it can do bounds all of them.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from cold_blocks import make_blocks, read_blocks  # noqa: E402

from neve.datapath.cold import RANGE_BYTES, ColdReader  # noqa: E402
from neve.datapath.transfer import JobPool  # noqa: E402
from neve.node.stats import Stats  # noqa: E402
from support.certificates import issue, make_ca  # noqa: E402
from support.distance import Distance  # noqa: E402
from support.servers import S3Server  # noqa: E402

KEY = "segment"
Read = Callable[[memoryview], None]


class Store:
    """weed's object through one proxy."""

    def __init__(self, server: S3Server, bucket: str, port: int, ca: Path, streams: int) -> None:
        self.streams, self.ca = streams, str(ca)
        endpoint = f"https://127.0.0.1:{port}"
        self.client = server.client(endpoint=endpoint, verify=self.ca)
        self.client.meta.config.max_pool_connections = streams
        self.bucket = bucket
        self.url = str(
            self.client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": KEY}, ExpiresIn=7200
            )
        )
        self._threads = ThreadPoolExecutor(streams)
        self._plain = urllib3.PoolManager(maxsize=streams, block=True, ca_certs=self.ca)

    def neve(self, *, hedged: bool, stats: Stats | None = None) -> tuple[ColdReader, Read]:
        reader = ColdReader(
            lambda numbers, _: (dict.fromkeys(numbers, self.url), 3600.0),
            ca_file=self.ca,
            stats=stats,
            hedged=hedged,
        )
        pool = JobPool(self.streams, "cold")
        return reader, lambda target: read_blocks(reader, pool, target, streams=self.streams)

    def boto3(self, target: memoryview) -> None:
        def read(first: int, view: memoryview) -> None:
            span = f"bytes={first}-{first + len(view) - 1}"
            body = self.client.get_object(Bucket=self.bucket, Key=KEY, Range=span)["Body"]
            _fill(body, view)

        self._share(read, target)

    def urllib3(self, target: memoryview) -> None:
        def read(first: int, view: memoryview) -> None:
            span = {"Range": f"bytes={first}-{first + len(view) - 1}"}
            answer = self._plain.request("GET", self.url, headers=span, preload_content=False)
            _fill(answer, view)
            answer.release_conn()

        self._share(read, target)

    def _share(self, read: Callable[[int, memoryview], None], target: memoryview) -> None:
        size = min(RANGE_BYTES, max(4 << 20, len(target) // self.streams))
        firsts = range(0, len(target), size)
        list(self._threads.map(read, firsts, [target[each : each + size] for each in firsts]))


def _fill(body: Any, view: memoryview) -> None:
    while len(view):
        count = body.readinto(view[: 1 << 20])
        if not count:
            raise RuntimeError("the range ended early")
        view = view[count:]


def timed_s(read: Read, target: np.ndarray, data: np.ndarray) -> float:
    target[:] = 0
    began = time.perf_counter()
    read(memoryview(target))
    took_s = time.perf_counter() - began
    if not np.array_equal(target, data):
        raise RuntimeError("other bytes were read")
    return took_s


def compare(store: Store, data: np.ndarray, rounds: int) -> dict[str, Any]:
    """Speeds in GB/s of a reader that hedges as on nodes, and of the raw ones."""
    reader, neve = store.neve(hedged=True)
    reads: dict[str, Read] = {"neve": neve, "boto3": store.boto3, "urllib3": store.urllib3}
    target, took = np.zeros(len(data), np.uint8), {name: [] for name in reads}
    for number in range(rounds + 1):  # the first one connects
        names = list(reads)
        for name in names[number % 3 :] + names[: number % 3]:
            took_s = timed_s(reads[name], target, data)
            took[name] += [took_s] if number else []
    reader.close()
    rates = {
        name: {
            "gb_s": len(data) / 1e9 / statistics.median(each),
            "least": len(data) / 1e9 / max(each),
            "most": len(data) / 1e9 / min(each),
        }
        for name, each in took.items()
    }
    best = max(rates["boto3"]["gb_s"], rates["urllib3"]["gb_s"])
    return {"rates": rates, "cold_vs_raw": rates["neve"]["gb_s"] / best}


def stalled(store: Store, data: np.ndarray, loads: int) -> dict[str, Any]:
    """Times of loads with and without second requests, while some connections stall."""
    target, found = np.zeros(len(data), np.uint8), {}
    stats = {True: Stats(), False: Stats()}
    made = {hedged: store.neve(hedged=hedged, stats=stats[hedged]) for hedged in (True, False)}
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(loads + 2):  # two loads teach how long ranges take
        for hedged, (_, read) in made.items():
            took_s = timed_s(read, target, data)
            took[hedged] += [took_s] if number > 1 else []
    for hedged, (reader, _) in made.items():
        times = sorted(took[hedged])
        median, p99 = statistics.median(times), times[min(loads - 1, round(0.99 * loads))]
        fetched = stats[hedged].totals().counters["cold_fetched_bytes"]
        found["hedged" if hedged else "plain"] = {
            "median_s": median,
            "p99_s": p99,
            "most_s": times[-1],
            "p99_vs_median": p99 / median,
            "second_requests": reader.hedges.begun if reader.hedges else 0,
            "won": reader.hedges.won if reader.hedges else 0,
            "more_bytes": fetched / (len(data) * (loads + 2)) - 1,
        }
        reader.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="of one load")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--stream-mbs", type=float, default=20, help="MB/s of one connection")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=int, default=100, help="0: without the second part")
    parser.add_argument("--stall-s", type=float, default=3.0)
    parser.add_argument("--stall-gib", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("var/bench"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = make_blocks(options.mib << 20)
    way = {
        "round_trip_s": options.round_trip_ms / 1000,
        "stream_bytes_per_s": options.stream_mbs * 1e6,
    }
    result: dict[str, Any] = {"load_average": os.getloadavg(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca = make_ca(folder, "ca")
        issue(folder, "ca", "server", "IP:127.0.0.1")
        with S3Server(folder, tls=(folder / "server.crt", folder / "server.key")) as server:
            bucket = server.bucket("bench")
            server.client().put_object(Bucket=bucket, Key=KEY, Body=data.tobytes())
            with Distance(server.https_port, **way) as far:
                store = Store(server, bucket, far.port, ca, options.streams)
                result |= compare(store, data, options.rounds)
            if options.loads:
                stalls = {"stall_s": options.stall_s, "stall_bytes": options.stall_gib * 2**30}
                with Distance(server.https_port, **way, **stalls) as far:
                    store = Store(server, bucket, far.port, ca, options.streams)
                    result |= stalled(store, data, options.loads)
    (options.out / "distant.json").write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{options.mib} MiB on {options.streams} connections of {options.stream_mbs:g} MB/s, TLS, "
        f"round trip {options.round_trip_ms:g} ms; {os.cpu_count()} cores, load "
        f"{result['load_average'][0]:.1f}"
    )
    for name, rate in result["rates"].items():
        print(f"{name:8} {rate['gb_s']:.3f} GB/s ({rate['least']:.3f} … {rate['most']:.3f})")
    line = f"distant cold_vs_raw={result['cold_vs_raw']:.2f}"
    for name in ("plain", "hedged"):
        if each := result.get(name):
            print(
                f"{name:8} median {each['median_s']:.3f} s, p99 {each['p99_s']:.3f} s, most "
                f"{each['most_s']:.3f} s; {each['second_requests']} second requests, {each['won']} "
                f"first to be whole, {each['more_bytes']:.1%} more bytes"
            )
            line += f" {name}_p99_vs_median={each['p99_vs_median']:.2f}"
    print(line)


if __name__ == "__main__":
    main()
