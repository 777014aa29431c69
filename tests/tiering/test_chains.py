"""In which order blocks lie, and how many pieces a load meets."""

import math
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tiering.chains import count_runs, order_along_chains


@dataclass(frozen=True)
class Link:
    id: bytes
    parent: bytes


def links(*pairs):
    return [Link(bytes([id_]), bytes([parent])) for id_, parent in pairs]


def ids(blocks):
    return [block.id[0] for block in blocks]


@st.composite
def forests(draw):
    """Blocks whose parents come from among the earlier ones, in any order."""
    size = draw(st.integers(0, 60))
    parents = [draw(st.integers(-1, n - 1)) for n in range(size)]
    blocks = [
        Link(b"%d" % n, b"%d" % parent if parent >= 0 else b"root%d" % n)
        for n, parent in enumerate(parents)
    ]
    return draw(st.permutations(blocks))


def path_to(block, known):
    path = [block]
    while path[-1].parent in known:
        path.append(known[path[-1].parent])
    return path[::-1]


def pieces(path, place):
    return 1 + sum(place[b.id] != place[a.id] + 1 for a, b in pairwise(path))


@given(forests())
def test_nothing_is_lost_and_parents_come_first(blocks):
    ordered = order_along_chains(blocks)
    assert sorted(ordered, key=lambda b: b.id) == sorted(blocks, key=lambda b: b.id)
    place = {block.id: n for n, block in enumerate(ordered)}
    assert all(place[b.parent] < place[b.id] for b in blocks if b.parent in place)


@given(forests())
def test_no_path_lies_in_more_than_logarithmically_many_pieces(blocks):
    place = {block.id: n for n, block in enumerate(order_along_chains(blocks))}
    known = {block.id: block for block in blocks}
    for block in blocks:
        assert pieces(path_to(block, known), place) <= 1 + math.log2(len(blocks))


@given(forests())
def test_ordering_never_leaves_more_runs_than_leaves(blocks):
    leaves = len({block.id for block in blocks} - {block.parent for block in blocks})
    assert count_runs(order_along_chains(blocks)) <= leaves


def test_the_branch_with_more_blocks_comes_right_behind_the_fork():
    fork = links((1, 0), (2, 1), (3, 1), (4, 3), (5, 3))
    assert ids(order_along_chains(fork)) == [1, 3, 4, 5, 2]


def test_interleaved_chains_are_taken_apart_in_the_order_of_their_beginnings():
    two = links((11, 0), (21, 0), (12, 11), (22, 21), (13, 12))
    assert count_runs(two) == 5
    assert ids(order_along_chains(two)) == [11, 12, 13, 21, 22]


def test_a_circle_that_somebody_forged_loses_nothing():
    assert ids(order_along_chains(links((1, 2), (2, 1), (3, 3), (4, 0)))) == [4, 1, 2, 3]
