"""Measures tiers beside what this machine can do without Neve.

    python benchmarks/tiers.py [--dir /mnt/nvme] [--only local] [--rounds 7] [--json tiers.json]
                               [--model FOLDER]

local_vs_raw: a load from the local tier through the client (read, verify; the look-up is done),
over as many threads that only read the same files into the same buffers. hotkey_gain: 32 clients,
in 4 processes with a directory each (4 hosts), that load one shared prefix from one primary: bytes
a second with the local tier, over without, by turns. codec_…: benchmarks/codec.py, on one thread;
ratios are bytes before over after, of a model's KV with `--model`, of random numbers without;
int8_gbs is GB of plain KV that are decoded a second. Figures are medians over rounds, speeds of
codecs the best. Files are in the page cache unless `--drop` (root) empties it before each read.
class_move_vs_raw: see benchmarks/class_move.py. The last line has every figure. Only when asked for
(`--only reads`): how a disk is read best.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import codec  # noqa: E402
from ours import API_KEY, identity  # noqa: E402
from valkeys import Valkeys  # noqa: E402

from neve.datapath.client import BlockRef, Client  # noqa: E402
from neve.datapath.local import READERS  # noqa: E402
from neve.formats.block import HEADER_BYTES  # noqa: E402
from neve.index.library import load_functions  # noqa: E402
from neve.index.tier import BlockTerms, HotTier  # noqa: E402
from support.cache_endpoint import TENANT_ID, CacheEndpoint  # noqa: E402

DEADLINE_S = 60.0
READ_KIB = (64, 256, 1024, 4096)
TOKENS = 256
HOSTS, CLIENTS = 4, 8
FIGURES = (
    *("local_vs_raw", "class_move_vs_raw", "codec_int8_ratio", "codec_int8_gbs"),
    *("codec_zstd_ratio", "hotkey_gain"),
)


@dataclass(frozen=True)
class Settings:
    """`folder`: parent of the tiers' directories. `blocks` of `block_bytes` are one prefix."""

    folder: Path
    blocks: int
    block_bytes: int
    rounds: int
    drop: bool
    model: Path | None  # a Hugging Face folder


class Prefix:
    """One prefix, a client, and buffers to load it into."""

    def __init__(self, url: str, settings: Settings, folder: Path | None) -> None:
        size_bytes = 2 * settings.blocks * (HEADER_BYTES + settings.block_bytes)
        local: dict[str, Any] = {}
        if folder is not None:
            local = {"local_dir": str(folder), "local_bytes": size_bytes}
        self.client = Client.connect(
            url,
            API_KEY,
            identity(),
            node="benchmark",
            engine={"name": "benchmark", "version": "1"},
            **local,
        )
        root = self.client.hasher.root()
        tokens = np.random.default_rng(1).integers(0, 50_000, settings.blocks * TOKENS).tolist()
        self.ids = self.client.hasher.chain(tokens, parent=root)
        self.parents = [root, *self.ids[:-1]]
        self.back = np.ones((settings.blocks, settings.block_bytes), np.uint8)

    def store(self) -> None:
        data = np.random.default_rng(2).integers(0, 256, self.back.shape, np.uint8)
        refs = [BlockRef(*each, TOKENS) for each in zip(self.ids, self.parents, strict=True)]
        assert not any(self.client.put_many(refs, list(data), deadline_s=DEADLINE_S).wait(120))

    def load(self) -> float:
        """Seconds from the request to the last verified byte; the look-up before is not counted."""
        match = self.client.match(self.ids, deadline_s=DEADLINE_S)
        assert len(match.locations) == len(self.ids), match.miss
        began = time.perf_counter()
        transfer = self.client.get_many(
            self.ids, list(self.back), locations=match.locations, deadline_s=DEADLINE_S
        )
        missed = [reason for reason in transfer.wait(2 * DEADLINE_S) if reason is not None]
        assert not missed, f"{len(missed)} blocks were missed by {missed[0]}"
        return time.perf_counter() - began

    def admit(self) -> None:
        """Loads until the local tier, if there is one, has the whole prefix."""
        for _ in range(100):
            local = self.client.local
            if local is None or all(map(local.has, self.ids)):
                return
            self.load()
            local.flush(DEADLINE_S)
        raise TimeoutError("the local tier does not take the prefix")


