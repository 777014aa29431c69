"""The second factor: no way around it, codes once, and nobody locked out for good."""

import re
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.conf import settings
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from support.rows import make_person, make_tenant
from tenants import second_factor, sign_ins
from tenants.models import AuditEvent

pytestmark = [
    *(pytest.mark.integration, pytest.mark.django_db),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


def code_of(secret, ahead=0):
    """The code that an app shows, in the time step so many ahead."""
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + ahead))


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """The time step of the codes does not end in the middle of a test."""
    now = time.time() // 30 * 30 + 5
    monkeypatch.setattr(time, "time", lambda: now)


@pytest.fixture
def enrolled():
    """(person, secret, recovery codes), set up on the page itself."""
    make_tenant("acme")
    person = make_person("ann", staff=True)
    client = Client()
    client.force_login(person)
    page = client.get("/account/second-factor/").content.decode()
    secret = re.search(r"data-secret>([A-Z2-7]{32})<", page)[1]
    form = {"present": "pw", "code": code_of(secret, -1)}
    page = client.post("/account/second-factor/on", form).content.decode()
    codes = re.findall(r"<li>(\d{8})</li>", page)
    assert len(codes) == 10
    return person, secret, codes


def password(client, to="/"):
    return client.post("/login/", {"username": "ann", "password": "pw", "next": to})


def is_in(client):
    return client.get("/").status_code == 200


def test_a_password_alone_opens_nothing(enrolled):
    client = Client()
    assert password(client)["Location"] == "/login/code/"
    assert not is_in(client)
    assert client.get("/api/v1/tenants").status_code == 401
    assert client.get("/admin/").status_code == 302
    assert client.get("/account/second-factor/")["Location"].startswith("/login/")


def test_a_code_signs_in_once(enrolled):
    _, secret, _ = enrolled
    first, second = Client(), Client()
    password(first, to="/jobs/")
    code = code_of(secret)
    assert first.post("/login/code/", {"code": code})["Location"] == "/jobs/"
    assert is_in(first)
    assert first.get("/api/v1/tenants").status_code == 200
    password(second)
    assert second.post("/login/code/", {"code": code}).status_code == 200  # seen, typed again
    assert not is_in(second)


def test_an_older_code_than_one_that_was_used_is_wrong(enrolled):
    _, secret, _ = enrolled
    first, second = Client(), Client()
    password(first)
    first.post("/login/code/", {"code": code_of(secret, 1)})
    password(second)
    assert second.post("/login/code/", {"code": code_of(secret)}).status_code == 200
    assert not is_in(second)


def test_recovery_codes_work_once_each(enrolled):
    _, _, codes = enrolled
    for expected in (True, False):
        client = Client()
        password(client)
        client.post("/login/code/", {"code": f" {codes[3][:4]} {codes[3][4:]} "})
        assert is_in(client) == expected


def test_ten_wrong_codes_lock_the_name_from_every_address(enrolled):
    _, secret, _ = enrolled
    for number in range(10):
        client = Client(REMOTE_ADDR=f"10.0.0.{number}")
        password(client)
        client.post("/login/code/", {"code": "000000"})
    client = Client(REMOTE_ADDR="10.0.0.99")
    password(client)
    answer = client.post("/login/code/", {"code": code_of(secret)})
    assert answer.status_code == 429
    assert int(answer["Retry-After"]) > 0
    assert AuditEvent.unscoped.filter(action="second_factor.fail").count() == 10
    AuditEvent.unscoped.update(at=timezone.now() - timedelta(minutes=11))
    assert client.post("/login/code/", {"code": code_of(secret)}).status_code == 302


@pytest.mark.parametrize("path", ["/", "/admin/", "/api/v1/tenants"])
def test_a_session_that_was_made_some_other_way_is_signed_out(enrolled, path):
    """As by another backend, a shell, or a session of before."""
    person, _, _ = enrolled
    client = Client()
    client.force_login(person)
    assert client.get(path).status_code in (302, 401)
    assert not is_in(client)


def test_switching_it_on_ends_sessions_that_have_not_passed():
    make_tenant("acme")
    person = make_person("ann", staff=True)
    thief, owner = Client(), Client()
    for client in (thief, owner):
        client.force_login(person)
        assert is_in(client)
    page = owner.get("/account/second-factor/").content.decode()
    secret = re.search(r"data-secret>([A-Z2-7]{32})<", page)[1]
    owner.post("/account/second-factor/on", {"present": "pw", "code": code_of(secret)})
    assert is_in(owner)
    assert not is_in(thief)


def test_an_open_browser_does_not_switch_it_on_or_off(enrolled):
    _, secret, codes = enrolled
    client = Client()
    password(client)
    client.post("/login/code/", {"code": code_of(secret)})
    assert client.post("/account/second-factor/off", {"code": "111111"}).status_code == 400
    assert client.post("/account/second-factor/codes", {"code": "111111"}).status_code == 400
    assert client.post("/account/second-factor/off", {"code": codes[0]}).status_code == 302
    page = client.get("/account/second-factor/").content.decode()
    secret = re.search(r"data-secret>([A-Z2-7]{32})<", page)[1]
    form = {"present": "wrong", "code": code_of(secret)}
    assert client.post("/account/second-factor/on", form).status_code == 400


def test_secrets_are_sealed_in_the_database_and_not_in_the_audit(enrolled):
    _, secret, codes = enrolled
    rows = str(list(Authenticator.objects.values())) + str(list(AuditEvent.unscoped.values()))
    assert not any(word in rows for word in (secret, *codes))


