"""A gateway: choices over time, without waiting for Neve longer than it helps."""

from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neve.errors import Misuse
from neve.gateway import Found, Gateway, Margin, Node, Nodes

NODES = [Node("a", "http://a", space=1), Node("b", "http://b", space=1)]
BODY = {"model": "tiny", "prompt": "rule " * 100}


@dataclass
class StoreStub:
    """Stands in for `Store` and its look-ups; counts the requests that waited."""

    found: Found | None = None
    waited: int = 0
    key: bytes = b"acme"
    gpu_second: tuple[Decimal, str] | None = (Decimal("0.001"), "USD")

    async def look_up(self, space, prompt, *, waits=True):
        self.waited += waits
        return self

    async def answered(self, lookup):
        self.waited += 1


def over(store=None, **options):
    margin = Margin(requests=4, stored_requests=1, ratio=1)
    return Gateway(store, margin=margin, piece_bytes=64, **options)


async def test_a_prefix_sticks_to_its_node_until_the_margin_is_exceeded():
    gateway = over()
    routes = [await gateway.route({}, BODY, NODES) for _ in range(7)]
    assert [each.node.name for each in routes] == ["a"] * 5 + ["b", "b"]  # both hold it by then
    for each in routes:
        gateway.end(each)
    assert [gateway.nodes.load(name).in_flight for name in "ab"] == [0, 0]


async def test_an_answer_of_neve_is_waited_for_only_where_it_could_change_the_choice():
    store = StoreStub(Found(500, 448, 448, tail=52))
    gateway = over(store)
    chosen = []
    for _ in range(4):
        route = await gateway.route({}, BODY, NODES, needs_found=False)
        chosen.append((route.node.name, store.waited))
    # With two in flight more than at b, what Neve holds makes the holder worth leaving.
    assert chosen == [("a", 0), ("a", 0), ("b", 1), ("b", 1)]
    await gateway.route({}, BODY, NODES, needs_found=True)
    assert store.waited == 2


async def test_a_retry_chooses_anew_and_a_failed_node_holds_nothing():
    gateway = over()
    route = await gateway.route({}, BODY, NODES)
    gateway.end(route, failed=True)
    again = gateway.reroute(route, NODES)
    assert again.node.name != route.node.name
    assert again.id == route.id
    gateway.end(again)
    assert (await gateway.route({}, BODY, NODES)).node.name == again.node.name
    with pytest.raises(Misuse):
        gateway.reroute(again, [])


async def test_a_request_that_somebody_moved_counts_where_it_is():
    gateway = over()
    route = await gateway.route({}, BODY, NODES)
    other = next(node for node in NODES if node != route.node)
    moved = gateway.move(route, other)
    assert (moved.node, moved.reason) == (other, "other")
    assert gateway.nodes.load(route.node.name).in_flight == 0
    assert gateway.nodes.load(other.name).in_flight == 1
    assert gateway.move(moved, other) is moved
    gateway.end(moved)
    again = await gateway.route({}, BODY, NODES)
    assert (again.node, again.held) == (other, {other.name: len(again.prefixes)})


async def test_unhealthy_nodes_are_passed_by_unless_all_are():
    now = [0.0]
    nodes = Nodes(clock=lambda: now[0])
    gateway = over(nodes=nodes)
    nodes.fail("a")
    assert {(await gateway.route({}, BODY | {"user": str(n)}, NODES)).node.name
            for n in range(4)} == {"b"}  # fmt: skip
    nodes.fail("b")
    assert (await gateway.route({}, BODY, NODES)).node.name in "ab"
    now[0] = 2
    assert nodes.is_healthy("a")
    nodes.fail("a")  # again: a longer rest
    now[0] = 3.5
    assert not nodes.is_healthy("a")
    nodes.succeed("a")
    assert nodes.is_healthy("a")


async def test_a_request_whose_end_nobody_told_counts_for_ten_minutes():
    now = [0.0]
    nodes = Nodes(clock=lambda: now[0])
    await over(nodes=nodes).route({}, BODY, NODES[:1])
    now[0] = 599
    assert nodes.load("a").in_flight == 1
    now[0] = 601
    assert nodes.load("a").in_flight == 0


async def test_two_tenants_gateways_share_loads_and_no_prefixes():
    nodes = Nodes()
    mine, yours = (over(StoreStub(key=key), nodes=nodes) for key in (b"acme", b"other"))
    assert (await mine.route({}, BODY, NODES)).node.name == "a"
    route = await yours.route({}, BODY, NODES)
    assert (route.node.name, route.reason) == ("b", "new")
    assert not set(route.prefixes) & set((await mine.route({}, BODY, NODES)).prefixes)


async def test_models_and_salts_share_no_prefixes():
    gateway = over()
    route = await gateway.route({}, BODY, NODES)
    for more in ({"model": "other"}, {"cache_salt": "x"}):
        assert not set(route.prefixes) & set((await gateway.route({}, BODY | more, NODES)).prefixes)


async def test_a_node_gets_the_context_and_the_clients_own_parameters():
    route = await over().route({"x-neve-context": "repo-42"}, BODY, NODES)
    assert route.engine_params(BODY) == {"neve": {"context": "repo-42"}}
    given = {"neve": {"context": "mine", "pin": "2h"}, "do_remote_decode": True}
    asked = BODY | {"kv_transfer_params": given}
    route = await over().route({"x-neve-context": "repo-42"}, asked, NODES)
    assert route.engine_params(asked) == given
    route = await over().route({}, asked, NODES, scope="1f")
    assert route.engine_params(asked) == given | {"neve": {"context": "mine.1f", "pin": "2h"}}


async def test_malformed_parameters_give_way_to_the_context():
    route = await over().route({"x-neve-context": "repo-42"}, BODY, NODES)
    assert route.engine_params({"kv_transfer_params": "x"}) == {"neve": {"context": "repo-42"}}


async def test_tokens_to_compute_are_those_that_neither_neve_nor_the_node_has():
    gateway = over(StoreStub(Found(500, 256, 256)))
    first = await gateway.route({}, BODY, NODES)
    assert first.uncached_tokens == 244
    assert (await gateway.route({}, BODY, NODES)).uncached_tokens == 0  # held as a whole
    assert (await over().route({}, BODY, NODES)).uncached_tokens is None


def test_money_is_saved_in_proportion_to_what_was_reused():
    gateway = over(StoreStub())
    found = Found(1000, 800, 800, load_s=0.5, compute_s=2.5)
    assert gateway.saved(found, 800) == (Decimal("0.002"), "USD")
    assert gateway.saved(found, 400, gpus=8) == (Decimal("0.008"), "USD")
    assert gateway.saved(found, 2000) == gateway.saved(found, 800)  # never more than was found
    assert gateway.saved(found, 0)[0] == 0
    slower = Found(1000, 800, 800, load_s=3, compute_s=2.5)
    assert gateway.saved(slower, 800)[0] == Decimal("-0.0005")
    assert gateway.saved(Found(1000, 800, 800), 800) is None
    assert gateway.saved(None, 800) is None
    assert over().saved(found, 800) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "input", "tools", "user", "metadata", "kv_transfer_params",
     "cache_salt", "model", "system", "prompt_cache_key"]
)  # fmt: skip


@given(st.dictionaries(st.text(), st.text(), max_size=3), st.dictionaries(FIELDS, JSON, max_size=4))
async def test_no_request_fails_because_of_its_form(headers, body):
    gateway = over(StoreStub())
    route = await gateway.route(headers, body, NODES)
    assert route.node in NODES
    assert isinstance(route.engine_params(body)["neve"], dict)
    assert not gateway._said  # nor was it a bug
