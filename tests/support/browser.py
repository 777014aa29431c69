"""What browser tests share: a page that is watched, a walk whose clicks are counted, a node that
speaks HTTP, and axe.
"""

import json
import secrets
import urllib.request
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from playwright.sync_api import Page

from neve.formats.keys import BucketKeys
from neve.index.tier import HotTier
from support.rows import IDENTITY
from support.servers import ROOT, ControlPlane

PICTURES = ROOT / "var"  # to be looked at; never committed
WAIT_MS = 30_000
# Counts presses of a mouse button, over navigations too, and choices in a select, which Playwright
# makes without a press. Keys are free.
COUNTER = """
if (window.top === window) {
  const count = () => {
    const before = Number(sessionStorage.getItem("neve-clicks") ?? 0);
    sessionStorage.setItem("neve-clicks", String(before + 1));
  };
  addEventListener("pointerdown", (event) => event.isTrusted && count(), true);
  addEventListener("change", (event) => event.target.matches("select") && count(), true);
}
"""
MEMBER = "member"
_MEMBER = f"""
from django.contrib.auth.models import User
from tenants.models import Membership, Tenant
person, _ = User.objects.get_or_create(username="{MEMBER}")
person.set_password("{{password}}")
person.save()
tenant = Tenant.objects.get(slug="{{slug}}")
Membership.objects.update_or_create(user=person, tenant=tenant, defaults={{{{"role": "team"}}}})
"""


def make_member(platform: ControlPlane, slug: str = "demo") -> tuple[str, str]:
    """User name and password of a person with the role team in the tenant."""
    password = secrets.token_hex(8)
    platform.manage("shell", "-v", "0", "-c", _MEMBER.format(password=password, slug=slug))
    return MEMBER, password


@dataclass
class Watched:
    """A page, and what it said and asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@dataclass
class Walker(Watched):
    """A signed-in page that counts clicks. Without JavaScript on the page it counts none."""

    def start(self, url: str) -> None:
        """Opens the address; clicks count from here."""
        self.page.goto(url)
        self.page.evaluate("sessionStorage.removeItem('neve-clicks')")

    def clicks(self) -> int:
        return int(self.page.evaluate("Number(sessionStorage.getItem('neve-clicks') ?? 0)"))


def sign_in(page: Page, control_plane: ControlPlane, person: tuple[str, str] | None = None) -> None:
    """`person`: user name and password; the operator unless given."""
    user, password = person or control_plane.operator
    page.goto(control_plane.url)
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{control_plane.url}/")


@dataclass
class Node:
    """A node that speaks the cache endpoint's HTTP, and nothing else."""

    platform: ControlPlane
    name: str
    seq: int = 0
    session: str = ""
    tenant_id: int = 0
    space_id: int = 0

    def connect(self) -> "Node":
        body = {"node": self.name, "engine": {"name": "test", "version": "1"}, "space": None}
        answer = self._post("sessions", {**body, "identity": IDENTITY, "max_chunk_tokens": 256})
        self.session = answer["session"]
        self.tenant_id, self.space_id = answer["tenant"]["id"], answer["space"]["id"]
        return self

    def beat(
        self,
        *,
        breaker: str = "closed",
        misses: Any = None,
        speeds: Any = None,
        **counters: int,
    ) -> None:
        self.seq += 1
        body = {"seq": self.seq, "counters": counters, "misses": misses or {}, "load_ms": {}}
        body |= {"breaker": breaker, "speeds": speeds or {}}
        self._post(f"sessions/{self.session}/heartbeat", body)

    def report_context(self, name: str, *, stored: int = 0) -> None:
        """Of four blocks, of which the first `stored` are there."""
        ids = [secrets.token_hex(16) for _ in range(4)]
        with self.platform.hot.client() as client:
            blocks = [(bytes.fromhex(id_), 100, 256) for id_ in ids[:stored]]
            for id_, size_bytes, _ in blocks:
                key = BucketKeys(self.tenant_id, 0).block(self.space_id, id_)
                client.set(key, bytes(size_bytes), px=60_000)
            HotTier(client.execute_command, self.tenant_id).commit(self.space_id, blocks)
        self.report(name, [bytes.fromhex(id_) for id_ in ids])

    def report(self, name: str, ids: list[bytes]) -> None:
        """A context with this chain."""
        body = {"session": self.session, "name": name, "tokens": 256 * len(ids)}
        self._post("contexts", body | {"block_ids": [id_.hex() for id_ in ids]})

    def _post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.platform.url}/cache/v1/{path}",
            data=json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.platform.node_key}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


def axe(page: Page, **options: Any) -> list[str]:
    """What axe-core finds on the page as it is: rule, how grave, and the first element."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    run = "options => axe.run(document, { resultTypes: ['violations'], ...options })"
    return [
        f"{found['impact']} {found['id']}: {found['nodes'][0]['html'][:200]}"
        for found in page.evaluate(run, options)["violations"]
    ]
