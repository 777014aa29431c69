"""The native core on a real Valkey Cluster: routing, redirects, a dead primary, a moving slot."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from neve import _core
from neve.datapath.status import Status
from neve.datapath.transport import Transport, make_keyspace
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.tier import decode_match
from neve.node.address import ValkeyAddress
from support.cluster import Cluster, ClusterNode
from support.servers import wait_until

pytestmark = pytest.mark.integration

BUCKETS = 12
TENANT = 7
KEYS = make_keyspace(TENANT, BUCKETS, 12, bytes(32))
PAYLOAD = 100_000
COUNT = 120
HARMLESS = {  # all that trouble may do to a load: a miss, never a wrong answer
    Status.OK,
    Status.EVICTED,
    Status.TIMEOUT,
    Status.BREAKER,
    Status.UNAVAILABLE,
    Status.ERROR,
}


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


class Blocks:
    """Random blocks over all buckets, and room to load them into."""

    def __init__(self, transport: Transport, seed: int = 1, count: int = COUNT) -> None:
        random = np.random.default_rng(seed)
        self.transport = transport
        self.ids = [random.bytes(16) for _ in range(count)]
        self.sent = random.integers(0, 256, (count, PAYLOAD), dtype=np.uint8)
        self.back = np.zeros_like(self.sent)

    def put(self, deadline_s: float = 10) -> list[Status]:
        count = len(self.ids)
        transfer = self.transport.put(
            KEYS, self.ids, [bytes(16)] * count, [256] * count, list(self.sent),
            deadline=soon(deadline_s),
        )  # fmt: skip
        return ended(transfer)

    def get(self, deadline_s: float = 10) -> list[Status]:
        """Checks that what is said to be loaded is right."""
        self.back[:] = 0
        transfer = self.transport.get(KEYS, self.ids, list(self.back), deadline=soon(deadline_s))
        statuses = ended(transfer)
        good = [i for i, status in enumerate(statuses) if status is Status.OK]
        assert (self.back[good] == self.sent[good]).all()
        return statuses

    def found(self) -> int:
        _, rows, _ = self.transport.match(KEYS, self.ids, deadline=soon())
        return len([row for row in decode_match(rows) if not isinstance(row, str)])


def ended(transfer: _core.Batch) -> list[Status]:
    assert transfer.wait(soon(30))
    return [Status(value) for value in transfer.statuses()]


class Load(threading.Thread):
    """Loads in a circle until stopped; keeps what came of each block, and the longest load."""

    def __init__(self, blocks: Blocks, deadline_s: float) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[Status] = Counter()
        self.longest_s = 0.0
        self.error: BaseException | None = None
        self._blocks = blocks
        self._deadline_s = deadline_s
        self._stop_asked = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                started = time.monotonic()
                self.seen.update(self._blocks.get(self._deadline_s))
                self.longest_s = max(self.longest_s, time.monotonic() - started)
                time.sleep(0.005)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Load":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(Path(tmp_path_factory.mktemp("cluster"))) as cluster:
        cluster.tier(TENANT, BUCKETS, hot_bytes=1 << 30)
        yield cluster


@pytest.fixture
def transport(cluster: Cluster) -> Iterator[Transport]:
    transport = Transport(ValkeyAddress(cluster.seeds))
    yield transport
    transport.close()


def node_of(cluster: Cluster, bucket: int) -> ClusterNode:
    return cluster.primary_of(_core.slot_of(BucketKeys(TENANT, bucket).quota))


def test_slots_are_those_of_the_server(cluster):
    with cluster.nodes[0].client() as client:
        for key in (b"a", b"{t7.03}:b:12:x", b"{}x", b"a{b", b"", b"x{y}{z}"):
            assert _core.slot_of(key) == client.execute_command("CLUSTER", "KEYSLOT", key)


def test_blocks_are_striped_over_all_primaries(cluster, transport):
    blocks = Blocks(transport)
    assert blocks.put() == [Status.OK] * COUNT
    assert transport.counters()["primaries"] == 3
    before = transport.counters()["retried"]
    assert blocks.get() == [Status.OK] * COUNT
    assert blocks.found() == COUNT
    assert transport.counters()["retried"] == before  # the map is known: nothing is sent on
    assert len({node_of(cluster, bucket_of(id_, BUCKETS)).port for id_ in blocks.ids}) == 3


def test_a_slot_that_moves_under_load_costs_no_block(cluster, transport):
    blocks = Blocks(transport, seed=2)
    assert blocks.put() == [Status.OK] * COUNT
    bucket = bucket_of(blocks.ids[0], BUCKETS)
    slot = _core.slot_of(BucketKeys(TENANT, bucket).quota)
    source = cluster.primary_of(slot)
    target = next(node for node in cluster.primaries() if node is not source)
    stored: list[list[Status]] = []
    with Load(blocks, 20) as load:
        mover = threading.Thread(
            target=lambda: moved.append(cluster.migrate_slot(slot, target, pause_s=0.02))
        )
        moved: list[int] = []
        mover.start()
        seed = 100
        while mover.is_alive():  # stores too, into the half moved bucket among others
            stored.append(Blocks(transport, seed, count=24).put())
            seed += 1
        mover.join()
    assert moved[0] > 5
    assert cluster.primary_of(slot) is target
    assert set(load.seen) == {Status.OK}
    assert {status for statuses in stored for status in statuses} == {Status.OK}
    assert blocks.get() == [Status.OK] * COUNT
    for seed in range(100, 100 + len(stored)):
        assert set(Blocks(transport, seed, count=24).get()) == {Status.OK}
    assert blocks.found() == COUNT


def test_a_client_with_an_old_map_learns_of_a_moved_slot(cluster, transport):
    blocks = Blocks(transport, seed=3)
    assert blocks.put() == [Status.OK] * COUNT
    slot = _core.slot_of(BucketKeys(TENANT, bucket_of(blocks.ids[0], BUCKETS)).quota)
    source = cluster.primary_of(slot)
    cluster.migrate_slot(slot, next(n for n in cluster.primaries() if n is not source))
    assert blocks.found() == COUNT
    assert blocks.get() == [Status.OK] * COUNT
    cluster.migrate_slot(slot, source)
    assert Blocks(transport, seed=4).put() == [Status.OK] * COUNT


def test_a_primary_killed_under_load_is_replaced_and_comes_back(cluster, transport):
    blocks = Blocks(transport, seed=5)
    assert blocks.put() == [Status.OK] * COUNT
    victim = node_of(cluster, bucket_of(blocks.ids[0], BUCKETS))
    others = [
        i for i, id_ in enumerate(blocks.ids)
        if node_of(cluster, bucket_of(id_, BUCKETS)) is not victim
    ]  # fmt: skip
    with victim.client() as client:
        client.execute_command("WAIT", 1, 5000)  # the replica has it all
    with Load(blocks, 1) as load:
        time.sleep(0.2)
        victim.kill()
        wait_until(
            lambda: blocks.transport.match(KEYS, blocks.ids, deadline=soon(1))[0] is not Status.OK,
            what="noticed",
        )
        statuses = Blocks.get(blocks_copy(blocks), 20)
        assert [statuses[i] for i in others] == [Status.OK] * len(others)
        wait_until(lambda: set(blocks_copy(blocks).get(5)) == {Status.OK}, what="replaced")
    assert set(load.seen) <= HARMLESS
    assert load.longest_s < 10  # each had a second
    assert Blocks(transport, seed=6).put() == [Status.OK] * COUNT

    victim.restart()
    cluster.wait_whole()
    with Load(blocks, 20) as load:
        time.sleep(0.5)
    assert set(load.seen) == {Status.OK}


def blocks_copy(blocks: Blocks) -> Blocks:
    """The same blocks with buffers of their own."""
    copy = object.__new__(Blocks)
    copy.transport, copy.ids, copy.sent = blocks.transport, blocks.ids, blocks.sent
    copy.back = np.zeros_like(blocks.sent)
    return copy
