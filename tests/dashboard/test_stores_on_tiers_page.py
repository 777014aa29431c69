"""The page Tiers & segments shows operators the stores, their bytes, money and moves."""

import pytest
from django.utils import timezone

from catalog.models import SegmentCopy, Store
from catalog.stores import default_row
from support.rows import make_segment, make_space
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def page(client):
    answer = client.get("/tiers/")
    assert answer.status_code == 200
    return answer.content.decode()


def test_operators_see_stores_with_bytes_money_and_moves(people, acme):
    store = Store.objects.create(
        name="archive", endpoint="http://127.0.0.1:9", bucket="b", region="r",
        gib_month="0.5", failing_since=timezone.now(), error="ConnectionRefused",
    )  # fmt: skip
    segment = make_segment(make_space(acme), store=store, size_bytes=3 << 30)
    with tenant_scope(acme.pk):
        SegmentCopy.objects.create(segment=segment, store=None, state="leaving", size_bytes=7)
    assert default_row().name == "default"
    shown = page(people["operator"])
    assert "archive" in shown
    assert "1.50" in shown
    assert "1 leaving" in shown
    assert "away since" in shown
    assert ">ConnectionRefused<" in shown
    assert "archive" not in page(people["team"])
