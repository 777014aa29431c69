"""Task: why did this request miss? Two clicks at most, as operator and as member.

Two engines with the real node client serve one prompt under two fingerprints.
"""

import random

import pytest
from playwright.sync_api import expect

from neve.engine.options import Options
from support.browser import PICTURES, axe
from support.reference_engine import ReferenceAdapter, ReferenceEngine
from support.servers import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.integration]
REQUEST = "cmpl-7f41c2"  # as the engine's server answers it
BUDGET = 2


class OtherLayout(ReferenceAdapter):
    kv_dtype = "fp8_e4m3"


def serve(control_plane, adapter, node, request_id):
    options = Options(
        endpoint=control_plane.url,
        api_key=control_plane.node_key,
        node=node,
        load="always",
        canary=0,
        max_chunk_tokens=64,
        load_budget_bytes=1 << 20,
        save_budget_bytes=1 << 20,
    )
    tokens = [random.Random(41).randrange(250) for _ in range(12 * 64 + 5)]
    engine = ReferenceEngine(options, adapter=adapter)
    try:
        links = engine._adapter.scheduler._links  # a busy platform answers after the boot
        wait_until(lambda: all(link.client for link in links), what="a connection")
        engine.submit(tokens, name=request_id, params={"neve": {"explain": True}})
        wait_until(lambda: engine.step() or engine.is_idle, what="the answer")
    finally:
        engine.close()  # sends the last heartbeat


@pytest.fixture(scope="module")
def missed(control_plane):
    serve(control_plane, ReferenceAdapter, "gpu-112", "cmpl-before-0-00000000")
    serve(control_plane, OtherLayout, "gpu-404", f"{REQUEST}-0-12345678")
    return REQUEST


@pytest.mark.parametrize("who", ["walker", "member_walker"])
def test_why_a_request_missed(missed, who, request):
    walker = request.getfixturevalue(who)
    page = walker.page
    page.get_by_role("link", name="Why?", exact=True).click()
    page.wait_for_url("**/why/**")
    expect(page.locator("[name=q]")).to_be_focused()
    page.keyboard.type(missed)
    page.keyboard.press("Enter")
    page.wait_for_url("**q=cmpl-7f41c2**")
    expect(page.get_by_text("missed: fingerprint")).to_be_visible()
    expect(page.locator(".verdict")).to_contain_text("12 of its 12 blocks stand in the cache")
    expect(page.locator(".verdict")).to_contain_text("This node writes KV fp8_e4m3")
    expect(page.locator(".chain")).to_have_count(2)
    expect(page.get_by_label("Flags")).to_have_text("--kv-cache-dtype uint8")
    assert walker.clicks() <= BUDGET
    assert walker.errors == []


def test_pages_of_the_answer_are_clean_in_every_form(missed, open_page, control_plane):
    """One page each, dark and light, wide and narrow: axe, nothing sideways; pictures in var/."""
    PICTURES.mkdir(exist_ok=True)
    for width in (1440, 390):
        for theme in ("light", "dark"):
            walker = open_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            page = walker.page
            page.goto(f"{control_plane.url}/why/?q={missed}")
            links = {
                "why": page.url,
                "node": page.get_by_role("link", name="gpu-404").first.get_attribute("href"),
                "space": page.locator(".chain .who a").first.get_attribute("href"),
                "compare": page.get_by_role("link", name="Compare the spaces").get_attribute(
                    "href"
                ),
                "requests": "/why/",
                "nodes": "/nodes/",
                "spaces": "/spaces/",
            }
            for name, url in links.items():
                page.goto(url if url.startswith("http") else f"{control_plane.url}{url}")
                assert axe(page) == [], (name, width, theme)
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, (name, width)
                page.screenshot(path=PICTURES / f"{name}-{theme}-{width}.png", full_page=True)
            assert walker.errors == []
