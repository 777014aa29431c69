"""Simulated tiers do what the index's functions do, stay within their quotas, and count right."""

from dataclasses import dataclass, field, replace
from itertools import chain, count

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from valkey import Valkey

from neve.errors import Misuse
from neve.formats.keys import BucketKeys
from neve.index.library import functions_source
from neve.index.tier import (
    PROMOTE_WINDOW_S,
    BlockTerms,
    Eviction,
    FlushOutcome,
    HotTier,
    Location,
    Tier,
)
from neve.planner.simulate import single
from neve.planner.simulate.hot import Promote
from neve.planner.simulate.index import Index
from neve.planner.simulate.requests import BlockRequest
from neve.planner.simulate.settings import REFUSE
from neve.planner.simulate.tiers import Setting, TierSetting, run

SIZE, SPACE, PRIORITIES, BEGIN_S = 100, 3, 2, 1_700_000_000
NUMBERS = {"lru": Eviction.LRU, "2q": Eviction.TWO_QUEUES}
TENANTS = count(1)
CLOCK = "clock_us"  # key of the time that the functions of this test read


def sizes(least, most):
    return st.integers(least, most).map(lambda blocks: SIZE * blocks)


def block_settings(*, policies=("lru", "2q")):
    """Settings of few blocks a tier: some of them leave hot, and some leave cold."""
    some_s = st.one_of(st.none(), st.none(), st.integers(1, 40))
    return st.builds(
        Setting,
        hot=st.builds(TierSetting, sizes(1, 6), st.sampled_from(policies), some_s),
        cold=st.none()
        | st.builds(TierSetting, sizes(3, 14), st.sampled_from(("lru", "lru", REFUSE))),
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
        now_s += draw(st.sampled_from((0, 0, 1, 1, 2, 5, 20, 33)))
        priority, start = draw(st.integers(0, PRIORITIES - 1)), draw(st.integers(0, 8))
        ids = [100 * priority + n for n in range(start, start + draw(st.integers(1, 5)))]
        requests.append(BlockRequest(tuple(ids), float(now_s), priority=priority))
    return requests


def small(**others):
    """One hot block. With a delay of flushes it may be dirty, so that none is promoted."""
    tiers = TierSetting(SIZE, "lru"), TierSetting(5 * SIZE, "lru")
    return Setting(*tiers, block_bytes=SIZE, promote_window_s=8, **others)


def chats(*asked):
    """Requests for one block each: (seconds since the beginning, block)."""
    return [BlockRequest((id_,), float(BEGIN_S + at_s)) for at_s, id_ in asked]


@dataclass
class RealTiers:
    """Plays requests on a real server's functions, one block at a time, at times of its own."""

    client: Valkey
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
    @example(small(), chats((0, 1), (1, 2), (2, 1), (22, 1), (23, 1)))  # too late, then in time
    @example(small(flush_after_s=3), chats((0, 1), (4, 2), (5, 1), (5, 1), (6, 1), (10, 1)))
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


def play(setting, requests):
    """Plays requests and holds the quotas in each moment. Returns the index."""
    index = Index(setting, BEGIN_S)
    for request in requests:
        for at_s in (index.now_s + 0.5, request.at_s):
            index.advance(max(index.now_s, min(at_s, request.at_s)))
            check_books(index)
        index.request(request.ids, request.priority)
        check_books(index)
    return index


def check_books(index):
    for name, tier in index.tiers.items():
        most_bytes = index.setting.tiers[name].capacity_bytes
        assert most_bytes is None or tier.used_bytes <= tier.peak_bytes <= most_bytes
    entries = index.entries.values()
    assert index.hot.used_bytes == index.hot.block_bytes * sum(e.hot for e in entries)
    evictable = sum(e.hot and not e.dirty for e in entries)
    assert sum(map(len, index.hot.orders.values())) == evictable
    if index.cold:
        held = sum(e.cold for e in entries)
        assert index.cold.used_bytes == index.cold.block_bytes * held
        assert sum(map(len, index.cold.orders.values())) == held
    assert all(e.hot or e.cold for e in entries)


ANY_POLICY = ("lru", "2q", "s3-fifo", "lfu", "gdsf")


@given(block_settings(policies=ANY_POLICY), st.none() | st.integers(0, 900), traces())
def test_no_tier_is_ever_over_its_quota(setting, local_bytes, requests):
    local = None if local_bytes is None else TierSetting(local_bytes, "lru", codec_ratio=1.5)
    cold = setting.cold and replace(setting.cold, codec_ratio=2.0)
    play(replace(setting, cold=cold, local=local), requests)


@given(traces(), st.integers(1, 12), st.sampled_from((*ANY_POLICY, "belady")))
def test_one_tier_hits_as_the_policy_alone_does(requests, blocks, policy):
    """`single` has the rules of the traces' README: `lru` is the ideal cache."""
    chains = [request.ids for request in requests]
    chains = [tuple(range(ids[0] // 100 * 100, ids[-1] + 1)) for ids in chains]  # whole prefixes
    requests = [BlockRequest(ids, each.at_s) for ids, each in zip(chains, requests, strict=True)]
    found = run(Setting(TierSetting(blocks * SIZE, policy), block_bytes=SIZE), requests)
    alone = single.run(policy, chains, capacity_bytes=blocks * SIZE, bytes_of=lambda _: SIZE)
    assert found.hit_blocks == alone.hit_blocks
    assert found.asked_blocks == alone.asked_blocks
    assert found.tiers["hot"].peak_bytes <= blocks * SIZE


def ask(at_s, *ids, **others):
    return BlockRequest(ids, float(at_s), **others)


def test_bytes_held_are_integrated_over_time():
    """Two blocks from 0 s on, a third from 10 s on, all gone 100 s after they were stored."""
    setting = Setting(TierSetting(None), block_bytes=1 << 30, ttl_s=100)
    found = run(setting, [ask(0, 1, 2), ask(10, 3), ask(360, 9)])
    hot = found.tiers["hot"]
    assert hot.gib_hours == pytest.approx((2 * 100 + 100) / 3600)
    assert hot.mean_bytes == pytest.approx((1 << 30) * 300 / 360)
    assert (hot.peak_bytes, hot.held_bytes) == (3 << 30, 1 << 30)
    assert (hot.expired_blocks, found.expired_blocks, found.span_s) == (3, 3, 360)


def test_a_codec_makes_room_for_more_blocks_and_moves_fewer_bytes():
    requests = [ask(n, 1, 2, 3, 4) for n in range(3)]
    plain = run(Setting(TierSetting(200, "lru"), block_bytes=100), requests)
    half = run(Setting(TierSetting(200, "lru", codec_ratio=2.0), block_bytes=100), requests)
    assert (plain.hit_blocks, half.hit_blocks) == (0, 8)
    assert half.tiers["hot"].read_bytes == 8 * 50
    assert half.tiers["hot"].written_bytes == 4 * 50


def test_a_prompts_last_block_counts_with_its_own_tokens():
    requests = [ask(0, 1, 2, tokens=600), ask(1, 1, 2, tokens=600), ask(2, 1, 5, tokens=1000)]
    found = run(Setting(TierSetting(None)), requests)
    assert (found.asked_tokens, found.hit_tokens) == (2200, 600 + 512)


def test_the_local_tier_serves_only_blocks_that_the_index_knows():
    setting = Setting(
        TierSetting(2, "lru"), TierSetting(4, "lru"), TierSetting(None, "lru"), ttl_s=None
    )
    requests = [ask(0, 1, 2), ask(1, 1, 2), ask(2, 11, 12, 13, 14), ask(3, 1, 2)]
    found = run(setting, requests)
    assert found.tiers["local"].hit_blocks == 2  # the last request finds its blocks evicted
    assert found.tiers["hot"].hit_blocks == found.tiers["cold"].hit_blocks == 0


def test_promotion_follows_the_setting():
    requests = [ask(0, 1), ask(1, 2), ask(2, 1), ask(3, 1), ask(4, 1)]
    tiers = TierSetting(1, "lru"), TierSetting(None, "lru")
    hot_hits = {
        promote: run(Setting(*tiers, promote=promote), requests).tiers["hot"].hit_blocks
        for promote in Promote
    }
    assert hot_hits == {Promote.SECOND_READ: 1, Promote.EVERY_READ: 2, Promote.NEVER: 0}


def test_buckets_split_the_hits_and_the_held_bytes_by_time():
    requests = [ask(0, 1), ask(59, 1, 2), ask(60, 1, 2), ask(250, 1)]
    found = run(Setting(TierSetting(None)), requests, bucket_s=60)
    rows = [(b.start_s, b.asked_blocks, b.hit_blocks["hot"], b.held_bytes["hot"])
            for b in found.buckets]  # fmt: skip
    assert rows == [(0, 3, 1, 2), (60, 2, 2, 2), (240, 1, 1, 2)]


def test_requests_before_the_count_fill_the_tiers_only():
    requests = [ask(0, 1, 2), ask(50, 1), ask(100, 1, 2, 3), ask(200, 1)]
    found = run(Setting(TierSetting(None)), requests, count_from_s=100)
    hot = found.tiers["hot"]
    assert (found.requests, found.asked_blocks, found.hit_blocks) == (2, 4, 3)
    assert (hot.written_blocks, hot.mean_bytes, found.span_s) == (1, 3.0, 100)


def test_scans_are_played_and_not_counted():
    found = run(Setting(TierSetting(2, "lru")), [ask(0, 1), ask(1, 5, 6, is_scan=True), ask(2, 1)])
    assert (found.asked_blocks, found.hit_blocks, found.tiers["hot"].evicted_blocks) == (2, 0, 2)


def test_without_requests_there_is_no_rate():
    found = run(Setting(TierSetting(1), TierSetting(1, "lru")), [], bucket_s=1)
    assert (found.hit_rate, found.asked_blocks, found.buckets) == (None, 0, ())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TierSetting(-1), "capacity_bytes"),
        (lambda: TierSetting(1, codec_ratio=0), "codec_ratio"),
        (lambda: TierSetting(1, codec_ratio=float("nan")), "codec_ratio"),
        (lambda: TierSetting(1, idle_s=0), "idle_s"),
        (lambda: Setting(TierSetting(1, "arc")), "hot.policy"),
        (lambda: Setting(TierSetting(1, REFUSE)), "hot.policy"),
        (lambda: Setting(TierSetting(1), TierSetting(1, idle_s=5)), "cold.idle_s"),
        (lambda: Setting(TierSetting(1), block_bytes=0), "block_bytes"),
        (lambda: Setting(TierSetting(1), ttl_s=0), "ttl_s"),
        (lambda: Setting(TierSetting(1), promote_window_s=1 << 20), "promote_window_s"),
        (lambda: Setting(TierSetting(1), flush_after_s=-1), "flush_after_s"),
        (lambda: Setting(TierSetting(1, "belady"), flush_after_s=1), "flush_after_s"),
        (lambda: run(Setting(TierSetting(1)), [ask(2, 1), ask(1, 1)]), "at_s"),
        (lambda: run(Setting(TierSetting(1)), [], bucket_s=0), "bucket_s"),
    ],
)
def test_a_setting_without_sense_names_its_field(make, field):
    with pytest.raises(Misuse) as error:
        make()
    assert error.value.field == field
