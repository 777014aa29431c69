"""Places of blocks in S3 after flushes and merges, simulated without moving bytes.

Callers pass the platform's rules as `Rules` and `Schedule`, because neve does not import the
platform. Results for a trace: docs/decisions/010-compaction.md.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from neve.formats.block import HEADER_BYTES
from neve.formats.ids import ID_BYTES
from neve.planner.simulate.requests import BlockRequest

ROOT_ID = bytes(ID_BYTES)
Place = tuple[int, int]  # segment, offset


@dataclass(frozen=True)
class Block:
    """A stored block. `size_bytes` includes its header."""

    id: bytes
    parent: bytes
    size_bytes: int


@dataclass(frozen=True)
class SegmentFacts:
    """Facts of a segment for the rules. `links`: segment → number of its chains continued here."""

    number: int
    size_bytes: int
    live_bytes: int
    blocks: int
    age_s: float
    generation: int
    links: Mapping[int, int]


class Merge(Protocol):
    """Segments whose live blocks are to be rewritten into new segments of `generation`."""

    @property
    def segments(self) -> tuple[int, ...]: ...
    @property
    def reason(self) -> str: ...
    @property
    def live_bytes(self) -> int: ...
    @property
    def generation(self) -> int: ...


@dataclass(frozen=True)
class Rules:
    """`leases` splits dirty blocks into flushes; `pieces` orders blocks and splits them into
    segments; `merges` chooses segments to merge. A segment keeps its `links_kept` largest links."""

    leases: Callable[[Sequence[Block]], Iterable[Sequence[Block]]]
    pieces: Callable[[Sequence[Block]], Iterable[Sequence[Block]]]
    merges: Callable[[Sequence[SegmentFacts]], Sequence[Merge]]
    links_kept: int


@dataclass(frozen=True)
class Schedule:
    """A flush is due at `least_bytes` dirty, or when the oldest dirty block is `gather_s` old.
    Flushes are considered every `flush_every_s`, merges every `compact_every_s`."""

    least_bytes: int
    gather_s: float
    flush_every_s: float
    compact_every_s: float


class World(Protocol):
    """Cold storage under test. `moved_bytes`: written by compaction; `merges`: count by reason."""

    moved_bytes: int
    merges: Counter[str]

    def flush(self, blocks: Sequence[Block]) -> None: ...
    def compact(self, now_s: float) -> None: ...
    def expire(self, ids: Sequence[bytes]) -> None: ...
    def places(self, ids: Sequence[bytes]) -> list[Place]: ...
    def held(self) -> tuple[int, int, int]:
        """Returns (segments with a live block, their live bytes, their dead bytes)."""


@dataclass
class _Segment:
    size_bytes: int
    live: dict[bytes, Block]
    made_s: float
    generation: int
    blocks: int
    links: dict[int, int]


@dataclass
class SimulatedSegments:
    """Segments as made by flushes and merges under `rules`."""

    rules: Rules
    moved_bytes: int = 0
    merges: Counter[str] = field(default_factory=Counter)
    now_s: float = 0.0
    _segments: dict[int, _Segment] = field(default_factory=dict)
    _places: dict[bytes, Place] = field(default_factory=dict)
    _next: int = 1

    def flush(self, blocks: Sequence[Block]) -> None:
        for lease in self.rules.leases(blocks):
            for piece in self.rules.pieces(lease):
                self._write(piece, 0)

    def compact(self, now_s: float) -> None:
        """Merges until `rules.merges` chooses none."""
        self.now_s = now_s
        while merges := self.rules.merges([self._facts(n) for n in self._segments]):
            self._carry_out(merges[0])

    def expire(self, ids: Sequence[bytes]) -> None:
        """Raises: KeyError for a block that is in no segment."""
        for id_ in ids:
            number = self._places.pop(id_)[0]
            del self._segments[number].live[id_]

    def places(self, ids: Sequence[bytes]) -> list[Place]:
        """Raises: KeyError for a block that is in no segment."""
        return [self._places[id_] for id_ in ids]

    def held(self) -> tuple[int, int, int]:
        held = [each for each in self._segments.values() if each.live]
        live = sum(block.size_bytes for each in held for block in each.live.values())
        return len(held), live, sum(each.size_bytes for each in held) - live

    def _write(self, blocks: Sequence[Block], generation: int) -> None:
        number, at = self._next, HEADER_BYTES
        self._next += 1
        for block in blocks:
            self._places[block.id] = (number, at)
            at += block.size_bytes
        inside = {block.id for block in blocks}
        parents = sorted({block.parent for block in blocks} - inside)
        links = Counter(self._places[id_][0] for id_ in parents if id_ in self._places)
        kept = dict(links.most_common(self.rules.links_kept))
        live = {block.id: block for block in blocks}
        self._segments[number] = _Segment(at, live, self.now_s, generation, len(blocks), kept)

    def _carry_out(self, merge: Merge) -> None:
        copies = [b for n in merge.segments for b in self._segments[n].live.values()]
        for piece in self.rules.pieces(copies):
            self._write(piece, merge.generation)
        for number in merge.segments:
            del self._segments[number]
        self.moved_bytes += merge.live_bytes
        self.merges[merge.reason] += 1

    def _facts(self, number: int) -> SegmentFacts:
        each = self._segments[number]
        live_bytes = sum(block.size_bytes for block in each.live.values())
        return SegmentFacts(
            number, each.size_bytes, live_bytes, each.blocks,
            self.now_s - each.made_s, each.generation, each.links,
        )  # fmt: skip


def chain_of(request: BlockRequest) -> list[bytes]:
    """The request's block ids as 16 bytes each."""
    return [(number + 1).to_bytes(ID_BYTES, "big") for number in request.ids]


def stored_blocks(
    requests: Iterable[BlockRequest], *, payload_bytes: int, block_s: float
) -> list[tuple[float, Block]]:
    """Returns (time stored in s, block) of every distinct requested block, in order of time.

    A request's new blocks are stored `block_s` seconds of prefill apart.
    """
    blocks: dict[bytes, tuple[float, Block]] = {}
    for request in requests:
        parent, ready_s = ROOT_ID, request.at_s
        for id_ in chain_of(request):
            if id_ not in blocks:
                ready_s += block_s
                blocks[id_] = ready_s, Block(id_, parent, HEADER_BYTES + payload_bytes)
            parent = id_
    return sorted(blocks.values(), key=lambda each: each[0])


def play(
    world: World, stored: Sequence[tuple[float, Block]], schedule: Schedule, *, compacts: bool
) -> None:
    """Flushes `stored`, (time in s, block) in order of time, into `world`; merges if `compacts`."""
    dirty: list[Block] = []
    oldest_s, dirty_bytes, done, now_s = 0.0, 0, 0, 0.0
    compact_at = schedule.compact_every_s
    while done < len(stored) or dirty:
        while done < len(stored) and stored[done][0] <= now_s:
            oldest_s = oldest_s if dirty else stored[done][0]
            dirty.append(stored[done][1])
            dirty_bytes += dirty[-1].size_bytes
            done += 1
        is_late = bool(dirty) and oldest_s <= now_s - schedule.gather_s
        if dirty_bytes >= schedule.least_bytes or is_late:
            world.flush(dirty)
            dirty, dirty_bytes = [], 0
        if compacts and now_s >= compact_at:
            world.compact(now_s)
            compact_at += schedule.compact_every_s
        now_s += schedule.flush_every_s
    if compacts:
        world.compact(now_s)
