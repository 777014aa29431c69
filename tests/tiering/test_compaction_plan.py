"""Which segments are merged, and why: the plan is a pure function."""

from hypothesis import given
from hypothesis import strategies as st

from tiering.compaction.plan import Facts, Merge, Policy, Reason, plan

# Sizes of a hundredth of life's, which is easier to read: 64 … 256.
POLICY = Policy(least_bytes=64, most_bytes=256, range_bytes=16)


def segment(number, live, *, size=None, age_s=0.0, blocks=10, **fields):
    return Facts(number, size or live, live, blocks, age_s, **fields)


def test_healthy_segments_are_left_alone():
    assert plan([segment(n, 200) for n in range(50)], POLICY) == []


def test_half_dead_segments_are_merged_into_full_ones():
    facts = [segment(n, 100, size=200) for n in range(5)]
    assert plan(facts, POLICY) == [
        Merge((0, 1), Reason.DEAD, 200, 0),
        Merge((2, 3), Reason.DEAD, 200, 0),
        Merge((4,), Reason.DEAD, 100, 0),
    ]


def test_what_is_wholly_dead_is_not_copied():
    assert plan([segment(1, 0, size=200), segment(2, 0, size=10)], POLICY) == []


def test_small_segments_wait_until_together_they_make_one_of_a_good_size():
    facts = [segment(n, 20) for n in range(3)]
    assert plan(facts, POLICY) == []
    facts.append(segment(3, 20))
    assert plan(facts, POLICY) == [Merge((0, 1, 2, 3), Reason.SMALL, 80, 0)]


def test_many_tiny_segments_are_merged_however_little_they_hold():
    facts = [segment(n, 1) for n in range(8)]
    assert plan(facts, POLICY) == [Merge(tuple(range(8)), Reason.SMALL, 8, 0)]


def test_old_small_segments_are_merged_unless_one_is_most_of_the_result():
    pair = [segment(1, 10, age_s=4000), segment(2, 10)]
    assert plan(pair, POLICY) == [Merge((1, 2), Reason.SMALL, 20, 0)]
    assert plan([segment(1, 50, age_s=4000), segment(2, 10)], POLICY) == []
    assert plan([segment(1, 10, age_s=4000)], POLICY) == []


def test_a_tenant_that_writes_little_for_ever_copies_each_byte_a_few_times():
    """A byte an hour in a segment of its own, for 2,000 hours: copies grow as n log n."""
    sizes = {}
    copied = 0
    for hour in range(2000):
        sizes[hour] = (1, hour)
        while merges := plan(
            [segment(n, live, age_s=3600.0 * (hour - at)) for n, (live, at) in sizes.items()],
            POLICY,
        ):
            for merge in merges:
                live = sum(sizes.pop(number)[0] for number in merge.segments)
                sizes[max(merge.segments)] = (live, hour)
                copied += live
    assert copied <= 2000 * 8  # log₂ 256
    assert len(sizes) <= 2000 / 64 + 8


def test_neighbours_whose_chains_go_on_in_each_other_are_merged_along_them():
    facts = [segment(n, 200, links={n - 1: 20}) for n in range(10)]
    (merge,) = plan(facts, POLICY)
    assert (merge.segments, merge.reason) == (tuple(range(8)), Reason.SCATTER)
    assert merge.generation == 1


def test_pieces_larger_than_a_range_are_not_worth_a_merge():
    """8 segments of 200 bytes and ranges of 16: a hundred pieces are worth it, fewer are not."""
    few = [segment(n, 200, links={n - 1: 14}) for n in range(8)]
    assert plan(few, POLICY) == []
    assert len(plan([segment(n, 200, links={n - 1: 15}) for n in range(8)], POLICY)) == 1


def test_chains_of_another_generation_or_of_unknown_segments_do_not_count():
    facts = [segment(n, 200, links={n + 1000: 50}) for n in range(8)]
    assert plan(facts, POLICY) == []
    mixed = [segment(n, 200, generation=n % 2, links={n - 1: 50}) for n in range(8)]
    assert plan(mixed, POLICY) == []


def test_the_last_generation_is_final():
    facts = [segment(n, 200, generation=3, links={n - 1: 50}) for n in range(8)]
    assert plan(facts, POLICY) == []


def test_a_merge_holds_no_more_blocks_than_fit_in_memory():
    policy = Policy(least_bytes=64, most_bytes=256, range_bytes=16, most_blocks=100)
    small = [segment(n, 1, blocks=60) for n in range(10)]
    assert plan(small, policy) == []
    dead = [segment(n, 1, size=10, blocks=60) for n in range(3)]
    assert [merge.segments for merge in plan(dead, policy)] == [(0,), (1,), (2,)]
    linked = [segment(n, 200, blocks=60, links={n - 1: 50}) for n in range(8)]
    assert plan(linked, policy) == []


@st.composite
def some_facts(draw):
    count = draw(st.integers(0, 40))
    return [
        segment(
            n,
            draw(st.integers(0, 300)),
            size=300,
            age_s=draw(st.sampled_from([0.0, 5000.0])),
            generation=draw(st.integers(0, 4)),
            links=draw(st.dictionaries(st.integers(0, 40), st.integers(1, 100), max_size=4)),
        )
        for n in range(count)
    ]


@given(some_facts())
def test_no_segment_is_in_two_merges_and_none_comes_from_nowhere(facts):
    numbers = [number for merge in plan(facts, POLICY) for number in merge.segments]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) <= {each.number for each in facts if each.live_bytes}


@given(some_facts())
def test_merging_comes_to_an_end(facts):
    """Carried out over and over, with nothing new and nothing dying, a plan gets empty."""
    rounds = 0
    while merges := plan(facts, POLICY):
        rounds += 1
        assert rounds < 50
        for merge in merges:
            facts = [each for each in facts if each.number not in merge.segments]
            pieces = max(1, round(merge.live_bytes / 256))
            for _ in range(pieces):
                number = max((each.number for each in facts), default=0) + 1
                size = merge.live_bytes // pieces
                facts.append(segment(number, size, generation=merge.generation))


def test_the_same_facts_give_the_same_plan_whatever_their_order():
    facts = [segment(n, 20 + n, size=300) for n in range(20)]
    assert plan(facts, POLICY) == plan(facts[::-1], POLICY)
