"""The hot tier's index: typed calls of its function library (`neve.index.library`).

Works over anything that executes one command, so nodes use it over their own transport and the
control plane over valkey-py. Block bytes do not pass here: `neve.datapath.client` moves them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from itertools import islice
from random import sample
from typing import Any, NamedTuple

from neve.errors import MissReason, Misuse, Refused
from neve.formats.block import CODECS, HEADER_BYTES, PLAIN
from neve.formats.ids import ID_BYTES
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.entry import REASONS, State, reading
from neve.index.library import call

Execute = Callable[..., Any]  # execute(*args) -> reply, ints and bytes in lists

CALL_IDS = 1000  # ids of one call, so that others get their turn; functions refuse more
RETAIN_IDS = 200  # of one retain, which costs the server about 20 µs each
PIN_IDS = 10_000  # of one pin: the budget decides on all of them at once
MOST_TS = 2.0**32  # of an entry's times
_ROW = reading(
    *("state", "reason", "size", "pinned", "segment"),
    *("kind", "hot_codec", "cold_codec", "cold_size", "offset"),
)
_HOT, _COLD = int(State.HOT), int(State.COLD)


class Tier(StrEnum):
    """`LOCAL`: a node's own directory, of which the index knows nothing."""

    HOT = "hot"
    COLD = "cold"
    LOCAL = "local"


class Location(NamedTuple):
    """Where a block is. `size_bytes` counts its header; `segment` is 0 unless it is (also) cold.

    `codec` of the cold copy; `encoded_bytes`: of its payload, 0 if it is plain.
    `tier`: hot or cold, as the index says. `is_local`: the node that asked has a copy of its own.
    """

    tier: Tier
    size_bytes: int
    segment: int = 0
    offset: int = 0
    pinned_until_s: int = 0
    codec: int = PLAIN
    encoded_bytes: int = 0
    is_local: bool = False

    @property
    def nearest(self) -> Tier:
        """The tier that a load reads first."""
        return Tier.LOCAL if self.is_local else self.tier

    @property
    def is_cold(self) -> bool:
        """Whether a copy is in S3; the block may be hot as well."""
        return self.segment > 0


class Eviction(IntEnum):
    """Which blocks leave a full hot tier first (docs/decisions/007-eviction.md)."""

    LRU = 0
    TWO_QUEUES = 1


PROMOTE_WINDOW_S = 3600  # two reads within it make a cold block hot again; see the same decision
MOST_WINDOW_S = 86_400  # the index notes times of reads modulo 36 hours


class OverBudget(Refused):
    """A pin exceeds the budget of pins. Its numbers are those of the bucket that refused."""

    def __init__(self, *, budget_bytes: int, used_bytes: int, asked_bytes: int) -> None:
        super().__init__(
            f"pins hold {used_bytes} of {budget_bytes} bytes; {asked_bytes} more were asked for",
            field="pin_budget_bytes",
        )
        self.budget_bytes = budget_bytes
        self.used_bytes = used_bytes
        self.asked_bytes = asked_bytes


class CommitOutcome(IntEnum):
    """VANISHED: no value was there; store it again. MISMATCH: a value of another length was.

    REFUSED: over the hot quota; the value is deleted. PRESENT: the block was hot already.
    """

    STORED = 0
    PRESENT = 1
    REFUSED = 2
    MISMATCH = 3
    VANISHED = 4


class FlushOutcome(IntEnum):
    """Whether the index names a block's new copy. DEAD: it does not, so the copy is dead bytes.

    COLD_FULL: neither, since the cold tier has no room; the block stays hot, clean and evictable.
    """

    FLUSHED = 0
    DEAD = 1
    COLD_FULL = 2


@dataclass(frozen=True)
class DirtyBlock:
    """A leased block: `size_bytes` is the whole value, header included; `expires_s` 0: no end."""

    id: bytes
    space_id: int
    size_bytes: int
    tokens: int
    expires_s: int
    stored_s: int


