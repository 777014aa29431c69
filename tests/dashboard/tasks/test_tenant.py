"""Operators' and members' tasks on tenants, policies and keys, with the clicks that each may cost.

Each begins at the first screen. Typing, Tab and Enter are no clicks.
"""

import re
import secrets

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.integration, pytest.mark.browser]

DEMO = "**/tenants/demo/**"
# A tenant that stands before "demo" in each list.
ANOTHER = """
from tenants.models import Tenant
from tenants.services import create_tenant
if not Tenant.objects.filter(slug="another").exists():
    create_tenant(slug="another", name="Another", overcommit=True)
"""


def go(page, name):
    """One click."""
    main = page.get_by_role("navigation", name="Main")
    main.get_by_role("link", name=name, exact=True).click()


def open_tenant(page):
    """Two clicks."""
    go(page, "Tenants")
    page.get_by_role("link", name="demo", exact=True).first.click()
    page.wait_for_url(DEMO)


def test_an_operator_raises_a_quota(walker):
    page = walker.page
    open_tenant(page)
    field = page.get_by_label("Cold quota")
    field.click()
    field.fill("2.5 TiB")
    field.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Quota saved")).to_contain_text("2.5 TiB")
    expect(field).to_have_value("2.5 TiB")
    assert walker.clicks() <= 3
    field.fill("-1 GiB")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Cold quota: need 0 or more")
    expect(field).to_have_value("-1 GiB")
    field.press("Escape")
    expect(field).to_have_value("2.5 TiB")
    page.go_back()
    page.get_by_role("button", name="Undo").first.click()
    expect(page.get_by_label("Cold quota")).not_to_have_value("2.5 TiB")
    assert [each for each in walker.errors if "400" not in each] == []


def test_a_member_sees_the_quota_and_cannot_change_it(member_walker):
    page = member_walker.page
    open_tenant(page)
    expect(page.get_by_label("Space", exact=True)).to_contain_text("Cold")
    assert page.get_by_label("Cold quota").count() == 0
    page.get_by_role("link", name="Policy", exact=True).click()
    expect(page.locator("main")).to_contain_text("Operators change the policy")
    assert member_walker.clicks() <= 3
    assert member_walker.errors == []


def test_an_operator_makes_a_tenant_with_quota_and_key(walker, control_plane):
    page, slug = walker.page, f"t-{secrets.token_hex(3)}"
    go(page, "Tenants")
    page.get_by_role("link", name="New tenant").click()
    expect(page.get_by_label("Short name")).to_be_focused()
    page.keyboard.type(slug)
    page.get_by_label("Hot quota").fill("16 MiB")
    page.get_by_label("Cold quota").fill("64 MiB")
    page.keyboard.press("Enter")
    # The demo tenant was promised all memory: the page says so, and keeps what was typed.
    expect(page.get_by_role("alert")).to_contain_text("Hot quota: 16")
    page.get_by_label("Promise more hot memory").check()
    page.get_by_label("Short name").press("Enter")
    expect(page.get_by_role("status").first).to_contain_text(f"{slug} was made")
    expect(page.locator("[data-secret]")).to_contain_text("neve_")
    expect(page.get_by_label("Command")).to_contain_text("vllm serve")
    assert walker.clicks() <= 5
    page.goto(f"{control_plane.url}/tenants/{slug}/")
    expect(page.get_by_label("Hot quota")).to_have_value("16 MiB")
    assert [each for each in walker.errors if "400" not in each] == []


def test_an_operator_makes_a_node_key_with_a_ready_snippet(walker, control_plane, node):
    page, name = walker.page, f"pool {secrets.token_hex(2)}"
    control_plane.manage("shell", "-v", "0", "-c", ANOTHER)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    go(page, "API keys")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    tenant = page.get_by_role("combobox", name="Tenant", exact=True)
    expect(tenant.last).to_have_value("")  # of several none is offered
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Name the tenant")
    expect(page.get_by_label("Name", exact=True)).to_have_value(name)
    expect(tenant.last).to_be_focused()
    page.keyboard.type("demo")  # the tenant
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("90 d")
    page.keyboard.press("Enter")
    snippet = page.get_by_label("Command")
    expect(snippet).to_contain_text("NeveConnector")
    page.get_by_role("button", name="Copy").last.click()
    assert walker.clicks() <= 2
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == snippet.inner_text()
    assert control_plane.url in copied
    waiting = page.locator(".first-use")
    expect(waiting).to_contain_text("waiting for the first heartbeat")
    node.platform.node_key, before = re.search(r"neve_\w+", copied)[0], node.platform.node_key
    try:
        node.connect().beat(requested_tokens=1)
    finally:
        node.platform.node_key = before
    expect(waiting).to_contain_text(f"live: {node.name}")
    page.reload()
    assert page.locator("[data-secret]").count() == 0
    assert [each for each in walker.errors if "400" not in each] == []


def test_a_member_makes_a_key_of_their_own_with_a_snippet(member_walker):
    page = member_walker.page
    go(page, "API keys")
    assert page.get_by_label("Role", exact=True).locator("option").count() == 1
    page.get_by_label("Name", exact=True).fill("my ci")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Command")).to_contain_text("curl -H")
    assert member_walker.clicks() <= 2
    assert member_walker.errors == []


def test_an_operator_changes_a_policy_with_a_dry_run(walker):
    page = walker.page
    go(page, "Policies")
    row = page.locator("tbody tr").filter(has=page.get_by_role("link", name="demo", exact=True))
    row.get_by_role("link").nth(3).click()  # "Keep for"
    page.wait_for_url("**edit=cold_ttl_s**")
    field = page.locator("#p-cold_ttl_s")
    expect(field).to_be_focused()
    field.fill("14 d")
    field.press("Enter")
    dry = page.locator("#dry")
    expect(dry).to_contain_text("Dry run, nothing saved")
    expect(dry).to_contain_text("of ")
    dry.get_by_role("button", name=re.compile("^Save: ")).click()
    done = page.get_by_role("status").filter(has_text="Policy saved")
    expect(done).to_contain_text("Keep for")
    assert walker.clicks() <= 4
    done.get_by_role("button", name="Undo").click()
    expect(page.locator("#p-cold_ttl_s")).not_to_have_value("14 d")
    assert walker.errors == []


def test_what_caching_saved_this_month_by_team(walker, member_walker):
    for each in (walker, member_walker):
        go(each.page, "Savings")
        expect(each.page.locator("main")).to_contain_text(re.compile(r"20\d\d-\d\d"))
        assert each.clicks() <= 1
        assert each.errors == []