def measure_local(url: str, settings: Settings) -> dict[str, float]:
    prefix = Prefix(url, settings, settings.folder / "local")
    prefix.store()
    prefix.admit()
    plain = Prefix(url, settings, None)
    paths = [str(next((settings.folder / "local").glob(f"*/*/*/{i.hex()}"))) for i in prefix.ids]
    threads = ThreadPoolExecutor(READERS)
    header = bytearray(HEADER_BYTES)

    def read(number: int) -> None:
        file = os.open(paths[number], os.O_RDONLY)
        os.preadv(file, [header, prefix.back[number]], 0)
        os.close(file)

    def raw() -> float:
        began = time.perf_counter()
        list(threads.map(read, range(len(paths))))
        return time.perf_counter() - began

    ways: dict[str, Callable[[], float]] = {"raw": raw, "local": prefix.load, "hot": plain.load}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.rounds + 1):  # the first warms up
        for name, way in ways.items():
            if settings.drop:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            took[name] += [way()][: min(turn, 1)]
    hits = prefix.client.stats.totals().counters["hit_local_blocks"]
    assert hits >= settings.rounds * settings.blocks, "the local tier was not read"
    for each in (prefix, plain):
        each.client.close()
    total = settings.blocks * settings.block_bytes
    for name, seconds in took.items():
        print(f"  {name:6} {total / 1e9 / statistics.median(seconds):6.2f} GB/s")
    pairs = zip(took["raw"], took["local"], strict=True)
    return {"local_vs_raw": statistics.median(one / other for one, other in pairs)}


def measure_hotkey(url: str, settings: Settings) -> dict[str, float]:
    first = Prefix(url, settings, None)
    first.store()
    first.client.close()
    spawn = multiprocessing.get_context("spawn")
    barrier, hits = spawn.Barrier(HOSTS + 1), spawn.Value("q", 0)
    hosts = [
        spawn.Process(
            target=_host, args=(url, settings, settings.folder / f"host{n}", barrier, hits)
        )
        for n in range(HOSTS)
    ]
    for host in hosts:
        host.start()
    barrier.wait(600)  # every prefix is admitted
    took: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(settings.rounds):
        for seconds in took.values():  # in turn, so that both meet the same load
            barrier.wait(600)
            began = time.perf_counter()
            barrier.wait(600)
            seconds.append(time.perf_counter() - began)
    for host in hosts:
        host.join(60)
        assert host.exitcode == 0
    total = HOSTS * CLIENTS * settings.blocks * settings.block_bytes
    for name, seconds in took.items():
        rate = total / 1e9 / statistics.median(seconds)
        print(f"  {name:8} {rate:6.2f} GB/s to {HOSTS * CLIENTS} clients")
    share = hits.value / (HOSTS * CLIENTS * settings.blocks * settings.rounds)
    print(f"  {share:.0%} of the latter's blocks came from the local tier")
    gains = [one / other for one, other in zip(*took.values(), strict=True)]
    print(f"  gain of each pair {' '.join(f'{gain:.2f}' for gain in gains)}")
    return {"hotkey_gain": statistics.median(gains)}


def _host(url: str, settings: Settings, folder: Path, barrier: Barrier, hits: Any) -> None:
    """One host's clients, a thread each: pairs without and with a local tier, one buffer a pair."""
    plain = [Prefix(url, settings, None) for _ in range(CLIENTS)]
    local = [Prefix(url, settings, folder) for _ in range(CLIENTS)]
    for one, other in zip(plain, local, strict=True):
        other.back = one.back
    local[0].admit()
    for prefix in local[1:]:
        while (tier := prefix.client.local) and not all(map(tier.has, prefix.ids)):
            time.sleep(0.1)  # until it has looked into the directory
    before = sum(map(_local_blocks, local))
    barrier.wait(600)
    with ThreadPoolExecutor(CLIENTS) as threads:
        for prefixes in [plain, local] * settings.rounds:
            barrier.wait(600)
            try:
                list(threads.map(Prefix.load, prefixes))
            except BaseException:
                barrier.abort()  # nobody waits for us
                raise
            barrier.wait(600)
    with hits:
        hits.value += sum(map(_local_blocks, local)) - before
    closing = [threading.Thread(target=prefix.client.close) for prefix in plain + local]
    for each in closing:
        each.start()
    for each in closing:
        each.join()


def measure_class_move(url: str, settings: Settings) -> dict[str, float]:
    """In a process of its own, which is a platform with two S3 servers."""
    command = [sys.executable, str(ROOT / "benchmarks/class_move.py")]
    command += ["--rounds", str(settings.rounds)]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    *_, speeds, last = done.stdout.splitlines()
    print(f"  {speeds}")
    return {"class_move_vs_raw": float(last.rpartition("class_move_vs_raw=")[2])}


