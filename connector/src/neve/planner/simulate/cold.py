"""Eviction of a full cold tier, simulated in whole blocks: hits and rewritten blocks.

Above it is a hot tier with two queues and promotion at the second read (`simulate.hot`). A request
asks for its blocks in order and hits the prefix that is hot or cold; its other blocks are computed,
stored as hot and flushed at once into segments of SEGMENT_BLOCKS. Compaction rewrites a half-dead
segment, as the workers do. Why the longest unread block is evicted:
docs/decisions/013-cold-eviction.md.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from neve.index.tier import PROMOTE_WINDOW_S
from neve.planner.simulate.policies import Policy, make
from neve.planner.simulate.requests import BlockRequest

SEGMENT_BLOCKS = 128  # 256 MiB, with blocks of 2 MiB
DEAD_SHARE = 0.5


@dataclass
class Segment:
    """`written`: blocks of its object; `live`: ids in the index → read since written."""

    written: int = 0
    live: dict[int, bool] = field(default_factory=dict)


@dataclass
class Cold:
    """A cold tier of `quota` blocks; subclasses choose what to evict. `live`: longest unread
    first."""

    quota: int
    live: OrderedDict[int, Segment] = field(default_factory=OrderedDict)
    segments: OrderedDict[int, Segment] = field(default_factory=OrderedDict)  # longest unread first
    stored: int = 0
    peak: int = 0
    flushed: int = 0
    rewritten: int = 0
    _open: Segment = field(default_factory=Segment)
    _merged: Segment = field(default_factory=Segment)

    def read(self, ids: Sequence[int]) -> None:
        """Notes a read of blocks of one chain, first to last."""
        for id_ in ids:
            self.touch(id_)

    def touch(self, id_: int) -> None:
        segment = self.live.get(id_)
        if segment is not None:
            segment.live[id_] = True
            self.live.move_to_end(id_)
            if id(segment) in self.segments:
                self.segments.move_to_end(id(segment))

    def flush(self, ids: Sequence[int]) -> None:
        """Stores new blocks of one chain, first to last, evicting for room."""
        for id_ in ids:
            while len(self.live) >= self.quota:
                if not self.evict():
                    break
            if len(self.live) < self.quota:
                self.flushed += 1
                self._open = self._write(id_, self._open)
        written = [id_ for id_ in ids if id_ in self.live]
        self.read(written)
        for id_ in written:
            self.live[id_].live[id_] = False
        self.compact()

    def evict(self) -> bool:
        """Evicts at least one block; False: nothing can be evicted."""
        raise NotImplementedError

    def remove(self, id_: int) -> None:
        del self.live.pop(id_).live[id_]

    def compact(self) -> None:
        for number, segment in list(self.segments.items()):
            if len(segment.live) > segment.written * (1 - DEAD_SHARE):
                continue
            self.merge(number, segment)

    def merge(self, number: int, segment: Segment) -> None:
        """Rewrites the live blocks of a segment into another one."""
        del self.segments[number]
        for id_ in list(segment.live):
            self.rewritten += 1
            read = segment.live[id_]
            self._merged = self._write(id_, self._merged, keeps_place=True)
            self.live[id_].live[id_] = read
        self.stored -= segment.written

    def _write(self, id_: int, into: Segment, *, keeps_place: bool = False) -> Segment:
        """Appends a block to `into`. Returns the segment for the next block."""
        into.live[id_] = False
        into.written += 1
        self.live[id_] = into
        self.stored += 1
        self.peak = max(self.peak, self.stored)
        if into.written < SEGMENT_BLOCKS:
            return into
        self.segments[id(into)] = into
        if keeps_place:
            self.segments.move_to_end(id(into), last=False)
        return Segment()


class BlockLazy(Cold):
    """Evicts the longest unread block. Merges the deadest segments to stay within SLACK × quota."""

    SLACK = 1.2

    def evict(self) -> bool:
        self.remove(next(iter(self.live)))
        return True

    def compact(self) -> None:
        if self.stored <= self.SLACK * self.quota:
            return
        for number, segment in sorted(self.segments.items(), key=lambda item: len(item[1].live)):
            self.merge(number, segment)
            if self.stored <= self.SLACK * self.quota:
                return


class Refuse(Cold):
    def evict(self) -> bool:
        return False


class Block(Cold):
    """Evicts the longest unread block; of blocks read together, the chain's first one first."""

    def evict(self) -> bool:
        self.remove(next(iter(self.live)))
        return True