@dataclass(frozen=True)
class Admission:
    """`fits`: per block, in the order of the call, whether to write it to S3.

    `evicted_blocks`, `evicted_bytes`: of blocks that left the cold tier to make room.
    """

    fits: list[bool]
    evicted_blocks: int
    evicted_bytes: int


@dataclass(frozen=True)
class Removals:
    """`ids`: blocks that left both tiers. `marks`: per bucket, what to ask behind next, µs.

    `is_reset`: earlier removals are not all known any more: what the caller knows is void.
    """

    ids: list[bytes]
    marks: tuple[int, ...]
    is_reset: bool


class EncodedPlace(NamedTuple):
    """Of an encoded block in a segment. `size_bytes`: what it takes there, header included."""

    offset: int
    size_bytes: int
    codec: int


def _place(at: int | EncodedPlace) -> str | int:
    """As functions take it: the offset, of an encoded block followed by size and codec."""
    return ":".join(map(str, at)) if isinstance(at, EncodedPlace) else at


@dataclass(frozen=True)
class MovedBlock:
    """A cold block that was copied from offset `old` of `old_segment` to `new` of another one."""

    id: bytes
    old_segment: int
    old: int
    new: int | EncodedPlace


@dataclass(frozen=True)
class RestoredBlock:
    """A block of a segment's footer, with today's terms. `expires_s` 0: no end.

    `held`: the terms are those of contexts that hold the block, not its space's.
    """

    id: bytes
    size_bytes: int
    tokens: int
    offset: int | EncodedPlace
    stored_s: int = 0
    expires_s: int = 0
    idle_s: int = 0
    priority: int = 0
    held: bool = False


@dataclass(frozen=True)
class BlockTerms:
    """How long blocks stay. None: never flush, no limit. `priority`: 0 leaves first.

    A block expires `ttl_s` after its commit, or at `until_s` (seconds since 1970) if that is later,
    and at most `max_age_s` after its commit.
    """

    flush_after_s: int | None = 0
    ttl_s: int | None = None
    max_age_s: int | None = None
    idle_s: int | None = None
    priority: int = 0
    until_s: int = 0


@dataclass(frozen=True)
class Usage:
    """A tenant's blocks and bytes, summed over its buckets.

    Gauges: hot, cold, dirty, pinned, and `unstored` (hot blocks that the cold tier refused). The
    others only grow: `evicted` from a full hot tier, `idle` by the idle rule, `cold_evicted` from a
    full cold tier, `cold_refused` by it, `lost` (refused blocks that left the hot tier later).
    """

    hot_bytes: int = 0
    hot_blocks: int = 0
    cold_bytes: int = 0
    cold_blocks: int = 0
    dirty_bytes: int = 0
    dirty_blocks: int = 0
    pinned_bytes: int = 0
    pinned_blocks: int = 0
    unstored_bytes: int = 0
    unstored_blocks: int = 0
    evicted_blocks: int = 0
    evicted_bytes: int = 0
    idle_blocks: int = 0
    idle_bytes: int = 0
    expired_blocks: int = 0
    refused_blocks: int = 0
    refused_bytes: int = 0
    corrupt_blocks: int = 0
    cold_refused_blocks: int = 0
    cold_evicted_blocks: int = 0
    cold_evicted_bytes: int = 0
    lost_blocks: int = 0
    lost_bytes: int = 0
    mended: int = 0  # damaged books, scores, counters and entries that were removed (repair.lua)
    quota_hot_bytes: int = 0
    quota_cold_bytes: int = 0
    oldest_due_s: float | None = field(default=None)

    def flush_late_s(self, now_s: float) -> float | None:
        """For how many seconds the oldest flush has been due; None when nothing is dirty."""
        return None if self.oldest_due_s is None else max(0.0, now_s - self.oldest_due_s)


def _counted(value: bytes | str) -> int:
    """A counter; 0 for text that no function wrote: a hostile node may reach its own counters."""
    try:
        number = int(value)
    except ValueError:
        return 0
    return number if abs(number) < 1 << 60 else 0


