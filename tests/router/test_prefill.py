"""Prefill pools behind a gateway: what they compute, and every way in which they fail."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from neve.errors import Misuse
from neve.gateway.pools import Handover, PoolOptions
from neve.gateway.prefill import Handed, Outcome, Prefills
from neve.gateway.store import Found
from neve.planner.parts import PrefixBytes
from support.light_engines import BYTES_PER_TOKEN, CHUNK, LightEngine, World
from support.servers import free_port

LONG = 40 * CHUNK
SLOW_LOCAL = 1e-3  # seconds a token of the decode nodes


def stored(usable: int, hot: int | None = None) -> Found:
    return Found(LONG, usable, usable if hot is None else hot)


class Clock:
    """The real one, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def engine(world: World) -> Iterator[LightEngine]:
    with LightEngine(world) as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def prefills(
    world: World, *options: PoolOptions, clock: Clock | None = None, is_known: bool = True
) -> AsyncIterator[Prefills]:
    """With decode nodes of SLOW_LOCAL. `is_known`: the pools' links and speeds are, too."""

    async def look_up(tokens: Sequence[int], salt: str) -> Found | None:
        usable = world.usable(list(tokens), salt)
        return stored(usable, 0 if world.cold_only else usable)

    async with httpx.AsyncClient() as http:
        found = Prefills(options, http=http, look_up=look_up, clock=clock or time.monotonic)
        found.measured(kv=PrefixBytes(BYTES_PER_TOKEN, 0), prefill_tokens_per_s=None)
        found.local.assume(1 / SLOW_LOCAL)
        yield found


def pool(*urls: str, **more: Any) -> PoolOptions:
    known = {"link_bytes_per_s": 1e9, "prefill_tokens_per_s": 1e6}
    return PoolOptions("far", urls, "tiny", **known | more)


def prompt(seed: int = 0, tokens: int = LONG) -> list[int]:
    return [seed, *range(1, tokens)]


NOTHING = stored(0)


async def prepare(
    found: Prefills, tokens: list[int], known: Found | None = NOTHING, salt: str = ""
) -> Handed:
    async with found.prepared(tokens, known, salt=salt) as handed:
        return handed


async def test_a_long_prompt_is_computed_by_the_pool(world, engine):
    async with prefills(world, pool(engine.url, api_key="k")) as found:
        handed = await prepare(found, prompt(), salt="s")
    assert handed.outcome is Outcome.HANDED_OVER
    assert world.usable(prompt(), "s") == LONG
    [(path, body, headers)] = engine.calls
    assert (path, headers["authorization"]) == ("/v1/completions", "Bearer k")
    assert (body["max_tokens"], body["cache_salt"], body["stream"]) == (1, "s", False)
    assert handed.prefilled is not None
    assert handed.prefilled["tokens"] == LONG
    assert found.counts["far", Outcome.HANDED_OVER] == 1
    assert found.sent_bytes["far"] == LONG * BYTES_PER_TOKEN


def test_the_wish_of_the_client_stays():
    handed = Handed(Outcome.HANDED_OVER, prefilled={"tokens": 64, "block": "00"})
    added = handed.added_to({"neve": {"context": "repo"}, "other": 1})
    assert added == {
        "neve": {"context": "repo", "prefilled": {"tokens": 64, "block": "00"}},
        "other": 1,
    }
    assert handed.added_to(None) == {"neve": {"prefilled": {"tokens": 64, "block": "00"}}}
    assert handed.added_to(7) == 7  # the engine is to refuse it
    assert Handed(Outcome.SHORT).added_to(None) is None


async def test_a_short_prompt_is_not(world, engine):
    async with prefills(world, pool(engine.url)) as found:
        handed = await prepare(found, prompt(tokens=100))
    assert handed.outcome is Outcome.SHORT
    assert handed.threshold is None  # below all: nothing was asked
    assert not engine.calls


async def test_uncached_tokens_count(world, engine):
    async with prefills(world, pool(engine.url)) as found:
        handed = await prepare(found, prompt(), stored(LONG - CHUNK))
    assert (handed.outcome, handed.tokens) == (Outcome.SHORT, CHUNK)


async def test_without_an_answer_of_neve_the_decode_node_computes(world, engine):
    async with prefills(world, pool(engine.url)) as found:
        handed = await prepare(found, prompt(), None)
    assert handed.outcome is Outcome.UNREACHABLE
    assert not engine.calls


async def test_without_pools_there_is_nothing_to_do(world):
    async with prefills(world) as found:
        assert (await prepare(found, prompt())).outcome is Outcome.NO_POOL


async def test_a_lost_engine_gets_no_prompt_until_its_pause_is_over(world, clock):
    port = free_port()
    async with prefills(world, pool(f"http://127.0.0.1:{port}"), clock=clock) as found:
        assert (await prepare(found, prompt(1))).outcome is Outcome.FAILED
        assert (await prepare(found, prompt(2))).outcome is Outcome.LOST
        with LightEngine(world, port=port) as engine:
            assert (await prepare(found, prompt(3))).outcome is Outcome.LOST
            clock.ahead_s += 2
            assert (await prepare(found, prompt(4))).outcome is Outcome.HANDED_OVER
            assert (await prepare(found, prompt(5))).outcome is Outcome.HANDED_OVER
            assert len(engine.calls) == 2


