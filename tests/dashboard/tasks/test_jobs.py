"""The task of the page Jobs: a failed job's whole error, and try it again; clicks are counted."""

import pytest
from playwright.sync_api import expect

from support.browser import axe, make_member

pytestmark = pytest.mark.browser

RETRY = 3
FAILED = """
from django.utils import timezone
from catalog.models import Job
from tenants.models import Tenant
now = timezone.now()
tenant = Tenant.objects.get(slug="demo")
Job.unscoped.create(kind="{kind}", tenant=tenant, state="failed", is_requested=True, attempts=5,
    requested_by="ann", started_at=now, finished_at=now, error="SlowDown: " + "long " * 60 + "END",
    log=[{{"at": now.isoformat(), "words": "read 64 MiB"}}])
for _ in range(48):
    Job.unscoped.create(kind="flush", tenant=tenant, state="done", bytes=13369344, blocks=4,
        started_at=now, finished_at=now)
Job.unscoped.create(kind="flush", tenant=tenant, state="done", detail={{"refused_blocks": 7}},
    started_at=now, finished_at=now)
"""


@pytest.mark.parametrize("who", ["operator", "member"])
def test_the_whole_error_of_a_failed_job_and_its_retry(control_plane, open_page, who):
    person = make_member(control_plane) if who == "member" else None
    kind = "warm" if who == "member" else "compact"
    words = "Warm-up" if who == "member" else "Compaction"
    control_plane.manage("shell", "-v", "0", "-c", FAILED.format(kind=kind))
    walker = open_page(person)
    page = walker.page
    walker.start(control_plane.url)
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Jobs").click()
    error = page.get_by_label("Whole error").first
    expect(error).to_be_visible()
    assert error.inner_text().endswith("END")
    groups = page.get_by_label("What happened")
    expect(groups.get_by_text("refused", exact=False).first).to_be_visible()
    expect(groups).to_contain_text("flushes")
    assert [each for each in axe(page) if each.startswith(("serious", "critical"))] == []
    page.get_by_role("button", name="Retry now").first.click()
    expect(page.get_by_role("heading", name=f"Jobs / {words}")).to_be_visible()
    assert walker.clicks() <= RETRY
    expect(page.locator(".state").first).not_to_contain_text("failed")
    expect(page.get_by_text("read 64 MiB")).to_be_visible()
    assert walker.errors == []