def commit_args(space_id: int, blocks: Iterable[tuple[bytes, int, int]]) -> list[Any]:
    """ARGV of `commit`: blocks are (id, size_bytes, tokens) in the order of their keys."""
    return [space_id, *(value for block in blocks for value in block)]


def decode_match(reply: bytes) -> list[Location | MissReason]:
    """The answers of `locate`: an entry for each id, in turn.

    A copy of a codec that this version does not know is left out. A block without another copy, or
    of an unknown kind, is a miss by UNSUPPORTED.
    """
    found: list[Location | MissReason] = []
    last: tuple[int, ...] | None = None
    of_last: Location | MissReason = MissReason.NEVER_STORED
    for row in _ROW.iter_unpack(reply):
        if row == last:  # hot blocks of one space differ in nothing
            found.append(of_last)
            continue
        last = row
        state, reason, size, pinned, segment, kind, hot_codec, codec, cold_size, at = row
        encoded_bytes = cold_size - HEADER_BYTES if codec else 0
        if kind or hot_codec or codec:
            known = codec in CODECS and (not codec or 0 < encoded_bytes < size - HEADER_BYTES)
            state &= ~(_HOT if hot_codec or kind else 0) & ~(0 if known and not kind else _COLD)
            if not state & _COLD:
                segment = at = codec = encoded_bytes = 0
            if not state & (_HOT | _COLD):
                found.append(of_last := MissReason.UNSUPPORTED)
                continue
        if state:
            tier = Tier.HOT if state & _HOT else Tier.COLD
            of_last = Location(tier, size, segment, at, pinned, codec, encoded_bytes)
        else:
            of_last = REASONS[reason]
        found.append(of_last)
    return found


