"""Simulated tiers do what the index's functions do, stay within their quotas, and count right."""

from dataclasses import dataclass, field, replace
from itertools import chain, count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.formats.keys import BucketKeys
from neve.index.library import functions_source
from neve.index.tier import (
    PROMOTE_WINDOW_S,
    BlockTerms,
    CommitOutcome,
    Eviction,
    FlushOutcome,
    HotTier,
    Location,
    Tier,
)
from neve.planner.simulate.hot import Promote
from neve.planner.simulate.index import Index
from neve.planner.simulate.lru import LruModel
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.settings import REFUSE
from neve.planner.simulate.tiers import Setting, TierSetting, run

SIZE, SPACE, PRIORITIES, BEGIN_S = 100, 3, 2, 1_700_000_000
NUMBERS = {"lru": Eviction.LRU, "2q": Eviction.TWO_QUEUES}
TENANTS = count(1)
CLOCK = "clock_us"  # key of the time that the functions of this test read


def block_settings(*, policies=("lru", "2q")):
    """Settings of at most 12 blocks a tier."""
    sizes = st.integers(1, 12).map(lambda blocks: SIZE * blocks)
    some_s = st.none() | st.integers(1, 40)
    return st.builds(
        Setting,
        hot=st.builds(TierSetting, sizes, st.sampled_from(policies), some_s),
        cold=st.none() | st.builds(TierSetting, sizes, st.sampled_from(("lru", REFUSE))),
        block_bytes=st.just(SIZE),
        promote=st.sampled_from((Promote.SECOND_READ, Promote.NEVER)),
        promote_window_s=st.sampled_from((0, 8, PROMOTE_WINDOW_S)),
        ttl_s=some_s,
        flush_after_s=st.sampled_from((0, 0, 3)),
    )


@st.composite
def traces(draw):
    """Requests for runs of few blocks. Blocks of one priority have ids of their own."""
    requests, now_s = [], BEGIN_S
    for _ in range(draw(st.integers(1, 40))):
        now_s += draw(st.sampled_from((0, 0, 1, 1, 2, 5, 20)))
        priority, start = draw(st.integers(0, PRIORITIES - 1)), draw(st.integers(0, 8))
        ids = [100 * priority + n for n in range(start, start + draw(st.integers(1, 5)))]
        requests.append(BlockRequest(tuple(ids), float(now_s), priority=priority))
    return requests


