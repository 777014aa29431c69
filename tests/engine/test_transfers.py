"""BlockLoader and saver over a client whose transfers end when the test says so."""

import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest

from neve.datapath.transfer import Transfer
from neve.engine.groups import KvGroup
from neve.engine.loader import BlockLoader
from neve.engine.saver import BlockSaver
from neve.engine.staging import StagingPool
from neve.engine.step import BlockLoad, BlockSave, LoadPlan
from neve.engine.transfers import GroupTransfers
from neve.errors import Closed, MissReason
from neve.formats.parts import PartKind
from neve.index.tier import Location, Tier
from neve.node.stats import Stats
from support.servers import wait_until


@dataclass
class Piece:
    memory: memoryview


class Kv:
    """Engine memory of one byte a block. With `defers`, copies happen when `run` is called."""

    block_bytes = 1

    def __init__(self, *, defers=False):
        self.blocks = bytearray(100)
        self.defers = defers
        self.tickets = []

    def allocate(self, engine_blocks, most=1):
        return [Piece(memoryview(bytearray(engine_blocks))) for _ in range(min(most, 4))]

    def move_out(self, blocks, staging):
        return self._ticket(lambda: self._copy_out(blocks, staging))

    def move_in(self, blocks, skip, staging):
        return self._ticket(lambda: self._copy_in(blocks, skip, staging))

    def release(self):
        assert not self.tickets

    def run(self):
        """Carries out the oldest copy."""
        self.tickets.pop(0).run()

    def _ticket(self, copy):
        ticket = Ticket(copy)
        if self.defers:
            self.tickets.append(ticket)
        else:
            ticket.run()
        return ticket

    def _copy_out(self, blocks, staging):
        for engine_blocks, piece in zip(blocks, staging, strict=True):
            piece.memory[:] = bytes(self.blocks[b] for b in engine_blocks)

    def _copy_in(self, blocks, skip, staging):
        for number, (engine_blocks, piece) in enumerate(zip(blocks, staging, strict=True)):
            for place, block in enumerate(engine_blocks):
                if number or place >= skip:
                    self.blocks[block] = piece.memory[place]


class Ticket:
    def __init__(self, copy):
        self._copy = copy
        self._event = threading.Event()

    def run(self):
        self._copy()
        self._event.set()

    def done(self):
        return self._event.is_set()

    def wait(self):
        assert self._event.wait(30)


class Client:
    """Holds blocks by id; `end` finishes the oldest transfer."""

    def __init__(self):
        self.store = {}
        self.stats = Stats()
        self.open = []
        self.closed = False

    def _begin(self, count, deadline_s):
        if self.closed:
            raise Closed("closed")
        return Transfer(count, time.monotonic() + deadline_s)

    def get_many(self, ids, buffers, *, locations, deadline_s, tokens=None):
        transfer = self._begin(len(ids), deadline_s)
        self.open.append((transfer, list(zip(ids, buffers, strict=True)), True))
        return transfer

    def put_many(self, blocks, buffers, *, deadline_s):
        transfer = self._begin(len(blocks), deadline_s)
        pairs = [(block.id, buffer) for block, buffer in zip(blocks, buffers, strict=True)]
        self.open.append((transfer, pairs, False))
        return transfer

    def end(self, outcome=None):
        transfer, pairs, reading = self.open.pop(0)
        for index, (block_id, buffer) in enumerate(pairs):
            if reading:
                found = self.store.get(block_id)
                buffer[:] = found or b"\xee" * len(buffer)
                transfer.settle(index, None if found else MissReason.EVICTED)
            else:
                if outcome is None:
                    self.store[block_id] = bytes(buffer)
                transfer.settle(index, outcome)
        transfer.end_job()


def load_plan(count, *, skip=0, request_id="r", deadline_s=5.0):
    blocks = tuple(
        BlockLoad(
            (bytes([n]),), (Location(Tier.HOT, 66),), (2 * n, 2 * n + 1), skip if n == 0 else 0
        )
        for n in range(count)
    )
    return LoadPlan(request_id, 0, blocks, deadline_s)


@pytest.fixture
def kv():
    return Kv()


@pytest.fixture
def client():
    made = Client()
    made.store = {bytes([n]): bytes([2 * n + 1, 2 * n + 2]) for n in range(40)}
    return made


