"""The simulated cold tier and the index's functions hold the same blocks."""

import random

import pytest

from neve.formats.keys import BucketKeys
from neve.index.library import load_functions
from neve.index.tier import BlockTerms, CommitOutcome, HotTier, Location
from neve.planner.simulate.cold import POLICIES, Block, Tiers, simulate
from neve.planner.simulate.requests import BlockRequest

SIZE, SPACE, TENANT, QUOTA = 100, 3, 7, 10
KEYS = BucketKeys(TENANT, 0)
IDS = [n.to_bytes(16, "big") for n in range(30)]


@pytest.mark.integration
def test_simulation_and_functions_keep_the_same_cold_blocks(clean_hot):
    """Blocks are flushed, and read hot or cold, in any order."""
    choose, cold = random.Random(1), Block(QUOTA)
    with clean_hot.client() as client:
        load_functions(client)
        tier = HotTier(client.execute_command, TENANT)
        tier.set_policy(hot_bytes=1 << 20, cold_bytes=SIZE * QUOTA, terms=BlockTerms())
        for step in range(1, 300):
            number = choose.randrange(len(IDS))
            id_ = IDS[number]
            if number in cold.live:
                read = choose.choice((tier.touch, tier.promote))
                read([id_])
                cold.read([number])
                continue
            tier.evict(1 << 20)  # its hot copy, if it has one, is without a cold one
            client.set(KEYS.block(SPACE, id_), b"x" * SIZE, px=60_000)
            assert tier.commit(SPACE, [(id_, SIZE, 16)]) == [CommitOutcome.STORED]
            assert tier.admit([(id_, SIZE)]).fits == [True]
            tier.open_segment(step)
            tier.flushed(step, [(id_, 64)])
            cold.flush([number])
            if choose.random() < 0.5:
                tier.evict(1 << 20)
            is_cold = [isinstance(at, Location) and at.is_cold for at in tier.match(IDS)]
            assert {n for n, has in enumerate(is_cold) if has} == set(cold.live), f"step {step}"


def test_every_eviction_finds_more_than_refusing():
    """A working set that moves on; each block is asked for three times."""
    requests = [
        BlockRequest(tuple(range(10 * n, 10 * n + 10)), float(n))
        for n in range(200)
        for _ in range(3)
    ]
    hits = {name: simulate(Tiers(make(50), 10), requests) for name, make in POLICIES.items()}
    refused = hits.pop("refuse")
    assert min(hits.values()) >= refused
    assert hits["block, longest unread, merged late"] == pytest.approx(2 / 3)
