"""The client against the whole platform: web process, its Valkey with ACL users, S3, workers."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import urllib3

from neve.datapath.client import BlockRef, Client
from neve.datapath.transport import ReplyError, Transport
from neve.errors import MissReason, Refused
from neve.formats.parts import PartGroup, PartKind
from neve.index.tier import HotTier, Tier
from neve.node.session import Endpoint
from neve.node.stats import Stats
from support.chains import ENGINE, IDENTITY, Chain, PatientClient, counters
from support.servers import ControlPlane, wait_until

pytestmark = pytest.mark.integration


ISSUE_KEYS = """
from tenants.models import Tenant
from tenants.services import issue_key
node, secret = issue_key(tenant=Tenant.objects.get(slug="demo"), role="node", name="second")
print(issue_key(tenant=None, role="operator", name="ops")[1], node.pk, secret)
"""

ALLOW = """
from retention.services import set_policy
from tenants.audit import SYSTEM
from tenants.models import Tenant
set_policy(tenant=Tenant.objects.get(slug="demo"), actor=SYSTEM, lossy_codecs="{list}")
"""


def connect(control_plane: ControlPlane, key: str, node: str) -> Client:
    return PatientClient.connect(
        control_plane.url, key, IDENTITY, node=node, engine=ENGINE, promote=False
    )


def post(control_plane: ControlPlane, key: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    answer = urllib3.request("POST", f"{control_plane.url}/api/v1/{path}", headers=headers)
    assert answer.status == 200, answer.data


@pytest.fixture
def client(control_plane: ControlPlane) -> Iterator[Client]:
    with connect(control_plane, control_plane.node_key, "gpu-1") as client:
        yield client


def allow(control_plane: ControlPlane, models: str) -> None:
    control_plane.manage("shell", "-v0", "-c", ALLOW.format(list=models))


def test_a_codec_that_the_policy_withdraws_is_neither_stored_nor_loaded_any_more(control_plane):
    allow(control_plane, "*=int8")
    identity = replace(IDENTITY, codec="int8")
    node = PatientClient.connect(
        control_plane.url, control_plane.node_key, identity, node="lossy", engine=ENGINE
    )
    with node as client:
        chain = Chain(client, 4, seed=71)
        assert chain.put() == [None] * 4
        found = client.match(chain.ids)
        assert len(found.locations) == 4
        allow(control_plane, "")
        wait_until(lambda: client.match(chain.ids).miss is MissReason.FINGERPRINT, what="withdrawn")
        assert chain.put() == [MissReason.FINGERPRINT] * 4
        assert chain.get(found) == [MissReason.FINGERPRINT] * 4
        allow(control_plane, "*=int8")
        wait_until(lambda: len(client.match(chain.ids).locations) == 4, what="given again")
        assert chain.get() == [None] * 4
    allow(control_plane, "")


def test_a_node_stores_loads_and_reports(client, control_plane):
    chain = Chain(client, 6, seed=11)
    assert chain.put() == [None] * 6
    assert chain.get() == [None] * 6
    assert (chain.back == chain.sent).all()
    assert client.report_context("repo-42", chain.ids, tokens=1600, label="agent")

    endpoint = Endpoint(control_plane.url, control_plane.node_key)
    report = {"seq": 1000, "breaker": "closed", **Stats().take().as_dict()}
    assert endpoint.heartbeat(client.session.id, report)["topology"]
    client.close()
    with pytest.raises(Refused) as caught:
        endpoint.heartbeat(client.session.id, report)
    assert caught.value.status == 404  # the session has ended


def test_a_context_of_a_windowed_space_is_resumable_where_its_parts_reach(control_plane):
    """A chunk of 256 tokens has two parts; a request reads the window's of the last two chunks."""
    groups = [PartGroup(PartKind.FULL, None, 16, 40), PartGroup(PartKind.WINDOW, 300, 16, 20)]
    operator = control_plane.manage("shell", "-v", "0", "-c", ISSUE_KEYS).split()[0]
    identity = replace(IDENTITY, layout="2 groups")
    with PatientClient.connect(
        control_plane.url,
        control_plane.node_key,
        identity,
        node="gpu-1",
        engine=ENGINE,
        groups=groups,
    ) as node:
        root = node.hasher.root()
        chain = node.hasher.chain(list(range(6 * 256)), parent=root)
        parts = [node.hasher.of_groups(id_, 2) for id_ in [root, *chain]]

        def put(group, chunks):
            refs = [BlockRef(parts[n + 1][group], parts[n][group], 256) for n in chunks]
            size = groups[group].part_bytes(256)
            payloads = [np.full(size, n, np.uint8) for n in chunks]
            assert set(node.put_many(refs, payloads, deadline_s=10).wait(20)) == {None}

        put(0, range(6))
        put(1, (0, 1, 4, 5))
        context = node.report_context("windowed", chain, tokens=6 * 256)

        def residency():
            url = f"{control_plane.url}/api/v1/contexts/{context}"
            answer = urllib3.request("GET", url, headers={"Authorization": f"Bearer {operator}"})
            return answer.json()["residency"]

        found = residency()
        assert (found["usable_hot_tokens"], found["lost"], found["hot"]) == (1536, 0, 10)
        header = 64
        assert found["hot_bytes"] == 6 * (header + 256 * 40) + 4 * (header + 256 * 20)
        with control_plane.hot.client() as admin:
            hot = HotTier(admin.execute_command, node.session.tenant_id, node.session.buckets)
            hot.forget(Tier.HOT, [parts[6][1]])
            assert residency()["usable_tokens"] == 512
            hot.forget(Tier.HOT, [parts[2][0]])
            assert (residency()["usable_tokens"], residency()["lost"]) == (256, 2)


