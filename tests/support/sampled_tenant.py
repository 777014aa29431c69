"""A tenant with an afternoon of traffic: samples, counts and speeds as its nodes report them."""

import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.utils import timezone

from catalog.models import Space
from catalog.usage import record_deltas
from neve.formats.block import HEADER_BYTES
from neve.formats.samples import Batch, IdSampler, SampledRequest, Totals
from neve.planner.simulate import tiers
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import block_id
from planning import samples, whatif
from support.rows import make_session, make_space
from support.servers import ControlPlane
from tenants.models import Quota, Tenant
from tenants.scope import tenant_scope

BLOCK_BYTES = (1 << 20) - HEADER_BYTES  # as nodes report it, without the header
BLOCK_TOKENS = 256
SPEEDS = {
    "prefill_s_per_token": 1e-4,
    "hot_bytes_per_s": 5e9,
    "cold_bytes_per_s": 2e8,
}
HOURS = 4.0


def chats(until: datetime, *, conversations: int = 160, seed: int = 1) -> list[BlockRequest]:
    """Conversations of the last HOURS that grow, each with one of 20 beginnings."""
    rng = random.Random(seed)
    made, number = [], 1 << 20
    begin_s = until.timestamp() - HOURS * 3600
    for _ in range(conversations):
        at_s = begin_s + rng.uniform(0, HOURS * 3600 - 1500)
        beginning = rng.randrange(20) * 1000
        chain = [beginning + n for n in range(12)]
        for turn in range(rng.randint(1, 6)):
            chain = [*chain, *range(number, number + 6)]
            number += 6
            made.append(BlockRequest(tuple(chain), at_s + 240 * turn))
    return sorted(made, key=lambda each: each.at_s)


def count(tenant: Tenant, requests: list[BlockRequest], *, worse_by: float = 0.0) -> None:
    """What nodes would have reported by minute, as the simulator knows it; `worse_by`: share of
    blocks that were hits but timed out."""
    today = whatif.today_of(tenant.pk, block_bytes=BLOCK_BYTES + HEADER_BYTES)
    for bucket in tiers.run(today, requests, bucket_s=60.0).buckets:
        hits: dict[str, int] = dict(bucket.hit_blocks)
        lost = min(hits.get("hot", 0), round(worse_by * bucket.asked_blocks))
        hot, cold = hits.get("hot", 0) - lost, hits.get("cold", 0)
        record_deltas(
            tenant_id=tenant.pk,
            at=datetime.fromtimestamp(bucket.start_s, UTC),
            counters={
                "requested_blocks": bucket.asked_blocks,
                "requested_tokens": bucket.asked_blocks * BLOCK_TOKENS,
                "hit_hot_blocks": hot,
                "hit_cold_blocks": cold,
                "hit_hot_tokens": hot * BLOCK_TOKENS,
                "hit_cold_tokens": cold * BLOCK_TOKENS,
            },
            misses={"timeout": lost} if lost else {},
            load_ms={},
        )


def measure(space: Space, **speeds: Any) -> None:
    """A live node with these speeds."""
    make_session(space, speeds={**SPEEDS, **speeds})


def store(space: Space, requests: list[BlockRequest], *, rate_log: int = 2) -> None:
    """Files of samples, as the worker writes them of the heartbeats of one node, one a minute."""
    terms = samples.terms_of(space.tenant)
    assert terms is not None
    sampler = IdSampler(bytes.fromhex(terms["key"]), rate_log=rate_log)
    by_minute: dict[int, list[BlockRequest]] = {}
    for each in requests:
        by_minute.setdefault(int(each.at_s // 60), []).append(each)
    entries = []
    for minute, some in by_minute.items():
        sent_s = 60.0 * (minute + 1)
        found = []
        for each in some:
            chosen = sampler.choose(b"".join(map(block_id, each.ids)))
            if chosen:
                places, ids = zip(*chosen, strict=True)
                found.append(SampledRequest(each.at_s - sent_s, len(each.ids), places, ids))
        totals = Totals.of(len(each.ids) for each in some)
        batch = Batch(rate_log, found, totals, block_bytes=BLOCK_BYTES).encode()
        entries.append(samples._ENTRY.pack(int(1000 * sent_s), space.pk, len(batch)) + batch)
    samples.write_file(space.tenant_id, entries)


def fill(tenant: Tenant, *, worse_by: float = 0.0) -> Space:
    """Gives the tenant small quotas, and samples, counts and speeds of the last HOURS."""
    with tenant_scope(tenant.pk):
        Quota.objects.update(hot_bytes=700 << 20, cold_bytes=2500 << 20)
    requests = chats(timezone.now() - timedelta(minutes=2))
    space = make_space(tenant)
    store(space, requests)
    count(tenant, requests, worse_by=worse_by)
    measure(space)
    return space


SLUG = "sampled"
_SEED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from catalog.kinds import RECOMMEND
from catalog.targets import Opener
from planning import whatif
from support.rows import make_key, make_tenant
from support.sampled_tenant import fill
from tenants.models import Tenant
tenant = Tenant.objects.filter(slug={SLUG!r}).first()
if tenant is None:
    tenant = make_tenant({SLUG!r})
    fill(tenant)
    whatif.recommend(Opener(RECOMMEND, tenant.pk), tenant.pk)
print(make_key(tenant, "team"))
"""


def seed(platform: ControlPlane) -> str:
    """Makes the tenant SLUG on a live platform, filled and with a recommendation. Returns the key
    of its team."""
    return platform.manage("shell", "-v", "0", "-c", _SEED).split()[-1]


_VERDICT = re.compile(
    r"hits ([\d.]+)% \(± [\d.]+%\), nodes measured ([\d.]+)%: "
    r"(?:they agree|([\d.]+) points apart, more than the error of ([\d.]+))"
)
ROUNDED = 0.11  # points, of two numbers with one decimal
MOST_APART = 5.0  # points; one sample in twenty lies further off than its error, none so far


def assert_verdict(text: str) -> None:
    """What-if's comparison of its simulation with what nodes measured follows from its numbers."""
    found = _VERDICT.search(text)
    assert found, text
    gap = abs(float(found[1]) - float(found[2]))
    assert gap < MOST_APART, text
    if found[3]:
        assert abs(float(found[3]) - gap) < ROUNDED, text
        assert float(found[3]) >= float(found[4]), text
