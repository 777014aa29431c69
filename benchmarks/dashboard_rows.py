"""Rows of a large platform for benchmarks/dashboard.py, which runs `fill` inside of manage.py.

Bulk inserts: services would take hours. What the rows hold is made up; how they hang together is
as services leave them.
"""

import json
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, reverse

from catalog.models import Context, Job, NodeSession, Slice, UsageRollup
from catalog.slicing import KEPT
from dashboard.page import menu
from neve.formats.ids import ID_BYTES
from support.rows import make_person, make_space, make_tenant
from tenants.models import AuditEvent, Membership
from tenants.services import issue_key

CHUNK_TOKENS = 256
BLOCK_BYTES = 2 << 20
SYSTEMS, PROJECTS = 20, 50  # beginnings of a context's chain, and those that continue each
BUCKETS = 90  # of each resolution
PLACE_BUCKETS = 30
JOBS = AUDITS = 2000


def fill(tenants: int, nodes: int, contexts: int, people: int, out: str) -> None:
    """Writes what the benchmark needs to `out` as JSON: keys, sessions and page addresses."""
    now = datetime.now(UTC)
    made = [make_tenant(f"team-{n:02}", hot_bytes=4 << 30) for n in range(tenants)]
    spaces = {tenant.pk: make_space(tenant, f"llama-{tenant.slug}") for tenant in made}
    keys = {tenant.pk: issue_key(tenant=tenant, role="node", name="nodes")[1] for tenant in made}
    owners = [made[n % tenants] for n in range(nodes)]
    with_sessions: list[NodeSession] = []
    for n, tenant in enumerate(owners):
        with_sessions.append(
            NodeSession(
                tenant_id=tenant.pk,
                space=spaces[tenant.pk],
                node=f"gpu-{n:03}",
                engine={"name": "vllm", "version": f"0.1{n % 3}.0"},
                opened_at=now - timedelta(hours=n % 48),
                totals={"requested_blocks": 1000 * n, "hit_hot_blocks": 700 * n},
                totals_by_name={"misses": {"never_stored": 300 * n}},
            )
        )
    NodeSession.unscoped.bulk_create(with_sessions, batch_size=200)
    _contexts(made, spaces, contexts, now)
    _usage(made, with_sessions, spaces, now)
    Job.unscoped.bulk_create(
        [
            Job(
                tenant_id=made[n % tenants].pk,
                kind=("flush", "sample", "compact")[n % 3],
                state=("succeeded", "failed")[n % 20 == 0],
                error="OSError: no space left on device" if n % 20 == 0 else "",
                detail={"blocks": n},
                started_at=now - timedelta(minutes=n),
                finished_at=now - timedelta(minutes=n),
            )
            for n in range(JOBS)
        ],
        batch_size=500,
    )
    AuditEvent.unscoped.bulk_create(
        [
            AuditEvent(
                tenant_id=made[n % tenants].pk,
                actor_name=f"key:runner-{n % 7} (neve_x)",
                action="context.pin",
                object_type="context",
                object_id=str(UUID(int=n)),
                after={"until": n},
            )
            for n in range(AUDITS)
        ],
        batch_size=500,
    )
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
    told = {
        "cookie": settings.SESSION_COOKIE_NAME,
        "nodes": [[str(one.pk), keys[one.tenant_id], one.tenant_id] for one in with_sessions],
        "viewers": _viewers(made, people),
        "pages": _pages(made[0], spaces[made[0].pk], with_sessions[0]),
    }
    told["sql"] = _statements(told["pages"])
    with open(out, "w") as file:
        json.dump(told, file)


def _contexts(tenants: list[Any], spaces: dict[int, Any], count: int, now: datetime) -> None:
    """Two fifths of them are the first tenant's."""
    Context._meta.get_field("created_at").auto_now_add = False  # type: ignore[attr-defined]
    systems = [os.urandom(ID_BYTES * 8) for _ in range(SYSTEMS)]
    projects = [os.urandom(ID_BYTES * 8) for _ in range(SYSTEMS * PROJECTS)]

    def rows() -> Iterable[Context]:
        for n in range(count):
            tenant = tenants[0 if n % 5 < 2 else n % len(tenants)]
            place = n % len(projects)
            chain = systems[place % SYSTEMS] + projects[place] + os.urandom(ID_BYTES * 8)
            yield Context(
                tenant_id=tenant.pk,
                space=spaces[tenant.pk],
                root=chain[:ID_BYTES],
                name=f"project-{place}/run-{n}",
                label=("nightly", "agents", "")[n % 3],
                labels={"stage": ("dev", "prod")[n % 2]},
                owner=f"key:{n % 10}",
                owner_name=f"key:runner-{n % 10} (neve_x)",
                chain=chain,
                blocks=len(chain) // ID_BYTES,
                tokens=len(chain) // ID_BYTES * CHUNK_TOKENS,
                size_bytes=len(chain) // ID_BYTES * BLOCK_BYTES,
                state=("stored", "stored", "partial", "lost")[n % 4],
                prompt_tokens=1000 * (n % 100),
                hit_tokens=700 * (n % 100),
                last_used_at=now - timedelta(seconds=n * 13 % 1_000_000),
                created_at=now - timedelta(seconds=n),
                pinned_until=now + timedelta(hours=1) if n % 100 == 0 else None,
            )

    batch: list[Context] = []
    for row in rows():
        batch.append(row)
        if len(batch) == 2000:
            Context.unscoped.bulk_create(batch, batch_size=500)
            batch = []
    Context.unscoped.bulk_create(batch, batch_size=500)


