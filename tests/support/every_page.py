"""A walk over each page of the navigation and each kind of page that they link to. On each: axe
finds nothing, the console is quiet, nothing scrolls sideways, the keyboard passes the navigation.
"""

import re
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page

from support.browser import Node, Walker, axe
from support.servers import ROOT, ControlPlane

FAULTS = Path(ROOT, "tests/dashboard/accessibility.js").read_text()
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
SPEEDS = {"prefill_s_per_token": 3e-5, "hot_bytes_per_s": 2e9, "cold_bytes_per_s": 1e3}
MOST = 90  # pages; more would take minutes
SLUG = "swept"
# A tenant with rows of each kind, among them an open incident with a lever and a failed job.
_FILL = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from django.utils import timezone
from catalog.models import Job
from support.rows import make_everything, make_incident, make_tenant
from tenants.models import Tenant
now = timezone.now()
tenant = Tenant.objects.filter(slug={SLUG!r}).first() or make_tenant({SLUG!r})
make_everything(tenant, 2)
Job.unscoped.create(kind="warm", tenant=tenant, state="failed", is_requested=True, attempts=5,
    requested_by="ann", started_at=now, finished_at=now, error="SlowDown: " + "long " * 60,
    log=[dict(at=now.isoformat(), words="read 64 MiB")])
make_incident(tenant, cause="unflushed", before=0.81, value=0.38, words="hit rate −43 points",
    facts=dict(refused_blocks=18412, lost_blocks=11906, misses=dict(unflushed=0.4)),
    slice=dict(split="node", key="gpu-1", name="gpu-1", before=0.88, now=0.31),
    levers=[dict(setting="cold_quota", name="cold quota", now="2 TiB", to="4 TiB", used=1.0,
        change=dict(cold="x2"), gain=0.45, error=0.02)], lost_tokens=1000000)
"""
# Not pages: documents of the API, the fallback, what is saved, and doors.
OUTSIDE = re.compile(r"/(api|admin|static|metrics|logout|dashboard)\b")
# Kinds of pages that a walk must meet: whoever walks, and an operator.
SHARED = frozenset(
    {
        *("/", "/account/", "/account/second-factor/", "/contexts/", "/contexts/*/", "/explorer/"),
        *(
            "/contexts/*/expire",
            "/jobs/",
            "/keys/",
            "/nodes/*/",
            "/spaces/*/",
            "/why/",
            "/savings/",
        ),
    }
)
OPERATORS = frozenset(
    {
        *("/keys/*/revoke", "/incidents/*/", "/jobs/*/", "/new-tenant/", "/system/", "/policies/"),
        *("/families/", "/what-if/", f"/tenants/{SLUG}/?tab=people", "/tiers/?tab=segments"),
    }
)
# By how much the page is wider than its window, and the first element beyond its edge.
SIDEWAYS = """() => {
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over <= 0) return null;
  const wide = [...document.querySelectorAll("main *")].find((one) =>
    one.getBoundingClientRect().right > innerWidth && !one.closest(".region, .scope, pre"));
  return `${over} px: ${wide?.outerHTML.slice(0, 120)}`;
}"""
# Links of the page, each with its place, but those that save a file or stay on the page.
LINKS = """() => [...document.querySelectorAll(".side a[href], main a[href]")]
  .filter((a) => !a.hasAttribute("download"))
  .map((a) => new URL(a.getAttribute("href"), location.href).href)
  .filter((url) => !url.includes("#"))"""
IS_FREE = "document.activeElement === document.body && !document.querySelector('[autofocus]')"
# Before the first Tab: its target passes the navigation, or there is none to pass.
FIRST_STOP = """() => {
  const at = document.activeElement;
  if (document.querySelector("nav")) return at.matches("a.skip") ? null : at.outerHTML;
  return document.querySelector("main").contains(at) ? null : at.outerHTML;
}"""


def shape(url: str) -> str:
    """Addresses of the same kind of page have one shape: numbers and ids are left out."""
    parts = urlsplit(url)
    path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b\d+\b", "*", parts.path)
    path = re.sub(rf"/tenants/(?!demo/|{SLUG}/)[^/]+", "/tenants/*", path)
    tab = parse_qs(parts.query).get("tab", [""])[0]
    return f"{path}?tab={tab}" if tab else path


def busy_node(platform: ControlPlane) -> Node:
    """A node that had misses and trouble, and a context of which a part is lost."""
    node = Node(platform, f"gpu-{secrets.token_hex(3)}").connect()
    counters = {"requested_tokens": 100, "hit_hot_tokens": 1, "decided_all": 12_345}
    node.beat(**counters, decided_recompute=3, misses={"evicted": 3, "quota": 2}, breaker="open")
    node.report_context(f"repo-{secrets.token_hex(3)}", stored=2)
    return node


def fill(platform: ControlPlane) -> None:
    """Makes the tenant SLUG, with an open incident."""
    platform.manage("shell", "-v", "0", "-c", _FILL)


def walk(
    open_page: Callable[..., Walker],
    platform: ControlPlane,
    width: int,
    *,
    person: tuple[str, str] | None = None,
    least: frozenset[str] = frozenset(),
) -> None:
    """Fails with all faults of all pages at this width: all rules in light, colours in dark.

    `person`: the operator unless given. `least`: shapes of pages that must be among them.
    """
    node = busy_node(platform)
    viewport = {"width": width, "height": 900}
    watched = open_page(person, color_scheme="light", viewport=viewport)
    page = watched.page
    waiting = [f"{platform.url}/"]
    seen = {shape(url) for url in waiting}
    found: dict[str, list[str]] = {}
    while waiting:
        url = waiting.pop(0)
        node.beat(breaker="open", speeds=SPEEDS)  # or it would be silent
        page.goto(url)
        found[url.removeprefix(platform.url)] = [*_first_stop(page), *_look(page)]
        for other in page.evaluate(LINKS):
            inside = other.startswith(platform.url)
            if inside and shape(other) not in seen and not OUTSIDE.match(urlsplit(other).path):
                seen.add(shape(other))
                waiting.append(other)
        assert len(seen) <= MOST, sorted(seen)
    page.goto(platform.url)
    page.keyboard.press("?")
    found["help"] = _look(page)
    page.context.clear_cookies()
    page.goto(f"{platform.url}/login/")
    found["login"] = _look(page)
    faulty = [f"{url}: {each}" for url, faults in found.items() for each in faults]
    assert not faulty, "\n".join(faulty)
    assert watched.errors == []
    assert least <= seen, sorted(seen)


def _first_stop(page: Page) -> list[str]:
    if not page.evaluate(IS_FREE):  # a field has the focus
        return []
    page.keyboard.press("Tab")
    wrong = page.evaluate(FIRST_STOP)
    return [f"Tab goes first to {wrong[:120]}"] if wrong else []


def _look(page: Page) -> list[str]:
    found = [f"own rule, {each}" for each in page.evaluate(FAULTS)]
    found += [f"{each}, light" for each in axe(page)]
    if wide := page.evaluate(SIDEWAYS):
        found.append(f"scrolls sideways: {wide}")
    page.emulate_media(color_scheme="dark")
    found += [f"{each}, dark" for each in axe(page, runOnly=COLOURS)]
    page.emulate_media(color_scheme="light")
    return found
