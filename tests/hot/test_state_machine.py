"""The function library does what a small Python model says, on a real Valkey, whatever the order.

The model keeps what must be true; after every step the server's answers, counters and keys are
compared with it: accounting drift of one byte fails.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from valkey.exceptions import ResponseError

from contexts.stored import Standing, changes_of
from neve.errors import MissReason
from neve.formats.keys import BucketKeys
from neve.index.entry import ENTRY
from neve.index.library import load_functions
from neve.index.recount import BucketAudit, Checked, Drift, Superseded
from neve.index.scan import last_used_s, scan
from neve.index.tier import (
    BlockTerms,
    CommitOutcome,
    Eviction,
    FlushOutcome,
    HotTier,
    Location,
    MovedBlock,
    OverBudget,
    RestoredBlock,
    Tier,
)
from retention.terms import end_of
from support.drift import assert_no_drift
from support.servers import ValkeyServer
from support.version_1 import as_version_1

pytestmark = pytest.mark.integration

TENANT, SPACE = 7, 3
KEYS = BucketKeys(TENANT, 0)
IDS = [bytes([n]) * 16 for n in range(12)]
SIZES = {id_: 100 * (1 + n % 3) for n, id_ in enumerate(IDS)}  # equal id means equal bytes
FAR = 4_000_000_000  # a pin that outlives the test

some_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=6, unique=True)


@dataclass
class Entry:
    """A block the index knows. `rank` is the step of its last access.

    `young`: on probation. `used`: used since it was stored, and not yet flushed. `reads`: of the
    cold copy; with the second one somebody is told to promote it. `read_rank`: the step of the last
    read, or use of the hot copy; below 0: none since a rebuild. `refused`, `let_go`: hot and clean
    without a cold copy, since the cold tier had no room for it, or evicted it.
    """

    hot: bool = False
    dirty: bool = False
    segment: int = 0
    offset: int = 0
    pinned: bool = False
    rank: float = 0
    priority: int = 0
    young: bool = False
    used: bool = False
    reads: int = 0
    read_rank: float = 0
    refused: bool = False
    let_go: bool = False

    def pin(self) -> None:
        """When its pin ends, a block has been used."""
        self.pinned, self.young = True, False


@dataclass
class Model:
    """What one bucket of one tenant must hold."""

    hot_quota: int
    cold_quota: int
    flush: bool
    cold_evicts: bool = True
    eviction: Eviction = Eviction.TWO_QUEUES
    entries: dict[bytes, Entry] = field(default_factory=dict)
    gone: dict[bytes, MissReason] = field(default_factory=dict)
    step: int = 0

    def total(self, what: str) -> int:
        return sum(SIZES[id_] for id_, entry in self.entries.items() if getattr(entry, what))

    def drop_hot(self, id_: bytes, reason: MissReason) -> None:
        entry = self.entries[id_]
        if reason is MissReason.EVICTED and entry.refused:
            reason = MissReason.UNFLUSHED
        elif reason is MissReason.EVICTED and entry.let_go:
            reason = MissReason.EVICTED_COLD
        entry.hot = entry.dirty = entry.used = entry.refused = entry.let_go = False
        entry.reads = 0
        if not entry.segment:
            self.make_tombstone(id_, reason)

    def drop_cold(self, id_: bytes, reason: MissReason) -> None:
        entry = self.entries[id_]
        entry.segment = entry.offset = 0
        if not entry.hot:
            self.make_tombstone(id_, reason)
        elif reason is MissReason.EVICTED_COLD:
            entry.let_go = True
        elif self.flush and not entry.dirty:
            self.mark_dirty(entry)

    def mark_dirty(self, entry: Entry) -> None:
        entry.dirty, entry.used = True, not entry.young
        entry.refused = entry.let_go = False

    def refuse(self, entry: Entry) -> None:
        entry.refused, entry.let_go = True, False

    def has_cold_room(self, bytes_: int, priority: int) -> bool:
        """Evicts what is not pinned nor of a higher priority, the longest unread first."""
        if self.cold_evicts and bytes_ <= self.cold_quota:
            victims = sorted(
                (
                    id_
                    for id_, e in self.entries.items()
                    if e.segment and not e.pinned and e.priority <= priority
                ),
                key=lambda id_: (self.entries[id_].priority, self.entries[id_].read_rank, id_),
            )
            while victims and self.total("segment") + bytes_ > self.cold_quota:
                self.drop_cold(victims.pop(0), MissReason.EVICTED_COLD)
        return self.total("segment") + bytes_ <= self.cold_quota

    def admit(self, ids: list[bytes]) -> list[bool]:
        """Of leased blocks."""
        taken, fits = 0, []
        for id_ in ids:
            entry = self.entries[id_]
            fits.append(self.has_cold_room(taken + SIZES[id_], entry.priority))
            if fits[-1]:
                taken += SIZES[id_]
            else:
                self.clean(entry)
                self.refuse(entry)
        return fits

    def make_tombstone(self, id_: bytes, reason: MissReason) -> None:
        self.entries.pop(id_, None)
        self.gone[id_] = reason

    def evictable(self) -> dict[bytes, Entry]:
        return {
            id_: entry
            for id_, entry in self.entries.items()
            if entry.hot and not entry.dirty and not entry.pinned
        }

    def victims(self) -> list[bytes]:
        """What eviction takes next: all of one queue, which is less than Lua takes at once."""
        evictable = self.evictable()
        lowest = min((entry.priority for entry in evictable.values()), default=0)
        band = {id_: entry for id_, entry in evictable.items() if entry.priority == lowest}
        young = [id_ for id_, entry in band.items() if entry.young]
        share = 0.5 if self.eviction is Eviction.TWO_QUEUES else 0
        queue = young if len(young) > share * len(band) else set(band) - set(young)
        return sorted(queue, key=lambda id_: (self.entries[id_].rank, id_))

    def make_room(self, bytes_: int) -> int:
        freed = 0
        while freed < bytes_ and (victims := self.victims()):
            for id_ in victims:
                if freed < bytes_:
                    freed += SIZES[id_]
                    self.drop_hot(id_, MissReason.EVICTED)
        return freed

    def use(self, id_: bytes) -> None:
        entry = self.entries.get(id_)
        if entry:
            entry.read_rank = self.step
        if entry and entry.dirty:
            entry.used = True
        elif entry and entry.hot:
            entry.rank, entry.young = self.step, False

    def clean(self, entry: Entry) -> None:
        if entry.dirty:
            entry.rank = self.step
            entry.young = self.eviction is Eviction.TWO_QUEUES and not (entry.used or entry.pinned)
            entry.dirty = entry.used = False

    def promote(self, id_: bytes) -> bool:
        entry = self.entries.get(id_)
        if entry:
            entry.read_rank = self.step
        if not entry or entry.hot:
            return False
        entry.reads += 1
        return entry.reads == 2

    def commit(self, id_: bytes) -> CommitOutcome:
        entry, size = self.entries.get(id_), SIZES[id_]
        if entry and entry.hot:
            self.use(id_)
            return CommitOutcome.PRESENT
        over = self.total("hot") + size - self.hot_quota
        if over > 0 and (size > self.hot_quota or self.make_room(over) < over):
            if not entry:
                self.make_tombstone(id_, MissReason.QUOTA)
            return CommitOutcome.REFUSED
        if not entry:
            young = self.eviction is Eviction.TWO_QUEUES
            entry = self.entries[id_] = Entry(dirty=self.flush, young=young)
            self.gone.pop(id_, None)
        else:
            entry.young = False
        entry.hot, entry.rank, entry.reads = True, self.step, 0
        entry.read_rank = self.step
        return CommitOutcome.STORED

    def flushed(self, id_: bytes, segment: int, offset: int) -> FlushOutcome:
        entry = self.entries.get(id_)
        if entry and entry.segment:
            same = (entry.segment, entry.offset) == (segment, offset)
            return FlushOutcome.FLUSHED if same else FlushOutcome.DEAD
        if not entry:
            return FlushOutcome.DEAD
        fits = self.has_cold_room(SIZES[id_], entry.priority)
        self.clean(entry)
        if not fits:
            self.refuse(entry)
            return FlushOutcome.COLD_FULL
        entry.segment, entry.offset, entry.read_rank = segment, offset, self.step
        entry.refused = entry.let_go = False
        return FlushOutcome.FLUSHED


class HotTierMachine(RuleBasedStateMachine):
    client: Any = None  # set by the test, one server for all examples

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.tier = HotTier(self.client.execute_command, TENANT)
        self.model = Model(hot_quota=1000, cold_quota=900, flush=True)
        self.segments = 0
        self.footers: list[tuple[int, list[RestoredBlock]]] = []
        self.audit = BucketAudit(self.client.execute_command, TENANT, 0)
        self.recount: int | None = None
        self.write_policy()

    def write_policy(self) -> None:
        self.tier.set_policy(
            hot_bytes=self.model.hot_quota,
            cold_bytes=self.model.cold_quota,
            terms=BlockTerms(flush_after_s=0 if self.model.flush else None),
            eviction=self.model.eviction,
            cold_evicts=self.model.cold_evicts,
        )

    def begin(self) -> None:
        self.model.step += 1

    @rule(flush=st.booleans(), eviction=st.sampled_from(Eviction), cold_evicts=st.booleans())
    def change_policy(self, flush, eviction, cold_evicts):
        self.model.flush, self.model.eviction = flush, eviction
        self.model.cold_evicts = cold_evicts
        self.write_policy()

    @rule(ids=some_ids)
    def put(self, ids):
        self.begin()
        for id_ in ids:
            self.client.set(KEYS.block(SPACE, id_), b"x" * SIZES[id_], nx=True, px=60_000)
        outcomes = self.tier.commit(SPACE, [(id_, SIZES[id_], 16) for id_ in ids])
        # What is there is used before the others make room for themselves.
        found = self.hot
        in_turn = sorted(ids, key=lambda id_: id_ not in found)
        expected = {id_: self.model.commit(id_) for id_ in in_turn}
        assert outcomes == [expected[id_] for id_ in ids]

    @rule(ids=some_ids)
    def find_entries_of_version_1(self, ids):
        """As the release before left them."""
        for id_ in ids:
            raw = self.client.hget(KEYS.bookkeeping[0], id_)
            if raw and len(raw) == ENTRY.size:
                self.client.hset(KEYS.bookkeeping[0], id_, as_version_1(raw))

    @rule(ids=some_ids)
    def commit_without_values(self, ids):
        self.begin()
        ids = [id_ for id_ in ids if id_ not in self.hot]
        outcomes = self.tier.commit(SPACE, [(id_, SIZES[id_], 16) for id_ in ids])
        assert set(outcomes) <= {CommitOutcome.VANISHED}

    @rule(id_=st.sampled_from(IDS))
    def commit_a_value_of_another_length(self, id_):
        self.begin()
        self.client.set(KEYS.block(SPACE, id_), b"short", nx=True, px=60_000)
        assert self.tier.commit(SPACE, [(id_, SIZES[id_] + 1, 16)]) == [CommitOutcome.MISMATCH]

    @rule(ids=some_ids)
    def touch(self, ids):
        self.begin()
        self.tier.touch(ids)
        for id_ in ids:
            self.model.use(id_)

    @rule(ids=some_ids)
    def promote(self, ids):
        self.begin()
        assert self.tier.promote(ids) == [self.model.promote(id_) for id_ in ids]

    @rule(most=st.integers(1, 5), admits=st.booleans(), torn=st.booleans(), twice=st.booleans())
    def flush(self, most, admits, torn, twice):
        """A worker leases and uploads; `torn` dies before it says so, `twice` says it twice.

        Where another worker took the room that was made for it, that is as if it had not asked
        (`admits`).
        """
        self.begin()
        leased = self.tier.lease_dirty(lease_s=0, most_blocks=most, most_bytes=10**9)
        dirty = {id_ for id_, entry in self.model.entries.items() if entry.dirty}
        assert {block.id for block in leased} <= dirty
        assert len(leased) == min(most, len(dirty))
        if admits and leased:
            before = {id_ for id_, entry in self.model.entries.items() if entry.segment}
            admission = self.tier.admit([(block.id, block.size_bytes) for block in leased])
            assert admission.fits == self.model.admit([block.id for block in leased])
            after = {id_ for id_, entry in self.model.entries.items() if entry.segment}
            assert admission.evicted_blocks == len(before - after)
            leased = [b for b, fits in zip(leased, admission.fits, strict=True) if fits]
        if torn or not leased:
            return
        self.segments += 1
        self.tier.open_segment(self.segments)
        rows = [
            RestoredBlock(block.id, block.size_bytes, 16, 64 + n * 1000, block.stored_s)
            for n, block in enumerate(leased)
        ]
        for _ in range(2 if twice else 1):
            self.begin()
            outcomes = self.tier.flushed(self.segments, [(row.id, row.offset) for row in rows])
            expected = [self.model.flushed(row.id, self.segments, row.offset) for row in rows]
            assert outcomes == expected
        kept = [row for row, out in zip(rows, outcomes, strict=True) if out is FlushOutcome.FLUSHED]
        self.footers.append((self.segments, kept))

    @rule(ids=some_ids, stale=st.booleans(), bad=st.booleans(), twice=st.booleans())
    def compact(self, ids, stale, bad, twice):
        """A worker copied blocks; `stale`: from where they no longer are, `bad`: to nowhere."""
        self.begin()
        self.segments += 1
        self.tier.open_segment(self.segments)
        target = 0 if bad else self.segments
        moved, expected = [], []
        for n, id_ in enumerate(ids):
            entry = self.model.entries.get(id_) or Entry()
            old = entry.offset + 1 if stale else entry.offset
            moved.append(MovedBlock(id_, entry.segment, old, 64 + n * 1000))
            is_there = entry.segment > 0 and not stale
            expected.append(FlushOutcome.FLUSHED if is_there else FlushOutcome.DEAD)
        assert self.tier.relocate(target, moved) == expected
        for block, outcome in zip(moved, expected, strict=True):
            if outcome is FlushOutcome.FLUSHED and bad:
                self.model.drop_cold(block.id, MissReason.CORRUPT)
            elif outcome is FlushOutcome.FLUSHED:
                entry = self.model.entries[block.id]
                entry.segment, entry.offset = target, block.new
        if twice and not bad:
            assert self.tier.relocate(target, moved) == expected
        rows = [RestoredBlock(b.id, SIZES[b.id], 16, b.new) for b in moved]
        self.footers.append((target, [] if bad else rows))

    @rule(cold_quota=st.integers(300, 1500))
    def change_the_cold_quota(self, cold_quota):
        """What is over a lowered one leaves soon, if the policy evicts, but for what is pinned."""
        self.begin()
        over = self.model.total("segment") - cold_quota
        if over > 0 and not self.model.cold_evicts:
            return
        self.model.cold_quota = cold_quota
        self.write_policy()
        self.tier.expire_due()
        self.model.has_cold_room(0, 9)

    @rule(ids=some_ids)
    def pin(self, ids):
        known = [id_ for id_ in ids if id_ in self.model.entries]
        assert self.tier.pin(ids, FAR) == len(known)
        for id_ in known:
            self.model.entries[id_].pin()

    @rule(ids=some_ids, budget=st.integers(0, 1000))
    def pin_within_a_budget(self, ids, budget):
        """All of them, or none when that would exceed the budget."""
        known = [id_ for id_ in ids if id_ in self.model.entries]
        used = self.model.total("pinned")
        asked = sum(SIZES[id_] for id_ in known if not self.model.entries[id_].pinned)
        if asked and used + asked > budget:
            with pytest.raises(OverBudget) as refusal:
                self.tier.pin(ids, FAR, budget_bytes=budget)
            assert (refusal.value.used_bytes, refusal.value.asked_bytes) == (used, asked)
            return
        assert self.tier.pin(ids, FAR, budget_bytes=budget) == len(known)
        for id_ in known:
            self.model.entries[id_].pin()

    @rule(ids=some_ids, budget=st.integers(0, 1000))
    def pin_what_fits_of_a_budget(self, ids, budget):
        fitting = []
        for id_ in ids:
            entry = self.model.entries.get(id_)
            if entry and (entry.pinned or self.model.total("pinned") + SIZES[id_] <= budget):
                entry.pin()
                fitting.append(id_)
        count = self.tier.pin(ids, FAR, budget_bytes=budget, as_many_as_fit=True)
        assert count == len(fitting)

    @rule(ids=some_ids, priority=st.integers(0, 9), flush=st.sampled_from([None, 0, -1]))
    def retain(self, ids, priority, flush):
        """Other terms for stored blocks: the order of leaving, and whether they go to S3."""
        self.begin()
        terms = BlockTerms(priority=priority, flush_after_s=None if flush == -1 else 0)
        known = [id_ for id_ in ids if id_ in self.model.entries]
        count = self.tier.retain(ids, terms, held=False, join=False, flush=flush is not None)
        assert count == len(known)
        for id_ in known:
            entry = self.model.entries[id_]
            entry.priority = priority
            if flush == -1:
                self.model.clean(entry)
            elif flush == 0 and entry.hot and not entry.segment and not entry.dirty:
                self.model.mark_dirty(entry)

    @rule(ids=some_ids)
    def unpin(self, ids):
        self.begin()
        pinned = [id_ for id_ in ids if (e := self.model.entries.get(id_)) and e.pinned]
        assert self.tier.unpin(ids) == len(pinned)
        for id_ in pinned:
            entry = self.model.entries[id_]
            entry.pinned, entry.rank, entry.young = False, self.model.step, False
            entry.read_rank = self.model.step

    @rule(ids=some_ids)
    def expire(self, ids):
        known = [id_ for id_ in ids if id_ in self.model.entries]
        kept = [id_ for id_ in known if self.model.entries[id_].pinned]
        assert self.tier.expire(ids) == (len(known) - len(kept), len(kept))
        for id_ in set(known) - set(kept):
            self.model.make_tombstone(id_, MissReason.EXPIRED)

    @rule(bytes_=st.integers(0, 1200))
    def evict(self, bytes_):
        before = self.model.total("hot")
        freed = self.model.make_room(bytes_)
        blocks, freed_really = self.tier.evict(bytes_)
        assert freed_really == freed == before - self.model.total("hot")
        assert (blocks > 0) == (freed > 0)

    @rule(ids=some_ids)
    def recount_a_slice(self, ids):
        """Of a recount that goes on while everything else happens."""
        if self.recount is None:
            self.recount = self.audit.begin()
        assert self.audit.recount(self.recount, ids) == Checked(0, 0)

    @rule(by=st.integers(-500, 500), what=st.sampled_from(["hot", "cold", "dirty", "pinned"]))
    def recount_the_rest(self, by, what):
        """However the counters drifted: they get right, and so does what they say of segments."""
        if self.recount is None:
            return
        name = f"{what}_bytes"
        said = getattr(self.tier.usage(), name)
        self.client.hincrby(KEYS.bookkeeping[3], name, by)
        drifts = [Drift(name, said + by, said)] if by else []
        segment = max((entry.segment for entry in self.model.entries.values()), default=0)
        if segment and by:
            (live,) = self.tier.live_bytes([segment])
            self.client.zincrby(KEYS.live_bytes, by, segment)
            drifts.insert(0, Drift(str(segment), live + by, live))
        self.audit.recount(self.recount, IDS)
        assert self.audit.settle(self.recount) == drifts
        self.recount = None

    @rule(id_=st.sampled_from(IDS))
    def lose_the_value_of_a_hot_block(self, id_):
        self.recount = self.audit.begin()
        is_hot = id_ in self.hot
        self.client.delete(KEYS.block(SPACE, id_))
        assert self.audit.recount(self.recount, [id_]) == Checked(int(is_hot), 0)
        if is_hot:
            self.model.drop_hot(id_, MissReason.CORRUPT)

    @rule(ids=some_ids, stale=st.booleans())
    def unplace(self, ids, stale):
        """Blocks of a segment that nobody knows: not cold, and nothing says that they were."""
        ((page, _),) = scan(self.client.execute_command, TENANT, 1)
        cold = [entry for entry in page if entry.is_cold and entry.id in ids]
        if stale:
            cold = [entry._replace(offset=entry.offset + 1) for entry in cold]
        assert self.audit.unplace(cold) == (0 if stale else len(cold))
        for entry in () if stale else cold:
            self.model.drop_cold(entry.id, MissReason.NEVER_STORED)
            if self.model.gone.get(entry.id) is MissReason.NEVER_STORED:
                del self.model.gone[entry.id]

    @rule(ids=some_ids, tier=st.sampled_from(list(Tier)))
    def forget(self, ids, tier):
        held = [
            id_
            for id_ in ids
            if (e := self.model.entries.get(id_)) and (e.hot if tier is Tier.HOT else e.segment)
        ]
        assert self.tier.forget(tier, ids) == len(held)
        for id_ in held:
            if tier is Tier.HOT:
                self.model.drop_hot(id_, MissReason.CORRUPT)
            else:
                self.model.drop_cold(id_, MissReason.CORRUPT)

    @rule()
    def lose_valkey_and_rebuild(self):
        """Everything in Valkey is gone; the footers bring back what was cold, and nothing else."""
        cold = {id_: entry for id_, entry in self.model.entries.items() if entry.segment}
        self.client.flushdb()
        if self.recount is not None:
            with pytest.raises(Superseded):
                self.audit.settle(self.recount)
            self.recount = None
        self.write_policy()
        self.model.gone.clear()
        self.model.entries = {
            id_: Entry(segment=entry.segment, offset=entry.offset) for id_, entry in cold.items()
        }
        taken, stored = 0, {}
        for segment, rows in self.footers:
            live = [
                row
                for row in rows
                if row.id in cold
                and (segment, row.offset) == (cold[row.id].segment, cold[row.id].offset)
            ]
            stored |= {row.id: (row.stored_s, segment) for row in live}
            for _ in range(2):  # repeating it changes nothing
                taken += self.tier.restore(segment, SPACE, live)
        assert taken == len(cold)
        order = sorted(set(stored.values()))
        for id_, place in stored.items():  # before all later reads
            self.model.entries[id_].read_rank = order.index(place) - len(order)

    @property
    def hot(self) -> set[bytes]:
        return {id_ for id_, entry in self.model.entries.items() if entry.hot}

    @invariant()
    def the_server_holds_what_the_model_holds(self):
        answers = dict(zip(IDS, self.tier.match(IDS), strict=True))
        for id_, answer in answers.items():
            entry = self.model.entries.get(id_)
            if entry is None:
                assert answer is self.model.gone.get(id_, MissReason.NEVER_STORED)
            else:
                assert isinstance(answer, Location)
                assert answer.tier is (Tier.HOT if entry.hot else Tier.COLD)
                assert (answer.segment, answer.offset) == (entry.segment, entry.offset)
                assert answer.size_bytes == SIZES[id_]
                assert (answer.pinned_until_s == FAR) == entry.pinned
            ttl = self.client.pttl(KEYS.block(SPACE, id_))
            assert ttl == (-1 if entry and entry.hot else -2)

    @invariant()
    def accounting_has_no_drift(self):
        usage, model = self.tier.usage(), self.model
        assert usage.hot_bytes == model.total("hot") <= model.hot_quota
        assert usage.cold_bytes == model.total("segment")
        pinned = sum(SIZES[id_] for id_, e in model.entries.items() if e.segment and e.pinned)
        assert usage.cold_bytes <= max(model.cold_quota, pinned)
        assert usage.unstored_bytes == model.total("refused")
        assert usage.unstored_blocks == sum(entry.refused for entry in model.entries.values())
        assert usage.dirty_bytes == model.total("dirty")
        assert usage.hot_blocks == sum(entry.hot for entry in model.entries.values())
        assert usage.cold_blocks == sum(entry.segment > 0 for entry in model.entries.values())
        assert usage.dirty_blocks == sum(entry.dirty for entry in model.entries.values())
        assert self.client.hlen(KEYS.bookkeeping[0]) == len(model.entries) + len(model.gone)
        assert usage.pinned_bytes == model.total("pinned")
        assert usage.pinned_blocks == sum(entry.pinned for entry in model.entries.values())
        assert self.client.zcard(KEYS.bookkeeping[1]) == len(model.evictable())
        unpinned = {id_ for id_, e in model.entries.items() if e.segment and not e.pinned}
        assert set(self.client.zrange(KEYS.cold_ranks, 0, -1)) == unpinned
        live = [0] * (self.segments + 1)
        for id_, entry in model.entries.items():
            live[entry.segment] += SIZES[id_] if entry.segment else 0
        assert self.tier.live_bytes(range(self.segments + 1)) == live


def test_the_function_library_agrees_with_the_model(hot_client):
    HotTierMachine.client = hot_client
    run_state_machine_as_test(
        HotTierMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.fixture
def hot_client(valkey_hot):
    with valkey_hot.client() as client:
        client.flushdb()
        load_functions(client)
        yield client
        assert_no_drift(client)
        client.flushdb()


@pytest.fixture
def tier(hot_client):
    tier = HotTier(hot_client.execute_command, TENANT)
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=None))
    return tier


def store(client, tier, ids):
    for id_ in ids:
        client.set(KEYS.block(SPACE, id_), b"x" * SIZES[id_], nx=True, px=60_000)
    return tier.commit(SPACE, [(id_, SIZES[id_], 16) for id_ in ids])


@pytest.mark.parametrize("reason", [MissReason.QUOTA, MissReason.EVICTED])
def test_what_only_the_hot_tier_had_no_room_for_is_restored(hot_client, tier, reason):
    if reason is MissReason.QUOTA:
        tier.set_policy(hot_bytes=10, cold_bytes=1000, terms=BlockTerms(flush_after_s=None))
    store(hot_client, tier, IDS[:1])
    tier.evict(1000)
    assert tier.match(IDS[:1]) == [reason]
    assert tier.restore(1, SPACE, [RestoredBlock(IDS[0], SIZES[IDS[0]], 16, 64, stored_s=1)]) == 1


def test_what_expired_or_was_corrupt_is_not_restored(hot_client, tier):
    store(hot_client, tier, IDS[:2])
    tier.expire(IDS[:1])
    tier.forget(Tier.HOT, IDS[1:2])
    rows = [RestoredBlock(id_, SIZES[id_], 16, 64, stored_s=1) for id_ in IDS[:2]]
    assert tier.restore(1, SPACE, rows) == 0


def test_a_key_without_owner_gets_an_end_and_others_keep_theirs(hot_client, tier):
    store(hot_client, tier, IDS[:1])
    stray, uncommitted = (KEYS.block(SPACE, id_) for id_ in IDS[1:3])
    hot_client.set(stray, b"x")
    hot_client.set(uncommitted, b"x", px=5000)
    foreign_space, before_the_clock_was_set_back = (KEYS.block(SPACE + n, IDS[0]) for n in (1, 2))
    hot_client.set(foreign_space, b"x")
    hot_client.set(before_the_clock_was_set_back, b"x", ex=90_000)
    audit = BucketAudit(hot_client.execute_command, TENANT, 0)
    owned = KEYS.block(SPACE, IDS[0])
    keys = [owned, stray, uncommitted, foreign_space, before_the_clock_was_set_back]
    assert audit.end_strays(keys) == 3
    assert hot_client.pttl(owned) == -1
    assert 0 < hot_client.pttl(uncommitted) <= 5000 < hot_client.pttl(stray) <= 60_000
    assert 0 < hot_client.pttl(foreign_space) <= 60_000
    assert 0 < hot_client.pttl(before_the_clock_was_set_back) <= 60_000
    assert store(hot_client, tier, IDS[1:2]) == [
        CommitOutcome.MISMATCH
    ]  # a value of another length


def test_what_a_batch_finds_there_is_not_evicted_for_its_other_blocks(hot_client, tier):
    """A full tier, and a batch of new blocks before the one that leaves next."""
    stay = [id_ for id_ in IDS if SIZES[id_] == 300]
    tier.set_policy(hot_bytes=1200, cold_bytes=0, terms=BlockTerms(flush_after_s=None))
    assert set(store(hot_client, tier, stay)) == {CommitOutcome.STORED}
    new = [id_ for id_ in IDS if SIZES[id_] == 100]
    outcomes = store(hot_client, tier, [*new, stay[0]])
    assert outcomes == [CommitOutcome.STORED] * len(new) + [CommitOutcome.PRESENT]
    assert isinstance(tier.match(stay[:1])[0], Location)


def flush(client, tier, ids, segment):
    """Stores blocks and says that they stand in a segment."""
    store(client, tier, ids)
    fits = tier.admit([(id_, SIZES[id_]) for id_ in ids]).fits
    admitted = [id_ for id_, fit in zip(ids, fits, strict=True) if fit]
    tier.open_segment(segment)
    tier.flushed(segment, [(id_, 64 + 1000 * n) for n, id_ in enumerate(admitted)])
    return fits


class TestAFullColdTier:
    """Of 600 bytes, filled by three blocks of 200 in the order of their ids."""

    TERMS = BlockTerms(flush_after_s=0)
    OLD = [id_ for id_ in IDS if SIZES[id_] == 200][:3]
    NEW = [id_ for id_ in IDS if SIZES[id_] == 200][3]

    @pytest.fixture
    def full(self, hot_client, tier):
        self.set_policy(tier)
        for n, id_ in enumerate(self.OLD):
            assert flush(hot_client, tier, [id_], n + 1) == [True]
        return tier

    def set_policy(self, tier, **numbers):
        numbers = {"cold_bytes": 600, "terms": self.TERMS} | numbers
        tier.set_policy(hot_bytes=10_000, **numbers)

    def misses(self, tier):
        """After all hot copies went: only what is cold is found."""
        tier.evict(10_000)
        found = tier.match([*self.OLD, self.NEW])
        return [None if isinstance(each, Location) else each for each in found]

    def test_the_longest_unread_makes_room(self, hot_client, full):
        full.touch(self.OLD[:1])  # a use of the hot copy
        full.evict(10_000)
        full.promote(self.OLD[1:2])  # a read of the cold one
        assert flush(hot_client, full, [self.NEW], 9) == [True]
        assert self.misses(full) == [None, None, MissReason.EVICTED_COLD, None]
        used = full.usage()
        assert (used.cold_bytes, used.cold_evicted_blocks, used.cold_evicted_bytes) == (600, 1, 200)
        assert used.cold_refused_blocks == used.lost_blocks == 0

    def test_what_is_hot_and_loses_its_cold_copy_is_not_flushed_again(self, hot_client, full):
        assert flush(hot_client, full, [self.NEW], 9) == [True]
        assert full.usage().dirty_blocks == 0
        assert isinstance(full.match(self.OLD[:1])[0], Location)
        assert self.misses(full) == [MissReason.EVICTED_COLD, None, None, None]

    def test_a_lower_priority_leaves_first_and_makes_no_room_for_itself(self, hot_client, full):
        for id_, priority in zip(self.OLD, (5, 4, 5), strict=True):
            terms = BlockTerms(flush_after_s=0, priority=priority)
            full.retain([id_], terms, held=False, join=False, flush=False)
        self.set_policy(full, terms=BlockTerms(flush_after_s=0, priority=3))
        assert flush(hot_client, full, [self.NEW], 9) == [False]
        terms = BlockTerms(flush_after_s=0, priority=5)
        full.retain([self.NEW], terms, held=False, join=False, flush=True)
        assert flush(hot_client, full, [self.NEW], 10) == [True]
        assert self.misses(full) == [None, MissReason.EVICTED_COLD, None, None]

    def test_pins_stay_whatever_happens(self, hot_client, full):
        full.pin(self.OLD, FAR)
        assert flush(hot_client, full, [self.NEW], 9) == [False]
        assert self.misses(full) == [None, None, None, MissReason.UNFLUSHED]
        full.unpin(self.OLD[1:2])
        assert flush(hot_client, full, [self.NEW], 10) == [True]
        assert self.misses(full) == [None, MissReason.EVICTED_COLD, None, None]

    def test_what_is_past_its_end_leaves_before_all_others(self, hot_client, full):
        terms = BlockTerms(flush_after_s=0, ttl_s=1, priority=9)
        full.retain(self.OLD[2:], terms, held=False, join=False, flush=False)
        deadline = time.monotonic() + 60
        while full.match(self.OLD[2:]) != [MissReason.EXPIRED] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert flush(hot_client, full, [self.NEW], 9) == [True]
        assert self.misses(full) == [None, None, MissReason.EXPIRED, None]

    def test_a_policy_may_refuse_and_what_it_refused_is_told_apart(self, hot_client, full):
        self.set_policy(full, cold_evicts=False)
        assert flush(hot_client, full, [self.NEW], 9) == [False]
        used = full.usage()
        assert (used.cold_refused_blocks, used.cold_evicted_blocks, used.dirty_blocks) == (1, 0, 0)
        assert (used.unstored_blocks, used.unstored_bytes, used.lost_blocks) == (1, 200, 0)
        assert self.misses(full) == [None, None, None, MissReason.UNFLUSHED]
        used = full.usage()
        assert (used.unstored_blocks, used.lost_blocks, used.lost_bytes) == (0, 1, 200)

    def test_a_lower_quota_holds_soon(self, full):
        self.set_policy(full, cold_bytes=250)
        full.expire_due()
        assert self.misses(full)[:3] == [*[MissReason.EVICTED_COLD] * 2, None]

    def test_of_much_that_is_over_a_lower_quota_each_call_takes_a_part(self, full):
        ids = [n.to_bytes(16, "big") for n in range(2500)]
        self.set_policy(full, cold_bytes=1 << 20)
        full.restore(9, SPACE, [RestoredBlock(id_, 10, 16, 64, stored_s=9) for id_ in ids])
        self.set_policy(full, cold_bytes=0)
        assert [full.expire_due(50) for _ in range(3)] == [50, 50, 0]
        assert full.usage().cold_blocks == 0

    def test_a_rebuild_keeps_the_newest_that_the_quota_has_room_for(self, hot_client, full):
        """Footers name what was evicted, too."""
        hot_client.flushdb()
        self.set_policy(full, cold_bytes=400)
        for stored_s, id_ in ((3, self.OLD[0]), (1, self.OLD[1]), (2, self.OLD[2])):
            full.restore(stored_s, SPACE, [RestoredBlock(id_, 200, 16, 64, stored_s=stored_s)])
        assert self.misses(full)[:3] == [None, MissReason.EVICTED_COLD, None]


def test_ids_that_no_entry_owns_leave_the_sets_and_stop_nothing(hot_client, tier):
    """Whoever evicts, flushes, expires or ends pins meets them."""
    tier.set_policy(hot_bytes=1000, cold_bytes=150, terms=BlockTerms(flush_after_s=0))
    store(hot_client, tier, IDS[:2])
    strangers = dict.fromkeys(IDS[6:9], 0)
    _, ranks, dirty, _, _, _, looks = KEYS.bookkeeping
    sets = [ranks, dirty, looks, KEYS.pins, KEYS.cold_ranks]
    for name in sets:
        hot_client.zadd(name, strangers)
    leased = tier.lease_dirty(lease_s=9, most_blocks=9, most_bytes=10**9)
    assert [block.id for block in leased] == IDS[:2]
    tier.open_segment(1)
    assert tier.flushed(1, [(IDS[0], 64)]) == [FlushOutcome.FLUSHED]
    assert tier.admit([(IDS[1], SIZES[IDS[1]])]).fits == [False]  # larger than the quota
    tier.set_policy(hot_bytes=1000, cold_bytes=50, terms=BlockTerms(flush_after_s=0))
    tier.expire_due()
    assert tier.evict(10**9)[0] == 2
    assert not any(hot_client.zmscore(name, list(strangers)) != [None] * 3 for name in sets)


def test_blocks_missing_in_the_sets_of_their_state_are_filed_again(hot_client, tier):
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=None, ttl_s=99))
    store(hot_client, tier, IDS[:2])
    tier.pin(IDS[1:2], FAR)
    _, ranks, _, _, _, _, looks = KEYS.bookkeeping
    tier.restore(1, SPACE, [RestoredBlock(IDS[0], SIZES[IDS[0]], 16, 64)])
    hot_client.delete(ranks, looks, KEYS.pins, KEYS.cold_ranks)
    audit = BucketAudit(hot_client.execute_command, TENANT, 0)
    assert audit.recount(audit.begin(), IDS[:2]) == Checked(0, 2)
    assert hot_client.zrange(KEYS.cold_ranks, 0, -1) == IDS[:1]
    assert hot_client.zrange(ranks, 0, -1) == IDS[:1]
    assert hot_client.zrange(KEYS.pins, 0, -1) == IDS[1:2]
    assert sorted(hot_client.zrange(looks, 0, -1)) == IDS[:2]


def test_what_a_low_counter_let_in_over_the_quota_is_evicted(hot_client, tier):
    hot_client.hset(KEYS.bookkeeping[3], "hot_bytes", -500)
    assert set(store(hot_client, tier, IDS[:7])) == {CommitOutcome.STORED}
    audit = BucketAudit(hot_client.execute_command, TENANT, 0)
    number = audit.begin()
    audit.recount(number, IDS)
    assert [drift.name for drift in audit.settle(number)] == ["hot_bytes"]
    assert 0 < tier.usage().hot_bytes <= 1000


def test_a_block_past_its_lifetime_is_a_miss_with_the_reason_expired(hot_client, tier):
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=None, ttl_s=1))
    store(hot_client, tier, IDS[:2])
    tier.pin(IDS[1:2], FAR)
    deadline = time.monotonic() + 60
    while tier.match(IDS[:1]) != [MissReason.EXPIRED] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tier.match(IDS[:1]) == [MissReason.EXPIRED]
    assert isinstance(tier.match(IDS[1:2])[0], Location)  # a pin outlives the lifetime
    assert tier.expire_due() == 1
    assert tier.usage().hot_bytes == SIZES[IDS[1]]


@given(
    ttl_s=st.none() | st.integers(1, 10**6),
    max_age_s=st.none() | st.integers(1, 10**6),
    prolonged_s=st.integers(0, 2 * 10**6),
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_functions_count_lives_as_the_platform_does(
    hot_client, tier, ttl_s, max_age_s, prolonged_s
):
    store(hot_client, tier, IDS[:1])
    ((page, _),) = scan(hot_client.execute_command, TENANT, 1)
    until_s = page[0].stored_s + prolonged_s
    terms = BlockTerms(ttl_s=ttl_s, max_age_s=max_age_s, idle_s=77, priority=3, until_s=until_s)
    assert changes_of(page, [Standing(terms, True)])
    assert tier.retain(IDS[:1], terms, held=True, join=False, flush=True) == 1
    ((page, _),) = scan(hot_client.execute_command, TENANT, 1)
    assert page[0].expires_s == end_of(terms, page[0].stored_s)
    assert not changes_of([page[0]._replace(is_cold=True)], [Standing(terms, True)])


def test_a_last_use_is_read_back_from_any_rank(hot_client, tier):
    """On probation or used since, of whatever priority; None while a block cannot be evicted."""
    store(hot_client, tier, IDS[:4])
    tier.touch(IDS[1:2])
    terms = BlockTerms(flush_after_s=None, priority=9)
    tier.retain(IDS[2:3], terms, held=False, join=False, flush=False)
    tier.pin(IDS[3:4], FAR)
    *used, pinned = last_used_s(hot_client.execute_command, KEYS, IDS[:4])
    assert all(abs(used_s - time.time()) < 10 for used_s in used)
    assert pinned is None


def test_an_idle_block_leaves_the_hot_tier_and_a_used_one_stays(hot_client, tier):
    tier.set_policy(
        hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=None, idle_s=100)
    )
    store(hot_client, tier, IDS[:2])
    _, access, *_, looks = KEYS.bookkeeping
    hot_client.zadd(access, {IDS[0]: 0})  # used in 1970
    hot_client.zadd(looks, dict.fromkeys(IDS[:2], 0))
    assert tier.expire_due() == 2
    assert tier.match(IDS[:1]) == [MissReason.IDLE]
    assert isinstance(tier.match(IDS[1:2])[0], Location)
    due_s = hot_client.zscore(looks, IDS[1]) - time.time()
    assert 90 < due_s < 110  # looked at again when it may be idle


def test_joining_gives_what_is_held_the_more_generous_and_setting_gives_what_is_said(
    hot_client, tier
):
    store(hot_client, tier, IDS[:1])

    def retain(join, **terms):
        tier.retain(IDS[:1], BlockTerms(**terms), held=True, join=join, flush=False)
        (((entry,), _),) = scan(hot_client.execute_command, TENANT, 1)
        return entry.expires_s and entry.expires_s - entry.stored_s, entry.idle_s, entry.priority

    assert retain(True, ttl_s=60, idle_s=5, priority=1) == (60, 5, 1)  # it was its space's
    assert retain(True, ttl_s=50, idle_s=9, priority=2) == (60, 9, 2)
    assert retain(True, idle_s=7, priority=0) == (0, 9, 2)
    assert retain(True, ttl_s=50, idle_s=None) == (0, 0, 2)
    assert retain(False, ttl_s=50, idle_s=4) == (50, 4, 0)


class TestPromotion:
    WINDOW_S = 600

    @pytest.fixture
    def cold(self, hot_client, tier):
        terms = BlockTerms()
        tier.set_policy(
            hot_bytes=1000, cold_bytes=1000, terms=terms, promote_window_s=self.WINDOW_S
        )
        store(hot_client, tier, IDS[:1])
        tier.open_segment(1)
        tier.flushed(1, [(IDS[0], 64)])
        tier.evict(1000)
        return IDS[0]

    def read_was(self, client, id_, *, s_ago):
        """Moves the note of the last read (bytes 2 and 3 of the entry, docs/formats) back."""
        entry = bytearray(client.hget(KEYS.bookkeeping[0], id_))
        noted = int.from_bytes(entry[2:4], "little")
        moved = (noted % 32768 - s_ago // 4) % 32768 + noted // 32768 * 32768
        entry[2:4] = moved.to_bytes(2, "little")
        client.hset(KEYS.bookkeeping[0], id_, bytes(entry))

    def test_the_second_read_within_the_window_promotes(self, hot_client, tier, cold):
        assert tier.promote([cold]) == [False]
        self.read_was(hot_client, cold, s_ago=self.WINDOW_S - 20)
        assert tier.promote([cold]) == [True]

    def test_a_later_one_is_the_first_again(self, hot_client, tier, cold):
        assert tier.promote([cold]) == [False]
        self.read_was(hot_client, cold, s_ago=self.WINDOW_S + 20)
        assert tier.promote([cold]) == [False]
        assert tier.promote([cold]) == [True]

    def test_one_caller_is_told_until_its_claim_lapses(self, hot_client, tier, cold):
        tier.promote([cold])
        assert tier.promote([cold]) == [True]
        assert tier.promote([cold]) == [False]
        self.read_was(hot_client, cold, s_ago=40)
        assert tier.promote([cold]) == [True]

    def test_what_became_hot_and_cold_again_begins_anew(self, hot_client, tier, cold):
        tier.promote([cold])
        store(hot_client, tier, [cold])
        tier.evict(1000)
        assert [tier.promote([cold]), tier.promote([cold])] == [[False], [True]]


def test_a_lease_hides_dirty_blocks_from_other_workers_until_it_lapses(hot_client, tier):
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms())
    store(hot_client, tier, IDS[:3])
    lease = {"most_blocks": 2, "most_bytes": 10**9}
    first = {block.id for block in tier.lease_dirty(lease_s=60, **lease)}
    second = {block.id for block in tier.lease_dirty(lease_s=60, **lease)}
    assert (len(first), len(second), first & second) == (2, 1, set())
    assert tier.lease_dirty(lease_s=60, **lease) == []


def test_a_closed_segment_gets_no_blocks_and_one_with_blocks_is_not_closed(hot_client, tier):
    """A worker that slept while its segment was deleted must not say that blocks stand in it."""
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=0))
    store(hot_client, tier, IDS[:2])
    first, second = [(IDS[0], 64)], [(IDS[1], 64)]
    assert tier.flushed(1, first) == [FlushOutcome.DEAD]  # never opened
    assert tier.usage().dirty_blocks == 2
    for segment in (1, 2, 3):
        tier.open_segment(segment)
    assert tier.flushed(1, first) == [FlushOutcome.FLUSHED]
    assert tier.close_segments([1, 2, 3, 4]) == [SIZES[IDS[0]], 0, 0, 0]
    assert tier.flushed(2, second) == [FlushOutcome.DEAD]
    moved = [MovedBlock(IDS[0], 1, 64, 640)]
    assert tier.relocate(3, moved) == [FlushOutcome.DEAD]
    assert tier.match(IDS[:1])[0].segment == 1
    tier.expire(IDS[:1])
    assert tier.close_segments([1]) == [0]


def test_blocks_are_leased_in_the_order_in_which_they_were_stored(hot_client, tier):
    tier.set_policy(hot_bytes=10**4, cold_bytes=1000, terms=BlockTerms(flush_after_s=0))
    order = [*IDS[6:], *IDS[:3], *reversed(IDS[3:6])]
    for part in (order[:4], order[4:]):
        store(hot_client, tier, part)
    leased = tier.lease_dirty(lease_s=60, most_blocks=20, most_bytes=10**9)
    assert [block.id for block in leased] == order


def test_a_lease_can_be_given_back_and_kept_longer(hot_client, tier):
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=0))
    store(hot_client, tier, IDS[:2])
    lease = {"most_blocks": 2, "most_bytes": 10**9}
    ids = [block.id for block in tier.lease_dirty(lease_s=0.01, **lease)]
    tier.renew_leases(ids, 60)
    assert tier.lease_dirty(lease_s=60, **lease) == []
    tier.renew_leases(ids[:1], 0)
    assert [block.id for block in tier.lease_dirty(lease_s=60, **lease)] == ids[:1]
    tier.renew_leases([IDS[5]], 60)  # never leased: stays so
    assert hot_client.zcard(KEYS.leases) == 2


def test_leased_blocks_keep_their_age(hot_client, tier):
    tier.set_policy(hot_bytes=1000, cold_bytes=1000, terms=BlockTerms(flush_after_s=0))
    store(hot_client, tier, IDS[:1])
    due = tier.usage().oldest_due_s
    tier.lease_dirty(lease_s=60, most_blocks=1, most_bytes=1)
    assert tier.usage().oldest_due_s == due is not None


def test_a_lease_takes_what_is_longest_due_from_behind_what_others_hold(hot_client, tier):
    """More blocks are leased to others than one look at the queue returns."""
    tier.set_policy(hot_bytes=10**9, cold_bytes=10**9, terms=BlockTerms(flush_after_s=0))
    ids = [n.to_bytes(16, "big") for n in range(1, 1203)]
    for id_ in ids:
        hot_client.set(KEYS.block(SPACE, id_), b"x" * 10, px=60_000)
    tier.commit(SPACE, [(id_, 10, 16) for id_ in ids])
    hot_client.zadd(KEYS.bookkeeping[2], {id_: n for n, id_ in enumerate(ids)})
    others = tier.lease_dirty(lease_s=60, most_blocks=1100, most_bytes=10**9)
    assert [block.id for block in others] == ids[:1100]
    rest = tier.lease_dirty(lease_s=60, most_blocks=50, most_bytes=10**9)
    assert [block.id for block in rest] == ids[1100:1150]
    few = tier.lease_dirty(lease_s=60, most_blocks=50, most_bytes=25)
    assert [block.id for block in few] == ids[1150:1152]


def test_a_block_larger_than_the_quota_is_refused_without_emptying_the_tier(hot_client, tier):
    store(hot_client, tier, IDS[:2])
    hot_client.set(KEYS.block(SPACE, IDS[5]), b"x" * 2000, px=60_000)
    assert tier.commit(SPACE, [(IDS[5], 2000, 16)]) == [CommitOutcome.REFUSED]
    assert tier.usage().hot_blocks == 2
    assert tier.match(IDS[5:6]) == [MissReason.QUOTA]


def test_a_tenant_without_quota_numbers_stores_nothing(hot_client):
    unprovisioned = HotTier(hot_client.execute_command, 99)
    keys = BucketKeys(99, 0)
    hot_client.set(keys.block(SPACE, IDS[0]), b"x" * 100, px=60_000)
    assert unprovisioned.commit(SPACE, [(IDS[0], 100, 16)]) == [CommitOutcome.REFUSED]
    assert hot_client.exists(keys.block(SPACE, IDS[0])) == 0


def test_a_caller_cannot_bring_its_own_quota(hot_client, tier):
    forged = KEYS.tag + b":mine"
    hot_client.hset(forged, "hot_bytes", 10**12)
    keys = [forged if key == KEYS.quota else key for key in KEYS.bookkeeping]
    block_key = KEYS.block(SPACE, IDS[0])
    hot_client.set(block_key, b"x" * 2000, px=60_000)
    with pytest.raises(ResponseError, match=":q"):
        hot_client.execute_command(
            "FCALL", "neve_commit", 8, *keys, block_key, SPACE, IDS[0], 2000, 16
        )


def test_tombstones_are_bounded(hot_client, tier):
    ids = [n.to_bytes(16, "big") for n in range(21_000)]
    for start in range(0, len(ids), 500):
        batch = ids[start : start + 500]
        pipe = hot_client.pipeline(transaction=False)
        for id_ in batch:
            pipe.set(KEYS.block(SPACE, id_), b"x" * 2000, px=60_000)
        pipe.execute()
        tier.commit(SPACE, [(id_, 2000, 16) for id_ in batch])
    assert hot_client.hlen(KEYS.bookkeeping[0]) == 20_000
    assert tier.match([ids[0], ids[-1]]) == [MissReason.NEVER_STORED, MissReason.QUOTA]


def test_a_full_server_still_frees_memory_and_refuses_writes(hot_client, tier):
    """Functions that free memory carry allow-oom; without it even they are refused at maxmemory."""
    tier.set_policy(hot_bytes=10**9, cold_bytes=10**9, terms=BlockTerms(flush_after_s=None))
    store(hot_client, tier, IDS)
    used = hot_client.info("memory")["used_memory"]
    limit = hot_client.config_get("maxmemory")["maxmemory"]
    try:
        hot_client.config_set("maxmemory", used // 2)
        with pytest.raises(Exception, match="maxmemory"):
            hot_client.set("any", b"x" * 1000)
        load_functions(hot_client)  # it is there: nothing to load, which would be refused
        tier.set_policy(hot_bytes=10**9, cold_bytes=10**9, terms=BlockTerms(flush_after_s=None))
        assert tier.evict(10**9)[0] == len(IDS)
    finally:
        hot_client.config_set("maxmemory", limit)


def test_the_library_runs_on_a_cluster_node_where_all_keys_must_share_a_slot(tmp_path):
    class ClusterNode(ValkeyServer):
        def command(self):
            return [*super().command(), "--cluster-enabled", "yes"]

    with ClusterNode(tmp_path) as server, server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 60
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline, "cluster did not form"
            time.sleep(0.05)
        load_functions(client)
        tier = HotTier(client.execute_command, TENANT)
        tier.set_policy(hot_bytes=500, cold_bytes=1000, terms=BlockTerms(flush_after_s=None))
        outcomes = store(client, tier, IDS)  # more than fits: eviction derives block keys
        assert outcomes.count(CommitOutcome.STORED) > 3
        assert tier.usage().evicted_blocks > 0
        assert tier.usage().hot_bytes <= 500


def test_the_check_after_each_test_sees_a_byte_of_drift(hot_client, tier):
    store(hot_client, tier, IDS[:1])
    hot_client.hincrby(KEYS.bookkeeping[3], "hot_bytes", 1)
    with pytest.raises(AssertionError, match=f"tenant {TENANT}"):
        assert_no_drift(hot_client)
    hot_client.hincrby(KEYS.bookkeeping[3], "hot_bytes", -1)