def loader_of(client, kv, pieces=100, columns=(0,)):
    pool = StagingPool(partial(kv.allocate, 2), pieces)
    return BlockLoader(client, kv, pool, columns)


def run(loader, client):
    """Ends transfers as they come until a load has ended."""
    for _ in range(100):
        results = loader.poll()
        if results.request_ids:
            return results
        if client.open:
            client.end()
    raise AssertionError("the load never ended")


@pytest.mark.parametrize("pieces", [100, 3, 1])
def test_a_load_fills_the_engine_in_waves_that_fit_the_staging(kv, client, pieces):
    loader = loader_of(client, kv, pieces)
    loader.start(load_plan(40))
    results = run(loader, client)
    assert (results.request_ids, results.failed_engine_blocks) == ({"r"}, set())
    assert bytes(kv.blocks[:80]) == bytes(range(1, 81))
    assert loader.poll().request_ids == set()


def test_engine_blocks_that_are_already_right_are_not_written(kv, client):
    loader = loader_of(client, kv)
    loader.start(load_plan(1, skip=1))
    run(loader, client)
    assert bytes(kv.blocks[:2]) == bytes([0, 2])


def test_from_the_first_missing_block_on_nothing_is_written_and_all_is_reported(kv, client):
    del client.store[bytes([20])]
    loader = loader_of(client, kv)
    loader.start(load_plan(40))
    assert run(loader, client).failed_engine_blocks == set(range(40, 80))
    assert bytes(kv.blocks[:40]) == bytes(range(1, 41))
    assert not any(kv.blocks[40:])


def halves(count):
    """Ids of `count` chunks with 4 columns. A rank with columns 1 and 2 has half its KV in each."""
    return [tuple(bytes([column, n]) for column in range(4)) for n in range(count)]


def test_a_rank_loads_its_columns_up_to_the_first_chunk_that_lacks_one(kv, client):
    ids = halves(5)
    client.store = {ids[n][column]: bytes([10 * column + n]) for n in range(5) for column in (1, 2)}
    del client.store[ids[3][2]]
    locations = (Location(Tier.HOT, 65),) * 4
    blocks = [BlockLoad(every, locations, (2 * n, 2 * n + 1), 0) for n, every in enumerate(ids)]
    loader = loader_of(client, kv, columns=(1, 2))
    loader.start(LoadPlan("r", 0, tuple(blocks), 5.0))
    assert run(loader, client).failed_engine_blocks == {6, 7, 8, 9}
    assert bytes(kv.blocks[:8]) == bytes([10, 20, 11, 21, 12, 22, 0, 0])


def test_a_rank_saves_its_columns_and_reports_a_chunk_of_which_one_is_refused(kv, client):
    kv.blocks[:4] = b"abcd"
    ids = halves(2)
    saver = saver_of(client, kv, columns=(1, 2))
    saver.save([BlockSave("r", ids[n], ids[0], 64, (2 * n, 2 * n + 1)) for n in range(2)])
    transfer, pairs, _ = client.open.pop()
    assert [(block_id, bytes(half)) for block_id, half in pairs] == [
        (ids[0][1], b"a"), (ids[0][2], b"b"), (ids[1][1], b"c"), (ids[1][2], b"d")
    ]  # fmt: skip
    for index in range(4):
        transfer.settle(index, MissReason.QUOTA if index == 3 else None)
    transfer.end_job()
    assert saver.take_unsaved() == [ids[1][0]]


def test_waves_are_received_while_one_is_written_and_all_are_written_in_order(client, monkeypatch):
    monkeypatch.setattr("neve.engine.loader._WAVE_BLOCKS", 16)
    kv = Kv(defers=True)
    loader = loader_of(client, kv)
    loader.start(load_plan(40))
    assert len(client.open) == 3
    client.end()
    client.end()
    loader.poll()
    assert len(kv.tickets) == 2  # an engine's step lies between two polls
    kv.run()
    assert not loader.poll().request_ids
    assert len(kv.tickets) == 1
    client.end()
    assert not loader.poll().request_ids
    kv.run()
    kv.run()
    assert loader.poll().request_ids == {"r"}
    assert bytes(kv.blocks[:80]) == bytes(range(1, 81))


