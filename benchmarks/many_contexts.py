"""Teams' operations on many contexts of one tenant: time, SQL statements, memory; and what pins,
look-ups and heartbeats cost the web process.

    .venv/bin/python benchmarks/many_contexts.py [--contexts 100000] [--postgres] [--write]

Makes the contexts in a temporary SQLite (`--postgres`: PostgreSQL), with real Valkeys. Chains form
a tree: a twentieth of the contexts share one system prompt, a thousandth one project. The blocks of
`--stored` contexts are in the index. Operations go through the REST API inside this process: the
least of `--rounds`, and the peak of Python's memory in one more round. Requests over HTTP go to a
platform of their own: processor time of its web process for each. `--explain` prints the plans of
list queries, `--profile` where the processor time of requests goes; `--only requests` that of
heartbeats, pins and look-ups.
"""

import argparse
import cProfile
import http.client
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "tests")]
DOCUMENT = ROOT / "docs/benchmarks/contexts.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--blocks", type=int, default=40, help="of each chain")
    parser.add_argument(
        "--stored", type=int, default=1000, help="contexts with blocks in the index"
    )
    parser.add_argument("--bulk", type=int, default=200, help="contexts of each bulk job")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300, help="of each kind, over HTTP")
    parser.add_argument("--only", choices=("lists", "bulk", "http", "requests", "tree"))
    parser.add_argument("--postgres", action="store_true", help="instead of SQLite")
    parser.add_argument("--explain", action="store_true", help="print the plans of list queries")
    parser.add_argument("--profile", action="store_true", help="print where requests spend time")
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.relative_to(ROOT)}")
    return parser.parse_args()


ASKED = arguments()
if ASKED.postgres and "NEVE_TEST_DATABASE_URL" not in os.environ:
    # Settings name the database, so the server runs before Django is set up.
    from support.on_postgres import PostgresServer

    with tempfile.TemporaryDirectory(prefix="neve-postgres-") as folder:
        server = PostgresServer(Path(folder))
        server.folder.chmod(0o711)
        server.initialize()
        with server:
            own = os.environ | {"NEVE_TEST_DATABASE_URL": server.url}
            sys.exit(subprocess.call([sys.executable, *sys.argv], env=own))

import django  # noqa: E402

from support import testsettings  # noqa: E402

django.setup()

from django.conf import settings  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import Client  # noqa: E402
from django.utils import timezone  # noqa: E402

from cacheapi.teams.contexts.filters import ContextFilter  # noqa: E402
from cacheapi.teams.contexts.view import ContextsView  # noqa: E402
from catalog import jobs  # noqa: E402
from catalog.kinds import BULK  # noqa: E402
from catalog.models import Context, Job  # noqa: E402
from catalog.targets import Opener  # noqa: E402
from contexts import bulk, prefix_cache  # noqa: E402
from contexts.choosing import under  # noqa: E402
from contexts.prefixes import tree  # noqa: E402
from neve.formats.ids import ID_BYTES  # noqa: E402
from neve.index.tier import RestoredBlock  # noqa: E402
from storage import hot  # noqa: E402
from support.platform_servers import platform_servers  # noqa: E402
from support.rows import (  # noqa: E402
    IDENTITY,
    make_key,
    make_person,
    make_segment,
    make_session,
    make_space,
    make_tenant,
)
from support.servers import ControlPlane, S3Server  # noqa: E402
from tenants.scope import tenant_scope  # noqa: E402

CHUNK_TOKENS = 256
BLOCK_BYTES = 2 << 20
SYSTEMS, PROJECTS = 20, 50  # beginnings of a fifth of the chain; of each, those of another fifth


@dataclass(frozen=True)
class Cost:
    """Of one operation: least time and processor time, SQL statements and their part of the time,
    peak memory of Python."""

    name: str
    ms: float
    cpu_ms: float
    sql: int
    sql_ms: float
    peak_mib: float
    rows: int | None = None


# The tenant ---------------------------------------------------------------------------------------