@dataclass
class RealTiers:
    """Plays requests on a real server's functions, one block at a time, at times of its own."""

    client: object
    setting: Setting
    now_us: int = (BEGIN_S - 1) * 1_000_000
    segments: int = 0
    tier: HotTier = field(init=False)
    keys: BucketKeys = field(init=False)

    def __post_init__(self):
        tenant = next(TENANTS)
        self.tier, self.keys = HotTier(self._execute, tenant), BucketKeys(tenant, 0)
        setting, cold = self.setting, self.setting.cold
        terms = BlockTerms(
            flush_after_s=None if cold is None else setting.flush_after_s,
            ttl_s=setting.ttl_s,
            idle_s=setting.hot.idle_s,
        )
        self.tier.set_policy(
            hot_bytes=setting.hot.capacity_bytes,
            cold_bytes=cold.capacity_bytes if cold else 0,
            cold_evicts=cold is None or cold.policy != REFUSE,
            terms=terms,
            spaces={SPACE + n: replace(terms, priority=n) for n in range(PRIORITIES)},
            eviction=NUMBERS[setting.hot.policy],
            promote_window_s=0 if setting.promote is Promote.NEVER else setting.promote_window_s,
        )

    def _execute(self, *args):
        """Each call is 10 µs after the one before it: the unit of ranks."""
        self.now_us += 10
        self.client.set(CLOCK, self.now_us)
        return self.client.execute_command(*args)

    def advance(self, to_s):
        """Each second: first ends of lives and the idle rule, then the flushes that are due."""
        for second in range(self.now_us // 1_000_000 + 1, to_s + 1):
            self.now_us = second * 1_000_000
            self.tier.expire_due()
            self._flush()

    def _flush(self):
        now_us, self.now_us = self.now_us, self.now_us + 900_000  # due some time of this second
        blocks = self.tier.lease_dirty(lease_s=9, most_blocks=999, most_bytes=1 << 30)
        self.now_us = now_us
        for block in blocks:
            if self.tier.admit([(block.id, block.size_bytes)]).fits == [True]:
                self.segments += 1
                self.tier.open_segment(self.segments)
                placed = self.tier.flushed(self.segments, [(block.id, 64)])
                assert placed == [FlushOutcome.FLUSHED]
            self.tier.renew_leases([block.id], 0)

    def request(self, numbers, priority):
        """Returns how many blocks of the prefix were hot, and cold."""
        ids = [number.to_bytes(16, "big") for number in numbers]
        places = self.tier.match(ids)
        hits = next((n for n, at in enumerate(places) if not isinstance(at, Location)), len(ids))
        hot = [id_ for id_, at in zip(ids, places[:hits], strict=False) if at.tier is Tier.HOT]
        cold = [id_ for id_ in ids[:hits] if id_ not in hot]
        for id_ in hot:
            self.tier.touch([id_])
        promoted = [id_ for id_ in cold if self.tier.promote([id_]) == [True]]
        for id_ in promoted + ids[hits:]:
            self.client.set(self.keys.block(SPACE + priority, id_), b"x" * SIZE, nx=True, px=60_000)
            self.tier.commit(SPACE + priority, [(id_, SIZE, 16)])
            if not self.setting.flush_after_s:
                self._flush()
        return len(hot), len(cold)

    def residents(self, numbers):
        places = self.tier.match([number.to_bytes(16, "big") for number in numbers])
        found = [(n, at) for n, at in zip(numbers, places, strict=True) if isinstance(at, Location)]
        hot = {n for n, at in found if at.tier is Tier.HOT}
        return hot, {n for n, at in found if at.is_cold}


def residents(index):
    hot = {id_ for id_, entry in index.entries.items() if entry.hot}
    return hot, {id_ for id_, entry in index.entries.items() if entry.cold}


@pytest.fixture
def clocked(clean_hot):
    """A server whose functions read their time from a key."""
    clock = 'local t = redis.call("TIME")\n  return tonumber(t[1]) * 1000000 + tonumber(t[2])'
    source = functions_source()
    assert source.count(clock) == source.count('"TIME"') == 1
    source = source.replace(clock, f'return tonumber(redis.call("GET", "{CLOCK}"))')
    with clean_hot.client() as client:
        client.execute_command("FUNCTION", "LOAD", "REPLACE", source)
        yield client
        client.delete(CLOCK)
        client.execute_command("FUNCTION", "LOAD", "REPLACE", functions_source())


@pytest.mark.integration
def test_simulation_and_functions_agree_on_any_trace(clocked):
    """Hits by tier and resident blocks after each request, counters at the end."""

    @settings(max_examples=60)
    @given(block_settings(), traces())
    def agree(setting, requests):
        real, index = RealTiers(clocked, setting), Index(setting, BEGIN_S)
        everything = sorted(set(chain.from_iterable(request.ids for request in requests)))
        for n, request in enumerate(requests):
            real.advance(int(request.at_s))
            index.advance(request.at_s)
            assert real.residents(everything) == residents(index), f"before request {n}"
            served = index.request(request.ids, request.priority)
            assert real.request(request.ids, request.priority) == (served.hot, served.cold), n
            assert real.residents(everything) == residents(index), f"after request {n}"
        usage = real.tier.usage()
        cold = index.cold
        assert usage.hot_bytes == index.hot.used_bytes
        assert usage.evicted_blocks == index.hot.evicted_blocks
        assert usage.idle_blocks == index.hot.idle_blocks
        assert usage.refused_blocks == index.hot.refused_blocks
        assert usage.expired_blocks == index.expired_blocks
        assert usage.lost_blocks == index.lost_blocks
        assert usage.cold_bytes == (cold.used_bytes if cold else 0)
        assert usage.cold_evicted_blocks == (cold.evicted_blocks if cold else 0)
        assert usage.cold_refused_blocks == (cold.refused_blocks if cold else 0)

    agree()
