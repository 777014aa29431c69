"""Batches of samples: read as written; whatever a hostile node sends is refused."""

import random
import threading
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Corrupt, Misuse
from neve.formats.samples import (
    KEY_BYTES,
    LOWEST_RATE_LOG,
    MOST_BATCH_BYTES,
    Batch,
    IdSampler,
    SampledRequest,
    Totals,
    decode,
)
from neve.node.sampling import SampleTerms, Sampling

KEY = bytes(range(KEY_BYTES))


def batch(**changes):
    requests = [
        SampledRequest(-2.5, 40, (0, 7, 39), (1, 2, 3)),
        SampledRequest(-0.25, 3, (2,), (2**59,)),
    ]
    terms = {"rate_log": 4, "requests": requests, "totals": Totals.of([40, 3, 9])}
    return Batch(**{**terms, **changes})


def test_a_batch_is_read_as_it_was_written():
    assert decode(batch().encode()) == batch()
    assert decode(batch(requests=[], dropped=7).encode()) == batch(requests=[], dropped=7)


def test_the_bytes_of_the_documented_example():
    one = Batch(4, [SampledRequest(-1.5, 3, (1,), (2**59,))], Totals.of([3]))
    assert one.encode().hex() == "01040000" + "01010103" + "01dc0b030101" + "0000000000000008"


