"""Records of requests: what the engine side notes, and what reaches a heartbeat."""

import json
import random

import pytest

from neve.engine.options import Options
from neve.errors import MissReason, Misuse
from neve.formats.ids import BlockHasher
from neve.node.requests import (
    CELLS,
    MOST_SENT,
    MOST_SENT_BYTES,
    MOST_WAITING,
    Cells,
    Kept,
    Kin,
    Outcome,
    RequestRecord,
    RequestRing,
    RingTerms,
)
from neve.planner.choice import Decision
from support.cache_endpoint import API_KEY, CacheEndpoint
from support.chains import provision
from support.reference_engine import ReferenceEngine
from support.servers import wait_until

CHUNK = 64
OTHER = bytes(range(32))
KIN = {"space": 99, "fingerprint": OTHER.hex(), "chunk_tokens": 32, "heads": False}


@pytest.fixture
def endpoint(valkey_hot):
    valkey_hot.wipe()
    provision(valkey_hot)
    with CacheEndpoint(f"127.0.0.1:{valkey_hot.port}") as endpoint:
        endpoint.requests = {"one_in": 1, "kin": [KIN]}
        yield endpoint


def engine(endpoint, **options):
    given = {
        **{"endpoint": endpoint.url, "api_key": API_KEY, "load": "always", "canary": 0},
        **{"max_chunk_tokens": CHUNK, "load_budget_bytes": 1 << 20, "save_budget_bytes": 1 << 20},
    }
    return ReferenceEngine(Options(**given | options))


def serve(engine, tokens, *, stores=True, **params):
    request = engine.submit(tokens, params={"neve": params})
    for _ in range(20_000):
        if engine.is_idle:
            break
        engine.step()
    if stores:
        engine.store_all()
    return request.name


def records(endpoint):
    found = [each for beat in endpoint.heartbeats for each in beat.get("requests", ())]
    return [RequestRecord.from_dict(each, 0.0) for each in found]


@pytest.mark.integration
def test_a_miss_and_the_hit_that_follows_reach_a_heartbeat(endpoint):
    tokens = [random.Random(5).randrange(250) for _ in range(3 * CHUNK + 10)]
    one = engine(endpoint)
    serve(one, tokens)
    one.close()
    other = engine(endpoint)
    serve(other, tokens)
    serve(other, [*tokens[: 2 * CHUNK], *range(CHUNK)])
    other.close()
    miss, hit, part = records(endpoint)
    asked = (miss.prompt_tokens, miss.asked_tokens, miss.found_tokens, miss.loaded_tokens)
    assert asked == (len(tokens), 3 * CHUNK, 0, 0)
    assert (miss.miss_chunk, miss.reason, miss.outcome) == (
        0,
        MissReason.NEVER_STORED,
        Outcome.NOTHING,
    )
    assert miss.miss_id == miss.chain.ids[:16]
    assert (hit.found_tokens, hit.loaded_tokens) == (3 * CHUNK, 3 * CHUNK)
    assert (hit.miss_chunk, hit.reason, hit.outcome) == (None, None, Outcome.LOAD_ALL)
    assert hit.load_ms is not None
    assert hit.chain == miss.chain
    # The engine's own cache has the first two chunks of the third prompt, or Neve does.
    assert part.miss_chunk == 2
    assert part.local_tokens + part.loaded_tokens >= 2 * CHUNK


@pytest.mark.integration
def test_a_miss_carries_the_ids_that_the_prompt_has_in_another_space(endpoint):
    tokens = [random.Random(6).randrange(250) for _ in range(2 * CHUNK)]
    one = engine(endpoint)
    serve(one, tokens)
    one.close()
    ((space, cells),) = records(endpoint)[0].kin
    hasher = BlockHasher(OTHER, 32)
    assert (space, cells.stride) == (99, 1)
    assert cells.each() == hasher.chain(tokens, parent=hasher.root())


@pytest.mark.integration
def test_a_request_that_asks_is_kept_and_a_store_in_trouble_shows(endpoint, valkey_hot):
    endpoint.requests = {"one_in": 10**6, "kin": []}
    one = engine(endpoint, match_deadline_s=0.05)
    serve(one, range(CHUNK))  # the first of all is kept as a sample
    serve(one, range(100, 100 + CHUNK))
    serve(one, range(200, 200 + CHUNK), explain=True)
    valkey_hot.freeze()
    try:
        serve(one, range(300, 300 + CHUNK), stores=False)
    finally:
        valkey_hot.thaw()
    one.close()
    found = {each.kept: each for each in records(endpoint)}
    assert len(records(endpoint)) == 3
    assert found.keys() == {Kept.SAMPLED, Kept.ASKED, Kept.FAILED}
    assert found[Kept.FAILED].reason in (MissReason.TIMEOUT, MissReason.BREAKER)


@pytest.mark.integration
def test_a_platform_without_the_ring_gets_no_records(endpoint):
    endpoint.requests = None
    one = engine(endpoint)
    serve(one, range(CHUNK))
    wait_until(lambda: len(endpoint.heartbeats) > 1, what="heartbeats")
    one.close()
    assert not any({"requests", "about"} & beat.keys() for beat in endpoint.heartbeats)


