"""Live parts and the palette, in Chromium against a real platform."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from support.servers import ROOT

pytestmark = pytest.mark.browser
PICTURES = ROOT / "var"


def test_the_palette_goes_to_a_node_by_keys_alone(open_page, control_plane, node):
    watched = open_page()
    page = watched.page
    page.keyboard.press("Control+k")
    field = page.get_by_role("combobox", name="Go to a page")
    expect(field).to_be_focused()
    expect(page.locator("#palette").get_by_role("option").first).to_have_attribute(
        "aria-selected", "true"
    )
    page.keyboard.type(node.name)
    expect(page.locator("#palette").get_by_role("option")).to_have_count(1)
    expect(page.get_by_role("group", name="Nodes")).to_contain_text(node.name)
    expect(field).to_have_attribute("aria-activedescendant", "palette-0")
    PICTURES.mkdir(exist_ok=True)
    assert page.evaluate((Path(__file__).with_name("accessibility.js")).read_text()) == []
    page.screenshot(path=PICTURES / "test-palette.png")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/nodes/"))
    page.wait_for_load_state()
    page.keyboard.press("Control+k")
    page.keyboard.type("dark or")
    expect(page.locator("#palette").get_by_role("option")).to_have_count(1)
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") != before
    page.keyboard.press("Control+k")
    page.keyboard.press("Escape")
    expect(page.locator("#palette")).not_to_be_visible()
    assert watched.errors == []


def saved(page) -> str:
    return page.locator("[data-tile=saved] .value").inner_text()


def test_parts_change_but_not_where_somebody_works(open_page, control_plane, node):
    page = open_page().page
    page.goto(f"{control_plane.url}/?range=1h")
    tiles = page.locator("[data-part=tiles]")
    tiles.evaluate("part => { part.tabIndex = -1; part.focus(); window.node = part.firstChild; }")
    before = saved(page)
    node.beat(requested_tokens=9_000_000, hit_hot_tokens=9_000_000)
    expect(page.locator("[data-live-words]")).to_contain_text("paused where you work")
    expect(page.locator("[data-part=node_table]")).to_contain_text(node.name)
    assert saved(page) == before
    assert page.evaluate("document.querySelector('[data-part=tiles]').firstChild === window.node")
    tiles.evaluate("part => part.blur()")
    expect(page.locator("[data-tile=saved] .value")).not_to_have_text(before)
    expect(page.locator("[data-live-words]")).not_to_contain_text("paused")