async def test_another_engine_of_the_pool_takes_the_next_prompt(world, engine):
    async with prefills(world, pool(f"http://127.0.0.1:{free_port()}", engine.url)) as found:
        assert (await prepare(found, prompt(1))).outcome is Outcome.FAILED
        assert (await prepare(found, prompt(2))).outcome is Outcome.HANDED_OVER


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, {}),
        (200, {}),
        (200, {"kv_transfer_params": {"neve": {"prefilled": 7}}}),
        (200, {"kv_transfer_params": {"neve": {"prefilled": {"tokens": "all"}}}}),
    ],
)
async def test_a_wrong_answer_is_a_failure(world, engine, status, answer):
    engine.fails = lambda path, body: JSONResponse(answer, status)
    async with prefills(world, pool(engine.url)) as found:
        assert (await prepare(found, prompt())).outcome is Outcome.FAILED
        assert found.pools[0].is_lost


async def test_a_refused_prompt_is_no_failure_of_the_engine(world, engine):
    engine.fails = lambda path, body: JSONResponse({"error": {"message": "too long"}}, 400)
    async with prefills(world, pool(engine.url)) as found:
        assert (await prepare(found, prompt())).outcome is Outcome.FAILED
        assert not found.pools[0].is_lost


async def test_a_slow_engine_is_given_up_and_its_request_ends(world, engine):
    engine.s_per_token = 1.0
    async with prefills(world, pool(engine.url, prefill_s=0.3)) as found:
        handed = await prepare(found, prompt())
        assert handed.outcome is Outcome.SLOW
        assert handed.prefilled is None
        await until(lambda: engine.cancelled == 1)


async def test_a_cancelled_request_ends_in_the_pool(world, engine):
    engine.s_per_token = 1.0
    async with prefills(world, pool(engine.url)) as found:
        task = asyncio.create_task(prepare(found, prompt()))
        await until(lambda: engine.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: engine.cancelled == 1)
        assert not found.pools[0].nodes[0].work
        assert found.pools[0].link.queue_bytes == 0


async def test_a_full_pool_gets_no_more(world, engine):
    engine.s_per_token = 1.0
    async with prefills(world, pool(engine.url, most_waiting=1)) as found:
        task = asyncio.create_task(prepare(found, prompt(1)))
        await until(lambda: engine.running == 1)
        assert (await prepare(found, prompt(2))).outcome is Outcome.FULL
        task.cancel()


async def test_a_waiting_pool_raises_the_threshold(world, engine):
    engine.s_per_token = 1.0
    far = pool(engine.url, prefill_tokens_per_s=2000.0)
    async with prefills(world, far) as found:
        before = found.threshold(found.pools[0])
        task = asyncio.create_task(prepare(found, prompt(1)))
        await until(lambda: engine.running == 1)
        after = found.threshold(found.pools[0])
        assert before is not None
        assert after is not None
        assert after.sooner > before.sooner
        task.cancel()


async def test_blocks_that_do_not_come_are_left_to_the_decode_node(world, engine):
    engine.stores_nothing = True
    async with prefills(world, pool(engine.url, wait_s=0.2)) as found:
        handed = await prepare(found, prompt())
    assert handed.outcome is Outcome.LATE
    assert handed.prefilled is not None  # it may wait a little more, and knows the chain


async def test_the_tier_of_the_hand_over_counts(world, engine):
    world.cold_only = True
    for where, outcome in (
        (Handover.HOT, Outcome.LATE),
        (Handover.COLD, Outcome.HANDED_OVER),
    ):
        far = pool(engine.url, handover=where, wait_s=0.2)
        async with prefills(world, far) as found:
            assert (await prepare(found, prompt())).outcome is outcome


async def test_an_unknown_pool_is_measured_by_the_first_prompts(world, engine):
    engine.link = 1e7
    unknown = pool(engine.url, link_bytes_per_s=None, prefill_tokens_per_s=None)
    async with prefills(world, unknown) as found:
        assert found.threshold(found.pools[0]) is None
        for seed in range(20):  # those that are late on a busy machine measure nothing
            await prepare(found, prompt(seed))
            if found.threshold(found.pools[0]) is not None:
                break
        assert found.pools[0].link.speed() is not None
        assert found.threshold(found.pools[0]) is not None