def make_contexts(count: int, blocks: int) -> Any:
    """A tenant with one space and so many contexts; returns the space."""
    settings.ENV = replace(
        settings.ENV, context_limit=2 * count, context_blocks_limit=2 * count * blocks
    )
    space, now = make_space(make_tenant("acme", hot_bytes=1 << 40)), timezone.now()
    fifth = blocks // 5 * ID_BYTES
    systems = [os.urandom(fifth) for _ in range(SYSTEMS)]
    projects = [os.urandom(fifth) for _ in range(SYSTEMS * PROJECTS)]

    def rows(first: int, last: int) -> Iterator[Context]:
        for n in range(first, last):
            project = n % len(projects)
            head = systems[project % SYSTEMS] + projects[project]
            chain = head + os.urandom(ID_BYTES * (blocks - n % 4) - len(head))
            made = Context(
                tenant_id=space.tenant_id,
                space=space,
                name=f"team-{n % 7}/repo-{project}/run-{n}",
                label=("nightly", "agents", "")[n % 3],
                labels={"team": f"t{n % 50}", "stage": ("dev", "prod")[n % 2]},
                owner=f"key:{n % 10}",
                owner_name=f"key:runner-{n % 10} (neve_x)",
                chain=chain,
                blocks=len(chain) // ID_BYTES,
                tokens=len(chain) // ID_BYTES * CHUNK_TOKENS,
                size_bytes=len(chain) // ID_BYTES * BLOCK_BYTES,
                state=("stored", "stored", "partial", "lost")[n % 4],
                last_used_at=now - timedelta(seconds=n * 13 % 1_000_000),
                created_at=now - timedelta(seconds=n),
                updated_at=now - timedelta(seconds=n * 7 % 1_000_000),
                pinned_until=now + timedelta(hours=1 + n % 9) if n % 10 == 0 else None,
            )
            yield made

    Context._meta.get_field("created_at").auto_now_add = False  # type: ignore[attr-defined]
    with tenant_scope(space.tenant_id):
        for first in range(0, count, 2000):
            Context.objects.bulk_create(rows(first, min(count, first + 2000)), batch_size=500)
    if connection.vendor == "postgresql":  # as autovacuum does; nobody does on SQLite
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    return space


def store(space: Any, count: int) -> int:
    """Puts the blocks of the first contexts by name into the index, cold. Returns how many."""
    tier, segment = hot.hot_tier(space.tenant_id), make_segment(space)
    tier.open_segment(segment.pk)
    chains = Context.unscoped.filter(space=space).order_by("name").values_list("chain", flat=True)
    ids = list(dict.fromkeys(
        bytes(chain[at : at + ID_BYTES])
        for chain in chains[:count]
        for at in range(0, len(chain), ID_BYTES)
    ))  # fmt: skip
    now = int(time.time())
    for first in range(0, len(ids), 500):
        blocks = [
            RestoredBlock(id_, BLOCK_BYTES, CHUNK_TOKENS, 64, now, 0)
            for id_ in ids[first : first + 500]
        ]
        tier.restore(segment.pk, space.pk, blocks)
    return len(ids)


# Measuring ----------------------------------------------------------------------------------------


class Statements:
    """Counts SQL statements and their time; keeps the slowest, for its plan."""

    def __init__(self) -> None:
        self.count, self.s = 0, 0.0
        self.slowest: tuple[float, str, Any] = (0.0, "", None)

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, *rest: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, params, *rest)
        finally:
            took = time.perf_counter() - began
            self.count, self.s = self.count + 1, self.s + took
            if sql.startswith("SELECT"):
                self.slowest = max(self.slowest, (took, sql, params), key=lambda each: each[0])


def measure(name: str, operation: Callable[[], Any], rounds: int = ASKED.rounds) -> Cost:
    """`operation` returns its result's rows, or None. A first round, not counted, warms caches."""
    rows = operation() if rounds > 1 else None
    found, statements = [], Statements()
    for _ in range(rounds):
        statements = Statements()
        began, cpu_s = time.perf_counter(), time.process_time()
        with connection.execute_wrapper(statements):
            rows = operation()
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        found.append((took_s, cpu_s, statements.s))
    peak = 0
    if rounds > 1:
        tracemalloc.start()
        operation()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    ms, cpu_ms, sql_ms = (round(1e3 * min(each), 2) for each in zip(*found, strict=True))
    count = rows if isinstance(rows, int) else None
    cost = Cost(name, ms, cpu_ms, statements.count, sql_ms, round(peak / 2**20, 2), count)
    show(cost)
    if ASKED.explain and statements.slowest[1]:
        explain(statements.slowest)
    return cost


