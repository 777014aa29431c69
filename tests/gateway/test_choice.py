"""The rule by which a gateway chooses a node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.gateway.choice import Margin, choose
from neve.gateway.nodes import Load, Nodes


def loads(**in_flight):
    return {name: Load(count) for name, count in in_flight.items()}


def test_the_holder_of_the_longest_prefix_gets_the_request():
    choice = choose(loads(a=0, b=3), {"a": 2, "b": 5}, 10)
    assert (choice.node, choice.reason) == ("b", "holder")


def test_the_holder_is_left_when_its_load_is_above_the_least_by_more_than_the_margin():
    margin = Margin(requests=4, ratio=1.5)
    assert choose(loads(a=0, b=4), {"b": 5}, 10, margin=margin).node == "b"
    left = choose(loads(a=0, b=5), {"b": 5}, 10, margin=margin)
    assert (left.node, left.reason) == ("a", "load")
    # 105 is more than 4 above 100, but not 1.5 times as much.
    assert choose(loads(a=100, b=105), {"b": 5}, 10, margin=margin).node == "b"


def test_a_prefix_that_neve_holds_is_left_earlier():
    margin = Margin(requests=8, stored_requests=2)
    assert choose(loads(a=0, b=3), {"b": 5}, 10, margin=margin).node == "b"
    assert choose(loads(a=0, b=3), {"b": 5}, 10, is_stored=True, margin=margin).node == "a"


def test_a_short_prefix_does_not_bind():
    choice = choose(loads(a=0, b=1), {"b": 1}, 20, margin=Margin(least_share=0.1))
    assert (choice.node, choice.reason) == ("a", "new")


def test_without_a_holder_the_least_loaded_gets_it_and_of_equals_the_one_chosen_longest_ago():
    assert choose(loads(a=2, b=1, c=3), {}, 10).node == "b"
    nodes = Nodes()
    chosen = []
    for n in range(6):
        chosen.append(choose({name: nodes.load(name) for name in "abc"}, {}, 10).node)
        nodes.begin(chosen[-1], str(n))
        nodes.end(str(n))
    assert chosen == list("abcabc")


def test_holders_that_are_not_there_do_not_count():
    assert choose(loads(a=0, b=0), {"gone": 9}, 10).reason == "new"
    assert choose(loads(a=7), {"gone": 9}, 10).reason == "only"


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50), min_size=2),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10)),
    st.booleans(),
)
def test_no_choice_is_busier_than_the_margin_allows(in_flight, held, is_stored):
    margin = Margin()
    choice = choose(loads(**in_flight), held, 10, is_stored=is_stored, margin=margin)
    least = min(in_flight.values())
    allowed = max(margin.requests, int(least * margin.ratio) - least)
    assert in_flight[choice.node] - least <= allowed
    if choice.reason == "holder":
        assert held[choice.node] == max(held.get(name, 0) for name in in_flight)


def test_a_wrong_margin_is_named():
    for wrong in ({"requests": -1}, {"ratio": 0.5}, {"stored_requests": -1}, {"least_share": 2}):
        with pytest.raises(Misuse) as caught:
            Margin(**wrong)
        assert caught.value.field == next(iter(wrong))