def test_after_a_failed_wave_the_others_give_their_staging_back(kv, client, monkeypatch):
    monkeypatch.setattr("neve.engine.loader._WAVE_BLOCKS", 16)
    del client.store[bytes([3])]
    loader = loader_of(client, kv, pieces=40)
    loader.start(load_plan(40))
    client.end()
    assert loader.poll().failed_engine_blocks == set(range(6, 80))
    client.end()
    client.end()
    loader.poll()
    client.store[bytes([3])] = b"  "
    loader.start(load_plan(40, request_id="next"))
    assert [len(pairs) for _, pairs, _ in client.open] == [16, 16, 8]
    assert run(loader, client).request_ids == {"next"}


def test_two_loads_share_a_small_staging(kv, client):
    loader = loader_of(client, kv, pieces=2)
    loader.start(load_plan(5, request_id="a"))
    loader.start(load_plan(5, request_id="b"))
    ended = set()
    while len(ended) < 2:
        ended |= run(loader, client).request_ids
    assert ended == {"a", "b"}


def test_a_client_that_never_answers_fails_the_load_and_keeps_its_buffers(kv, client, monkeypatch):
    monkeypatch.setattr("neve.engine.loader._GRACE_S", 0.0)
    loader = loader_of(client, kv, pieces=1)
    loader.start(load_plan(2, deadline_s=0.05))
    end = time.monotonic() + 60
    while not (results := loader.poll(0.01)).request_ids and time.monotonic() < end:
        pass
    assert results.failed_engine_blocks == {0, 1, 2, 3}
    loader.start(load_plan(1, request_id="next"))
    assert len(client.open) == 1  # The only staging is still the late transfer's.
    client.end()
    assert run(loader, client).request_ids == {"next"}


def test_a_load_that_cannot_begin_is_none_and_keeps_no_staging(kv, client, monkeypatch):
    """For example one that could not be planned: the caller reports its end, not `poll`."""
    monkeypatch.setattr("neve.engine.loader._WAVE_BLOCKS", 2)
    loader = loader_of(client, kv, pieces=4)
    good = load_plan(4)
    blank = BlockLoad((), (), (8, 9), 0)
    for _ in range(3):
        with pytest.raises(IndexError):
            loader.start(LoadPlan("r", 0, (*good.blocks[:2], blank), 5.0))
        client.end()  # the first wave
        assert loader.poll().request_ids == set()
    loader.start(good)
    assert [len(pairs) for _, pairs, _ in client.open] == [2, 2]
    assert run(loader, client).failed_engine_blocks == set()


def test_a_closed_client_fails_the_load_at_once(kv, client):
    client.closed = True
    loader = loader_of(client, kv)
    loader.start(load_plan(2))
    assert loader.poll().failed_engine_blocks == {0, 1, 2, 3}


def saves(count):
    return [BlockSave(f"r{n}", (bytes([n]),), (b"",), 64, (2 * n, 2 * n + 1)) for n in range(count)]


def saver_of(client, kv, pieces=100, columns=(0,), **more):
    return BlockSaver(client, kv, StagingPool(partial(kv.allocate, 2), pieces), columns, **more)


def test_a_save_is_a_copy_of_the_moment(kv, client):
    kv.blocks[:4] = b"abcd"
    saver = saver_of(client, kv)
    saver.save(saves(2))
    kv.blocks[:4] = b"zzzz"
    client.end()
    assert (client.store[bytes([0])], client.store[bytes([1])]) == (b"ab", b"cd")
    assert saver.take_unsaved() == []


def test_stored_states_are_counted(kv, client):
    saver = saver_of(client, kv, pieces=2, counts_states=True)
    saver.save(saves(3))
    client.end()
    assert client.stats.totals().counters["put_states"] == 2


def test_beyond_the_budget_blocks_are_dropped_and_counted(kv, client):
    saver = saver_of(client, kv, pieces=2)
    saver.save(saves(5))
    assert saver.take_unsaved() == [bytes([n]) for n in (2, 3, 4)]
    assert client.stats.totals().counters["dropped"] == 3
    client.end()
    saver.save(saves(2))
    assert saver.take_unsaved() == []


def test_blocks_that_cannot_be_copied_are_dropped_and_give_their_staging_back(kv, client):
    saver = saver_of(client, kv, pieces=2)
    copy, kv.move_out = kv.move_out, lambda *_: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            saver.save(saves(2))
        assert saver.take_unsaved() == [bytes([0]), bytes([1])]
    kv.move_out = copy
    saver.save(saves(2))
    assert saver.take_unsaved() == []