def test_a_wrong_key_is_refused(control_plane):
    with pytest.raises(Refused, match="API key"):
        Client.connect(control_plane.url, "neve_no_such", IDENTITY, node="n", engine=ENGINE)


def test_valkey_lets_a_node_see_only_its_tenant(client):
    for command in (
        ("GET", "{t999.00}:b:1:x"),
        ("HSET", f"{{t{client.session.tenant_id}.00}}:q", "hot_bytes", 1 << 60),
        ("FLUSHALL",),
        ("FUNCTION", "FLUSH"),
    ):
        transport = Transport(client.session.valkey)
        with pytest.raises(ReplyError, match="NOPERM"):
            transport.execute(*command, deadline=time.monotonic() + 30)
        transport.close()


def test_a_flushed_block_comes_back_from_s3(client, control_plane):
    chain = Chain(client, 5, seed=12)
    chain.put()
    with control_plane.workers():
        wait_until(
            lambda: all(place.is_cold for place in client.match(chain.ids).locations),
            what="flushed",
        )
    with control_plane.hot.client() as admin:
        hot = HotTier(admin.execute_command, client.session.tenant_id, client.session.buckets)
        hot.evict(1 << 40)
    match = client.match(chain.ids)
    assert {place.tier for place in match.locations} == {Tier.COLD}
    assert chain.get(match) == [None] * 5
    assert (chain.back == chain.sent).all()
    assert counters(client)["hit_cold_blocks"] == 5


def test_after_a_restart_of_valkey_the_handshake_provisions_it(client, control_plane):
    control_plane.hot.restart()
    chain = Chain(client, 3, seed=13)
    wait_until(
        lambda: client.match(chain.ids).miss is MissReason.NEVER_STORED,
        what="provisioned",
    )
    assert chain.put() == [None] * 3
    assert chain.get() == [None] * 3
    assert (chain.back == chain.sent).all()


def test_access_that_ends_ends_at_once_and_other_nodes_go_on(client, control_plane):
    """A revoked key's node serves without Neve; one whose session was ended comes back."""
    made = control_plane.manage("shell", "-v", "0", "-c", ISSUE_KEYS).split()
    operator, (number, other_key) = made[0], made[1:]
    chain = Chain(client, 6, seed=14)
    chain.put()
    with connect(control_plane, other_key, "gpu-2") as other:
        theirs = Chain(other, 6, seed=14)
        assert theirs.get() == [None] * 6
        post(control_plane, operator, f"keys/{number}/revoke")
        assert chain.get() == [None] * 6
        wait_until(
            lambda: other.match(theirs.ids).miss is MissReason.BREAKER,
            what="cut off",
        )
        assert theirs.put() == [MissReason.BREAKER] * 6
        assert chain.get() == [None] * 6

    with connect(control_plane, control_plane.node_key, "gpu-3") as sibling:
        ended = client.session
        post(control_plane, operator, f"nodes/{ended.id}/end")
        stranger = Transport(ended.valkey)
        with pytest.raises(ReplyError, match="WRONGPASS"):
            stranger.execute("PING", deadline=time.monotonic() + 30)
        stranger.close()
        for node in (client, sibling):
            again = Chain(node, 6, seed=14)
            wait_until(lambda: again.get() == [None] * 6, what="served again")  # noqa: B023
            assert node.session.valkey.password != ended.valkey.password


def test_two_engines_of_one_name_keep_a_session_each(client, control_plane):
    with connect(control_plane, control_plane.node_key, "gpu-1") as twin:
        before = [node.session.id for node in (client, twin)]
        for _ in range(3):
            for node in (client, twin):
                seen = node.session  # each heartbeat's answer makes another one
                wait_until(lambda: node.session is not seen, what="a beat")  # noqa: B023
        assert [node.session.id for node in (client, twin)] == before


def test_the_example_on_the_distribution_s_page_stores_and_loads(control_plane):
    page = Path(__file__).parents[2] / "connector" / "README.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    access = {"NEVE_ENDPOINT": control_plane.url, "NEVE_API_KEY": control_plane.node_key}
    done = subprocess.run(
        [sys.executable, "-c", example],
        env=os.environ | access,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "stored: [None, None]",
        "loaded: [None, None] equal: True",
    ]
