"""Dead and waiting bytes, and what reclaims them: read after one click."""

import pytest

from support.servers import ControlPlane

pytestmark = [pytest.mark.integration, pytest.mark.browser]

_SEGMENTS = """
from datetime import timedelta
from django.utils import timezone
from catalog.models import Segment, Space
from tenants.models import Tenant
from tenants.scope import tenant_scope
tenant = Tenant.objects.get(slug="demo")
with tenant_scope(tenant.pk):
    space, _ = Space.objects.get_or_create(
        tenant=tenant, name="tiers", fingerprint="7" * 64,
        defaults={"chunk_tokens": 16, "identity": {"model": "tiny"}, "groups": []},
    )
    for number, (state, live) in enumerate((("live", 3 << 20), ("live", 1 << 20), ("deleting", 0))):
        Segment.objects.create(
            space=space, object_key=f"v1/t0/tiers/{number}.seg", state=state, blocks=4,
            size_bytes=4 << 20, live_bytes=live, indexed_at=timezone.now(),
            leased_until=timezone.now() + timedelta(hours=1),
            unreferenced_at=timezone.now() if state == "deleting" else None,
        )
"""


def test_dead_and_waiting_bytes_and_what_frees_them(walker, control_plane: ControlPlane):
    control_plane.manage("shell", "-v", "0", "-c", _SEGMENTS)
    page = walker.page
    page.get_by_role("link", name="Tiers & segments").click()
    card = page.locator('[data-part="reclaim"]')
    assert "4 MiB blocks that left" in card.inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "1 segment with 3 MiB" in card.inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "the next merge, each 30 s" in card.inner_text()
    assert "1 segment that nothing names any more" in card.inner_text()
    assert walker.clicks() <= 1
    card.get_by_role("link", name="1 segment", exact=True).first.click()
    assert page.locator("tbody tr").count() == 1  # the half dead one
    assert walker.errors == []


def test_an_operator_asks_for_a_merge_of_one_tenant(walker, member_walker, control_plane):
    page = walker.page
    page.goto(f"{control_plane.url}/tiers/?tenant=demo")
    page.get_by_role("button", name="Merge now").click()
    page.wait_for_url("**/jobs/**")
    assert "compact" in page.locator("main").inner_text()
    member_walker.page.goto(f"{control_plane.url}/tiers/")
    main = member_walker.page.locator("main")
    assert main.get_by_role("button", name="Merge now").count() == 0
    assert "Hot servers" not in main.inner_text()
    assert member_walker.errors == []
