"""NUL characters are refused with 400 wherever text comes in: PostgreSQL cannot hold them."""

import pytest
from django.conf import settings
from django.test import Client

from support.rows import make_incident, make_person, make_tenant
from tenants.services import issue_key

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture
def acme(db, clean_hot):
    return make_tenant("acme")


@pytest.fixture
def browser(acme):
    client = Client()
    client.force_login(make_person("operator", staff=True))
    return client


@pytest.mark.parametrize(
    "address",
    [
        *("/?tenant=%00", "/tenants/?q=a%00", "/contexts/?q=%00", "/audit/?actor=%00&sort=%00"),
        *("/jobs/?kind=%00", "/why/?q=%00", "/explorer/?label=%00", "/spaces/?%00=a"),
        *("/tenants/%00/", "/login/?next=%00", "/incidents/rules/%00"),
    ],
)
def test_in_the_address_of_a_page(browser, address):
    answer = browser.get(address)
    assert (answer.status_code, "has a NUL character" in answer.content.decode()) == (400, True)


def test_in_any_field_of_a_form(browser, acme):
    incident = make_incident(acme)
    for path, form in (
        (f"/incidents/{incident.pk}/do", {"do": "owner", "owner": "a\x00"}),
        (f"/incidents/{incident.pk}/do", {"do": "\x00"}),
        ("/incidents/rules/hit_rate", {"threshold": "\x00"}),
        ("/login/", {"username": "a\x00", "password": "b"}),
        ("/tenants/new/", {"slug": "\x00"}),
        ("/webhooks/", {"\x00": "a"}),
    ):
        answer = browser.post(path, form)
        assert (answer.status_code, "NUL" in answer.content.decode()) == (400, True), path


def test_in_a_cookie(db):
    browser = Client()
    browser.cookies[settings.SESSION_COOKIE_NAME] = "\x00" * 32
    answer = browser.get("/")
    assert (answer.status_code, "NUL" in answer.content.decode()) == (400, True)


@pytest.mark.parametrize(
    "address",
    ["contexts?name=%00", "contexts?%00=1", "tenants/%00", "events?types=%00", "alert-rules/%00"],
)
def test_in_an_address_of_rest(acme, address):
    key = issue_key(tenant=acme, role="team", name="k")[1]
    answer = Client().get(f"/api/v1/{address}", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 400
    assert answer.json()["type"].endswith("malformed")
    assert "NUL" in answer.json()["detail"]


def test_in_a_body_of_rest(acme):
    key = issue_key(tenant=acme, role="team", name="k")[1]
    incident = make_incident(acme)
    answer = Client().patch(
        f"/api/v1/incidents/{incident.pk}",
        '{"owner": "\\u0000"}',
        content_type="application/json",
        headers={"Authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 400
    assert "NUL" in answer.json()["detail"]