@pytest.mark.parametrize(
    "wrong",
    [
        batch(requests=[SampledRequest(-1, 3, (3,), (1,))]),  # place beyond the request
        batch(requests=[SampledRequest(-1, 3, (1, 1), (1, 2))]),
        batch(requests=[SampledRequest(-1, 3, (1,), (2**60,))]),  # not sampled at this rate
        batch(requests=[SampledRequest(-1, 3, (1,), (1,)), SampledRequest(1, 3, (1,), (1,))]),
        batch(requests=[SampledRequest(-4000, 3, (1,), (1,))]),
        batch(requests=[SampledRequest(-1, 2**24, (1,), (1,))]),
        batch(totals=Totals.of([3])),
        batch(rate_log=LOWEST_RATE_LOG + 1),
        batch(totals=Totals((1,) * 24, (1,) * 24)),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(Corrupt):
        decode(wrong.encode())


@pytest.mark.parametrize("data", [b"", b"\x02\x04", b"\x01", b"\x01\x04" + b"\xff" * 40, bytes(9)])
def test_other_bytes_are_refused(data):
    with pytest.raises(Corrupt):
        decode(data)


def test_a_batch_that_is_cut_or_has_more_is_refused():
    whole = batch().encode()
    for data in (whole + b"\0", *(whole[:end] for end in range(len(whole)))):
        with pytest.raises(Corrupt):
            decode(data)


@given(st.binary(max_size=200), st.integers(0, LOWEST_RATE_LOG))
def test_any_bytes_are_a_batch_or_refused(tail, rate_log):
    try:
        found = decode(bytes((1, rate_log)) + tail)
    except Corrupt:
        return
    assert all(0 <= p < each.asked_blocks for each in found.requests for p in each.places)


def test_a_batch_beyond_its_bound_is_refused_on_both_sides():
    many = [SampledRequest(-1, 9, (1,), (1,))] * MOST_BATCH_BYTES
    with pytest.raises(Misuse):
        batch(requests=many).encode()
    with pytest.raises(Corrupt, match="at most"):
        decode(bytes(MOST_BATCH_BYTES + 1))


def ids(count, seed=0):
    return random.Random(seed).randbytes(16 * count)


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sampling(clock):
    found = Sampling(clock)
    found.set_terms(SampleTerms(2, KEY))
    return found


def taken(sampling):
    found = sampling.take()
    return found.batch


def test_all_accesses_of_a_sampled_id_are_there_with_their_places(sampling, clock):
    asked = ids(200)
    sampling.add(asked)
    clock.now_s = 5.0
    sampling.add(asked[: 16 * 50])
    clock.now_s = 8.0
    taken = sampling.take()
    first, second = taken.batch.requests
    chosen = IdSampler(KEY, rate_log=2).choose(asked)
    assert list(zip(first.places, first.ids, strict=True)) == chosen
    assert 20 < len(chosen) < 90
    assert second.places == tuple(place for place, _ in chosen if place < 50)
    assert taken.batch.totals == Totals.of([200, 50])

    sent = decode(b64decode(taken.encode()))
    assert [each.at_s for each in sent.requests] == [-8.0, -3.0]
    assert sampling.take() is None


def test_too_much_halves_the_rate_and_loses_no_access_of_the_ids_that_stay(sampling):
    chains = [ids(500, seed) for seed in range(20)]
    for chain in chains:
        sampling.add(chain)
    found = taken(sampling)
    assert found.rate_log > 2
    assert len(found.encode()) <= MOST_BATCH_BYTES
    assert found.dropped == 0
    sampler = IdSampler(KEY, rate_log=found.rate_log)
    kept = {id_ for each in found.requests for id_ in each.ids}
    assert kept == {id_ for chain in chains for _, id_ in sampler.choose(chain)}
    assert found.totals.asked_blocks == 20 * 500
    sampling.add(chains[0])
    assert taken(sampling).rate_log == 2  # the next batch begins at the platform's rate


def test_a_batch_never_exceeds_its_bound_however_many_requests(sampling):
    sampling.set_terms(SampleTerms(0, KEY))
    for seed in range(6000):
        sampling.add(ids(1, seed))
    assert len(taken(sampling).encode()) <= MOST_BATCH_BYTES


def test_off_until_the_platform_says_so_and_when_it_says_no_more(clock):
    sampling = Sampling(clock)
    sampling.add(ids(100))
    assert sampling.take() is None
    sampling.set_terms(SampleTerms(0, KEY))
    sampling.add(ids(100))
    sampling.set_terms(None)
    assert sampling.take() is None
    assert not sampling.is_on


def test_another_key_drops_what_was_collected_with_the_old_one(sampling):
    sampling.add(ids(100))
    sampling.set_terms(SampleTerms(2, bytes(KEY_BYTES)))
    assert sampling.take() is None


def test_a_lower_rate_applies_to_the_batch_under_way(sampling):
    sampling.add(ids(200))
    sampling.set_terms(SampleTerms(4, KEY))
    sampling.add(ids(200, 1))
    found = taken(sampling)
    assert found.rate_log == 4
    assert decode(found.encode()).totals == Totals.of([200, 200])


def test_what_waited_for_a_platform_that_is_away_is_dropped(sampling, clock):
    sampling.add(ids(100))
    clock.now_s = 4000.0
    old = sampling.take()
    assert old.encode() is None
    sampling.add(ids(100))
    clock.now_s = 7000.0
    sampling.add(ids(30))
    assert taken(sampling).totals == Totals.of([30])


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"rate_log": 4},
        {"rate_log": True, "key": KEY.hex()},
        {"rate_log": 13, "key": KEY.hex()},
        {"rate_log": 4, "key": "zz"},
        {"rate_log": 4, "key": KEY.hex()[2:]},
        [4, KEY.hex()],
    ],
)
def test_an_answer_without_terms_means_no_samples(answer):
    assert SampleTerms.from_answer(answer) is None


def test_terms_are_read():
    assert SampleTerms.from_answer({"rate_log": 4, "key": KEY.hex()}) == SampleTerms(4, KEY)


def test_threads_that_ask_while_the_rate_changes_leave_a_readable_batch(sampling):
    chains = [ids(60, seed) for seed in range(40)]

    def ask():
        for chain in chains:
            sampling.add(chain)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for rate_log in (5, 2, 6, 3):
        sampling.set_terms(SampleTerms(rate_log, KEY))
    for thread in threads:
        thread.join()
    found = taken(sampling)
    assert decode(found.encode()).totals.asked_blocks == 3 * 40 * 60
    sampler = IdSampler(KEY, rate_log=found.rate_log)
    expected = sum(len(sampler.choose(chain)) for chain in chains) * 3
    assert sum(len(each.ids) for each in found.requests) == expected
