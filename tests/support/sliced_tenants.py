"""Tenants with six hours of slices, in which the hit rates of two fell."""

import random
import time

from catalog.models import Slice
from catalog.slicing import KEPT
from support.rows import make_session, make_space, make_tenant
from tenants.models import Tenant
from tenants.scope import tenant_scope

FELL_S = 50 * 60  # ago
REASONS = ("never_stored", "evicted", "idle", "expired", "timeout")
SLUGS = ("acme-search", "team-06", "agent-lab", "code-assist", "med-notes", "news-sum")


def seed(now_s: float | None = None) -> list[Tenant]:
    """Every part adds up: nodes to their tenant, in every length of bucket."""
    now = int(now_s or time.time())
    rng = random.Random(4)
    tenants = []
    for place, slug in enumerate(SLUGS):
        tenant = make_tenant(slug)
        tenants.append(tenant)
        spaces = [make_space(tenant, f"{slug}-tp{n}") for n in (1, 2)]
        with tenant_scope(tenant.pk):
            for space in spaces:
                for number in range(2):
                    make_session(space, f"gpu-{place}{number}")
        for length_s in KEPT:
            rows = []
            last = now // length_s * length_s
            for bucket in range(last - 12 * 3600, last + 1, length_s):
                rows += _bucket(tenant, place, spaces, bucket, length_s, now, rng)
            Slice.unscoped.bulk_create(rows)
    return tenants


def _bucket(tenant, place, spaces, bucket, length_s, now, rng):  # type: ignore[no-untyped-def]
    has_fallen = bucket >= now - FELL_S
    part = min(length_s, now - bucket) / 60
    rows, whole = [], Slice(tenant=tenant, kind="tenant", misses={}, load_ms={})
    for space in spaces:
        for number in range(2):
            prompts = int((2e6 - 3e5 * place) * part * rng.uniform(0.95, 1.05))
            rate = 0.84 - 0.02 * place + rng.uniform(-0.01, 0.01)
            why = dict.fromkeys(REASONS, (1 - rate) / 5)
            if has_fallen and place == 0:
                rate, why = rate - 0.43, {**why, "unflushed": 0.43}
            if has_fallen and place == 1 and space == spaces[1]:
                rate, why = rate - 0.5, {**why, "fingerprint": 0.5}
            row = Slice(
                tenant=tenant,
                kind="place",
                space_number=space.pk,
                name=f"gpu-{place}{number}",
                prompt_tokens=prompts,
                hit_tokens=int(prompts * rate),
                hit_cold_tokens=int(prompts * rate * 0.3),
                hot_read_bytes=prompts * 3000,
                cold_read_bytes=prompts * 1000,
                misses={reason: int(prompts * share / 256) for reason, share in why.items()},
                load_ms={"<=1": 20, "<=2": 300, "<=5": 500, "<=50": 170, "<=500": 9, "+Inf": 1},
            )
            rows.append(row)
            for name in ("prompt_tokens", "hit_tokens", "hit_cold_tokens"):
                setattr(whole, name, getattr(whole, name) + getattr(row, name))
            for name in ("misses", "load_ms"):
                into = getattr(whole, name)
                for key, count in getattr(row, name).items():
                    into[key] = into.get(key, 0) + count
    for row in (*rows, whole):
        row.resolution_s, row.bucket_ts = length_s, bucket
    return [*rows, whole]