class HotTier:
    """One tenant's index. Methods raise what `execute` raises; without ids they make no call."""

    def __init__(self, execute: Execute, tenant_id: int, buckets: int = 1) -> None:
        if buckets < 1:
            raise Misuse(f"need at least 1, got {buckets}", field="buckets")
        self.tenant_id = tenant_id
        self._execute = execute
        self._keys = [BucketKeys(tenant_id, bucket) for bucket in range(buckets)]

    def match(self, ids: Sequence[bytes]) -> list[Location | MissReason]:
        """The answer for each id, in order, also behind misses."""
        answers: dict[bytes, Location | MissReason] = {}
        for keys, part in self._split(ids):
            answers.update(
                zip(part, decode_match(self._call("locate", keys, "1", *part)), strict=True)
            )
        return [answers[id_] for id_ in ids]

    def commit(
        self, space_id: int, blocks: Sequence[tuple[bytes, int, int]]
    ) -> list[CommitOutcome]:
        """Makes blocks (id, size_bytes, tokens) visible, whose values were SET just before."""
        by_id = {block[0]: block for block in blocks}
        outcomes: dict[bytes, CommitOutcome] = {}
        for keys, part in self._split([block[0] for block in blocks]):
            block_keys = tuple(keys.block(space_id, id_) for id_ in part)
            args = commit_args(space_id, (by_id[id_] for id_ in part))
            reply = self._execute(*call("commit", keys, *args, blocks=block_keys))
            outcomes.update(zip(part, map(CommitOutcome, reply), strict=True))
        return [outcomes[block[0]] for block in blocks]

    def touch(self, ids: Sequence[bytes]) -> None:
        for keys, part in self._split(ids):
            self._call("touch", keys, *part)

    def promote(self, ids: Sequence[bytes]) -> list[bool]:
        """Notes that cold blocks are being read. True: the caller shall store the block as hot.

        That is at the second read within the tenant's window, and for one caller only.
        """
        chosen: dict[bytes, bool] = {}
        for keys, part in self._split(ids):
            chosen.update(zip(part, map(bool, self._call("promote", keys, *part)), strict=True))
        return [chosen[id_] for id_ in ids]

    def lease_dirty(self, *, lease_s: float, most_blocks: int, most_bytes: int) -> list[DirtyBlock]:
        """Blocks whose flush is due, of all buckets; one block may exceed `most_bytes`.

        Begins with any bucket, so that no bucket waits for the others.
        """
        leased: list[DirtyBlock] = []
        bytes_ = 0
        for keys in sample(self._keys, len(self._keys)):
            while (blocks := min(most_blocks - len(leased), CALL_IDS)) > 0 and bytes_ < most_bytes:
                reply = self._call("lease_dirty", keys, lease_s, blocks, most_bytes - bytes_)
                values = iter(reply)
                rows = zip(*[values] * 6, strict=True)
                part = [DirtyBlock(id_, *map(int, numbers)) for id_, *numbers in rows]
                leased += part
                bytes_ += sum(block.size_bytes for block in part)
                if len(part) < blocks:
                    break
        return leased

    def renew_leases(self, ids: Sequence[bytes], lease_s: float) -> None:
        """Prolongs leases of blocks to `lease_s` from now; 0 gives them back."""
        self._sum("renew_leases", ids, lease_s)

    def flushed(
        self, segment: int, blocks: Sequence[tuple[bytes, int | EncodedPlace]]
    ) -> list[FlushOutcome]:
        """Tells the index that blocks, (id, offset), are in a segment, verified."""
        offsets = dict(blocks)
        outcomes: dict[bytes, FlushOutcome] = {}
        for keys, part in self._split([id_ for id_, _ in blocks]):
            args = [value for id_ in part for value in (id_, _place(offsets[id_]))]
            reply = self._call("flushed", keys, segment, *args)
            outcomes.update(zip(part, map(FlushOutcome, reply), strict=True))
        return [outcomes[id_] for id_, _ in blocks]

    def relocate(self, segment: int, blocks: Sequence[MovedBlock]) -> list[FlushOutcome]:
        """Tells the index that blocks are in `segment` too, verified; 0: their old copy is bad.

        Changes only blocks that the index still names at their old place.
        """
        by_id = {block.id: block for block in blocks}
        outcomes: dict[bytes, FlushOutcome] = {}
        for keys, part in self._split(by_id):
            moved = [by_id[id_] for id_ in part]
            args = [v for m in moved for v in (m.id, m.old_segment, m.old, _place(m.new))]
            reply = self._call("relocate", keys, segment, *args)
            outcomes.update(zip(part, map(FlushOutcome, reply), strict=True))
        return [outcomes[block.id] for block in blocks]

    def live_bytes(self, segments: Sequence[int]) -> list[int]:
        """Live bytes of each segment; 0 if the index does not know it."""
        totals = [0] * len(segments)
        for keys in self._keys:
            for first in range(0, len(segments), CALL_IDS):
                part = segments[first : first + CALL_IDS]
                for n, score in enumerate(self._execute("ZMSCORE", keys.live_bytes, *part), first):
                    totals[n] += int(float(score or 0))
        return totals

    def open_segment(self, segment: int) -> None:
        """Allows `flushed` and `relocate` to name this segment. Call it before the upload."""
        for keys in self._keys:
            self._call("open_segment", keys, segment)

    def close_segments(self, segments: Sequence[int]) -> list[int]:
        """Closes segments without live bytes for good. Returns the live bytes of each."""
        totals = [0] * len(segments)
        for keys in self._keys:
            for first in range(0, len(segments), CALL_IDS):
                part = segments[first : first + CALL_IDS]
                for n, bytes_ in enumerate(self._call("close_segments", keys, *part), first):
                    totals[n] += bytes_
        return totals

    def admit(self, blocks: Sequence[tuple[bytes, int]]) -> Admission:
        """Whether the cold tier has room for leased blocks, (id, size_bytes), of one new segment.

        Makes room if the policy evicts. Blocks without room become clean and evictable, and count
        as `unstored`.
        """
        sizes = dict(blocks)
        fits: dict[bytes, bool] = {}
        evicted_blocks = evicted_bytes = 0
        taken: dict[BucketKeys, int] = {}
        for keys, part in self._split(sizes):
            reply = self._call("admit", keys, taken.get(keys, 0), *part)
            evicted_blocks, evicted_bytes = evicted_blocks + reply[0], evicted_bytes + reply[1]
            fits.update(zip(part, map(bool, reply[2:]), strict=True))
            taken[keys] = taken.get(keys, 0) + sum(sizes[id_] for id_ in part if fits[id_])
        return Admission([fits[id_] for id_, _ in blocks], evicted_blocks, evicted_bytes)

    def pin(
        self,
        ids: Sequence[bytes],
        until_s: int,
        *,
        budget_bytes: int | None = None,
        as_many_as_fit: bool = False,
    ) -> int:
        """Keeps blocks at least until then (seconds since 1970). Returns how many it pinned.

        `budget_bytes`: bound on all pins of the tenant. `as_many_as_fit`: pins the first blocks
        within it. Else raises `OverBudget` when they do not fit: then undo the pins that other
        buckets and slices of PIN_IDS granted before.
        """
        budget = -1 if budget_bytes is None else budget_bytes // len(self._keys)
        pinned = 0
        for keys, part in self._split(ids, PIN_IDS):
            mode = "fit" if as_many_as_fit else "all"
            count, used, asked = self._call("pin", keys, until_s, budget, mode, *part)
            if count < 0:
                raise OverBudget(budget_bytes=budget, used_bytes=used, asked_bytes=asked)
            pinned += count
        return pinned

    def unpin(self, ids: Sequence[bytes], until_s: int = 0) -> int:
        """Sets the end of pins to `until_s`, 0 meaning now. Returns how many were pinned."""
        return self._sum("unpin", ids, until_s)

    def expire(self, ids: Sequence[bytes], *, also_pinned: bool = False) -> tuple[int, int]:
        """Removes blocks from both tiers. Returns (removed, kept because pinned)."""
        removed = kept = 0
        for keys, part in self._split(ids):
            reply = self._call("expire", keys, int(also_pinned), *part)
            removed, kept = removed + reply[0], kept + reply[1]
        return removed, kept

    def retain(
        self, ids: Sequence[bytes], terms: BlockTerms, *, held: bool, join: bool, flush: bool
    ) -> int:
        """Gives blocks these terms. Returns how many of them the index knows.

        `held`: they are a context's terms, else the space's. `join`: a block that has a context's
        terms gets the more generous of both. `flush`: applies `flush_after_s`, too, to blocks that
        are not cold.
        """
        due = -1 if terms.flush_after_s is None else terms.flush_after_s
        numbers = (
            *("join" if join else "set", int(held), terms.ttl_s or 0, terms.max_age_s or 0),
            *(terms.until_s, terms.idle_s or 0, terms.priority, due if flush else ""),
        )
        return sum(
            self._call("retain", keys, *numbers, *part)
            for keys, part in self._split(ids, RETAIN_IDS)
        )

    def expire_due(self, most: int = 1000) -> int:
        """Removes blocks whose time has come, and blocks over a lowered cold quota if the policy
        evicts. Looks at `most` of each bucket.

        Returns how many it looked at: below `most` nothing is left to do for now.
        """
        return sum(self._call("expire_due", keys, most) for keys in self._keys)

    def evict(self, bytes_per_bucket: int) -> tuple[int, int]:
        """Frees hot bytes, in the order of removal. Returns (blocks, bytes) removed."""
        replies = [self._call("evict", keys, bytes_per_bucket) for keys in self._keys]
        return sum(reply[0] for reply in replies), sum(reply[1] for reply in replies)

    def forget(self, tier: Tier, ids: Sequence[bytes]) -> int:
        """Drops bad or lost copies of one tier. Returns how many there were."""
        return self._sum("forget", ids, tier.value)

    def removals(
        self, space_id: int, marks: Sequence[int] | None = None, most: int = CALL_IDS
    ) -> Removals:
        """The blocks of a space that left both tiers behind `marks`; None: begins now.

        About `most` of each bucket, and all that one call removed. Blocks that were stored again
        meanwhile are not among them. The index remembers 20,000 removals of each bucket.
        """
        if marks is not None and len(marks) != len(self._keys):
            marks, is_reset = None, True  # the number of buckets has changed
        else:
            is_reset = False
        ids: list[bytes] = []
        next_marks = []
        for n, keys in enumerate(self._keys):
            after = -1 if marks is None else marks[n]
            mark, is_void, joined = self._call("removals", keys, space_id, after, most)
            next_marks.append(int(mark))
            is_reset = is_reset or bool(is_void)
            ids += [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]
        return Removals([] if is_reset else ids, tuple(next_marks), is_reset)

    def restore(self, segment: int, space_id: int, blocks: Sequence[RestoredBlock]) -> int:
        """Indexes a segment's blocks again. Returns how many the index took."""
        by_id = {block.id: block for block in blocks}
        taken = 0
        for keys, part in self._split(list(by_id)):
            args: list[Any] = []
            for id_ in part:
                block = by_id[id_]
                args += (id_, block.size_bytes, block.tokens, _place(block.offset), block.stored_s)
                args += (block.expires_s, block.idle_s, block.priority, int(block.held))
            taken += self._call("restore", keys, segment, space_id, *args)
        return taken

    def usage(self) -> Usage:
        totals: dict[str, Any] = {}
        for keys in self._keys:
            reply = iter(self._call("usage", keys))
            for name, value in zip(reply, reply, strict=True):
                key = name.decode() if isinstance(name, bytes) else name
                if key == "oldest_due_s":
                    # A hostile node may have written any number; max(0.0, NaN) is 0.0.
                    due_s = min(max(0.0, float(value)), MOST_TS)
                    totals[key] = min(due_s, totals.get(key, due_s))
                elif key in Usage.__dataclass_fields__:
                    totals[key] = totals.get(key, 0) + _counted(value)
        return Usage(**totals)

    def set_policy(
        self,
        *,
        hot_bytes: int,
        cold_bytes: int,
        terms: BlockTerms,
        spaces: Mapping[int, BlockTerms] | None = None,
        eviction: Eviction = Eviction.TWO_QUEUES,
        promote_window_s: int = PROMOTE_WINDOW_S,
        cold_evicts: bool = True,
    ) -> None:
        """Writes quotas and the terms of new blocks. Only the control plane may.

        `spaces`: terms by number of the space, where they differ; `until_s` does not count.
        `promote_window_s` 0: cold blocks are not promoted. `cold_evicts`: a full cold tier makes
        room for new blocks; else it refuses them.
        """
        numbers = {
            "hot_bytes": hot_bytes // len(self._keys),
            "cold_bytes": cold_bytes // len(self._keys),
            "cold_evicts": int(cold_evicts),
            "eviction": eviction.value,
            "promote_window_s": promote_window_s,
        }
        for suffix, each in (("", terms), *((f":{id_}", t) for id_, t in (spaces or {}).items())):
            lives = [life for life in (each.ttl_s, each.max_age_s) if life is not None]
            due = -1 if each.flush_after_s is None else each.flush_after_s
            numbers |= {f"flush_after_s{suffix}": due, f"ttl_s{suffix}": min(lives, default=0)}
            numbers |= {f"idle_s{suffix}": each.idle_s or 0, f"priority{suffix}": each.priority}
        flat = [value for item in numbers.items() for value in item]
        for keys in self._keys:
            self._call("set_policy", keys, *flat)

    def _split(
        self, ids: Iterable[bytes], most: int = CALL_IDS
    ) -> Iterator[tuple[BucketKeys, list[bytes]]]:
        """Ids by bucket, each once, in slices of `most`."""
        buckets: dict[int, dict[bytes, None]] = {}
        for id_ in ids:
            buckets.setdefault(bucket_of(id_, len(self._keys)), {})[id_] = None
        for bucket, members in buckets.items():
            rest = iter(members)
            while part := list(islice(rest, most)):
                yield self._keys[bucket], part

    def _call(self, name: str, keys: BucketKeys, *args: Any) -> Any:
        return self._execute(*call(name, keys, *args))

    def _sum(self, name: str, ids: Sequence[bytes], *first: Any) -> int:
        return sum(self._call(name, keys, *first, *part) for keys, part in self._split(ids))