def test_a_refused_save_is_reported(kv, client):
    saver = saver_of(client, kv)
    saver.save(saves(2))
    client.end(MissReason.QUOTA)
    assert saver.take_unsaved() == [bytes([0]), bytes([1])]


def test_a_save_to_a_closed_client_is_reported_and_gives_its_staging_back(kv, client):
    client.closed = True
    saver = saver_of(client, kv, pieces=2)
    for _ in range(3):
        saver.save(saves(2))
        assert saver.take_unsaved() == [bytes([0]), bytes([1])]


def test_draining_waits_for_the_puts_under_way(kv, client):
    saver = saver_of(client, kv)
    saver.save(saves(1))
    assert not saver.drain(0.01)
    threading.Timer(0.05, client.end).start()
    assert saver.drain(5.0)


def test_a_deferred_save_is_stored_once_it_is_copied_and_names_whose_blocks_it_reads(client):
    kv = Kv(defers=True)
    kv.blocks[:4] = b"abcd"
    saver = saver_of(client, kv)
    saver.save(saves(2))
    assert saver.copying("r0")
    assert saver.copying("r1")
    assert not saver.copying("other")
    assert saver.reads({saves(2)[1].engine_blocks[0]})
    assert not saver.reads({99})
    assert not client.open
    assert saver.in_flight == 1
    kv.run()
    end = time.monotonic() + 60
    while not client.open and time.monotonic() < end:
        pass
    assert not saver.copying("r0")
    assert not saver.reads({saves(2)[1].engine_blocks[0]})
    client.end()
    assert (client.store[bytes([0])], client.store[bytes([1])]) == (b"ab", b"cd")
    assert saver.drain(1.0)


def test_a_deferred_load_ends_when_it_has_landed(client):
    kv = Kv(defers=True)
    loader = loader_of(client, kv, pieces=2)
    loader.start(load_plan(2, skip=1))
    client.end()
    assert not loader.poll().request_ids
    assert not loader.poll().request_ids  # landing, and the staging is in use
    kv.run()
    results = loader.poll()
    assert (results.request_ids, results.failed_engine_blocks) == ({"r"}, set())
    assert bytes(kv.blocks[:4]) == bytes([0, 2, 3, 4])


def test_a_load_that_lands_is_waited_for_beyond_its_deadline(client, monkeypatch):
    """Engine blocks that are still being written must not change hands."""
    monkeypatch.setattr("neve.engine.loader._GRACE_S", 0.0)
    kv = Kv(defers=True)
    loader = loader_of(client, kv, pieces=1)
    loader.start(load_plan(1, deadline_s=0.05))
    client.end()
    loader.poll()
    time.sleep(0.1)
    assert not loader.poll().request_ids
    kv.run()
    assert not loader.poll().failed_engine_blocks


def test_staging_made_ahead_keeps_to_its_budget():
    pool = StagingPool(partial(Kv().allocate, 2), 10)
    (first,) = pool.take(1)
    pool.fill()
    assert len(pool.take(20)) == 9
    assert pool.take(1) == []
    pool.give_back([first])
    assert pool.take(1) == [first]


def test_staging_that_lies_side_by_side_stays_together():
    """Neighbours in memory are copied at once."""
    made = iter("abcdefgh")
    pool = StagingPool(lambda most: [next(made) for _ in range(min(most, 4))], 8)
    pool.fill()
    assert (pool.take(3), pool.take(2)) == (list("fgh"), list("de"))
    pool.give_back(list("fgh"))
    pool.give_back(list("de"))
    assert pool.take(5) == list("fghde")


def test_a_group_that_cannot_copy_loses_its_own_blocks_only(kv, client, monkeypatch):
    broken = Kv()
    monkeypatch.setattr(broken, "move_out", lambda *_: 1 / 0)
    transfers = in_groups(client, [broken, kv])
    saves = [BlockSave("r", (bytes([n]),), (b"",), 2, (0, 1), group=n) for n in (0, 1)]
    with pytest.raises(ZeroDivisionError):
        transfers.save(saves)
    client.end()
    assert transfers.take_unsaved() == [bytes([0])]
    assert transfers.take_stored() == [bytes([1])]
    assert transfers.drain(0.0)


