"""What real readers of KV events make of them: the facts that `neve.vllm.router_events` obeys."""

import itertools
import subprocess

import msgspec
import pytest

from neve.engine.events import ChunkRemoved, ChunkStored
from support.routers import Publisher, RoutedWorker, VllmRouter, as_wire
from support.servers import wait_until
from support.vllm_engine import engine_environment

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
    dynamo.unregister(number)  # or it connects again and again
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
    wait_until(lambda: dynamo.matched(prompt) == {number: 8 * BLOCK}, what="the match")
    publisher.send(as_wire(ChunkRemoved(second.hashes), BLOCK))
    wait_until(lambda: dynamo.matched(prompt) == {number: 4 * BLOCK}, what="the match")
    publisher.send(as_wire(ChunkRemoved(first.hashes), BLOCK))
    wait_until(lambda: dynamo.matched(prompt) == {}, what="the match")


def test_dynamo_counts_storage_behind_what_the_gpu_has(dynamo, worker):
    """Both are named by the engine's hashes; other names for Neve's would end the match."""
    publisher, number = worker
    stored = chunk(203)
    on_gpu = ChunkStored(stored.hashes[:1], None, stored.tokens[:BLOCK], None, None)
    publisher.send({**as_wire(on_gpu, BLOCK), "medium": "GPU"}, as_wire(stored, BLOCK))
    wait_until(lambda: dynamo.matched(stored.tokens) == {number: 4 * BLOCK}, what="the match")
    named_otherwise = {**as_wire(stored, BLOCK), "block_hashes": [1, 2, 3, 4]}
    publisher.send(as_wire(ChunkRemoved(stored.hashes), BLOCK), named_otherwise)
    wait_until(lambda: dynamo.matched(stored.tokens) == {number: BLOCK}, what="the match")
    for hashes, medium in ((stored.hashes[:1], "GPU"), ((b"\1", b"\2", b"\3", b"\4"), "STORAGE")):
        publisher.send({**as_wire(ChunkRemoved(hashes), BLOCK), "medium": medium})
    wait_until(lambda: dynamo.matched(stored.tokens) == {}, what="the match")


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


def test_dynamo_hears_a_restarted_engine_once_it_is_registered_anew(dynamo):
    """Until then it takes batches whose numbers it has seen for repeated ones."""
    number = next(numbers)
    publisher = Publisher()
    dynamo.register(number, publisher)
    before, after = chunk(207), chunk(208)

    def hears(stored, worker=number):
        publisher.send(as_wire(stored, BLOCK))
        return worker in dynamo.matched(stored.tokens)

    wait_until(lambda: hears(before), what="the subscription")
    for _ in range(100):
        publisher.send()
    publisher.close()
    publisher = Publisher(first_port=publisher.first_port)
    wait_until(publisher.has_reader, what="the connection")
    other = next(numbers)
    dynamo.register(other, publisher)
    wait_until(lambda: hears(after, other), what="the subscription")
    assert number not in dynamo.matched(after.tokens)
    dynamo.unregister(number)
    dynamo.register(number, publisher)
    wait_until(lambda: hears(after), what="the subscription")
    assert number not in dynamo.matched(before.tokens)
    publisher.close()


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


ENCODE = """
import msgspec
from neve.engine.events import ChunkRemoved, ChunkStored
from neve.vllm.router_events import as_event
from vllm.distributed.kv_events import KVEventBatch
first, second = (bytes([7, n]) * 16 for n in (1, 2))
stored = ChunkStored((first, second), None, tuple(range({block} * 2)), 3, "adapter")
for event in stored, ChunkRemoved((second,)):
    batch = KVEventBatch(ts=1.0, events=[as_event(event, {block})], data_parallel_rank=0)
    print(msgspec.msgpack.encode(batch).hex())
"""
# llm-d's vLLM adapter: fields that it needs, and those that it reads.
# Source: llm-d-router, pkg/kvevents/engineadapter/vllm_msgpack.go
NEEDED = {"block_hashes", "token_ids", "block_size"}
READ = NEEDED | {"type", "parent_block_hash", "lora_id", "medium", "lora_name"}


@pytest.mark.vllm
def test_what_vllm_encodes_is_read(dynamo, worker, vllm_python):
    publisher, number = worker
    done = subprocess.run(
        [str(vllm_python), "-c", ENCODE.format(block=BLOCK)],
        env=engine_environment(), check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    stored, removed = (bytes.fromhex(line) for line in done.stdout.split()[-2:])
    _, (event,), rank = msgspec.msgpack.decode(stored)
    assert NEEDED <= event.keys() <= READ
    assert (event["type"], event["medium"], rank) == ("BlockStored", "STORAGE", 0)
    assert all(type(each) is int and 0 <= each < 1 << 64 for each in event["block_hashes"])
    _, (event,), _ = msgspec.msgpack.decode(removed)
    assert event.keys() == {"type", "block_hashes", "medium"}

    def matched():
        return dynamo._post(
            "/query", token_ids=list(range(2 * BLOCK)), model_name="m", lora_name="adapter"
        )["instances"].get(str(number), {"longest_matched": 0})["longest_matched"]

    publisher.send_payload(stored)
    wait_until(lambda: matched() == 2 * BLOCK, what="the stored blocks")
    publisher.send_payload(removed)
    wait_until(lambda: matched() == BLOCK, what="the removal")
