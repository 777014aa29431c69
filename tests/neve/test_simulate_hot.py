"""The simulated hot tier and the index's functions hold the same blocks."""

import random
import re
from functools import partial
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neve.formats.keys import BucketKeys
from neve.index.library import functions_source, load_functions
from neve.index.tier import BlockTerms, CommitOutcome, Eviction, HotTier, Location, Tier
from neve.planner.simulate import hot
from neve.planner.simulate.hot import Promote, simulate
from neve.planner.simulate.policies import EVICTION, ONLINE, ByPriority, make
from neve.planner.simulate.requests import FIRST_SCANNED, SCAN_BLOCKS, BlockRequest, with_scans
from neve.planner.simulate.single import SingleTier

SIZE, SPACE, TENANT = 100, 3, 7
KEYS = BucketKeys(TENANT, 0)
NUMBERS = {"lru": Eviction.LRU, "2q": Eviction.TWO_QUEUES}


def workload(seed: int, *, requests: int, blocks: int) -> list[tuple[int, ...]]:
    """Runs of neighbours: some are asked for often, most once."""
    choose = random.Random(seed)
    starts = [min(choose.randrange(blocks), choose.randrange(blocks)) for _ in range(requests)]
    return [tuple(range(start, start + choose.randint(1, 5))) for start in starts]


class LuaCache:
    """Does by a real server's functions what a simulated `HotTier` does; flushes blocks at once."""

    def __init__(
        self, client, policy: str, hot_bytes: int, priorities: int = 1, bytes_of=lambda _: SIZE
    ) -> None:
        self.client = client
        self.bytes_of = bytes_of
        self.tier = HotTier(client.execute_command, TENANT)
        self.tier.set_policy(
            hot_bytes=hot_bytes,
            cold_bytes=1 << 40,
            terms=BlockTerms(),
            spaces={SPACE + n: BlockTerms(priority=n) for n in range(priorities)},
            eviction=NUMBERS[policy],
        )
        self.priorities = priorities
        self.segments = 0

    def ask(self, number: int) -> bool:
        id_ = number.to_bytes(16, "big")
        (found,) = self.tier.match([id_])
        if isinstance(found, Location) and found.tier is Tier.HOT:
            self.tier.touch([id_])
            return True
        if not isinstance(found, Location) or self.tier.promote([id_]) == [True]:
            space = SPACE + number % self.priorities
            size = self.bytes_of(number)
            self.client.set(KEYS.block(space, id_), b"x" * size, nx=True, px=60_000)
            assert self.tier.commit(space, [(id_, size, 16)]) == [CommitOutcome.STORED]
            for block in self.tier.lease_dirty(lease_s=9, most_blocks=9, most_bytes=9999):
                self.segments += 1
                self.tier.open_segment(self.segments)
                self.tier.flushed(self.segments, [(block.id, 64)])
        return False

    def hot(self, numbers) -> set[int]:
        ids = [number.to_bytes(16, "big") for number in numbers]
        found = zip(numbers, self.tier.match(ids), strict=True)
        return {n for n, at in found if isinstance(at, Location) and at.tier is Tier.HOT}


@pytest.mark.integration
@pytest.mark.parametrize("policy", EVICTION)
@pytest.mark.parametrize(("most_blocks", "priorities"), [(3, 1), (20, 1), (20, 3)])
def test_simulation_and_functions_hold_the_same_blocks(clean_hot, policy, most_blocks, priorities):
    requests = workload(seed=most_blocks, requests=250, blocks=60)
    everything = sorted(set(chain.from_iterable(requests)))
    part = partial(make, policy, capacity_bytes=None)
    cache = hot.HotTier(ByPriority(most_blocks, part, lambda id_: id_ % priorities))
    with clean_hot.client() as client:
        load_functions(client)
        real = LuaCache(client, policy, SIZE * most_blocks, priorities)
        for n, ids in enumerate(requests):
            assert [real.ask(id_) for id_ in ids] == [cache.ask(id_, 0) for id_ in ids], f"#{n}"
            simulated = {id_ for id_ in everything if id_ in cache.blocks}
            assert real.hot(everything) == simulated, f"after request {n}"
    assert 0 < len(simulated) <= most_blocks
    assert cache.promoted > 0


def unequal_bytes(id_):
    """One block in six is as large as many others."""
    return 1000 if id_ % 6 == 5 else 20 + id_


runs = st.tuples(st.integers(0, 60), st.integers(1, 8)).map(lambda run: range(run[0], sum(run)))


@pytest.mark.integration
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    policy=st.sampled_from([*EVICTION]),
    quota=st.integers(1000, 4000),
    requests=st.lists(runs, min_size=5, max_size=20),
)
def test_simulation_and_functions_agree_on_blocks_of_unequal_bytes(
    clean_hot, policy, quota, requests
):
    blocks = make(policy, capacity_bytes=quota)
    cache = hot.HotTier(blocks, bytes_of=unequal_bytes)
    clean_hot.wipe()
    with clean_hot.client() as client:
        load_functions(client)
        real = LuaCache(client, policy, quota, bytes_of=unequal_bytes)
        for ids in requests:
            assert [real.ask(id_) for id_ in ids] == [cache.ask(id_, 0) for id_ in ids]
            assert real.hot(range(70)) == {id_ for id_ in range(70) if id_ in blocks}
            assert real.tier.usage().hot_bytes == blocks.used_bytes <= quota


def test_the_policies_are_those_that_the_functions_name():
    rows = re.findall(
        r'\[(\d)\] = \{ name = "(\w+)", probation = (\w+), share = ([\d.]+) \}', functions_source()
    )
    named = {name: (int(n), probation == "true", float(s)) for n, name, probation, s in rows}
    assert named == {name: (NUMBERS[name].value, *row) for name, row in EVICTION.items()}


def test_lru_agrees_with_the_exact_model_when_every_read_promotes():
    requests = workload(seed=1, requests=2000, blocks=400)
    cache = hot.HotTier(make("lru", capacity_bytes=50), Promote.EVERY_READ)
    exact = SingleTier(make("lru", capacity_bytes=50))
    for id_ in chain.from_iterable(requests):
        assert cache.ask(id_, 0) == bool(exact.ask([id_]))


def test_a_scan_of_cold_blocks_changes_nothing_but_the_notes():
    requests = [BlockRequest(ids, 0.0) for ids in workload(seed=2, requests=3000, blocks=300)]
    for online in ONLINE.values():
        alone = simulate(hot.HotTier(online(40)), requests)
        assert simulate(hot.HotTier(online(40)), with_scans(requests, was_cold=True)) == alone


def test_scans_add_as_many_blocks_as_were_asked_for_each_once():
    requests = [BlockRequest(tuple(range(100)), 0.0)] * 12
    scanned = [r for r in with_scans(requests, was_cold=False) if r.is_scan]
    ids = list(chain.from_iterable(r.ids for r in scanned))
    assert len(ids) == len(set(ids)) == 1200 // SCAN_BLOCKS * SCAN_BLOCKS
    assert min(ids) >= FIRST_SCANNED


def test_the_second_read_promotes_only_within_the_window():
    cache = hot.HotTier(make("2q", capacity_bytes=2), window_s=10)
    cache.add_cold([1])
    assert [cache.ask(1, at) for at in (0, 11, 21, 21)] == [False, False, False, True]
