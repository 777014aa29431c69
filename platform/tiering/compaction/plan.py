"""Which segments are merged, and why. Pure: facts in, merges out.

Three reasons, in this order; a segment is in one merge at most.

- dead: at least half of the segment is dead. Copying the rest costs no more than it frees, so S3
  never holds more than about twice the live bytes.
- small: it has less than LEAST_BYTES alive. Merged if that makes a segment of a good size, or there
  are `fan_in` of them; or if they are old and none of them is most of the result. So a byte is
  copied for this reason a logarithmic number of times.
- scatter: chains of one segment go on in another, so often that the mean piece of a chain is
  smaller than the largest range that a reader asks for. `fan_in` neighbours in time are merged,
  since conversations go on in time; so a byte is copied once in each of few generations.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from neve.datapath.cold import RANGE_BYTES
from tiering import segments


class Reason(StrEnum):
    DEAD = "dead"
    SMALL = "small"
    SCATTER = "scatter"


@dataclass(frozen=True)
class Facts:
    """A live segment of one space, for the plan. `links`: segment → chains that go on here.

    `size_bytes`: of its blocks. Header and footer are never dead: a merge writes them again.
    """

    number: int
    size_bytes: int
    live_bytes: int
    blocks: int
    age_s: float
    generation: int = 0
    links: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    """Segments to merge. `generation`: of the segments that the merge writes."""

    segments: tuple[int, ...]
    reason: Reason
    live_bytes: int
    generation: int


@dataclass(frozen=True)
class Policy:
    """Bytes are live ones. `most_blocks` of a merge bounds the memory for its footers."""

    least_bytes: int = segments.LEAST_BYTES
    most_bytes: int = segments.MOST_BYTES
    dead_share: float = 0.5
    fan_in: int = 8
    generations: int = 3
    old_s: float = 3600.0
    range_bytes: int = RANGE_BYTES
    most_blocks: int = 1 << 16


def plan(facts: Sequence[Facts], policy: Policy = Policy()) -> list[Merge]:
    """Merges of segments of one space; those without live blocks are left out. O(n log n)."""
    rest = sorted((each for each in facts if each.live_bytes > 0), key=lambda each: each.number)
    merges: list[Merge] = []
    for rule in (_dead, _small, _scattered):
        new = list(rule(rest, policy))
        taken = {number for merge in new for number in merge.segments}
        rest = [each for each in rest if each.number not in taken]
        merges += new
    return merges


def _dead(facts: Sequence[Facts], policy: Policy) -> Iterator[Merge]:
    dead = [each for each in facts if _is_dead(each, policy)]
    merges = [_merge(group, Reason.DEAD) for group in _groups(dead, policy)]
    sizes = {each.number: each.size_bytes for each in dead}
    # First the segments that free most for the bytes copied.
    yield from sorted(merges, key=lambda m: m.live_bytes / sum(sizes[n] for n in m.segments))


def _is_dead(each: Facts, policy: Policy) -> bool:
    return each.live_bytes <= each.size_bytes * (1 - policy.dead_share)


def _small(facts: Sequence[Facts], policy: Policy) -> Iterator[Merge]:
    small = [each for each in facts if each.live_bytes < policy.least_bytes]
    for group in _groups(small, policy):
        live, largest = _live(group), max(each.live_bytes for each in group)
        is_old = max(each.age_s for each in group) >= policy.old_s
        is_enough = live >= policy.least_bytes or len(group) >= policy.fan_in
        if len(group) > 1 and (is_enough or (is_old and largest <= live / 2)):
            yield _merge(group, Reason.SMALL)


def _scattered(facts: Sequence[Facts], policy: Policy) -> Iterator[Merge]:
    for generation in range(policy.generations):
        peers = [each for each in facts if each.generation == generation]
        first = 0
        while first + policy.fan_in <= len(peers):
            group = peers[first : first + policy.fan_in]
            members = {each.number for each in group}
            links = sum(n for each in group for to, n in each.links.items() if to in members)
            blocks = sum(each.blocks for each in group)
            if links * policy.range_bytes >= _live(group) and blocks <= policy.most_blocks:
                yield _merge(group, Reason.SCATTER)
                first += policy.fan_in
            else:
                first += 1


def _groups(facts: Sequence[Facts], policy: Policy) -> Iterator[list[Facts]]:
    """Neighbours in time whose live bytes make at most one full segment."""
    group: list[Facts] = []
    bytes_ = blocks = 0
    for each in facts:
        bytes_, blocks = bytes_ + each.live_bytes, blocks + each.blocks
        if group and (bytes_ > policy.most_bytes or blocks > policy.most_blocks):
            yield group
            group, bytes_, blocks = [], each.live_bytes, each.blocks
        group.append(each)
    if group:
        yield group


def _live(group: Sequence[Facts]) -> int:
    return sum(each.live_bytes for each in group)


def _merge(group: Sequence[Facts], reason: Reason) -> Merge:
    """Only a merge along chains makes a new generation: others leave that for later."""
    oldest = max(each.generation for each in group)
    return Merge(
        tuple(each.number for each in group),
        reason,
        _live(group),
        oldest + 1 if reason is Reason.SCATTER else oldest,
    )
