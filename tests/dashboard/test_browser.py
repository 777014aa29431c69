"""Chromium against a real platform: live numbers, reconnects, actions, what anybody must be able to
read. Pictures land in var/ to be looked at; tests never commit them.
"""

import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from support.browser import PICTURES, WAIT_MS, axe
from support.sampled_tenant import SLUG, assert_verdict, seed
from support.servers import ControlPlane, Server, wait_until

pytestmark = pytest.mark.browser


def tokens(page: Page) -> int:
    """Saved tokens: the tile shortens their number, and its title has all digits."""
    title = page.locator("[data-tile=saved] .value").get_attribute("title") or "0"
    return int(title.split()[0])


def wait_for_tokens(page: Page, least: int) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while tokens(page) < least:
        assert time.monotonic() < deadline, f"{tokens(page)} is less than {least}"
        page.wait_for_timeout(100)


def test_a_number_changes_while_the_replay_runs(open_page, control_plane):
    watched = open_page(color_scheme="light")
    page = watched.page
    page.evaluate("window.isTheSamePage = true")
    before = tokens(page)
    command = [Path(sys.executable).with_name("neve"), "replay", "--loop", "--rate", "8", "--quiet"]
    command += ["--endpoint", control_plane.url, "--api-key", control_plane.node_key]
    command += ["--salt", secrets.token_hex(4), "--node", "replay-1"]
    replay = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for_tokens(page, before + 1)
        first = tokens(page)
        wait_for_tokens(page, first + 1)
        expect(page.locator("[data-part=node_table]")).to_contain_text("replay-1")
        expect(page.locator("[data-live]")).to_have_attribute("data-state", "live")
        assert any("/static/plotly/plotly-basic-" in url for url in watched.requests)
        expect(page.locator("#token-chart .scatterlayer .trace")).to_have_count(4)
        expect(page.locator("#byte-chart .scatterlayer .trace")).to_have_count(6)
        page.wait_for_timeout(5_000)  # something to see in the picture
        PICTURES.mkdir(exist_ok=True)
        page.screenshot(path=PICTURES / "test-overview-light.png")
        page.get_by_role("button", name="Dark / light").click()
        page.screenshot(path=PICTURES / "test-overview-dark.png")
    finally:
        replay.terminate()
        _, said = replay.communicate(timeout=30)
    assert page.evaluate("window.isTheSamePage")
    assert watched.errors == []
    assert replay.returncode in (0, -15), said.decode()[-1000:]


def test_a_reconnect_brings_what_was_missed(open_page, control_plane, node):
    watched = open_page()
    page = watched.page
    page.evaluate("window.isTheSamePage = true")
    indicator = page.locator("[data-live]")
    expect(indicator).to_have_attribute("data-state", "live")
    before = tokens(page)
    node.beat(requested_tokens=8_000_000, hit_hot_tokens=5_000_000)
    wait_for_tokens(page, before + 4_500_000)

    Server.kill(control_plane)
    expect(indicator).to_have_attribute("data-state", "down")
    expect(indicator).to_contain_text(re.compile(r"not live since \d\d:\d\d, retrying"))
    expect(page.locator("main")).to_have_class(re.compile("is-stale"))
    page.screenshot(path=PICTURES / "test-overview-down.png")
    Server.__enter__(control_plane)
    node.beat(requested_tokens=8_000_000, hit_hot_tokens=7_000_000)

    wait_for_tokens(page, before + 11_000_000)
    expect(indicator).to_have_attribute("data-state", "live")
    expect(page.locator("main")).not_to_have_class(re.compile("is-stale"))
    assert page.evaluate("window.isTheSamePage")
    assert all("ERR_CONNECTION" in error or "WebSocket" in error for error in watched.errors)


def test_without_a_socket_it_polls(open_page, node):
    watched = open_page()
    page = watched.page
    page.route_web_socket("**/ws/usage", lambda socket: socket.close())
    page.reload()
    before = tokens(page)
    node.beat(requested_tokens=9_000_000, hit_hot_tokens=9_000_000)
    wait_for_tokens(page, before + 8_000_000)
    expect(page.locator("[data-live]")).to_have_attribute("data-state", "polling")


