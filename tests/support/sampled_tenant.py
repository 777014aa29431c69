"""A tenant with an afternoon of traffic: samples, counts and speeds as its nodes report them."""

import random
from datetime import datetime
from typing import Any

from catalog.models import Space
from catalog.usage import record_deltas
from neve.formats.block import HEADER_BYTES
from neve.planner.simulate import tiers
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.samples import SampledRequest, Samples, Totals
from neve.planner.whatif import mixed
from planning import whatif
from support.rows import make_session
from tenants.models import Tenant

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
            at=datetime.fromtimestamp(bucket.start_s, whatif.timezone.now().tzinfo),
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


def store(space: Space, requests: list[BlockRequest]) -> None:
    """Samples of 1 in 4 blocks."""
    found = []
    for each in requests:
        ids = tuple(mixed(id_) for id_ in each.ids if mixed(id_) >> 62 == 0)
        if ids:
            places = tuple(range(len(ids)))
            found.append(SampledRequest(each.at_s, len(each.ids), places, ids, BLOCK_BYTES))
    FAKE[space.tenant_id] = Samples(2, found, Totals())


FAKE: dict[int, Samples] = {}


def read(tenant_id: int, start: datetime, end: datetime, *, space_id: int = 0) -> Samples:
    found = FAKE.get(tenant_id, Samples(0, (), Totals()))
    inside = [each for each in found.requests if start.timestamp() <= each.at_s < end.timestamp()]
    return Samples(found.rate_log, inside, Totals())
