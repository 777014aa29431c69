"""Speed of blocks between this machine's memory and Valkey: neve and its peers in one run.

    python benchmarks/datapath.py [--primaries 1,4] [--blocks-kib 64,2048] [--rounds 5] ...
    QUICK=1 make bench-datapath

Servers and clients are separate processes on loopback. In each round all clients move the same
incompressible blocks in turn, so that a slow moment of the machine affects all alike. neve verifies
every block, commits and touches. Writes JSON, a table and a plot, explained in docs/benchmarks.md.
The last line of the output is always the headline, for blocks of 2 MiB.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from contestant import Plan  # noqa: E402
from report import headline, plot, table  # noqa: E402
from valkeys import Valkeys, die_with_parent, free_ports  # noqa: E402

from deploy.congestion import system_default  # noqa: E402
from neve.datapath.client import CONNECTIONS  # noqa: E402
from neve.formats.keys import BucketKeys  # noqa: E402
from neve.index.library import functions_source  # noqa: E402
from support.cache_endpoint import TENANT_ID, CacheEndpoint  # noqa: E402

BUCKETS_PER_PRIMARY: Final = 4  # of a cluster, as in the control plane
# Size of a batch per primary that has cores of its own. The hash spreads few blocks unevenly, and a
# batch ends when the busiest primary does.
BATCH_BYTES: Final = 64 << 20
CORES_PER_PRIMARY: Final = 4
BATCHES: Final = 4
BATCH_BLOCKS: Final = 512
OWN: Final = ("neve", "python")
RAW: Final = ("raw", "raw-cached", "raw-single")
PEERS: Final = ("naive", "libvalkey", "glide", "lmcache-resp")
MATCH_CALLS: Final = 1000
# `raw` moves as much memory as the blocks have: the ceiling for any client.
# `raw-cached` reuses these few bytes, which stay in the processor's cache: the kernel's ceiling.
# `raw-single` has one stream to each primary: as many sending threads as there are Valkeys.
CACHED_BYTES: Final = 1 << 20


@dataclass
class Options:
    primaries: list[int]
    blocks_kib: list[int]
    rounds: int
    seconds: float
    in_flight: int
    connections: int
    batch_bytes: int | None
    data_bytes: int | None
    contestants: list[str]
    out: Path
    peer_python: str
    torch_python: str
    lmcache: str
    valkey_options: dict[str, str]


@dataclass
class Row:
    """Results of one client and operation. Lists have one entry per round."""

    primaries: int
    block_kib: int
    operation: str  # get, put_warm, put_cold, get_quiet, get_spin
    contestant: str
    streams: int
    gb_per_s: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)
    server_cpu_s_per_gb: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)  # one batch at a time (get)

    def add(self, answer: dict[str, Any], server_cpu_s: float) -> None:
        moved_gb = answer["bytes"] / 1e9
        self.gb_per_s.append(moved_gb / answer["wall_s"])
        self.cpu_s_per_gb.append(answer["cpu_s"] / moved_gb)
        self.server_cpu_s_per_gb.append(server_cpu_s / moved_gb)


class Child:
    """A contestant's process (contestant_process.py). `skipped`: the reason if it did not start."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.skipped: str | None = None
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            assert self._process.stderr is not None
            lines = self._process.stderr.read().strip().splitlines()
            self.skipped = lines[-1] if lines else f"ended with {self._process.wait()}"

    def ask(self, *words: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise RuntimeError(f"{self.name} failed at {words}:\n{self._process.stderr.read()}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Cell:
    """All contestants over one set of servers with one block size."""

    def __init__(self, options: Options, valkeys: Valkeys, plan: Plan, raw: Path) -> None:
        self.options = options
        self.valkeys = valkeys
        self.plan = plan
        self.raw = raw
        self.rows: dict[tuple[str, str], Row] = {}
        self.children: dict[str, Child] = {}
        self.match_ms: dict[str, list[float]] = {}
        self.checked: dict[str, bool | None] = {}

    def run(self, *, with_spin: bool) -> None:
        with self._processes():
            self._put()
            self._fill()
            self._get()
            for name in [name for name in OWN if name in self.children]:
                self.checked[name] = self.children[name].ask("check")["same"]
                if not self.checked[name]:
                    raise RuntimeError(f"{name}: blocks came back with other bytes")
            if with_spin:
                self._spin()
                self._match()

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """Run the raw pair and all contestants."""
        with ExitStack() as stack:
            data_bytes = self.plan.blocks * self.plan.block_bytes
            commands = {}
            for port, name in zip(free_ports(len(RAW)), RAW, strict=True):
                streams = self._streams(name)
                span = CACHED_BYTES if name == "raw-cached" else data_bytes // streams
                serve = subprocess.Popen(
                    [self.raw, "serve", str(port), str(span)], preexec_fn=die_with_parent
                )
                stack.callback(serve.wait)
                stack.callback(serve.kill)
                sizes = [port, streams, self.plan.block_bytes, self.plan.batch_blocks]
                commands[name] = [str(self.raw), "client", *map(str, sizes)]
            time.sleep(0.1)
            for name in self.options.contestants:
                program = str(ROOT / "benchmarks/contestant_process.py")
                commands[name] = [self._python(name), program, name, self.plan.to_json()]
            children = {}
            for name, command in commands.items():
                children[name] = Child(name, command, self._environment(name))
                stack.callback(children[name].end)
            for child in children.values():
                child.wait_ready()
                if child.skipped is None:
                    self.children[child.name] = child
                else:
                    print(f"skipped {child.name}: {child.skipped}", flush=True)
            yield

    def _python(self, name: str) -> str:
        if name in OWN:
            return sys.executable
        is_torch = name == "lmcache-resp"
        return self.options.torch_python if is_torch else self.options.peer_python

    def _environment(self, name: str) -> dict[str, str]:
        paths = [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        if name == "lmcache-resp" and self.options.lmcache:
            paths.insert(1, self.options.lmcache)
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def _row(self, operation: str, name: str) -> Row:
        key = (operation, name)
        if key not in self.rows:
            kib = self.plan.block_bytes >> 10
            streams = self._streams(name)
            self.rows[key] = Row(len(self.plan.ports), kib, operation, name, streams)
        return self.rows[key]

    def _streams(self, name: str) -> int:
        each = 1 if name == "raw-single" else self.plan.connections
        return each * len(self.plan.ports)

    def _measure(self, operation: str, name: str, *words: object, count: bool) -> None:
        before = self.valkeys.cpu_s()
        answer = self.children[name].ask(*words)
        if count:
            self._row(operation, name).add(answer, self.valkeys.cpu_s() - before)

    def _turn(self, number: int) -> list[str]:
        """Order of a round. Each starts with another client: one may slow the next."""
        names = list(self.children)
        first = number % len(names)
        return names[first:] + names[:first]

    def _put(self) -> None:
        """Measure PUTs. Round 0 is a warm-up: it touches memory that even the kernel never used."""
        for number in range(self.options.rounds + 1):
            for name in self._turn(number):
                for temperature in ("cold", "warm"):
                    if temperature == "cold" and name not in (*OWN, "lmcache-resp"):
                        continue
                    self._empty(cold=temperature == "cold")
                    self._measure(
                        f"put_{temperature}", name,
                        "put", self.options.seconds, self.options.in_flight, count=number > 0,
                    )  # fmt: skip

    def _fill(self) -> None:
        """Store the blocks for all GETs, in neve's format."""
        self._empty(cold=False)
        first = next(name for name in OWN if name in self.children)
        self.children[first].ask("put", 0, 1)
        if self.valkeys.is_cluster and "lmcache-resp" in self.children:
            self.children["lmcache-resp"].ask("put", 0, 1)  # it reads blocks of its own

    def _get(self) -> None:
        for number in range(self.options.rounds + 1):
            for name in self._turn(number):
                child = self.children[name]
                seconds = self.options.seconds
                self._measure("get", name, "get", seconds, self.options.in_flight, count=number > 0)
                one_by_one = child.ask("get", seconds / 2, 1)["batch_s"]
                if number > 0:
                    self._row("get", name).batch_ms += [1e3 * s for s in one_by_one]

    def _spin(self) -> None:
        for number in range(self.options.rounds + 1):
            for name in [name for name in ("raw", *OWN) if name in self.children]:
                # Raw sockets run without Python: the thread computes in another process, which
                # shows the cost of a busy core without a busy GIL.
                own = next(own for own in OWN if own in self.children)
                spinner = self.children[own if name == "raw" else name]
                for operation in ("get_quiet", "get_spin"):
                    spinner.ask("spin", int(operation == "get_spin"))
                    self._measure(
                        operation, name, "get", self.options.seconds, self.options.in_flight,
                        count=number > 0,
                    )  # fmt: skip
                spinner.ask("spin", 0)

    def _match(self) -> None:
        for name in [name for name in OWN if name in self.children]:
            if name == "python" and self.valkeys.is_cluster:
                continue
            self._empty(cold=False)
            self.children[name].ask("match", 20)
            call_s = self.children[name].ask("match", MATCH_CALLS)["call_s"]
            self.match_ms[name] = [1e3 * s for s in call_s]

    def _empty(self, *, cold: bool) -> None:
        self.valkeys.empty(cold=cold)
        for bucket, home in enumerate(self.plan.homes):
            key = BucketKeys(self.plan.tenant_id, bucket).quota
            numbers = {"hot_bytes": 1 << 42, "cold_bytes": 0, "flush_after_s": -1, "ttl_s": 0}
            self.valkeys.clients[home].hset(key, mapping=numbers)


def compile_raw(folder: Path) -> Path:
    """Build raw.c, unless NEVE_BENCH_RAW names a build of it."""
    if ready := os.environ.get("NEVE_BENCH_RAW"):
        return Path(ready)
    program = folder / "raw"
    source = ROOT / "benchmarks/raw.c"
    command = ["cc", "-std=gnu11", "-O2", "-pthread", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def sizes(options: Options, primaries: int) -> tuple[int, int]:
    """(bytes of one batch, bytes of all blocks)."""
    with_cores = min(primaries, max(1, (os.cpu_count() or 1) // CORES_PER_PRIMARY))
    batch_bytes = options.batch_bytes or BATCH_BYTES * with_cores
    return batch_bytes, options.data_bytes or BATCHES * batch_bytes


def plan_of(options: Options, valkeys: Valkeys, block_kib: int, endpoint: CacheEndpoint) -> Plan:
    block_bytes = block_kib << 10
    batch_bytes, data_bytes = sizes(options, len(valkeys.ports))
    data_bytes = max(data_bytes, 4 * block_bytes)
    batch_blocks = max(2, min(BATCH_BLOCKS, min(batch_bytes, data_bytes // 2) // block_bytes))
    tags = [BucketKeys(TENANT_ID, n).tag for n in range(endpoint.buckets)]
    return Plan(
        block_bytes=block_bytes,
        batch_blocks=batch_blocks,
        batches=max(1, data_bytes // block_bytes // batch_blocks),
        ports=valkeys.ports,
        homes=[valkeys.home(tag) for tag in tags],
        tags=[tag.decode() for tag in tags],
        connections=options.connections,
        endpoint_url=endpoint.url,
        tenant_id=TENANT_ID,
        space_id=endpoint.space_id,
    )


def measure(options: Options) -> dict[str, Any]:
    options.out.mkdir(parents=True, exist_ok=True)
    raw = compile_raw(options.out)
    rows: list[Row] = []
    match_ms: dict[str, list[float]] = {}
    checked: dict[str, bool | None] = {}
    version = congestion = "?"
    for primaries in options.primaries:
        memory = 8 * sizes(options, primaries)[1]
        with Valkeys(primaries, maxmemory_bytes=memory, options=options.valkey_options) as valkeys:
            version = valkeys.version()
            congestion = ", ".join(sorted(valkeys.congestion))
            for client in valkeys.clients:
                client.execute_command("FUNCTION", "LOAD", "REPLACE", functions_source())
            with CacheEndpoint(f"127.0.0.1:{valkeys.ports[0]}", heartbeat_s=60) as endpoint:
                endpoint.buckets = BUCKETS_PER_PRIMARY * primaries if primaries > 1 else 1
                for block_kib in options.blocks_kib:
                    began = time.monotonic()
                    plan = plan_of(options, valkeys, block_kib, endpoint)
                    cell = Cell(options, valkeys, plan, raw)
                    cell.run(with_spin=block_kib == 2048)
                    rows += cell.rows.values()
                    if block_kib == 2048:
                        match_ms |= {f"{primaries}/{k}": v for k, v in cell.match_ms.items()}
                    checked |= {f"{primaries}/{block_kib}/{k}": v for k, v in cell.checked.items()}
                    took = time.monotonic() - began
                    print(f"{primaries} primaries, {block_kib} KiB: {took:.0f} s", flush=True)
    return {
        "host": {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "valkey": version,
            "load_before": os.getloadavg(),
            "congestion": f"{system_default()}, of Valkey {congestion}",
        },
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "rows": [asdict(row) for row in rows],
        "match512_ms": match_ms,
        "same_bytes": checked,
    }


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def first_python(candidates: Iterable[Path]) -> str:
    return next((str(path) for path in candidates if path.exists()), sys.executable)


def read_options() -> Options:
    quick = os.environ.get("QUICK", "") not in ("", "0")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    every_size = "64,256,1024,2048,4096,8192"
    parser.add_argument("--primaries", type=numbers, default="1" if quick else "1,2,4,8")
    parser.add_argument("--blocks-kib", type=numbers, default="2048" if quick else every_size)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1 if quick else 0.3)
    parser.add_argument("--in-flight", type=int, default=2, help="batches asked for ahead")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="to each primary")
    parser.add_argument(
        "--batch-mib", type=int, help="of one batch; default: by primaries and cores"
    )
    parser.add_argument("--data-mib", type=int, default=64 if quick else None, help="of all blocks")
    parser.add_argument("--contestants", default=",".join((*OWN, *PEERS)))
    parser.add_argument("--out", type=Path, default=ROOT / "var/bench")
    parser.add_argument(
        "--peer-python", default=first_python([ROOT / ".venv-bench/bin/python"]),
        help="has the packages of benchmarks/requirements.txt",
    )  # fmt: skip
    parser.add_argument(
        "--torch-python", default=first_python([ROOT / ".venv-vllm/bin/python"]), help="for lmcache"
    )
    bench = sorted(ROOT.glob(".venv-bench/lib/python*/site-packages/lmcache"))
    parser.add_argument("--lmcache", default=str(bench[0].parent) if bench else "")
    parser.add_argument(
        "--valkey-options", nargs="*", default=[], metavar="NAME=VALUE", help="such as io-threads=4"
    )
    given = parser.parse_args()
    return Options(
        primaries=given.primaries,
        blocks_kib=given.blocks_kib,
        rounds=given.rounds,
        seconds=given.seconds,
        in_flight=given.in_flight,
        connections=given.connections,
        batch_bytes=given.batch_mib and given.batch_mib << 20,
        data_bytes=given.data_mib and given.data_mib << 20,
        contestants=given.contestants.split(","),
        out=given.out,
        peer_python=given.peer_python,
        torch_python=given.torch_python,
        lmcache=given.lmcache,
        valkey_options=dict(word.split("=", 1) for word in given.valkey_options),
    )


def main() -> None:
    options = read_options()
    result = measure(options)
    path = options.out / "datapath.json"
    path.write_text(json.dumps(result))
    text = table(result)
    (options.out / "datapath.txt").write_text(text)
    print(text)
    plot(options.peer_python, path, options.out / "datapath.png")
    print(headline(result))


if __name__ == "__main__":
    main()