class BlockTail(Block):
    """Evicts the longest unread block; of blocks read together, the chain's last one first."""

    def read(self, ids: Sequence[int]) -> None:
        super().read(ids[::-1])


class BlockFifo(Block):
    """Evicts the block stored longest ago."""

    def touch(self, id_: int) -> None:
        pass


class WholeSegment(Cold):
    """Evicts the longest unread segment as a whole."""

    def evict(self) -> bool:
        if not self.segments:  # no segment is complete yet
            self.remove(next(iter(self.live)))
            return True
        _, segment = self.segments.popitem(last=False)
        self.stored -= segment.written
        for id_ in list(segment.live):
            self.remove(id_)
        return True


class WholeSegmentFifo(WholeSegment):
    """Evicts the oldest segment as a whole."""

    def touch(self, id_: int) -> None:
        pass


class SegmentRescue(Cold):
    """Evicts the oldest segment; rewrites its blocks that were read since they were written."""

    def touch(self, id_: int) -> None:
        if id_ in self.live:
            self.live[id_].live[id_] = True

    def evict(self) -> bool:
        if not self.segments:
            self.remove(next(iter(self.live)))
            return True
        _, segment = self.segments.popitem(last=False)
        read = [id_ for id_, is_read in segment.live.items() if is_read]
        if len(read) == len(segment.live):
            read = []
        for id_ in list(segment.live):
            self.remove(id_)
        for id_ in read:
            self.rewritten += 1
            self._merged = self._write(id_, self._merged)
        self.stored -= segment.written
        return True


POLICIES: dict[str, Callable[[int], Cold]] = {
    "refuse": Refuse,
    "block, longest unread, tail first": BlockTail,
    "block, longest unread, root first": Block,
    "block, longest unread, merged late": BlockLazy,
    "block, oldest": BlockFifo,
    "segment, longest unread": WholeSegment,
    "segment, oldest": WholeSegmentFifo,
    "segment, oldest, read ones kept": SegmentRescue,
}


@dataclass
class Tiers:
    cold: Cold
    hot_blocks: int
    hot: Policy = field(init=False)
    _reads: dict[int, float] = field(default_factory=dict)  # id → time of its last cold read

    def __post_init__(self) -> None:
        self.hot = make("2q", capacity_bytes=self.hot_blocks)

    def request(self, ids: Sequence[int], now_s: float) -> int:
        """Asks for a chain's blocks in order. Returns the length of the found prefix."""
        hits = next((n for n, i in enumerate(ids) if not self._has(i)), len(ids))
        for id_ in ids[:hits]:
            if id_ in self.hot:
                self.hot.use(id_)
            elif now_s - self._reads.get(id_, -1e18) <= PROMOTE_WINDOW_S:
                self._enter(id_, again=True)
            else:
                self._reads[id_] = now_s
        self.cold.read(ids[:hits])
        new = []
        for id_ in ids[hits:]:
            if id_ in self.hot:
                self.hot.use(id_)
            else:
                self._enter(id_, again=id_ in self.cold.live)
            if id_ not in self.cold.live:
                new.append(id_)
        self.cold.read([id_ for id_ in ids[hits:] if id_ in self.cold.live])
        self.cold.flush(new)
        return hits

    def _has(self, id_: int) -> bool:
        return id_ in self.hot or id_ in self.cold.live

    def _enter(self, id_: int, *, again: bool) -> None:
        for left in self.hot.store(id_, again=again):
            self._reads.pop(left, None)


def simulate(tiers: Tiers, requests: Iterable[BlockRequest]) -> float:
    """Returns hits ÷ blocks asked for. Raises: ZeroDivisionError without any request."""
    hits = asked = 0
    for request in requests:
        hits += tiers.request(request.ids, request.at_s)
        asked += len(request.ids)
    return hits / asked
