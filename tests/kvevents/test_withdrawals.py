"""Two nodes, the platform and Dynamo's index: what left Neve is not found there any more."""

from collections.abc import Iterator

import pytest
import urllib3

from events.feed import MOST_OF_READER
from neve.engine.options import Options
from support.event_stream import EventStream
from support.reference_engine import BLOCK_TOKENS, KV_BYTES, ReferenceAdapter, ReferenceEngine
from support.routers import DynamoIndexer, Publisher, as_wire
from support.servers import wait_until

pytestmark = pytest.mark.integration

CHUNK = 256
HEADER = 64  # of a block
ROOM = 8  # chunks that the hot quota holds
MAKE_TENANT = """
from tenants.models import Tenant
from tenants.services import create_tenant, issue_key
from tenants.audit import SYSTEM
from retention.services import set_policy
tenant = create_tenant(slug="routed", name="Routed", hot_bytes={hot_bytes}, overcommit=True)
set_policy(tenant=tenant, actor=SYSTEM, flush_mode="never")
other = create_tenant(slug="unrouted", name="Unrouted", hot_bytes=0, overcommit=True)
keys = [issue_key(tenant=t, role=r, name=r) for t, r in
        ((tenant, "node"), (tenant, "team"), (tenant, "team"), (other, "team"))]
print(tenant.pk, *(text for key, text in keys))
"""


class AnnouncingAdapter(ReferenceAdapter):
    announces = True


class Node:
    """An engine whose events a router hears."""

    def __init__(self, platform, key: str, name: str) -> None:
        options = Options(endpoint=platform.url, api_key=key, node=name, canary=0, load="always")
        self.engine = ReferenceEngine(options, adapter=AnnouncingAdapter, blocks=400)
        self.publisher = Publisher()

    def answer(self, tokens, **more) -> None:
        self.engine.submit(tokens, max_tokens=1, **more)
        for _ in range(2000):
            if self.engine.is_idle:
                break
            self.engine.step()
        self.engine.store_all()
        self.publish()

    def publish(self) -> None:
        """A step of an idle engine, and what it published."""
        self.engine.step()
        if events := self.engine.take_events():
            self.publisher.send(*(as_wire(event, BLOCK_TOKENS) for event in events))

    def close(self) -> None:
        self.engine.close()
        self.publisher.close()


class World:
    def __init__(self, platform, dynamo) -> None:
        hot_bytes = ROOM * (CHUNK * KV_BYTES + HEADER)
        made = platform.manage(
            *("shell", "--no-imports", "-v0", "-c", MAKE_TENANT.format(hot_bytes=hot_bytes))
        )
        tenant, self.node_key, self.key, self.ending_key, self.other_key = made.split()[-5:]
        self.platform, self.dynamo, self.tenant = platform, dynamo, int(tenant)
        self.nodes = [Node(platform, self.node_key, f"routed-{n}") for n in (1, 2)]
        for number, node in enumerate(self.nodes, 101):
            dynamo.register(number, node.publisher)

    def found(self, tokens) -> dict[int, int]:
        for node in self.nodes:
            node.publish()
        return self.dynamo.matched(tokens)

    def store(self, node: int, tokens, **more) -> None:
        """Until the router finds the whole chunks at this node."""
        self.nodes[node].answer([*tokens, 1], **more)
        self.wait(tokens, {101 + node: len(tokens)})

    def wait(self, tokens, expected: dict[int, int]) -> None:
        wait_until(lambda: self.found(tokens) == expected, what=f"{expected}")

    def shell(self, code: str) -> str:
        return self.platform.manage("shell", "--no-imports", "-v0", "-c", code)

    def rest(self, method: str, path: str, **body):
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = urllib3.request(
            method,
            f"{self.platform.url}/api/v1{path}",
            headers=headers,
            **({"json": body} if body else {}),
        )
        assert answer.status < 300, answer.data
        return answer.json() if answer.data else None

    def close(self) -> None:
        for number, node in enumerate(self.nodes, 101):
            self.dynamo.unregister(number)
            node.close()


@pytest.fixture(scope="module")
def world(control_plane, dynamo) -> Iterator[World]:
    world = World(control_plane, dynamo)
    yield world
    world.close()


def prompt(seed: int, chunks: int) -> list[int]:
    return [seed * 10_000 + n for n in range(chunks * CHUNK)]


def test_what_two_nodes_store_is_found_at_each(world):
    first, second = prompt(1, 2), prompt(2, 1)
    world.store(0, first)
    world.store(1, second)
    world.wait(first, {101: 2 * CHUNK})
    world.wait(second, {102: CHUNK})


def test_what_another_nodes_blocks_pushed_out_is_withdrawn(world):
    oldest = prompt(11, 2)
    world.store(0, oldest)
    for seed in range(12, 12 + ROOM):
        world.store(1, prompt(seed, 1))
    world.wait(oldest, {})