async def test_a_link_cut_to_a_tenth_raises_the_threshold(world, clock):
    async with prefills(world, pool("http://127.0.0.1:1", least_tokens=1), clock=clock) as found:
        link = found.pools[0].link
        found_by_rate = []
        for rate in (50e6, 5e6):
            for _ in range(4):
                link.end(5e6, link.begin(), 5e6 / rate, asking_s=0.05)
            speed = link.speed()
            assert speed is not None
            assert speed.bytes_per_s == pytest.approx(rate, rel=0.7)
            found_by_rate.append(found.threshold(found.pools[0]))
        before, after = found_by_rate
        assert before is not None
        assert after is not None
        assert after.sooner > 1.1 * before.sooner
        # What was slow long ago is tried again.
        clock.ahead_s += 3600
        later = found.threshold(found.pools[0])
        assert later is not None
        assert later.sooner < after.sooner


@pytest.mark.parametrize("of", ["link", "prefill"])
async def test_one_sample_out_of_line_closes_a_pool_for_a_minute_at_most(world, clock, of):
    """A hand-over or prefill that takes 1,000 times as long, as on a machine that pauses."""
    async with prefills(world, pool("http://127.0.0.1:1"), clock=clock) as found:
        far = found.pools[0]

        def sample(times: float) -> None:
            if of == "link":
                far.link.end(LONG * BYTES_PER_TOKEN, far.link.begin(), 0.5 * times, asking_s=0.01)
            else:
                far.prefill.add(0, LONG, 0.5 * times)

        for _ in range(4):
            sample(1.0)
        before = found.threshold(far)
        sample(1000.0)
        clock.ahead_s += 90
        after = found.threshold(far)
        assert before is not None
        assert after is not None
        assert before.sooner < LONG
        assert after.sooner < LONG


async def test_the_first_sample_counts_until_there_is_a_second(world, clock):
    """It opens connections, or compiles."""
    async with prefills(world, pool("http://127.0.0.1:1"), clock=clock) as found:
        far = found.pools[0]
        for took_s in (100.0, 1.0):
            far.link.end(1e6, far.link.begin(), took_s, asking_s=took_s)
            far.prefill.add(0, 1000, took_s)
        speed, curve = far.link.speed(), far.prefill.curve()
        assert speed is not None
        assert curve is not None
        assert (speed.bytes_per_s, speed.round_trip_s) == pytest.approx((1e6, 1.0), rel=1e-3)
        assert curve.at(1000) == pytest.approx(1.0)


async def test_transfers_side_by_side_are_one_link(world, clock):
    async with prefills(world, pool("http://127.0.0.1:1")) as found:
        link = found.pools[0].link
        one, other = link.begin(), link.begin()
        link.end(1e6, one, 1.0, asking_s=0.0)
        link.end(1e6, other, 2.0, asking_s=0.0)
        speed = link.speed()
        assert speed is not None
        assert speed.bytes_per_s == pytest.approx(1e6)


async def test_the_pool_whose_blocks_come_sooner_is_taken(world, engine):
    with LightEngine(world) as near:
        both = (pool(engine.url, link_bytes_per_s=2e6), pool(near.url))
        options = [both[0], PoolOptions(**{**vars(both[1]), "name": "near"})]
        async with prefills(world, *options) as found:
            assert (await prepare(found, prompt())).pool == "near"
    assert not engine.calls


async def test_decode_nodes_are_measured_by_their_first_tokens(world, clock):
    far = pool(f"http://127.0.0.1:{free_port()}")
    async with prefills(world, far, clock=clock) as found:
        for tokens in (100, 200):
            async with found.prepared(prompt(tokens=tokens), NOTHING, node="a") as handed:
                clock.ahead_s += tokens * 2e-3
                handed.first_token()
        curve = found.local.curve()
        assert curve is not None
        assert curve.at(150) == pytest.approx(0.3, rel=0.1)


async def test_a_busy_decode_node_lowers_the_threshold_and_is_not_measured(world, engine, clock):
    far = pool(engine.url, link_bytes_per_s=1e7, prefill_tokens_per_s=1e4)
    async with prefills(world, far, clock=clock) as found:
        async with found.prepared(prompt(tokens=200), NOTHING, node="a"):
            async with found.prepared(prompt(2, tokens=300), NOTHING, node="a") as handed:
                assert handed.outcome is Outcome.HANDED_OVER
            async with found.prepared(prompt(3, tokens=200), NOTHING, node="a") as handed:
                handed.first_token()
        assert not found.local.is_measured


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"urls": ()}, "needs at least one address"),
        ({"name": ""}, "must not be empty"),
        ({"wait_s": 0}, "wait_s: must be above 0"),
        ({"link_bytes_per_s": 0.0}, "link_bytes_per_s: must be above 0"),
    ],
)
def test_a_wrong_option_is_named(wrong, words):
    with pytest.raises(Misuse, match=words):
        PoolOptions(**{"name": "far", "urls": ("http://x",), "model": "tiny"} | wrong)


async def test_two_pools_of_one_name_or_one_link_with_two_speeds_are_refused(world):
    same = pool("http://127.0.0.1:1", link="sea")
    for other in (same, PoolOptions("other", ("http://127.0.0.1:2",), "tiny", link="sea")):
        with pytest.raises(Misuse):
            async with prefills(world, same, other):
                pass


async def until(ready: Any, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not ready():
            await asyncio.sleep(0.01)