def explain(statement: tuple[float, str, Any]) -> None:
    took, sql, params = statement
    prefix = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    with connection.cursor() as cursor:
        cursor.execute(f"{prefix} {sql}", params)
        plan = [str(row[-1]) for row in cursor.fetchall()]
    print(f"    {1e3 * took:.1f} ms: {sql[sql.find(' FROM ') :][:300]}")
    for line in plan[:8]:
        print(f"      {line}")


def show(cost: Cost) -> None:
    rows = "" if cost.rows is None else f"{cost.rows:>8}"
    print(
        f"{cost.name:<44} {cost.ms:>9.1f} {cost.cpu_ms:>9.1f} {cost.sql:>5} {cost.sql_ms:>9.1f}"
        f" {cost.peak_mib:>8.1f}"
        f" {rows}",
        flush=True,
    )


def heading(title: str) -> None:
    columns = f"{'ms':>9} {'CPU ms':>9} {'SQL':>5} {'of it ms':>9} {'MiB':>8} {'rows':>8}"
    print(f"\n{title}\n{'operation':<44} {columns}")


class Team:
    """Sends requests with a key, inside this process."""

    def __init__(self, key: str) -> None:
        self._client = Client(headers={"Authorization": f"Bearer {key}"})

    def get(self, path: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}")
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.content[:300]!r}")
        return answer.json()

    def exported(self, path: str) -> int:
        """Lines of a streamed answer."""
        answer: Any = self._client.get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.content
        return sum(part.count(b"\n") for part in answer.streaming_content)

    def post(self, path: str, body: Any) -> Any:
        answer = self._client.post(f"/api/v1/{path}", body, content_type="application/json")
        if answer.status_code >= 400:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.content[:300]!r}")
        return answer.json()


# Operations ---------------------------------------------------------------------------------------

FILTERS = {
    **{"name": "team-3/repo-10/run-10", "search": "repo-77", "glob": "team-3/repo-1*"},
    **{"label": "nightly", "labels": "team=t7,stage=prod", "pinned": "true", "state": "lost"},
    **{
        "model": "space",
        "min_tokens": "10200",
        "max_tokens": "9600",
        "owner": "key:runner-3 (neve_x)",
    },
    **{"min_bytes": str(39 * BLOCK_BYTES), "max_bytes": str(38 * BLOCK_BYTES)},
}


