"""Incidents by mail, through a real SMTP server: who gets one, when, and what it says."""

from dataclasses import replace
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from incidents import mail, services
from incidents.models import Incident, MailWish
from support.inbox import listening
from support.rows import make_incident, make_person, make_tenant
from support.servers import free_port
from tenants.audit import SYSTEM, Actor
from tenants.models import Tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]


@pytest.fixture
def inbox(settings):
    with listening() as inbox:
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", inbox.port
        settings.DEFAULT_FROM_EMAIL = "neve@example.org"
        yield inbox


@pytest.fixture(autouse=True)
def has_server(settings, monkeypatch):

    env = replace(django_settings.ENV, mail_url={"EMAIL_HOST": "127.0.0.1"})
    monkeypatch.setattr(django_settings, "ENV", env)


@pytest.fixture
def people(db):
    make_tenant("acme")
    make_tenant("globex")
    made = {
        "ann": make_person("ann", acme="viewer"),
        "bob": make_person("bob", globex="team"),
        "olga": make_person("olga", staff=True),
        "otto": make_person("otto", staff=True),
    }
    for name, person in made.items():
        person.email = f"{name}@example.org"
        person.save()
        if name != "otto":
            MailWish.objects.create(user=person)
    return made


def opened(**fields):

    return make_incident(
        Tenant.objects.get(slug="acme"),
        cause="unflushed",
        mail_after=timezone.now(),
        levers=[{"name": "cold quota", "now": "2 TiB", "to": "4 TiB"}],
        **fields,
    )


def test_those_who_want_it_and_see_it_get_one_when_it_opens_and_one_when_it_ends(people, inbox):
    incident = opened()
    assert mail.send() == 1
    assert mail.send() == 0
    assert sorted(address for address, _ in inbox.mails) == ["ann@example.org", "olga@example.org"]
    message = inbox.mails[0][1]
    assert message["Subject"].strip().startswith("[Neve] acme: hit rate −40 points since")
    text = message.get_content()
    assert "Its cold quota is full" in text
    assert "Lever: cold quota, now 2 TiB: try 4 TiB." in text
    Incident.unscoped.filter(pk=incident.pk).update(
        ended_at=timezone.now(), mail_after=timezone.now()
    )
    assert mail.send() == 1
    assert inbox.mails[-1][1]["Subject"].strip().startswith("[Neve] Ended: acme")
    assert len(inbox.mails) == 4


def test_a_member_who_looks_after_an_incident_keeps_no_mail_from_operators(people, inbox):
    services.acknowledge(incident=opened(), actor=Actor("ann"))
    assert mail.send() == 1
    assert "olga@example.org" in [address for address, _ in inbox.mails]
    assert "ann looks after it." in inbox.mails[0][1].get_content()


@pytest.mark.parametrize(
    ("who", "others"),
    [(SYSTEM, ["ann@example.org"]), (Actor("ann"), ["olga@example.org"])],
    ids=["operator", "member"],
)
def test_a_mute_stops_the_mail_of_ones_own_side(people, inbox, who, others):
    until = timezone.now() + timedelta(hours=1)
    services.mute(incident=opened(), until=until, actor=who)
    mail.send()
    assert [address for address, _ in inbox.mails] == others


def test_a_server_that_does_not_answer_is_asked_again_later(people, settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    incident = opened()
    assert mail.send() == 0
    incident.refresh_from_db()
    assert incident.mailed == ""
    assert incident.mail_attempts == 1
    assert incident.mail_after > timezone.now()
    assert mail.send() == 0  # not before its time
    incident.refresh_from_db()
    assert incident.mail_attempts == 1


def test_an_address_that_is_refused_keeps_no_mail_from_the_others(people, inbox):
    inbox.refused["ann@example.org"] = "550 nobody here"
    opened()
    assert mail.send() == 1
    assert [address for address, _ in inbox.mails] == ["olga@example.org"]
    assert mail.send() == 0


def test_an_address_that_is_refused_for_now_is_tried_again_after_the_others(people, inbox):
    inbox.refused["ann@example.org"] = "450 later"
    row = opened()
    assert mail.send() == 0
    assert [address for address, _ in inbox.mails] == ["olga@example.org"]
    inbox.refused.clear()
    Incident.unscoped.filter(pk=row.pk).update(mail_after=timezone.now())
    assert mail.send() == 1
    assert "ann@example.org" in [address for address, _ in inbox.mails]


def test_an_incident_that_cannot_be_told_stops_no_other(inbox, people):
    acme, globex = Tenant.objects.get(slug="acme"), Tenant.objects.get(slug="globex")
    make_incident(acme, levers=["no lever"], mail_after=timezone.now())
    make_incident(globex, words="told", mail_after=timezone.now())
    mail.send()
    assert inbox.mails
    assert all("told" in message["Subject"] for _, message in inbox.mails)
