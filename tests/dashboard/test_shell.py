"""The shell in Chromium: scope bar, keys in lists, and the count of clicks that task tests use."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_clicks_are_counted_over_pages_and_keys_are_not(walker, control_plane):
    page = walker.page
    assert walker.clicks() == 0
    page.get_by_role("link", name="Contexts", exact=True).click()
    page.wait_for_url("**/contexts/**")
    assert walker.clicks() == 1
    page.get_by_label("Node", exact=True).fill("gpu-1")
    page.keyboard.press("Enter")
    page.wait_for_url("**node=gpu-1**")
    assert walker.clicks() == 1


def test_the_scope_goes_along_and_is_in_the_address(walker, control_plane):
    page = walker.page
    page.get_by_role("link", name="6h", exact=True).click()
    page.wait_for_url("**range=6h**")
    page.get_by_role("link", name="Nodes", exact=True).click()
    page.wait_for_url("**/nodes/?range=6h")
    page.get_by_label("Zone").select_option("UTC")
    page.wait_for_url("**/nodes/?range=6h&zone=UTC")
    assert walker.errors == []


def test_a_member_sees_the_shell_too(member_walker):
    expect(member_walker.page.get_by_role("heading", name="Overview")).to_be_visible()


def test_the_scope_works_without_javascript(open_page, control_plane):
    page = open_page(java_script_enabled=False).page
    page.goto(f"{control_plane.url}/nodes/?range=1h")
    page.get_by_label("Node", exact=True).fill("gpu-1")
    page.get_by_role("button", name="Show").first.click()
    page.wait_for_url("**/nodes/?range=1h&**node=gpu-1**")
    page.locator("details.when summary").click()
    page.get_by_label("From").fill("2026-01-02T10:00")
    page.get_by_label("To").fill("2026-01-02T12:00")
    page.locator("details.when").get_by_role("button", name="Show").click()
    page.wait_for_url("**from=2026-01-02T10**")
    expect(page.locator("details.when summary")).to_contain_text("10:00 – 12:00")