def _usage(
    tenants: list[Any], sessions: list[NodeSession], spaces: dict[int, Any], now: datetime
) -> None:
    now_s = int(now.timestamp())
    for resolution_s in (10, 60, 3600):
        first = now_s - now_s % resolution_s - resolution_s * (BUCKETS - 1)
        buckets = range(first, first + resolution_s * BUCKETS, resolution_s)
        UsageRollup.unscoped.bulk_create(
            [
                UsageRollup(
                    tenant_id=tenant.pk,
                    resolution_s=resolution_s,
                    bucket_ts=at,
                    requested_tokens=100_000,
                    hit_hot_tokens=60_000,
                    hit_cold_tokens=10_000,
                    requested_blocks=400,
                    hit_hot_blocks=240,
                    hit_cold_blocks=40,
                    hot_read_bytes=500 << 20,
                    cold_read_bytes=80 << 20,
                    misses={"never_stored": 80, "evicted": 40},
                    load_ms={"<=5": 100, "<=20": 20},
                    hot_used_bytes=3 << 30,
                    cold_used_bytes=8 << 30,
                )
                for tenant in tenants
                for at in buckets
            ],
            batch_size=500,
        )
    for resolution_s in KEPT:
        first = now_s - now_s % resolution_s - resolution_s * (PLACE_BUCKETS - 1)
        rows = []
        for at in range(first, first + resolution_s * PLACE_BUCKETS, resolution_s):
            counts = {
                "resolution_s": resolution_s,
                "bucket_ts": at,
                "prompt_tokens": 100_000,
                "hit_tokens": 70_000,
                "requested_blocks": 400,
                "hit_blocks": 280,
                "misses": {"never_stored": 80, "evicted": 40},
                "load_ms": {"<=5": 100, "<=20": 20},
            }
            rows += [Slice(tenant_id=one.pk, kind="tenant", **counts) for one in tenants]
            rows += [
                Slice(
                    tenant_id=one.tenant_id,
                    kind="place",
                    space_number=one.space_id,
                    name=one.node,
                    **counts,
                )
                for one in sessions
            ]
        Slice.unscoped.bulk_create(rows, batch_size=200)


def _viewers(tenants: list[Any], people: int) -> list[dict[str, Any]]:
    """Browser sessions: half of operators, half of members of one tenant each."""
    viewers = []
    for n in range(people):
        person = User(username=f"person-{n}", is_staff=n % 2 == 0)
        person.set_unusable_password()  # hashing one takes a fifth of a second
        person.save()
        tenant = None if person.is_staff else tenants[n % len(tenants)]
        if tenant is not None:
            Membership.objects.create(user=person, tenant=tenant, role="team")
        session = SessionStore()
        session[SESSION_KEY] = str(person.pk)
        session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = person.get_session_auth_hash()
        session.create()
        viewers.append(
            {
                "session": session.session_key,
                "is_operator": tenant is None,
                "tenant": None if tenant is None else tenant.pk,
            }
        )
    return viewers


def _pages(tenant: Any, space: Any, session: NodeSession) -> dict[str, str]:
    """Every page of the navigation, and one of each kind of object."""
    context = Context.unscoped.filter(tenant_id=tenant.pk).order_by("name").first()
    job = Job.unscoped.filter(state="failed").first()
    found = {item["name"]: [item["name"]] for group in menu() for item in group}
    found |= {
        "tenant": ["tenant", tenant.slug],
        "space": ["space", space.pk],
        "node": ["node", session.pk],
        "context": ["context", context.pk if context else ""],
        "job": ["job", job.pk if job else ""],
    }
    pages = {}
    for name, (view, *arguments) in found.items():
        try:
            pages[name] = reverse(f"dashboard:{view}", args=arguments)
        except NoReverseMatch:
            continue
    pages["palette"] = reverse("dashboard:palette") + "?q=project-7"
    pages["palette, inside"] = reverse("dashboard:palette") + "?q=run-77777"
    return pages


def _statements(pages: dict[str, str]) -> dict[str, int]:
    """SQL statements of each page, asked for a second time."""
    browser = Client(SERVER_NAME="127.0.0.1")
    browser.force_login(make_person("counter", staff=True))
    counts = {}
    for name, path in pages.items():
        browser.get(path)
        with CaptureQueriesContext(connection) as queries:
            browser.get(path)
        counts[name] = len(queries)
        if os.environ.get("NEVE_BENCH_SQL") == name:
            for one in queries.captured_queries:
                print(one["time"], one["sql"][:400], file=sys.stderr)
    return counts
