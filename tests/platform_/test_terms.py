"""Which terms hold: one pure decision, checked against its definition."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.index.tier import BlockTerms
from retention.terms import Rule, Terms, end_of, most_generous, resolve

NAMES = [field.name for field in fields(Terms)]
ASKED = {"space_id": 1, "label": "agent", "context": "repo-42"}

limits = st.none() | st.integers(1, 1000)
rules = st.lists(
    st.builds(
        Rule,
        order=st.integers(0, 3),
        space_id=st.sampled_from([None, 1, 2]),
        label=st.sampled_from([None, "agent", "chat"]),
        context=st.sampled_from([None, "repo-42", "repo-*", "other"]),
        values=st.dictionaries(st.sampled_from(NAMES), st.integers(1, 1000)),
    ),
    max_size=8,
)
block_terms = st.builds(
    BlockTerms,
    flush_after_s=limits,
    ttl_s=limits,
    max_age_s=limits,
    idle_s=limits,
    priority=st.integers(0, 9),
    until_s=st.integers(0, 5000),
)


@given(rules)
def test_each_field_comes_from_the_most_specific_rule_that_names_it(rules):
    """Said again in another way: a rule wins unless another beats it."""
    terms = resolve(Terms(), rules, **ASKED)
    for name in NAMES:
        naming = [r for r in rules if r.matches(**ASKED) and name in r.values]
        if not naming:
            assert getattr(terms, name) == getattr(Terms(), name)
            continue
        most = max(rule.specificity for rule in naming)
        equals = [rule for rule in naming if rule.specificity == most]
        first = min(rule.order for rule in equals)
        assert getattr(terms, name) in {r.values[name] for r in equals if r.order == first}


@given(rules, st.randoms())
def test_the_order_of_the_list_decides_nothing_when_orders_differ(rules, random):
    numbered = [
        Rule(n, rule.space_id, rule.label, rule.context, rule.values)
        for n, rule in enumerate(rules)
    ]
    shuffled = random.sample(numbered, len(numbered))
    assert resolve(Terms(), numbered, **ASKED) == resolve(Terms(), shuffled, **ASKED)


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (Rule(9, context="repo-*"), Rule(0, space_id=1, label="agent")),
        (Rule(9, label="agent"), Rule(0, space_id=1)),
        (Rule(9, space_id=1, context="repo-42"), Rule(0, context="repo-42")),
        (Rule(0, label="agent"), Rule(1, label="agent")),
    ],
)
def test_context_counts_more_than_label_more_than_space_then_order(winner, loser):
    def valued(rule, priority):
        return Rule(rule.order, rule.space_id, rule.label, rule.context, {"priority": priority})

    rules = [valued(loser, 1), valued(winner, 2)]
    assert resolve(Terms(), rules, **ASKED).priority == 2
    assert resolve(Terms(), rules[::-1], **ASKED).priority == 2


def test_null_means_without_limit_and_absence_means_unchanged():
    policy = Terms(cold_ttl_s=60, max_age_s=90)
    rule = Rule(0, label="agent", values={"cold_ttl_s": None})
    assert resolve(policy, [rule], **ASKED) == Terms(cold_ttl_s=None, max_age_s=90)


def test_blocks_without_a_context_get_no_rule_that_asks_for_one():
    rules = [Rule(0, label="agent", values={"priority": 9}), Rule(0, 1, values={"priority": 7})]
    assert resolve(Terms(), rules, space_id=1).priority == 7
    assert resolve(Terms(), rules, space_id=2).priority == Terms().priority


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("repo-*", "repo-42", True),
        ("repo-?", "repo-42", False),
        ("repo", "repo-42", False),
        ("a[b]", "a[b]", True),
        ("a[b]", "ab", False),
        ("Repo-*", "repo-42", False),
    ],
)
def test_a_context_is_named_or_given_by_a_pattern(pattern, name, matches):
    rule = Rule(0, context=pattern)
    assert rule.matches(space_id=1, label=None, context=name) is matches


@given(block_terms, st.integers(1, 5000))
def test_an_end_is_prolonged_but_never_behind_the_greatest_age(terms, stored_s):
    end = end_of(terms, stored_s)
    if terms.ttl_s is None and terms.max_age_s is None:
        assert end == 0
    if terms.max_age_s is not None:
        assert end <= stored_s + terms.max_age_s
    elif terms.ttl_s is not None:
        assert end == max(stored_s + terms.ttl_s, terms.until_s)


@given(st.lists(block_terms, min_size=1, max_size=4), st.integers(1, 5000))
def test_nobody_loses_by_sharing_a_block(several, stored_s):
    joined = most_generous(several)
    for terms in several:
        ends, own = end_of(joined, stored_s), end_of(terms, stored_s)
        assert ends == 0 or 0 < own <= ends
        assert joined.priority >= terms.priority
        assert joined.idle_s is None or (terms.idle_s or 0) <= joined.idle_s
    assert most_generous(several[::-1]) == joined
