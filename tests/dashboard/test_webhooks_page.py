"""The page Webhooks: what works, what fails, and the test button."""

import pytest

from events import deliveries, webhooks
from events.models import Delivery
from support.rows import make_person, make_tenant
from support.webhook_receiver import Receiver
from tenants.audit import SYSTEM

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


def test_the_button_sends_a_test_and_the_page_shows_its_answer(client):
    tenant = make_tenant("acme")
    client.force_login(make_person("ann", acme="team"))
    with Receiver() as receiver:
        hook, secret = webhooks.add(tenant=tenant, url=receiver.url, types=[], actor=SYSTEM)
        assert client.post(f"/webhooks/{hook.pk}/test").status_code == 302
        deliveries.deliver()
        assert [each["type"] for each in receiver.verified(secret)] == ["webhook.test"]
    page = client.get("/webhooks/").content.decode()
    assert receiver.url in page
    assert "webhook.test" in page
    assert "204, " in page
    assert secret not in page


def test_an_inactive_webhook_says_why_and_has_no_button(client):
    tenant = make_tenant("acme")
    client.force_login(make_person("ann", acme="team"))
    hook, _ = webhooks.add(tenant=tenant, url="http://127.0.0.1:9/", types=[], actor=SYSTEM)
    webhooks.deactivate(hook, "its receiver answered 410 Gone")
    page = client.get("/webhooks/").content.decode()
    assert "its receiver answered 410 Gone" in page
    assert "Send a test" not in page
    assert client.post(f"/webhooks/{hook.pk}/test").status_code == 409
    assert not Delivery.unscoped.exists()


def test_an_address_is_shown_as_text(client):
    tenant = make_tenant("acme")
    client.force_login(make_person("ann", acme="team"))
    url = "http://127.0.0.1:9/<script>alert(1)</script>"
    webhooks.add(tenant=tenant, url=url, types=[], actor=SYSTEM)
    assert b"<script>alert" not in client.get("/webhooks/").content
