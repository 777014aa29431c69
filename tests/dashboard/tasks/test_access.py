"""Tasks of access in a browser: invite, join, set a second factor up; clicks are counted."""

import time

import pytest
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from playwright.sync_api import expect

from support.browser import axe

pytestmark = pytest.mark.browser

INVITE = 3
PASSWORD = "a-long-enough-word-9"


def test_an_operator_invites_a_member_who_joins_and_sets_a_second_factor_up(
    control_plane, open_page, chromium
):
    walker = open_page()
    page = walker.page
    walker.start(control_plane.url)
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Tenants").click()
    page.get_by_role("link", name="demo", exact=True).first.click()
    page.get_by_role("link", name="People").click()
    page.get_by_label("Mail address", exact=True).fill("ann@example.com")
    page.keyboard.press("Enter")
    link = page.locator("#invite [data-secret]").inner_text()
    assert walker.clicks() <= INVITE
    expect(page.locator("#invite tbody th")).to_have_text("ann@example.com")
    assert [each for each in axe(page) if each.startswith(("serious", "critical"))] == []

    guest = chromium.new_context(viewport={"width": 390, "height": 844}).new_page()
    guest.goto(link)
    guest.get_by_label("User name").fill("ann")
    guest.get_by_label("Password").fill(PASSWORD)
    assert [each for each in axe(guest) if each.startswith(("serious", "critical"))] == []
    guest.get_by_role("button", name="Make account and accept").click()
    guest.wait_for_url(f"{control_plane.url}/")

    guest.goto(f"{control_plane.url}/account/")
    expect(guest.get_by_text("team of demo")).to_be_visible()
    assert [each for each in axe(guest) if each.startswith(("serious", "critical"))] == []
    guest.get_by_role("link", name="Set up…").click()
    expect(guest.get_by_role("img", name="QR code")).to_be_visible()
    secret = guest.locator("[data-secret]").inner_text()
    guest.get_by_label("Your password").fill(PASSWORD)
    guest.get_by_label("The code").fill(_code(secret, -1))
    guest.get_by_role("button", name="Switch on").click()
    assert guest.locator(".codes li").count() == 10

    again = chromium.new_context().new_page()
    again.goto(control_plane.url)
    again.get_by_label("User name").fill("ann")
    again.get_by_label("Password").fill(PASSWORD)
    again.get_by_role("button", name="Sign in").click()
    again.get_by_label("Code of").fill(_code(secret))
    again.get_by_role("button", name="Sign in").click()
    again.wait_for_url(f"{control_plane.url}/")
    _ended_session_leaves_its_page(control_plane, guest, again)


def _ended_session_leaves_its_page(control_plane, guest, again):
    """A page that is open when its session ends goes to the sign-in by itself."""
    expect(again.locator("[data-live]")).not_to_have_attribute("data-state", "still")
    guest.goto(f"{control_plane.url}/account/")
    guest.get_by_role("button", name="End all others").click()
    expect(guest.get_by_role("status")).to_contain_text("All other sessions have ended")
    again.wait_for_url(f"{control_plane.url}/login/**", timeout=15_000)


def _code(secret, ahead=0):
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + ahead))
