"""Each page of the navigation, and each kind of page that they link to, at the widths of a desk and
a phone, light and dark: axe finds nothing, the console is quiet, nothing scrolls sideways.
"""

import os
import re
import secrets
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page

from support.browser import Node, axe

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif("NEVE_TEST_SWEEP" not in os.environ, reason="minutes long: make sweep"),
]

FAULTS = Path(__file__).with_name("accessibility.js").read_text()
COLOURS = {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}
SPEEDS = {"prefill_s_per_token": 3e-5, "hot_bytes_per_s": 2e9, "cold_bytes_per_s": 1e3}
MOST = 60  # pages; more would take minutes
# Not pages: documents of the API, the fallback, what is saved, and doors.
OUTSIDE = re.compile(r"/(api|admin|static|metrics|logout|dashboard)\b")
# By how much the page is wider than its window, and the first element beyond its edge.
SIDEWAYS = """() => {
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over <= 0) return null;
  const wide = [...document.querySelectorAll("main *")].find((one) =>
    one.getBoundingClientRect().right > innerWidth && !one.closest(".region, .scope, pre"));
  return `${over} px: ${wide?.outerHTML.slice(0, 120)}`;
}"""


def shape(url: str) -> str:
    """Addresses of the same kind of page have one shape: numbers and ids are left out."""
    parts = urlsplit(url)
    path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b\d+\b", "*", parts.path)
    tab = parse_qs(parts.query).get("tab", [""])[0]
    return f"{path}?tab={tab}" if tab else path


def links(page: Page, where: str) -> list[str]:
    """Addresses of the links there, without those that save a file."""
    script = """all => all.filter((a) => !a.hasAttribute("download"))
      .map((a) => new URL(a.getAttribute("href"), location.href).href)"""
    return [url for url in page.eval_on_selector_all(f"{where} a[href]", script) if "#" not in url]


def look(page: Page) -> list[str]:
    """All rules in light, those of colour in dark, at both widths."""
    found = [f"own rule, {each}" for each in page.evaluate(FAULTS)]
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        found += [f"{each}, {width} light" for each in axe(page)]
        if wide := page.evaluate(SIDEWAYS):
            found.append(f"scrolls sideways, {width}: {wide}")
        page.emulate_media(color_scheme="dark")
        found += [f"{each}, {width} dark" for each in axe(page, runOnly=COLOURS)]
        page.emulate_media(color_scheme="light")
    return found


@pytest.fixture
def busy(node: Node) -> Node:
    """A node that had misses and trouble, and a context of which a part is lost."""
    counters = {"requested_tokens": 100, "hit_hot_tokens": 1, "decided_all": 12_345}
    node.beat(**counters, decided_recompute=3, misses={"evicted": 3, "quota": 2}, breaker="open")
    node.report_context(f"repo-{secrets.token_hex(3)}", stored=2)
    return node


def test_every_page_is_readable_at_every_width(open_page, control_plane, busy):
    watched = open_page(color_scheme="light")
    page = watched.page
    waiting = links(page, ".side")
    assert len(waiting) >= 14
    seen = {shape(url) for url in waiting}
    found: dict[str, list[str]] = {}
    while waiting:
        url = waiting.pop(0)
        busy.beat(breaker="open", speeds=SPEEDS)  # or it would be silent
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(url)
        free = "document.activeElement === document.body && !document.querySelector('[autofocus]')"
        if page.evaluate(free):  # else a field has the focus
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.textContent") == "Skip to content", url
        found[url.removeprefix(control_plane.url)] = look(page)
        for other in links(page, "main"):
            inside = other.startswith(control_plane.url)
            if inside and shape(other) not in seen and not OUTSIDE.match(urlsplit(other).path):
                seen.add(shape(other))
                waiting.append(other)
        assert len(seen) <= MOST, sorted(seen)
    page.keyboard.press("?")
    found["help"] = look(page)
    page.context.clear_cookies()
    page.goto(f"{control_plane.url}/login/")
    found["login"] = look(page)
    assert {url: faults for url, faults in found.items() if faults} == {}
    assert watched.errors == []
    # Those that ask before they act are among them.
    assert {"/contexts/*/expire", "/keys/*/revoke"} <= seen