def test_blocks_of_an_expired_context_are_withdrawn(world):
    kept = prompt(31, 2)
    world.store(0, kept, params={"neve": {"context": "routed"}})
    wait_until(lambda: world.rest("GET", "/contexts?name=routed")["results"], what="the context")
    (context,) = world.rest("GET", "/contexts?name=routed")["results"]
    assert world.found(kept) == {101: 2 * CHUNK}
    world.rest("POST", f"/contexts/{context['id']}/expire")
    world.wait(kept, {})


def test_blocks_past_their_life_are_withdrawn(world):
    short = prompt(41, 1)
    policy = (
        "from tenants.models import Tenant\nfrom tenants.audit import SYSTEM\n"
        "from retention.services import set_policy\n"
        "set_policy(tenant=Tenant.objects.get(slug='routed'), actor=SYSTEM, cold_ttl_s={})"
    )
    world.shell(policy.format(1))
    world.store(0, short)
    world.shell(f"from storage.hot import hot_tier; hot_tier({world.tenant}).expire_due()")
    world.wait(short, {})
    world.shell(policy.format(None))


def test_a_router_that_starts_later_hears_of_all_that_is_left(world, tmp_path, routers_python):
    gone, kept = prompt(61, 1), prompt(62, 1)
    world.store(0, gone, params={"neve": {"context": "gone"}})
    world.store(0, kept)
    wait_until(lambda: world.rest("GET", "/contexts?name=gone")["results"], what="the context")
    (context,) = world.rest("GET", "/contexts?name=gone")["results"]
    world.rest("POST", f"/contexts/{context['id']}/expire")
    world.wait(gone, {})
    with DynamoIndexer(tmp_path, routers_python, block_tokens=BLOCK_TOKENS) as later:
        later.register(1, world.nodes[0].publisher)

        def hears() -> bool:  # it asks for what it missed when it hears something
            world.nodes[0].publisher.send()
            return later.matched(kept) == {1: CHUNK}

        wait_until(hears, what="a replay")
        assert later.matched(gone) == {}


def test_salted_prompts_are_not_announced(world):
    plain, salted = prompt(71, 1), prompt(72, 1)
    world.nodes[0].answer([*salted, 1], salt=b"a")
    world.store(0, plain)
    assert world.found(salted) == {}


def test_a_stream_of_removals_goes_on_where_it_broke_off(world):
    stored = prompt(81, 2)
    (space,) = world.rest("GET", "/spaces")["results"]
    path = f"/api/v1/spaces/{space['id']}/removals"
    world.store(0, stored, params={"neve": {"context": "streamed"}})
    wait_until(lambda: world.rest("GET", "/contexts?name=streamed")["results"], what="the context")
    (context,) = world.rest("GET", "/contexts?name=streamed")["results"]
    stream = EventStream(world.key, path=path).connect(world.platform.url)
    assert stream.status == 200
    wait_until(lambda: begun(stream), what="a cursor")
    stream.close()
    world.rest("POST", f"/contexts/{context['id']}/expire")
    stream.connect(world.platform.url)
    removed = next(data["removed"] for name, data in stream.events() if name == "removals")
    stream.close()
    chain = world.rest("GET", f"/contexts/{context['id']}")
    assert len(removed) == chain["blocks"] == 2
    again = EventStream(world.key, path=path, last_id="A" * 11).connect(world.platform.url)
    assert next(iter(again.events())) == ("reset", {})
    again.close()
    other = EventStream(world.other_key, path=path).connect(world.platform.url)
    assert other.status == 404
    other.close()


def begun(stream: EventStream) -> bool:
    """Reads until the stream has an id."""
    for line in stream._lines():
        if line.startswith("id: "):
            stream.last_id = line.removeprefix("id: ")
            return True
    return False


def test_streams_end_with_their_key_although_valkey_does_not_answer(world):
    (space,) = world.rest("GET", "/spaces")["results"]
    path = f"/api/v1/spaces/{space['id']}/removals"
    streams = [EventStream(world.ending_key, path=path) for _ in range(MOST_OF_READER)]
    for stream in streams:
        assert stream.connect(world.platform.url).status == 200
        wait_until(lambda stream=stream: begun(stream), what="a cursor")
    world.platform.hot.freeze()
    try:
        prefix = world.ending_key.split("_")[1]
        world.shell(
            "from tenants.models import ApiKey; from tenants.audit import SYSTEM; "
            "from tenants.services import revoke_key; "
            f"revoke_key(key=ApiKey.unscoped.get(prefix='{prefix}'), actor=SYSTEM)"
        )
        for stream in streams:
            ((name, data),) = stream.events()
            assert (name, data["type"]) == ("end", "/problems/unauthorized")
            stream.close()
    finally:
        world.platform.hot.thaw()


def test_a_node_that_comes_too_late_withdraws_all_it_announced(world):
    """As after a restart of Valkey, which may have lost blocks."""
    stored = prompt(51, 2)
    world.store(0, stored)
    with world.platform.hot.client() as client:
        source = client.execute_command("FUNCTION", "DUMP")
        client.execute_command("FUNCTION", "RESTORE", source, "FLUSH")  # a library that begins anew
    world.wait(stored, {})
    world.nodes[0].answer([*prompt(52, 1), 1])
    world.wait(prompt(52, 1), {101: CHUNK})
