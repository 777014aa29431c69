"""Native transfers as Python sees them: asyncio, callbacks, a busy GIL, tensors."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from neve import _core
from neve.datapath.client import Client
from support.chains import PAYLOAD, Chain, connect
from support.servers import ValkeyServer

pytestmark = pytest.mark.integration


async def test_transfers_are_awaited(client: Client):
    chains = [Chain(client, 8, seed) for seed in range(8)]
    puts = [client.put_many(chain.blocks, list(chain.sent), deadline_s=10) for chain in chains]
    for put in puts:
        assert await put == [None] * 8
    found = [client.match(chain.ids) for chain in chains]

    async def load(chain: Chain, number: int) -> list[Any]:
        return await client.get_many(
            chain.ids, list(chain.back), locations=found[number].locations, deadline_s=10
        )

    outcomes = await asyncio.gather(*(load(chain, n) for n, chain in enumerate(chains)))
    assert outcomes == [[None] * 8] * 8
    assert all((chain.back == chain.sent).all() for chain in chains)
    done = client.get_many(
        chains[0].ids, list(chains[0].back), locations=found[0].locations, deadline_s=10
    )
    done.wait()
    assert await done == [None] * 8  # also when it is over


async def test_the_loop_goes_on_while_a_transfer_is_awaited(
    client: Client, clean_hot: ValkeyServer
):
    chain = Chain(client, 40)
    clean_hot.freeze()
    try:
        put = asyncio.ensure_future(client.put_many(chain.blocks, list(chain.sent), deadline_s=30))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not put.done()
    finally:
        clean_hot.thaw()
    assert await put == [None] * 40


def test_callbacks_come_from_one_thread_and_a_broken_one_hurts_nobody(client: Client):
    chain = Chain(client, 4)
    chain.put()
    match = client.match(chain.ids)
    seen: list[str] = []
    ended = threading.Semaphore(0)

    def note(_: object) -> None:
        seen.append(threading.current_thread().name)
        ended.release()
        raise RuntimeError("a callback's own fault")

    transfers = []
    for _ in range(50):
        transfer = client.get_many(
            chain.ids, list(chain.back), locations=match.locations, deadline_s=10
        )
        transfer.add_done_callback(note)
        transfers.append(transfer)
    for _ in range(50):
        assert ended.acquire(timeout=30)
    assert set(seen) <= {"neve-done", threading.current_thread().name}
    assert all(transfer.wait(0) == [None] * 4 for transfer in transfers)


def test_a_cancelled_transfer_ends_at_once(client: Client):
    chain = Chain(client, 60)
    transfer = client.put_many(chain.blocks, list(chain.sent), deadline_s=30)
    transfer.cancel()
    assert len(transfer.wait(30)) == 60


def test_a_busy_python_thread_does_not_stop_bytes(client: Client):
    """A thread that never lets go of the GIL by itself: the I/O threads do not notice."""
    chain = Chain(client, 60)
    chain.put()
    match = client.match(chain.ids)
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    spinner = threading.Thread(target=spin)
    spinner.start()
    try:
        for _ in range(10):
            chain.back[:] = 0
            transfer = client.get_many(
                chain.ids, list(chain.back), locations=match.locations, deadline_s=10
            )
            assert transfer.wait() == [None] * 60
            assert (chain.back == chain.sent).all()
    finally:
        stop.set()
        spinner.join()


def test_queues_tell_of_a_burst_with_one_wake_and_of_each_transfer_once(client: Client):
    transport = client._transport
    first, second = _core.CompletionQueue(), _core.CompletionQueue()
    transfers = [transport.call("PING", deadline=time.monotonic() + 30) for _ in range(20)]
    for transfer in transfers:
        transfer.notify(first)
        transfer.notify(second)
    told: list[int] = []
    while len(told) < 20:
        told += first.wait(time.monotonic() + 30)
        told += second.take()
    assert sorted(told) == sorted(transfer.serial for transfer in transfers)
    assert not any(transfer.claim() for transfer in transfers)
    first.stop()
    assert first.wait(time.monotonic() + 30) == []


class Tensor:
    """What has no buffer protocol but speaks DLPack, as torch's tensors do."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_tensors_lend_their_memory(client: Client):
    chain = Chain(client, 2)
    tensors = [Tensor(row.view(np.float16).reshape(64, -1)) for row in chain.sent]
    assert client.put_many(chain.blocks, tensors).wait(30) == [None] * 2
    back = [Tensor(np.zeros((64, PAYLOAD // 128), dtype=np.float16)) for _ in range(2)]
    match = client.match(chain.ids)
    assert client.get_many(chain.ids, back, locations=match.locations).wait(30) == [None] * 2
    for sent, got in zip(chain.sent, back, strict=True):
        assert (got.array.view(np.uint8).reshape(-1) == sent).all()


def test_a_client_may_be_dropped_without_being_closed(endpoint, hot):
    client = connect(endpoint)
    chain = Chain(client, 30)
    transfer = client.put_many(chain.blocks, list(chain.sent), deadline_s=10)
    del client, chain
    assert transfer.wait(30) == [None] * 30