@pytest.mark.parametrize("wanted", ["operators", "everyone"])
def test_who_must_have_one_sees_nothing_before(settings, wanted):
    make_tenant("acme")
    settings.ENV = replace(settings.ENV, second_factor=wanted)
    for person in (make_person("ann", staff=True), make_person("bob", acme="viewer")):
        must = person.is_staff or wanted == "everyone"
        client = Client()
        client.force_login(person)
        assert client.get("/").status_code == (302 if must else 200)
        assert client.get("/api/v1/jobs").status_code == (401 if must else 200)
        if must:
            for path in ("/", "/admin/", "/account/", "/nothing/there"):
                assert client.get(path)["Location"] == "/account/second-factor/"
            assert client.get("/metrics").status_code in (401, 403)
            page = client.get("/account/second-factor/").content.decode()
            secret = re.search(r"data-secret>([A-Z2-7]{32})<", page)[1]
            form = {"present": "pw", "code": code_of(secret)}
            client.post("/account/second-factor/on", form)
            assert is_in(client)
            off = client.post("/account/second-factor/off", {"code": code_of(secret, 1)})
            assert off.status_code == 400


def test_an_operator_of_the_host_switches_a_lost_one_off(enrolled, capsys):
    call_command("reset_second_factor", "ann")
    client = Client()
    assert password(client)["Location"] == "/"
    assert is_in(client)
    assert AuditEvent.unscoped.filter(action="second_factor.off").exists()


def test_another_secret_key_opens_no_code_and_breaks_no_page(enrolled, settings):
    _, secret, _ = enrolled
    settings.SECRET_KEY = "x" * 40
    client = Client()
    password(client)
    assert client.post("/login/code/", {"code": code_of(secret)}).status_code == 200
    assert not is_in(client)


def test_a_sign_in_that_waits_for_its_code_ends(enrolled, monkeypatch):
    _, secret, _ = enrolled
    client = Client()
    password(client)
    later = time.time() + 16 * 60
    monkeypatch.setattr(time, "time", lambda: later)
    answer = client.post("/login/code/", {"code": code_of(secret)})
    assert answer["Location"] == "/login/"
    assert not is_in(client)


def test_the_session_key_changes_between_code_and_page(enrolled):
    """Session fixation, at the second step too."""
    _, secret, _ = enrolled
    client = Client()
    password(client)
    before = client.session.session_key
    client.post("/login/code/", {"code": code_of(secret)})
    assert client.session.session_key != before
    thief = Client()
    thief.cookies[settings.SESSION_COOKIE_NAME] = before
    assert not is_in(thief)


# ---- sessions


def test_sessions_are_listed_and_ended(django_capture_on_commit_callbacks):
    make_tenant("acme")
    person, other = make_person("ann", acme="viewer"), make_person("bob", acme="viewer")
    clients = [Client(headers={"User-Agent": "Firefox/1 Linux"}) for _ in range(3)]
    for client, who in zip(clients, (person, person, other), strict=True):
        client.force_login(who)  # as from no browser
    sign_ins._noted.clear()
    for client in clients:
        client.get("/")
    ann, elsewhere, bob = clients
    assert "Firefox on Linux" in ann.get("/account/").content.decode()
    rows = ann.get("/api/v1/sign-ins").json()["results"]
    assert {row["user"] for row in rows} == {"ann"}
    assert len(rows) == 2
    key = elsewhere.session.session_key
    [mine] = sign_ins.UserSession.objects.filter(session_key=key)
    assert bob.post(f"/account/sessions/{mine.pk}/end").status_code == 404
    assert ann.post(f"/account/sessions/{mine.pk}/end").status_code == 302
    assert not is_in(elsewhere)
    assert is_in(ann)
    assert is_in(bob)


def test_a_new_password_ends_the_other_sessions():
    make_tenant("acme")
    person = make_person("ann", acme="viewer")
    ann, elsewhere = Client(), Client()
    for client in (ann, elsewhere):
        client.force_login(person)
    form = {"present": "wrong", "new": "a-long-enough-word-9"}
    assert ann.post("/account/password", form).status_code == 400
    assert is_in(elsewhere)
    assert ann.post("/account/password", form | {"present": "pw"}).status_code == 302
    assert is_in(ann)
    assert not is_in(elsewhere)
    person.refresh_from_db()
    assert person.check_password("a-long-enough-word-9")


def test_signing_in_elsewhere_keeps_no_session_of_before():
    make_tenant("acme")
    make_person("ann", staff=True)
    client = Client()
    client.get("/login/")
    session = client.session
    session["planted"] = 1
    session.save()
    planted = session.session_key
    password(client)
    assert client.session.session_key != planted
    thief = Client()
    thief.cookies[settings.SESSION_COOKIE_NAME] = planted
    assert not is_in(thief)


def test_the_look_of_a_browser_is_kept(client):
    make_tenant("acme")
    client.force_login(make_person("ann", acme="viewer"))
    client.post("/account/look", {"theme": "dark", "zone": "Europe/Berlin"})
    page = client.get("/account/").content.decode()
    assert 'data-theme="dark"' in page
    assert "Europe/Berlin" in page
    assert client.post("/account/look", {"zone": "Nowhere/Land"}).status_code == 400
    assert reverse("dashboard:account") == "/account/"


def test_second_factors_are_asked_of_nobody_by_default():
    assert settings.ENV.second_factor == second_factor.OPTIONAL