# ---- the ring


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def ring_of(**terms):
    ring = RequestRing(Clock())
    ring.set_terms(RingTerms(**{"one_in": 100} | terms))
    return ring


def kept(ring, **why):
    return ring.why_kept(**{"failed": False, "slow": False, "asked": False} | why)


def record(name="r", kept=Kept.SAMPLED, **more):
    return RequestRecord(name, kept, 0.0, **more)


def test_outcomes_are_the_decisions_and_two_more():
    decisions = {each.value for each in Decision} - {Decision.BOTH}  # recorded as load_prefix
    assert decisions < {each.value for each in Outcome}


def test_one_in_so_many_is_kept_and_every_failed_and_slow_one():
    ring = ring_of(one_in=10)
    assert sum(kept(ring) is Kept.SAMPLED for _ in range(1000)) in (100, 101)
    assert kept(ring, failed=True) is Kept.FAILED
    assert kept(ring, slow=True) is Kept.SLOW
    assert kept(ring, slow=True, asked=True) is Kept.ASKED


def test_a_quiet_node_shows_a_request_now_and_then():
    ring = ring_of()
    assert kept(ring) is Kept.SAMPLED
    assert kept(ring) is None
    ring.clock.now += 301
    assert kept(ring) is Kept.SAMPLED


def test_without_terms_nothing_is_kept():
    ring = ring_of()
    ring.add(record())
    ring.set_terms(None)
    assert kept(ring, failed=True) is None
    assert ring.take() == []


def test_so_many_wait_and_failures_leave_room_for_samples():
    ring = ring_of(one_in=1)
    for _ in range(10 * MOST_WAITING):
        for why in ({"failed": True}, {}):
            if (found := kept(ring, **why)) is not None:
                ring.add(record(kept=found))
    taken = []
    while batch := ring.take():
        assert len(batch) <= MOST_SENT
        taken += batch
    assert [each.kept for each in taken] == [Kept.FAILED] * MOST_WAITING + [
        Kept.SAMPLED
    ] * MOST_WAITING
    assert len({each.number for each in taken}) == len(taken)


def test_a_batch_of_the_longest_records_stays_within_its_bytes():
    ring = ring_of(one_in=1, kin=tuple(Kin(n, OTHER, 16) for n in range(2)))
    full = Cells.of([bytes(16)] * 100_000)
    assert len(full.each()) <= CELLS
    for _ in range(MOST_SENT):
        ring.add(record("x" * 200, chain=full), lambda kin: full)
    batch = ring.take()
    sent = json.dumps([each.as_dict(1.0) for each in batch])
    assert 1 < len(batch) < MOST_SENT
    assert len(sent) <= MOST_SENT_BYTES


def test_a_record_comes_back_as_it_was_sent():
    made = record(
        miss_chunk=3,
        miss_id=bytes(16),
        reason=MissReason.EVICTED,
        outcome=Outcome.RECOMPUTE,
        match_ms=1.5,
        chain=Cells(2, bytes(32)),
        kin=((7, Cells(1, bytes(16))),),
    )
    assert RequestRecord.from_dict(made.as_dict(0.0), 0.0) == made


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *[("name", value) for value in ("", 7, "x" * 201, "a\0")],
        *[("asked_tokens", value) for value in (-1, 1.5, True, 2**31, None, "5")],
        *[("match_ms", value) for value in (-1, float("nan"), float("inf"), "1", True)],
        *[("age_s", value) for value in (-1, 1e9, None)],
        *[("reason", value) for value in ("none", 7, [])],
        *[("outcome", value) for value in ("", None, {})],
        *[("kept", value) for value in ("often", None)],
        *[("miss_id", value) for value in ("00", "z" * 32, None)],
        *[
            ("chain", value)
            for value in ({}, {"stride": 0, "ids": ""}, {"stride": 1, "ids": "AA=="})
        ],
        ("chain", {"stride": 1, "ids": "A" * 10_000}),
        ("kin", [{"space": -1, "stride": 1, "ids": ""}]),
        *[("kin", value) for value in ({}, [1], [{}] * 3)],
        ("load_failed", 1),
        ("prompt", "Once upon a time"),
    ],
)
def test_what_is_wrong_is_refused(member, value):
    raw = record().as_dict(0.0) | {member: value}
    with pytest.raises(Misuse):
        RequestRecord.from_dict(raw, 0.0)


def test_terms_that_cannot_be_read_keep_nothing():
    assert RingTerms.from_answer({"one_in": 5, "kin": [KIN]}) == RingTerms(5, (Kin(99, OTHER, 32),))
    assert RingTerms.from_answer({"one_in": 5, "kin": [{}]}) == RingTerms(5)
    for answer in (None, 7, {}, {"one_in": 0}, {"one_in": "5"}, {"one_in": True}):
        assert RingTerms.from_answer(answer) is None
