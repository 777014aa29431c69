"""One proxy of LiteLLM over light nodes, for two tenants of a live platform."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from neve.api import Neve
from neve.datapath.client import BlockRef
from support.chains import CHUNK_TOKENS, ENGINE, IDENTITY, PAYLOAD, PatientClient
from support.light_node import LightNode
from support.litellm_proxy import LitellmProxy
from support.servers import ControlPlane, wait_until

ISSUE_KEYS = """
from tenants.models import Tenant
from tenants.services import create_tenant, issue_key
other = create_tenant(slug="litellm-other", name="Other", hot_bytes=0, overcommit=True)
for tenant in (Tenant.objects.get(slug="demo"), other):
    print(issue_key(tenant=tenant, role="team", name="gateway")[1])
"""
PIECE_BYTES = 64


@dataclass
class World:
    """`a`, `b`: nodes of the model `tiny`, with Neve. `plain`: a server without. `key`: Neve's, of
    the tenants acme and salted."""

    platform: ControlPlane
    proxy: LitellmProxy
    a: LightNode
    b: LightNode
    plain: LightNode
    space: int
    node: PatientClient
    key: str

    def post(self, path: str, body: dict[str, Any], *, team: str = "acme", **headers: str) -> Any:
        return self.send(f"v1/{path}", {"model": "tiny"} | body, team=team, **headers)

    def send(self, path: str, body: dict[str, Any], *, team: str = "acme", **headers: str) -> Any:
        return httpx.post(
            f"{self.proxy.url}/{path}",
            content=json.dumps(body),  # surrogates stay escaped
            headers={
                "Authorization": f"Bearer sk-{team}-0123456789",
                "Content-Type": "application/json",
            }
            | headers,
            timeout=60,
        )

    def chat(self, *texts: str, **more: Any) -> Any:
        headers = more.pop("headers", {})
        team = more.pop("team", "acme")
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
        return self.post("chat/completions", {"messages": messages} | more, team=team, **headers)

    def gemini(self, text: str, *, streams: bool = False, team: str = "acme") -> Any:
        path = f"v1beta/models/tiny:{'streamGenerateContent' if streams else 'generateContent'}"
        return self.send(
            path, {"contents": [{"role": "user", "parts": [{"text": text}]}]}, team=team
        )

    def node_of(self, answer: Any) -> LightNode:
        name = answer.headers["x-neve-node"]
        return next(node for node in (self.a, self.b) if node.url.endswith(name))

    def other(self, node: LightNode) -> LightNode:
        return self.b if node is self.a else self.a

    def store(self, text: str) -> int:
        """Puts the blocks of a prompt's whole chunks into Neve; their tokens, which are bytes."""
        hasher = self.node.hasher
        root = hasher.root()
        ids = hasher.chain(list(text.encode()), parent=root)
        blocks = [
            BlockRef(id_, parent, CHUNK_TOKENS)
            for id_, parent in zip(ids, [root, *ids], strict=False)
        ]
        sent = np.zeros((len(ids), PAYLOAD), np.uint8)
        assert self.node.put_many(blocks, list(sent)).wait(30) == [None] * len(ids)
        return len(ids) * CHUNK_TOKENS


def served_by(name: str, *nodes: LightNode, **neve: Any) -> list[dict[str, Any]]:
    """Deployments of a model group."""
    return [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"hosted_vllm/{node.model}",
                "api_base": f"{node.url}/v1",
                "api_key": "none",
            },
            "model_info": {"neve": neve} if neve else {},
        }
        for node in nodes
    ]


@pytest.fixture(scope="session")
def running(
    control_plane: ControlPlane, litellm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    key, other = control_plane.manage("shell", "-v", "0", "-c", ISSUE_KEYS).split()
    identity = replace(IDENTITY, model="litellm/tiny")
    with ExitStack() as stack:
        a, b, plain = (stack.enter_context(LightNode()) for _ in range(3))
        node = stack.enter_context(
            PatientClient.connect(
                control_plane.url, control_plane.node_key, identity, node="light", engine=ENGINE
            )
        )
        space = node.session.space_id
        with Neve(control_plane.url, key) as neve:
            for n, each in enumerate((a, b)):
                neve.engines.create(
                    name=f"light-{n}", base_url=each.url, model="tiny", spaces=[space]
                )
        models = [
            *served_by("tiny", a, b),
            *served_by("guarded", a, b, tenant="acme", space=space),
            *served_by("plain", plain),
            *served_by("mixed", a, plain),
        ]
        settings = {
            "endpoint": control_plane.url,
            "piece_bytes": PIECE_BYTES,
            "lookup_deadline_s": 10,
            "margin": {"requests": 2, "stored_requests": 2, "ratio": 1},
            "tenants": [
                {"name": "acme", "api_key": "os.environ/ACME_KEY", "teams": ["acme-team"]},
                {"name": "salted", "api_key": key, "teams": ["one-team", "two-team"],
                 "salt_by": "team"},
                {"name": "other", "api_key": other, "teams": ["other-team"]},
            ],
        }  # fmt: skip
        proxy = stack.enter_context(
            LitellmProxy(
                tmp_path_factory.mktemp("litellm"),
                litellm_python,
                models,
                settings,
                router={"num_retries": 2, "retry_after": 0, "cooldown_time": 1},
                env={"ACME_KEY": key},
            )
        )
        world = World(control_plane, proxy, a, b, plain, space, node, key)
        for team in ("acme", "one", "other"):  # each tenant's engines are read once it asks
            wait_until(
                lambda team=team: (
                    "x-neve-node" in world.chat("x", team=team).headers or team == "other"
                ),
                what="the tenant's engines",
            )
        yield world


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """Nodes answer again after a test, and forget its requests before."""
    nodes = running.a, running.b, running.plain
    for node in nodes:
        node.calls.clear()
    yield running
    for node in nodes:
        node.fails = None
        node.goes_on.set()