def test_a_hidden_tab_asks_nothing_and_catches_up(open_page, node):
    page = open_page().page
    expect(page.locator("[data-live]")).to_have_attribute("data-state", "live")
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
          window.asked = 0;
          const real = window.fetch;
          window.fetch = (...all) => { window.asked += 1; return real(...all); };
        }"""
    )
    page.wait_for_timeout(1_000)  # what was under way
    page.evaluate("window.asked = 0")
    before = tokens(page)
    node.beat(requested_tokens=9_000_000, hit_hot_tokens=9_000_000)
    page.wait_for_timeout(2_500)
    assert page.evaluate("window.asked") == 0
    page.evaluate(
        """() => {
          delete document.hidden;
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    wait_for_tokens(page, before + 8_000_000)


def test_trouble_of_a_node_is_said_without_asking(open_page, node):
    page = open_page().page
    node.beat(breaker="open")
    health = page.locator("[data-part=health]")
    expect(health).to_contain_text(f"{node.name} breaker open")
    node.beat(breaker="closed")
    expect(health).not_to_contain_text(f"{node.name} breaker open")


def test_signed_out_elsewhere_the_page_goes_to_the_door(open_page, control_plane, node):
    page = open_page().page
    expect(page.locator("[data-live]")).to_have_attribute("data-state", "live")
    page.context.clear_cookies()
    node.beat(requested_tokens=1)
    page.wait_for_url(f"{control_plane.url}/login/?next=%2F")


def test_without_javascript_the_numbers_are_there(open_page, control_plane, node):
    node.beat(requested_tokens=9_000_000, hit_hot_tokens=9_000_000)
    page = open_page(java_script_enabled=False).page
    assert tokens(page) > 8_000_000
    page.locator(".twin summary").first.click()
    expect(page.locator("[data-part=token_table] tr").first).to_be_visible()


def test_the_keyboard_goes_everywhere(open_page, control_plane):
    page = open_page().page
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("n")
    page.wait_for_url(f"{control_plane.url}/nodes/")
    page.keyboard.press("t")
    first = page.evaluate("document.documentElement.dataset.theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == first


def test_an_open_table_stays_open_and_grows(open_page, control_plane, node):
    page = open_page().page
    page.locator(".twin summary").first.click()
    rows = page.locator("[data-part=token_table] tr")
    expect(rows.first).to_be_visible()
    newest = rows.first.inner_text()

    def has_grown() -> bool:
        node.beat(requested_tokens=1)
        page.wait_for_timeout(1_000)
        return rows.first.inner_text() != newest

    wait_until(has_grown, what="a new row")
    expect(rows.first).to_be_visible()


@pytest.fixture(scope="module")
def sampled(control_plane: ControlPlane) -> str:
    """The slug of a tenant with samples and a recommendation."""
    seed(control_plane)
    return SLUG


def test_a_lever_is_tried_in_the_browser(open_page, control_plane, sampled):
    watched = open_page(color_scheme="light")
    page = watched.page
    page.goto(f"{control_plane.url}/what-if/?tenant={sampled}")
    expect(page.locator("#curve .scatterlayer .trace")).to_have_count(6)
    assert_verdict(page.locator("[data-check]").inner_text())
    assert axe(page) == []
    slider = page.get_by_label("Hot quota, slider")
    slider.focus()
    slider.press("End")
    expect(page.get_by_label("Hot quota", exact=True)).to_have_value("2.73")
    expect(page.locator("#curve")).to_contain_text("then")
    with control_plane.workers():
        page.get_by_role("button", name="Work it out").click()
        page.wait_for_url("**job=**")
        expect(page.locator("section[aria-label=Then]")).to_contain_text(
            "→ 2.73 GiB", timeout=90_000
        )
    expect(page.locator("[data-running]")).to_have_count(0)
    expect(page.locator("section[aria-label=Money]")).to_contain_text("USD a month")
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / "test-what-if-light.png", full_page=True)
    page.get_by_role("link", name="Apply to the quota").click()
    expect(page.get_by_label("Hot quota")).to_have_value("700 MiB")
    assert watched.errors == []


def test_without_javascript_the_form_and_the_table_are_there(open_page, control_plane, sampled):
    page = open_page(java_script_enabled=False).page
    page.goto(f"{control_plane.url}/what-if/?tenant={sampled}")
    page.locator("main details summary").last.click()
    expect(page.locator("details tbody tr")).to_have_count(9)
    page.get_by_role("button", name="Work it out").click()
    expect(page.get_by_role("alert")).to_contain_text("Change at least one value")
    page.get_by_label("Hot quota", exact=True).fill("1.5")
    page.get_by_role("button", name="Work it out").click()
    expect(page.get_by_role("status")).to_contain_text("The simulation is queued")
    page.get_by_role("link", name="Look again").click()
    expect(page.get_by_role("status")).to_contain_text("The simulation is queued")
