"""Incidents by mail: one when it opened, one when it ended, to each person who wants it.

Sent at least once: a worker that dies after sending sends again. Django's mail settings come from
NEVE_MAIL_URL; without it nothing is sent.
"""

import smtplib
from datetime import timedelta
from typing import Final

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.mail import EmailMessage, get_connection
from django.db.models import F, Q
from django.utils import timezone

from base import log_events
from base.isolation import isolated
from catalog.kinds import MAIL_INCIDENTS
from incidents import words
from incidents.models import Incident

MOST_AT_ONCE: Final = 20  # incidents of one run
MOST_ATTEMPTS: Final = 8
CLAIM: Final = timedelta(minutes=2)  # longer than sending takes
MOST_PEOPLE: Final = 200  # of one incident


def send() -> int:
    """Sends what is due. Returns how many incidents were told."""
    if not settings.ENV.mail_url:
        return 0
    now = timezone.now()
    due = Incident.unscoped.filter(
        Q(ended_at=None, mailed="") | Q(ended_at__isnull=False, mailed="opened"),
        opened_at__isnull=False,
        mail_after__lte=now,
        mail_attempts__lt=MOST_ATTEMPTS,
    )
    rows = due.select_related("tenant").order_by("mail_after")[:MOST_AT_ONCE]
    told = 0
    for row in list(rows):
        with isolated(MAIL_INCIDENTS.name, row.tenant_id):
            told += _tell(row)
    return told


def _tell(row: Incident) -> bool:
    now = timezone.now()
    is_mine = Incident.unscoped.filter(pk=row.pk, mail_after=row.mail_after).update(
        mail_after=now + CLAIM, mail_attempts=F("mail_attempts") + 1
    )
    if not is_mine:
        return False
    state = "opened" if row.ended_at is None else "ended"
    if people := _people(row):
        subject, body = message_of(row)
        try:
            _send_all(people, subject, body)
        except (OSError, ValueError) as error:
            log_events.MAIL_FAILED.log(about=f"incident {row.pk}", error=error)
            pause = timedelta(seconds=30 * 2 ** min(row.mail_attempts, 7))
            Incident.unscoped.filter(pk=row.pk).update(mail_after=now + pause)
            return False
    Incident.unscoped.filter(pk=row.pk).update(mailed=state, mail_attempts=0)
    return bool(people)


def _send_all(people: list[str], subject: str, body: str) -> None:
    """An address that the server refuses keeps no mail from the others. Raises OSError, ValueError
    if it is to be tried again."""
    again: smtplib.SMTPRecipientsRefused | None = None
    with get_connection(timeout=10) as connection:
        for address in people:
            try:
                EmailMessage(subject, body, to=[address], connection=connection).send()
            except smtplib.SMTPRecipientsRefused as error:
                is_final = all(code >= 500 for code, _ in error.recipients.values())
                again = again if is_final else error
    if again is not None:
        raise again


def _people(row: Incident) -> list[str]:
    """Addresses of those who want mail, see the incident and have not muted it."""
    allowed = Q(pk=None)
    if row.muted_until_of(is_operator=True) is None:
        allowed |= Q(is_staff=True)
    if row.tenant_id is not None and row.muted_until_of(is_operator=False) is None:
        allowed |= Q(is_staff=False, memberships__tenant_id=row.tenant_id)
    people = (
        get_user_model()
        .objects.filter(allowed, is_active=True, incident_mail__isnull=False)
        .exclude(email="")
    )
    return sorted(set(people.values_list("email", flat=True)))[:MOST_PEOPLE]


def message_of(row: Incident) -> tuple[str, str]:
    """Subject and text."""
    slug = row.tenant.slug if row.tenant else ""
    line = words.line(row.words, slug, row.since)
    address = settings.ENV.url.geturl()
    text = [line, "", words.reason(row.kind, row.cause, row.facts)]
    for lever in row.levers:
        now = f", now {lever['now']}" if lever.get("now") else ""
        to = f": try {lever['to']}" if lever.get("to") else ""
        text.append(f"Lever: {lever['name']}{now}{to}.")
    if row.acknowledged_at is not None:
        text.append(f"{row.acknowledged_by} looks after it.")
    if row.ended_at is not None:
        text.append(f"Ended {row.ended_at:%H:%M} UTC, about {row.lost_tokens:,} tokens lost.")
    if address:
        text += ["", f"{address}/incidents/{row.pk}/"]
    subject = f"[Neve] {'Ended: ' if row.ended_at else ''}{line}"
    return subject[:200].replace("\n", " "), "\n".join(text) + "\n"
