"""A forgotten password: a mailed link sets a new one, once; nobody learns who has an account."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.tokens import default_token_generator
from django.test import Client

from support.inbox import listening
from support.rows import make_person, make_tenant
from support.servers import wait_until
from tenants.models import AuditEvent

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

ASK = "/login/forgotten/"
HOME = urlsplit("https://neve.example.org")
NEW = "a-long-new-one-7"


@pytest.fixture
def inbox(settings, monkeypatch):
    env = replace(django_settings.ENV, mail_url={"EMAIL_HOST": "127.0.0.1"}, url=HOME)
    monkeypatch.setattr(django_settings, "ENV", env)
    with listening() as inbox:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", inbox.port
        yield inbox


@pytest.fixture
def ann(db):
    make_tenant("acme")
    person = make_person("ann", acme="team")
    person.email = "ann@example.org"
    person.save()
    return person


def mailed_link(client, inbox, address="ann@example.org"):
    before = len(inbox.mails)
    assert (
        client.post(ASK, {"email": address}, headers={"host": "testserver:666"}).status_code == 200
    )
    wait_until(lambda: len(inbox.mails) > before, what="the mail")
    (to, message) = inbox.mails[-1]
    assert to == "ann@example.org"
    return re.search(
        r"^https://neve.example.org(/login/forgotten/\S+)", message.get_content(), re.M
    )[1]


def signs_in(password):
    form = {"username": "ann", "password": password}
    return Client().post("/login/", form).status_code == 302


def test_the_link_sets_a_password_once_and_ends_all_sessions(client, ann, inbox):
    elsewhere = Client()
    elsewhere.post("/login/", {"username": "ann", "password": "pw"})
    assert elsewhere.get("/account/").status_code == 200
    assert ASK in client.get("/login/").content.decode()
    link = mailed_link(client, inbox, "Ann@Example.org ")
    page = client.get(link)
    assert "New password of ann" in page.content.decode()
    assert signs_in("pw")  # opening it changed nothing
    link = mailed_link(client, inbox)  # a sign-in in a later second makes earlier links void
    assert client.post(link, {"new": "short"}).status_code == 400
    assert client.post(link, {"new": NEW}).status_code == 200
    assert (signs_in("pw"), signs_in(NEW)) == (False, True)
    assert elsewhere.get("/account/").status_code == 302
    again = client.post(link, {"new": "another-one-8"})
    assert again.status_code == 404
    assert "wrong, was used" in again.content.decode()
    assert AuditEvent.unscoped.filter(action="password.reset", actor_name="ann").count() == 1


def test_the_answer_is_the_same_for_accounts_that_are_not_there(client, ann, inbox):
    made_of_sso = make_person("sso")
    made_of_sso.email = "sso@example.org"
    made_of_sso.set_unusable_password()
    made_of_sso.save()
    gone = make_person("gone")
    gone.email, gone.is_active = "gone@example.org", False
    gone.save()
    pages = set()
    for name in ("nobody", "sso", "gone", "ann"):  # in order: the last one's mail comes last
        answer = client.post(ASK, {"email": f"{name}@example.org"})
        assert answer.status_code == 200
        pages.add(answer.content.decode().partition("<h2>")[2])
    assert len(pages) == 1
    wait_until(lambda: inbox.mails, what="the mail")
    assert [to for to, _ in inbox.mails] == ["ann@example.org"]


def test_an_address_gets_few_mails_whoever_asks(ann, inbox):
    answers = [
        Client(REMOTE_ADDR=f"192.0.2.{n}").post(ASK, {"email": "ann@example.org"}) for n in range(4)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert "Too many requests" in answers[-1].content.decode()
    assert int(answers[-1]["Retry-After"]) > 0
    wait_until(lambda: len(inbox.mails) == 3, what="three mails")


def test_a_link_is_of_one_account_and_an_hour(client, ann, inbox, monkeypatch):
    link = mailed_link(client, inbox)
    for wrong in (link.replace("-", "-0", 1), "/login/forgotten/MTA/x-y/", f"{link[:-2]}/"):
        assert client.get(wrong).status_code == 404, wrong
    late = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=61)
    monkeypatch.setattr(default_token_generator, "_now", lambda: late)
    assert client.get(link).status_code == 404


@pytest.mark.parametrize(
    "without", [{"mail_url": {}}, {"password_login": False}, {"url": urlsplit("")}], ids=str
)
def test_there_is_no_such_page_without_mail_passwords_or_a_name(client, ann, monkeypatch, without):
    env = {"mail_url": {"EMAIL_HOST": "127.0.0.1"}, "url": HOME, **without}
    monkeypatch.setattr(django_settings, "ENV", replace(django_settings.ENV, **env))
    assert client.get(ASK).status_code == 404
    assert client.post(ASK, {"email": "ann@example.org"}).status_code == 404
    assert ASK not in client.get("/login/").content.decode()