def lists(team: Team, space: Any) -> list[Cost]:
    heading("lists, page of 50")

    def page(query: str) -> Callable[[], int]:
        return lambda: len(team.get(f"contexts?{query}")["results"])

    costs = [measure("first page", page(""))]
    costs.append(measure("first page of 500", page("page_size=500")))
    for key in ContextsView.orderings:
        for sign in ("", "-"):
            order = f"{sign}{key.lstrip('-')}"
            costs.append(measure(f"ordering={order}", page(f"ordering={order}")))
    next_ = f"contexts?page_size=500&{''}"
    for _ in range(min(100, ASKED.contexts // 1000)):
        next_ = team.get(next_)["next"].partition("/api/v1/")[2]
    costs.append(measure("a page in the middle, of 500", lambda: len(team.get(next_)["results"])))
    known, times = ContextFilter.base_filters, {}
    for name in known:
        if name.endswith(("_before", "_after")):
            at = timezone.now() - timedelta(hours=12 if name.startswith("created") else 120)
            times[name] = at.isoformat(timespec="seconds").replace("+00:00", "Z")
    for name, value in {**FILTERS, **times, "space": str(space.pk)}.items():
        if name in known:
            costs.append(measure(f"{name}={value}", page(f"{name}={value}")))
    missing = set(known) - {*FILTERS, *times, "space", "tenant"}
    print(f"not measured: {', '.join(sorted(missing)) or 'no filter'}")
    for query in ("total=true", "total=true&label=nightly"):
        try:
            costs.append(measure(query, page(query)))
        except RuntimeError as error:
            print(error)
    heading("of all contexts")
    bounds = "limit=100&depth=8"
    path = f"spaces/{space.pk}/lineage?{bounds}"
    costs.append(measure(f"lineage?{bounds}", lambda: team.get(path)["context_count"], rounds=3))
    two = list(
        Context.unscoped.filter(space=space).order_by("name").values_list("pk", flat=True)[:2]
    )
    costs.append(measure("diff", lambda: bool(team.get(f"contexts/{two[0]}/diff?with={two[1]}"))))
    for format_ in ("csv", "jsonl"):
        try:
            export = f"contexts/export?format={format_}"
            costs.append(measure(f"export?format={format_}", lambda e=export: team.exported(e), 3))
        except AssertionError as error:
            print(f"export: {error}")
    return costs


def trees(space: Any) -> list[Cost]:
    heading("prefix tree by bytes")
    costs = [measure("tree of the space", lambda: sum(1 for _ in tree(space).root.walk()), 2)]
    root = tree(space).root
    largest = root.children[0]
    rows = Context.unscoped.filter(space=space)
    costs.append(measure("contexts under the largest", lambda: under(rows, largest.key).count()))
    least = min(root.walk(), key=lambda each: each.contexts)
    costs.append(measure("contexts under the smallest", lambda: under(rows, least.key).count()))
    browser = Client()
    browser.force_login(make_person("operator", staff=True))

    def page(query: str) -> Callable[[], int]:
        return lambda: len(browser.get(f"/contexts/?space={space.pk}{query}").content)

    prefix_cache._compute(space)
    costs.append(measure("page Contexts", page("")))
    costs.append(measure("page Contexts, zoomed", page(f"&top={largest.key}&at={largest.key}")))
    costs.append(measure("page Contexts, of one label", page("&q=label:nightly")))
    one = rows.order_by("name").values_list("pk", flat=True)[0]
    costs.append(measure("page Context", lambda: len(browser.get(f"/contexts/{one}/").content)))
    return costs


def run_job(job_id: str) -> Job:
    """As a worker does, in as many slices as it needs."""
    while (job := Job.unscoped.get(pk=UUID(job_id))).state == "queued":
        with jobs.job_run(job_id) as run:
            bulk.work(Opener(BULK, job.tenant_id, run), job.tenant_id, **job.arguments)
    return job


def bulks(team: Team, space: Any) -> list[Cost]:
    heading("bulk")
    costs = []

    def preview(action: str, filter_: dict[str, Any], **body: Any) -> Any:
        body = {"action": action, "filter": filter_, **body}
        return team.post("contexts/bulk/preview", body)

    every = {"every": True}
    costs.append(measure("preview of all", lambda: preview("expire", {}, **every)["contexts"], 3))
    for filter_ in ({"label": "nightly"}, {"search": "repo-77"}):
        name = f"preview of {next(iter(filter_.items()))}"
        costs.append(measure(name, lambda f=filter_: preview("expire", f)["contexts"], 3))
    names = Context.unscoped.filter(space=space).order_by("name").values_list("pk", flat=True)
    chosen = list(names[: ASKED.bulk])
    Context.unscoped.filter(pk__in=chosen).update(label="bulk", updated_at=timezone.now())
    for action, given in (
        ("pin", {"for": "2h"}),
        ("unpin", {}),
        ("extend", {"for": "7d"}),
        ("expire", {}),
        ("delete", {}),
    ):
        token = preview(action, {"label": "bulk"}, arguments=given)["token"]
        job_id = team.post("contexts/bulk", {"token": token})["id"]
        if ASKED.profile:
            profiled(f"bulk {action}", lambda j=job_id: run_job(j))
            continue
        costs.append(measure(f"job: {action} of {ASKED.bulk}", lambda j=job_id: run_job(j), 1))
        print(f"    {run_job(job_id).detail}")
    return costs


def profile_requests(team: Team, space: Any) -> None:
    """Where heartbeats, pins and look-ups spend their time, without the web server around them."""
    client = Client(headers={"Authorization": f"Bearer {make_key(space.tenant, 'node')}"})
    path = f"/cache/v1/sessions/{make_session(space).pk}/heartbeat"
    context = Context.unscoped.filter(space=space).order_by("-created_at")[0]
    sequence = iter(range(1, 1 << 30))

    def beat() -> None:
        body = {"seq": next(sequence), "counters": {"hit_hot_tokens": 2048}, "load_ms": {"<=5": 3}}
        answer = client.post(path, body, content_type="application/json")
        assert answer.status_code == 200, answer.content

    prompt = {"space": space.pk, "tokens": [1] * CHUNK_TOKENS * 8}
    requests: dict[str, Callable[[], Any]] = {
        "heartbeat": beat,
        "pin": lambda: team.post(f"contexts/{context.pk}/pin", {"for": "2h"}),
        "lookup": lambda: team.post("lookup", prompt),
    }
    for name, send in requests.items():
        for _ in range(5):
            send()
        profiled(name, send, times=50)


def profiled(name: str, operation: Callable[[], object], times: int = 1) -> None:
    """Prints processor time by package, of one call."""
    profile = cProfile.Profile(time.process_time)
    for _ in range(times):
        profile.runcall(operation)
    by_package: defaultdict[str, float] = defaultdict(float)
    total = 0.0
    for (file, _, function), (_, _, own_s, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        by_package[package_of(file, function)] += own_s
        total += own_s
    print(f"\n{name}: {1e3 * total / times:.1f} ms under the profiler")
    for package, own_s in sorted(by_package.items(), key=lambda each: -each[1])[:12]:
        print(f"  {package:<40} {100 * own_s / total:>5.1f} %")


def package_of(file: str, function: str) -> str:
    if "site-packages/" in file:
        parts = file.partition("site-packages/")[2].split("/")
        return "/".join(parts[:2]) if parts[0] == "django" else parts[0]
    if file.startswith(str(ROOT)):
        return str(Path(file).relative_to(ROOT)).removeprefix("platform/").split("/")[0]
    return function if file == "~" else Path(file).stem


# Over HTTP ----------------------------------------------------------------------------------------


class Web:
    """The web process of a platform, and one connection to it."""

    def __init__(self, platform: ControlPlane, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=30)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def send(self, method: str, path: str, body: Any = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, raw, self._headers)
            answer = self._connection.getresponse()
        except (ConnectionError, http.client.HTTPException):  # closed after an idle time
            self._connection.close()
            self._connection.request(method, path, raw, self._headers)
            answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content) if content else None


@contextmanager
def platform(folder: Path) -> Iterator[ControlPlane]:
    with S3Server(folder / "s3") as s3:
        found = ControlPlane(folder / "web", s3, postgres_url=testsettings.POSTGRES_URL)
        found.settings |= {"RATE_CALLER": "1000000/min", "RATE_NODE": "1000000/min"}
        with found:
            yield found


def http_costs(folder: Path) -> list[dict[str, Any]]:
    """Processor time of the web process for one request, one request at a time."""
    print(f"\n{'request over HTTP':<44} {'CPU ms':>8} {'a core-second':>14} {'ms':>8}")
    found = []
    with platform(folder) as servers:
        team_key = servers.manage("shell", "-v0", "-c", ISSUE).strip().splitlines()[-1]
        node, team = Web(servers, servers.node_key), Web(servers, team_key)
        session = node.send("POST", "/cache/v1/sessions", HANDSHAKE)["session"]
        ids = [os.urandom(ID_BYTES).hex() for _ in range(ASKED.blocks)]
        report = {"session": session, "name": "repo", "block_ids": ids}
        report["tokens"] = len(ids) * CHUNK_TOKENS
        context = node.send("POST", "/cache/v1/contexts", report)["id"]
        servers.manage("shell", "-v0", "-c", STORE)
        beat = iter(range(1, 1 << 30))
        counters = {"requested_tokens": 4096, "hit_hot_tokens": 2048, "hot_read_bytes": 1 << 28}
        kinds: dict[str, Callable[[], Any]] = {
            "heartbeat": lambda: node.send(
                "POST",
                f"/cache/v1/sessions/{session}/heartbeat",
                {"seq": next(beat), "counters": counters, "load_ms": {"<=5": 3}},
            ),
            "report of a context": lambda: node.send("POST", "/cache/v1/contexts", report),
            "pin": lambda: team.send("POST", f"/api/v1/contexts/{context}/pin", {"for": "2h"}),
            "lookup": lambda: team.send(
                "POST", "/api/v1/lookup", {"space": space, "tokens": [1] * CHUNK_TOKENS * 8}
            ),
            "get a context": lambda: team.send("GET", f"/api/v1/contexts/{context}"),
            "list": lambda: team.send("GET", "/api/v1/contexts"),
        }
        space = team.send("GET", "/api/v1/spaces")["results"][0]["id"]
        for name, send in kinds.items():
            try:
                send()
            except RuntimeError as error:
                print(f"{name}: not measured: {error}")
                continue
            for _ in range(20):
                send()
            cpu_s, began = servers.cpu_s(), time.perf_counter()
            for _ in range(ASKED.requests):
                send()
            took_s = (time.perf_counter() - began) / ASKED.requests
            cpu_ms = 1e3 * (servers.cpu_s() - cpu_s) / ASKED.requests
            found.append(
                {"name": name, "cpu_ms": round(cpu_ms, 2), "per_core_s": round(1e3 / cpu_ms),
                 "ms": round(1e3 * took_s, 2)}
            )  # fmt: skip
            print(
                f"{name:<44} {cpu_ms:>8.2f} {1e3 / cpu_ms:>14.0f} {1e3 * took_s:>8.2f}", flush=True
            )
    return found


HANDSHAKE = {
    **{"node": "node-1", "engine": {"name": "vllm", "version": "0"}, "identity": IDENTITY},
    **{"space": None, "max_chunk_tokens": CHUNK_TOKENS},
}
ISSUE = """
from tenants import services
from tenants.models import Tenant
print(services.issue_key(tenant=Tenant.objects.get(slug="demo"), role="team", name="bench")[1])
"""
STORE = """
from catalog.models import Context
from neve.formats.keys import BucketKeys, bucket_of
from django.conf import settings
from storage import hot
context = Context.unscoped.get()
ids = context.ids()
for id_ in ids:
    keys = BucketKeys(context.tenant_id, bucket_of(id_, settings.ENV.hot_buckets))
    hot.admin().set(keys.block(context.space_id, id_), bytes(1000), px=60_000)
hot.hot_tier(context.tenant_id).commit(context.space_id, [(id_, 1000, 256) for id_ in ids])
"""


def main() -> None:
    database = "PostgreSQL" if ASKED.postgres else "SQLite"
    found: dict[str, Any] = {"contexts": ASKED.contexts, "blocks": ASKED.blocks}
    if ASKED.only != "http":
        with platform_servers(maxmemory="4gb"):
            began = time.perf_counter()
            space = make_contexts(ASKED.contexts, ASKED.blocks)
            blocks = store(space, ASKED.stored)
            took_s = time.perf_counter() - began
            print(f"{database}: {ASKED.contexts} contexts, {blocks} blocks stored, {took_s:.0f} s")
            team = Team(make_key(space.tenant, "team"))
            if ASKED.only == "requests":
                profile_requests(team, space)
                return
            if ASKED.only == "tree":
                trees(space)
                return
            costs = [] if ASKED.only == "bulk" else lists(team, space)
            costs += [] if ASKED.only == "lists" else bulks(team, space)
            costs += trees(space) if ASKED.only is None else []
            found["operations"] = [asdict(cost) for cost in costs]
            if ASKED.profile and ASKED.only != "bulk":
                profiled("first page", lambda: team.get("contexts"))
                profiled("lineage", lambda: team.get(f"spaces/{space.pk}/lineage"))
    if ASKED.only in (None, "http"):
        with tempfile.TemporaryDirectory(prefix="neve-contexts-") as folder:
            found["requests"] = http_costs(Path(folder))
    if ASKED.write:
        known = json.loads(DOCUMENT.read_text()) if DOCUMENT.exists() else {}
        known[database] = known.get(database, {}) | found
        DOCUMENT.write_text(json.dumps(known, indent=1) + "\n")
        print(f"Written: {DOCUMENT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
