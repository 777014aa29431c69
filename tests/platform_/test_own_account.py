"""Whose address an account gets: its owner asks, reads the mail, and confirms."""

from dataclasses import replace

import pytest
from django.conf import settings as django_settings
from django.core import mail
from django.test import Client

from support.rows import make_person

pytestmark = [
    *(pytest.mark.integration, pytest.mark.django_db),
    pytest.mark.filterwarnings("ignore:No directory at"),
]


@pytest.fixture
def asked(monkeypatch):
    """mallory asks for olga's address: mallory's browser, and the path of the mailed link."""
    env = replace(django_settings.ENV, mail_url={"EMAIL_HOST": "localhost"})
    monkeypatch.setattr(django_settings, "ENV", env)
    mallory = make_person("mallory")
    mallory.set_password("it-is-mallory-7")
    mallory.save()
    browser = Client()
    browser.force_login(mallory)
    form = {"email": "olga@example.org", "present": "it-is-mallory-7"}
    assert browser.post("/account/address", form).status_code == 302
    (mailed,) = mail.outbox
    assert mailed.to == ["olga@example.org"]
    link = next(line for line in mailed.body.splitlines() if "/account/address/" in line)
    return mallory, browser, link[link.index("/account/address/") :]


def test_who_reads_the_mail_of_another_account_confirms_nothing(asked):
    mallory, _, path = asked
    olga = Client()
    for person in (None, make_person("olga", staff=True)):
        if person is not None:
            olga.force_login(person)
        page = olga.get(path).content.decode()
        assert "Sign in as mallory" in page
        assert "Yes, set it" not in page
        assert olga.post(path).status_code == 403
    mallory.refresh_from_db()
    assert mallory.email != "olga@example.org"


def test_the_owner_confirms_once(asked):
    mallory, browser, path = asked
    assert "Yes, set it" in browser.get(path).content.decode()
    assert browser.post(path).status_code == 200
    mallory.refresh_from_db()
    assert mallory.email == "olga@example.org"
    assert browser.post(path).status_code == 404


def test_a_person_mails_few_strangers(asked):
    _, browser, _ = asked  # who has asked once
    form = {"present": "it-is-mallory-7"}
    answers = [
        browser.post("/account/address", form | {"email": f"stranger{n}@example.org"})
        for n in range(5)
    ]
    assert [answer.status_code for answer in answers] == [302] * 4 + [400]
    assert "Too many mails" in answers[-1].content.decode()
    assert len(mail.outbox) == 5
