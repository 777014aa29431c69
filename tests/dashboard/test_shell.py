"""The shell in Chromium: scope bar, keys in lists, and the count of clicks that task tests use."""

import re
import time

import pytest
from playwright.sync_api import expect

from dashboard import formats

pytestmark = pytest.mark.browser


def test_clicks_are_counted_over_pages_and_keys_are_not(walker, control_plane):
    page = walker.page
    assert walker.clicks() == 0
    page.get_by_role("link", name="Contexts", exact=True).click()
    page.wait_for_url("**/contexts/**")
    assert walker.clicks() == 1
    page.locator(".scope [name=label]").fill("nightly")
    page.keyboard.press("Enter")
    page.wait_for_url("**label=nightly**")
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
    page.locator("#scope-from").fill("2026-01-02T10:00")
    page.locator("#scope-to").fill("2026-01-02T12:00")
    page.locator("details.when").get_by_role("button", name="Show").click()
    page.wait_for_url("**from=2026-01-02T10**")
    expect(page.locator("details.when summary")).to_contain_text("10:00 – 12:00")


VALUES = (
    *(None, 0, 1, 0.004, 3.14159, 9.995, 12.34, 99.96, 100, 812.4, 999.6, 1000, 9_999, 10_000),
    *(12_600_000, 1023, 1024, 1023.9, 5 * 2**30, 3.5 * 2**40, 2**60, 0.71428, 0.9995, 1e-5, 59),
    *(60, 119, 120, 7_199, 7_200, 172_799, 172_800),
)


def test_python_and_javascript_write_the_same(walker):
    written = {
        "bytes": formats.bytes_quantity,
        "rate": formats.rate_quantity,
        "count": formats.count_quantity,
        "percent": formats.percent_quantity,
        "milliseconds": formats.milliseconds_quantity,
        "duration": formats.duration_quantity,
    }
    script = """async ([names, values]) => {
      const formats = await import(document.querySelector('link[rel=icon]').href
        .replace(/neve\\.[^/]*svg$/, 'formats.js'));
      const write = (name) => [name, values.map((one) => formats[name](one))];
      return Object.fromEntries(names.map(write));
    }"""
    found = walker.page.evaluate(script, [list(written), list(VALUES)])
    assert found == {name: [str(make(one)) for one in VALUES] for name, make in written.items()}


def test_dragging_over_a_chart_zooms_the_page(walker, node):
    node.beat(requested_tokens=100, hit_hot_tokens=1)
    page = walker.page
    page.reload()
    chart = page.locator("#token-chart .nsewdrag")
    chart.wait_for()
    box = chart.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, y, steps=5)
    page.mouse.up()
    page.wait_for_url("**from=**")
    start, end = (int(part) for part in re.findall(r"=(\d+)", page.url))
    assert 0.3 * 900 < end - start < 0.5 * 900
    assert abs(time.time() - 0.1 * 900 - end) < 60
    expect(page.locator("details.when")).to_have_class(re.compile(r"\bon\b"))
    assert walker.errors == []


def test_a_list_is_walked_and_searched_by_keys(walker, control_plane):
    page = walker.page
    page.goto(f"{control_plane.url}/tenants/")
    page.keyboard.press("/")
    page.keyboard.type("demo")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tenants/?q=demo")
    page.keyboard.press("j")
    expect(page.locator("[data-list] tbody tr").first).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/tenants/demo/**")
    assert walker.clicks() == 0
    assert walker.errors == []
