"""The block index, simulated: which blocks are hot, cold and local, and what moves between them.

Does what the functions in `neve/index/functions` do, in the same order, for blocks of one size:
`Index.request` is a node's look-up, its reads (`touch`, `promote`) and its stores (`commit`), one
block at a time; `Index.advance` is the work that becomes due: expiry, the idle rule, flushes.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from neve.planner.simulate.hot import Promote
from neve.planner.simulate.policies import Future, Policy, make
from neve.planner.simulate.settings import REFUSE, TIERS, Setting, TierSetting
from neve.planner.simulate.single import recompute_cost

_TICK_S, _TICKS = 4, 32768  # as TICK_S and TICKS of reads.lua: notes of reads wrap after 36 hours
_CLAIM_S = 32  # as CLAIM_S of reads.lua
_ENDLESS = 1 << 62


class Entry:
    """A block that is hot or cold. `read_tick` 0: not read since it is cold only.

    `used_s`: last use of a hot, clean block. `touched`: a dirty block was used since its storing.
    `unstored`: the cold tier refused it. `cost`: of computing it anew.
    """

    __slots__ = (
        *("hot", "cold", "dirty", "touched", "unstored"),
        *("priority", "cost", "used_s", "read_tick", "is_claimed", "look_at_s"),
    )

    def __init__(self, priority: int, cost: float) -> None:
        self.hot = True
        self.cold = self.dirty = self.touched = self.unstored = False
        self.priority = priority
        self.cost = cost
        self.used_s = self.read_tick = 0
        self.is_claimed = False
        self.look_at_s = 0


class Tier:
    """Counts of one tier, and the order in which its blocks leave it."""

    def __init__(self, setting: TierSetting, plain_bytes: int, future: Future | None) -> None:
        self.policy = "lru" if setting.policy == REFUSE else setting.policy
        self.is_refusing = setting.policy == REFUSE
        self._future = future
        self.block_bytes = setting.block_bytes(plain_bytes)
        capacity = setting.capacity_bytes
        self.most_bytes = _ENDLESS if capacity is None else capacity
        self.orders: dict[int, Policy] = {}  # by priority
        self.used_bytes = 0
        self.start_count()

    def start_count(self) -> None:
        """Counts from now on."""
        self.peak_bytes = self.used_bytes
        self.byte_seconds = 0.0
        self.written_blocks = self.evicted_blocks = self.expired_blocks = 0
        self.idle_blocks = self.refused_blocks = 0

    def order(self, priority: int) -> Policy:
        found = self.orders.get(priority)
        if found is None:
            found = make(self.policy, capacity_bytes=None, future=self._future)
            self.orders[priority] = found
        return found

    def lacks_room(self) -> bool:
        """Whether one more block does not fit."""
        return self.used_bytes + self.block_bytes > self.most_bytes

    def add(self) -> None:
        self.written_blocks += 1
        self.used_bytes += self.block_bytes
        if self.peak_bytes < self.used_bytes <= self.most_bytes:
            self.peak_bytes = self.used_bytes

    def victim(self, most_priority: int) -> int | None:
        """Takes the next block to leave out of the order; None: none up to this priority."""
        if len(self.orders) == 1:  # the usual case
            ((priority, order),) = self.orders.items()
            return order.evict() if len(order) and priority <= most_priority else None
        for priority in sorted(self.orders):
            if priority > most_priority:
                return None
            if len(self.orders[priority]):
                return self.orders[priority].evict()
        return None


class Served(NamedTuple):
    """Blocks of a request's prefix by the tier that served them. `last`: the tier of the last one;
    "": none was found."""

    local: int
    hot: int
    cold: int
    last: str


class Index:
    """All tiers of a setting. Not thread-safe. Times are seconds and never go back.

    `future`: of all requests, if a tier's policy is `belady`.
    """

    def __init__(self, setting: Setting, start_s: float, future: Future | None = None) -> None:
        self.setting = setting
        self.now_s = start_s
        self.entries: dict[int, Entry] = {}
        size, cold, local = setting.block_bytes, setting.cold, setting.local
        self.hot = Tier(setting.hot, size, future)
        self.cold = Tier(cold, size, future) if cold is not None else None
        self.local = Tier(local, size, future) if local is not None else None
        self.tiers = {
            name: tier
            for name, tier in zip(TIERS, (self.local, self.hot, self.cold), strict=True)
            if tier is not None
        }
        self._future = future
        self.promoted_blocks = self.expired_blocks = self.lost_blocks = 0
        self._dirty: deque[tuple[float, int, Entry]] = deque()
        self._ends: deque[tuple[float, int, Entry]] = deque()
        self._looks: list[tuple[float, int, int, Entry]] = []  # heap
        self._looked = 0

    def start_count(self) -> None:
        """Counts from now on."""
        for tier in self.tiers.values():
            tier.start_count()
        self.promoted_blocks = self.expired_blocks = self.lost_blocks = 0

    def request(self, ids: Sequence[int], priority: int = 0) -> Served:
        """Asks for a chain's blocks now: uses the prefix that is hot or cold, stores the rest."""
        if self._future is not None:
            self._future.advance()
        hits = self._prefix(ids)
        served = self._read(ids[:hits])
        for position in range(hits, len(ids)):
            self._store(ids[position], position, priority)
        if self.local:
            for id_ in ids[hits:]:
                self._keep_local(id_)
        return served

    def advance(self, to_s: float) -> None:
        """Does the work that is due until then, each at its time: ends of lives, the idle rule,
        flushes."""
        while True:
            end = self._ends[0][0] if self._ends else math.inf
            look = self._looks[0][0] if self._looks else math.inf
            due = self._dirty[0][0] if self._dirty else math.inf
            at = min(end, look, due)
            if at > to_s:
                break
            self._pass_time(at)
            if end == at:
                self._expire(*self._ends.popleft()[1:])
            elif look == at:
                _, _, id_, entry = heapq.heappop(self._looks)
                self._look(id_, entry)
            else:
                self._flush(*self._dirty.popleft()[1:])
        self._pass_time(to_s)

    def _pass_time(self, to_s: float) -> None:
        passed_s = to_s - self.now_s
        if passed_s > 0:
            for tier in self.tiers.values():
                tier.byte_seconds += tier.used_bytes * passed_s
            self.now_s = to_s

    def _prefix(self, ids: Iterable[int]) -> int:
        hits = 0
        for id_ in ids:
            if id_ not in self.entries:
                break
            hits += 1
        return hits

    def _read(self, ids: Sequence[int]) -> Served:
        """Hot blocks are used first, as `touch` in the same pipeline as their reads does."""
        entries, local = self.entries, self.local
        locals_ = hots = 0
        last = ""
        cold_ids = []
        for id_ in ids:
            entry = entries[id_]
            if local is not None and id_ in local.order(0):
                locals_ += 1
                last = "local"
                local.order(0).use(id_)
                self._use(id_, entry)
            elif entry.hot:
                hots += 1
                last = "hot"
                self._use(id_, entry)
            else:
                last = "cold"
                cold_ids.append(id_)
        promoted = [id_ for id_ in cold_ids if self._is_promoted(id_)]
        for id_ in promoted:
            if self._enter_again(id_, entries[id_]):
                self.promoted_blocks += 1
        if local is not None:
            for id_ in ids:
                self._keep_local(id_)
        return Served(locals_, hots, len(cold_ids), last)

    def _use(self, id_: int, entry: Entry) -> None:
        if entry.cold and self.cold is not None:
            self.cold.order(entry.priority).use(id_)
        if entry.dirty:
            entry.touched = True
        elif entry.hot:
            self.hot.order(entry.priority).use(id_)
            entry.used_s = int(self.now_s)

    def _is_promoted(self, id_: int) -> bool:
        """A read of a cold block, as `promote`."""
        entry, promote = self.entries[id_], self.setting.promote
        self._use(id_, entry)
        if promote is not Promote.SECOND_READ:
            return promote is Promote.EVERY_READ
        window_s = self.setting.promote_window_s
        if not window_s:
            return False
        tick = max(1, int(self.now_s) // _TICK_S % _TICKS)
        age_s = (tick - entry.read_tick) % _TICKS * _TICK_S
        if entry.is_claimed and age_s < _CLAIM_S:
            return False
        is_second = entry.read_tick > 0 and age_s <= window_s
        entry.read_tick, entry.is_claimed = tick, is_second
        return is_second

    def _store(self, id_: int, position: int, priority: int) -> None:
        """A commit of a block that the request computed."""
        entry = self.entries.get(id_)
        if entry is None:
            if self._has_hot_room():
                cost = recompute_cost(position, block_tokens=self.setting.block_tokens)
                self._enter(id_, Entry(priority, cost))
        elif entry.hot:
            self._use(id_, entry)
        else:
            self._enter_again(id_, entry)

    def _has_hot_room(self) -> bool:
        """Evicts until one more block fits. `belady` chooses among all blocks, the new one too."""
        hot = self.hot
        if hot.block_bytes <= hot.most_bytes:
            if hot.policy == "belady":
                return True
            while hot.lacks_room():
                id_ = hot.victim(_ENDLESS)
                if id_ is None:
                    break
                hot.evicted_blocks += 1
                self._leave_hot(id_, self.entries[id_])
            else:
                return True
        hot.refused_blocks += 1
        return False

    def _drop_furthest(self, new: int) -> None:
        """`belady` makes room after a block was stored."""
        hot = self.hot
        while hot.used_bytes > hot.most_bytes and (id_ := hot.victim(_ENDLESS)) is not None:
            if id_ == new:
                hot.written_blocks -= 1  # it was never kept
            else:
                hot.evicted_blocks += 1
            self._leave_hot(id_, self.entries[id_])

    def _enter(self, id_: int, entry: Entry) -> None:
        setting, now_s = self.setting, self.now_s
        self.entries[id_] = entry
        self.hot.add()
        if setting.ttl_s is not None:
            self._ends.append((int(now_s) + setting.ttl_s, id_, entry))
        entry.dirty = self.cold is not None
        if not entry.dirty:
            self._rank(id_, entry, again=False)
        self._plan_look(id_, entry)
        if entry.dirty:
            if setting.flush_after_s:
                self._dirty.append((now_s + setting.flush_after_s, id_, entry))
            else:
                self._flush(id_, entry)
        if self.hot.policy == "belady":
            self._drop_furthest(id_)

    def _enter_again(self, id_: int, entry: Entry) -> bool:
        """A cold block becomes hot as well, unless there is no room."""
        if not self._has_hot_room():
            return False
        entry.hot, entry.read_tick, entry.is_claimed = True, 0, False
        self.hot.add()
        self._rank(id_, entry, again=True)
        if self.cold is not None:
            self.cold.order(entry.priority).use(id_)
        self._plan_look(id_, entry)
        if self.hot.policy == "belady":
            self._drop_furthest(id_)
        return entry.hot

    def _rank(self, id_: int, entry: Entry, *, again: bool) -> None:
        hot = self.hot
        hot.order(entry.priority).store(id_, hot.block_bytes, again=again, cost=entry.cost)
        entry.used_s = int(self.now_s)

    def _flush(self, id_: int, entry: Entry) -> None:
        """The block leaves the dirty ones: into the cold tier, if that has or makes room."""
        cold = self.cold
        if cold is None or not entry.dirty or self.entries.get(id_) is not entry:
            return
        fits = self._has_cold_room(cold, entry.priority)
        entry.dirty = False
        self._rank(id_, entry, again=entry.touched)
        entry.touched = False
        if fits:
            entry.cold = True
            cold.add()
            cold.order(entry.priority).store(id_, cold.block_bytes, cost=entry.cost)
        else:
            entry.unstored = True
            cold.refused_blocks += 1

    def _has_cold_room(self, cold: Tier, priority: int) -> bool:
        """Evicts until one more block fits, but none of a higher priority."""
        if not cold.is_refusing and cold.block_bytes <= cold.most_bytes:
            while cold.lacks_room():
                id_ = cold.victim(priority)
                if id_ is None:
                    break
                cold.evicted_blocks += 1
                entry = self.entries[id_]
                cold.used_bytes -= cold.block_bytes
                entry.cold = False
                if not entry.hot:
                    del self.entries[id_]
        return not cold.lacks_room()

    def _leave_hot(self, id_: int, entry: Entry) -> None:
        """Its hot copy is out of the order already."""
        self.hot.used_bytes -= self.hot.block_bytes
        entry.hot = False
        if not entry.cold:
            self.lost_blocks += entry.unstored
            del self.entries[id_]

    def _expire(self, id_: int, entry: Entry) -> None:
        if self.entries.get(id_) is not entry:
            return
        self.expired_blocks += 1
        if entry.hot:
            self.hot.expired_blocks += 1
            self.hot.used_bytes -= self.hot.block_bytes
            if not entry.dirty:
                self.hot.order(entry.priority).remove(id_)
        if entry.cold and self.cold is not None:
            self.cold.expired_blocks += 1
            self.cold.used_bytes -= self.cold.block_bytes
            self.cold.order(entry.priority).remove(id_)
        if self.local is not None and id_ in self.local.order(0):
            self.local.expired_blocks += 1
            self.local.used_bytes -= self.local.block_bytes
            self.local.order(0).remove(id_)
        del self.entries[id_]

    def _plan_look(self, id_: int, entry: Entry) -> None:
        """When a hot block may have been idle for too long."""
        idle_s = self.setting.hot.idle_s
        if idle_s is not None:
            used_s = int(self.now_s) if entry.dirty else entry.used_s
            entry.look_at_s = used_s + idle_s
            self._looked += 1
            heapq.heappush(self._looks, (entry.look_at_s, self._looked, id_, entry))

    def _look(self, id_: int, entry: Entry) -> None:
        idle_s = self.setting.hot.idle_s
        is_planned = entry.look_at_s <= self.now_s and self.entries.get(id_) is entry
        if idle_s is None or not is_planned or not entry.hot:
            return
        if not entry.dirty and entry.used_s + idle_s <= self.now_s:
            self.hot.order(entry.priority).remove(id_)
            self.hot.idle_blocks += 1
            self._leave_hot(id_, entry)
        else:
            self._plan_look(id_, entry)

    def _keep_local(self, id_: int) -> None:
        """A node keeps each block that it read or wrote, if the index has taken it."""
        local = self.local
        if local is None or id_ not in self.entries or id_ in local.order(0):
            return
        order = local.order(0)
        while local.lacks_room():
            if not len(order):
                local.refused_blocks += 1
                return
            order.evict()
            local.evicted_blocks += 1
            local.used_bytes -= local.block_bytes
        local.add()
        order.store(id_, local.block_bytes)
