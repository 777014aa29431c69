"""What real readers of KV events make of them: the facts that `neve.vllm.router_events` obeys."""

import itertools

import pytest

from neve.engine.events import ChunkRemoved, ChunkStored
from support.routers import Publisher, RoutedWorker, VllmRouter, as_wire
from support.servers import wait_until

pytestmark = pytest.mark.integration

BLOCK = 16
numbers = itertools.count(1)


@pytest.fixture
def worker(dynamo):
    """A worker of its own, whose events are heard."""
    publisher, number = Publisher(), next(numbers)
    dynamo.register(number, publisher)
    tokens = [number] * BLOCK

    def heard():
        publisher.send(as_wire(ChunkStored((b"first",), None, tuple(tokens), None, None), BLOCK))
        return number in dynamo.matched(tokens)

    wait_until(heard, what="the subscription")
    yield publisher, number
    publisher.close()


def chunk(seed, blocks=4, parent=None):
    """A chunk of `blocks` engine blocks."""
    tokens = tuple(range(1000 * seed, 1000 * seed + blocks * BLOCK))
    hashes = tuple(bytes([seed, n]) * 16 for n in range(blocks))
    return ChunkStored(hashes, parent, tokens, None, None)


def told(dynamo, publisher, tokens):
    """After all that was sent: an event of other tokens comes last."""
    seed = next(numbers)
    mark = chunk(seed % 200, 1)
    publisher.send(as_wire(mark, BLOCK))
    wait_until(lambda: dynamo.matched(mark.tokens), what="the last event")
    publisher.send(as_wire(ChunkRemoved(mark.hashes), BLOCK))
    return dynamo.matched(tokens)


def test_dynamo_finds_stored_chunks_until_they_are_withdrawn(dynamo, worker):
    publisher, number = worker
    first = chunk(201)
    second = chunk(202, parent=first.hashes[-1])
    prompt = [*first.tokens, *second.tokens, 7]
    publisher.send(as_wire(first, BLOCK), as_wire(second, BLOCK))
    assert told(dynamo, publisher, prompt) == {number: 8 * BLOCK}
    publisher.send(as_wire(ChunkRemoved(second.hashes), BLOCK))
    assert told(dynamo, publisher, prompt) == {number: 4 * BLOCK}
    publisher.send(as_wire(ChunkRemoved(first.hashes), BLOCK))
    assert told(dynamo, publisher, prompt) == {}


def test_dynamo_counts_storage_behind_what_the_gpu_has(dynamo, worker):
    """Both are named by the engine's hashes; other names for Neve's would end the match."""
    publisher, number = worker
    stored = chunk(203)
    on_gpu = ChunkStored(stored.hashes[:1], None, stored.tokens[:BLOCK], None, None)
    publisher.send({**as_wire(on_gpu, BLOCK), "medium": "GPU"}, as_wire(stored, BLOCK))
    assert told(dynamo, publisher, stored.tokens) == {number: 4 * BLOCK}
    named_otherwise = {**as_wire(stored, BLOCK), "block_hashes": [1, 2, 3, 4]}
    publisher.send(as_wire(ChunkRemoved(stored.hashes), BLOCK), named_otherwise)
    assert told(dynamo, publisher, stored.tokens) == {number: BLOCK}
    for hashes, medium in ((stored.hashes[:1], "GPU"), ((b"\1", b"\2", b"\3", b"\4"), "STORAGE")):
        publisher.send({**as_wire(ChunkRemoved(hashes), BLOCK), "medium": medium})
    assert told(dynamo, publisher, stored.tokens) == {}


@pytest.mark.parametrize(
    "more", [{"locality": "REMOTE"}, {"ownership": "neve"}, {"medium": "neve"}], ids=str
)
def test_dynamo_does_not_use_events_that_say_more(dynamo, worker, more):
    publisher, _ = worker
    publisher.send({**as_wire(chunk(204), BLOCK), **more})
    assert told(dynamo, publisher, chunk(204).tokens) == {}


def test_dynamo_asks_for_lost_batches_again(dynamo, worker):
    publisher, number = worker
    stored, later, before = chunk(205), chunk(206), publisher.replays
    publisher.send(as_wire(stored, BLOCK), lost=True)
    publisher.send(as_wire(later, BLOCK))
    wait_until(lambda: publisher.replays == before + 1, what="a replay")
    wait_until(lambda: dynamo.matched(stored.tokens), what="the lost batch")
    assert dynamo.matched(later.tokens) == {number: 4 * BLOCK}


@pytest.fixture(scope="module")
def routed(tmp_path_factory, routers_python):
    workers = [RoutedWorker(), RoutedWorker()]
    folder = tmp_path_factory.mktemp("vllm-router")
    with VllmRouter(folder, routers_python, workers, block_tokens=BLOCK) as router:
        for seed, each in enumerate(workers, 250):
            wait_until(lambda: hears(router, each, seed), what="the subscription")  # noqa: B023
        yield router, workers
    for each in workers:
        each.close()


def hears(router, worker, seed):
    worker.publisher.send(as_wire(chunk(seed), BLOCK))
    return router.route(chunk(seed).tokens)[1] > 0


def test_vllm_router_sends_prompts_where_storage_has_them(routed):
    """Storage counts for 0.3 of its tokens unless --kv-penalty-disk says otherwise."""
    router, workers = routed
    for seed, worker in ((211, workers[0]), (212, workers[1])):
        stored = chunk(seed, 10)
        prompt = [*stored.tokens, 7]
        worker.publisher.send(as_wire(stored, BLOCK))
        wait_until(lambda: router.route(prompt)[1] > 0, what="the event")  # noqa: B023
        assert router.route(prompt) == (worker.url, 0.3 * 10 * BLOCK)
        worker.publisher.send(as_wire(ChunkRemoved(stored.hashes[5:]), BLOCK))
        worker.publisher.send(as_wire(ChunkRemoved(stored.hashes[:5]), BLOCK), lost=True)
        worker.publisher.send()
        wait_until(lambda: router.route(prompt)[1] == 0, what="the removal")  # noqa: B023