def in_groups(client, kvs):
    """Full attention and a window, in chunks of two engine blocks."""
    client.session = SimpleNamespace(chunk_tokens=2)
    groups = [KvGroup(("full",), None, 1), KvGroup(("window",), 3, 1, 1, PartKind.WINDOW)]
    return GroupTransfers(client, kvs, groups, (0,), load_bytes=100, save_bytes=100)


def test_loads_that_are_stopped_fail_and_write_nothing_afterwards(client):
    """One has landed and was not reported, one lands, one is received: the KV is lost anyway."""
    kv = Kv(defers=True)
    loader = loader_of(client, kv)
    for name in ("landed", "landing", "received"):
        loader.start(load_plan(1, request_id=name))
    client.end()
    client.end()
    loader.poll()
    kv.run()
    threading.Timer(0.05, kv.run).start()
    results = loader.stop()
    assert not kv.tickets
    assert results.request_ids == results.failed_requests == {"landed", "landing", "received"}
    assert results.failed_engine_blocks == {0, 1}
    client.end()  # what still comes goes nowhere
    assert not loader.poll().request_ids
    assert not kv.tickets
    loader.start(load_plan(2, request_id="next"))
    client.end()
    loader.poll()
    kv.run()
    assert loader.poll().request_ids == {"next"}


def test_stopped_transfers_fail_loads_of_several_groups_once_and_end_copies_out(client):
    kvs = [Kv(defers=True), Kv(defers=True)]
    kvs[1].blocks[:2] = b"ab"
    transfers = in_groups(client, kvs)
    blocks = tuple(block._replace(group=n) for n, block in enumerate(load_plan(2).blocks))
    transfers.start(replace(load_plan(2), blocks=blocks, whole=True))
    transfers.save([BlockSave("s", (b"s",), (b"",), 2, (0, 1), group=1)])
    assert not transfers.end_copies(0.01)
    threading.Timer(0.05, kvs[1].run).start()
    results = transfers.stop_loads()
    assert transfers.end_copies(60.0)
    assert not transfers.copying("s")
    assert (results.request_ids, results.failed_requests) == ({"r"}, {"r"})
    assert not results.failed_engine_blocks
    assert not transfers.poll(0.0).request_ids
    wait_until(lambda: len(client.open) == 3, what="the store")
    kvs[1].blocks[:2] = b"--"
    for _ in range(3):
        client.end()
    assert client.store[b"s"] == b"ab"


def test_an_idle_step_waits_for_a_group_that_still_loads(kv, client, monkeypatch):
    transfers = in_groups(client, [kv, kv])
    plan = load_plan(2)
    blocks = tuple(block._replace(group=n) for n, block in enumerate(plan.blocks))
    transfers.start(replace(plan, blocks=blocks, whole=True))
    client.end()
    assert transfers.poll(0.0).request_ids == set()
    waits = []
    loading = transfers._loaders[1]
    monkeypatch.setattr(loading, "_arrived", SimpleNamespace(wait=waits.append, clear=lambda: None))
    assert transfers.poll(0.001).request_ids == set()
    assert waits == [0.001]
    monkeypatch.undo()
    client.end()
    assert transfers.poll(0.0).request_ids == {"r"}


def test_waves_behind_a_missing_block_are_not_copied(monkeypatch):
    monkeypatch.setattr("neve.engine.loader._WAVE_BLOCKS", 1)
    client, kv = Client(), Kv(defers=True)
    loader = BlockLoader(client, kv, StagingPool(partial(kv.allocate, 2), 8), columns=(0,))
    plan = load_plan(3)
    client.store = {plan.blocks[n].ids[0]: bytes((7, 8)) for n in (0, 2)}
    loader.start(plan)
    for _ in range(3):
        client.end()
    assert not loader.poll().request_ids  # the first is still being copied
    assert len(kv.tickets) == 1
    kv.run()
    results = loader.poll()
    assert results.failed_requests == {"r"}
    assert results.failed_engine_blocks == {b for x in plan.blocks[1:] for b in x.engine_blocks}
    assert not kv.tickets
    assert bytes(kv.blocks[b] for b in plan.blocks[2].engine_blocks) == bytes(2)