def measure_codecs(_url: str, settings: Settings) -> dict[str, float]:
    size_mib = settings.blocks * settings.block_bytes >> 20
    results, memcpy, words = codec.measure(
        folder=settings.model, mib=max(1, size_mib), rounds=settings.rounds
    )
    print(f"  {words}, one thread; memcpy {memcpy:.2f} GB/s")
    for each in results:
        print(
            f"  {each.name:6} {each.ratio:6.2f} × smaller, error {each.error:.4f}, "
            f"encodes {each.encode:.2f} and decodes {each.decode:.2f} GB/s"
        )
    by_name = {each.name: each for each in results}
    return {
        "codec_int8_ratio": by_name["int8"].ratio,
        "codec_int8_gbs": by_name["int8"].decode,
        "codec_zstd_ratio": by_name["zstd"].ratio,
    }


def _local_blocks(prefix: Prefix) -> int:
    return prefix.client.stats.totals().counters["hit_local_blocks"]


def measure_reads(url: str, settings: Settings) -> dict[str, float]:
    """How a disk is read best: buffered pread, O_DIRECT and io_uring by fio (apt-get install fio),
    files of one block each, READERS threads, the page cache empty and full."""
    if shutil.which("fio") is None:
        print("  left out: needs fio (apt-get install fio)")
        return {}
    ways = {
        "pread, cached": ("psync", 0, 0),
        "pread": ("psync", 0, 1),
        "pread, O_DIRECT": ("psync", 1, 1),
        "io_uring": ("io_uring", 0, 1),
        "io_uring, O_DIRECT": ("io_uring", 1, 1),
    }
    print(f"  {'MB/s':20}" + "".join(f"{kib:>8} KiB" for kib in READ_KIB))
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(settings.rounds):
        for kib in READ_KIB:
            for name, (engine, direct, drop) in ways.items():
                rate = _fio(settings, kib, engine=engine, direct=direct, drop=drop)
                found.setdefault((name, kib), []).append(rate)
    for name in ways:
        rates = [statistics.median(found[name, kib]) for kib in READ_KIB]
        print(f"  {name:20}" + "".join(f"{rate:12.0f}" for rate in rates))
    return {}


def _fio(settings: Settings, kib: int, *, engine: str, direct: int, drop: int) -> float:
    """MB/s of one pass over all files."""
    total_kib = settings.blocks * settings.block_bytes >> 10
    command = ["fio", f"--name=read{kib}", f"--directory={settings.folder}", "--output-format=json"]
    command += ["--rw=read", f"--bs={min(kib, 256)}k", f"--ioengine={engine}", f"--direct={direct}"]
    command += ["--iodepth=4"] if engine == "io_uring" else []
    command += [f"--numjobs={READERS}", "--thread", "--group_reporting"]
    files = total_kib // READERS // kib
    command += [f"--nrfiles={files}", f"--filesize={kib}k", "--openfiles=1"]
    command += ["--file_service_type=sequential", f"--invalidate={drop}", "--randrepeat=0"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    return float(job["read"]["bw_bytes"]) / 1e6


PARTS: dict[str, Callable[[str, Settings], dict[str, float]]] = {
    "local": measure_local,
    "codec": measure_codecs,
    "hotkey": measure_hotkey,
    "class_move": measure_class_move,
    "reads": measure_reads,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="/dev/shm", help="where the directories are made")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--block-kib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--drop", action="store_true", help="empty the page cache before each read")
    parser.add_argument("--model", type=Path, help="for codecs; needs transformers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {loads}, files in {options.dir}")
    for name in options.only or [part for part in PARTS if part != "reads"]:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="neve-tiers-") as folder:
            settings = Settings(
                Path(folder),
                options.blocks,
                options.block_kib << 10,
                options.rounds,
                options.drop,
                options.model,
            )
            print(f"{name}: {settings.blocks} blocks of {options.block_kib} KiB")
            with (
                Valkeys(1) as servers,
                CacheEndpoint(f"127.0.0.1:{servers.ports[0]}", heartbeat_s=5) as endpoint,
            ):
                _provision(servers, 4 * settings.blocks * settings.block_bytes)
                figures |= PARTS[name](endpoint.url, settings)
    if options.json:
        options.json.write_text(json.dumps(figures))
    shown = [f"{name}={figures[name]:.2f}" for name in FIGURES if name in figures]
    print("tiers", *shown)


def _provision(servers: Any, hot_bytes: int) -> None:
    import valkey

    with valkey.Valkey(port=servers.ports[0]) as client:
        load_functions(client)
        hot = HotTier(client.execute_command, TENANT_ID, 1)
        terms = BlockTerms(flush_after_s=None)
        hot.set_policy(hot_bytes=hot_bytes, cold_bytes=1 << 30, terms=terms)


if __name__ == "__main__":
    main()
