"""Sign-ins: browser sessions of people, listed and ended.

`allauth.usersessions` keeps a row for each session: when, from which address, which browser. Ending
one deletes Django's session, so its next request is signed out, and its pages' sockets are closed.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from allauth.usersessions.models import UserSession
from django.contrib.auth import get_user
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import DatabaseError, transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from base import live, write_lock
from base.preconditions import require_unchanged
from tenants.audit import Actor, record
from tenants.principal import Principal

SEEN_EVERY_S = 300.0
AGAIN_S = 10.0  # after the write lock was taken
MOST_NOTED = 10_000  # sessions that a process remembers
_noted: dict[str, float] = {}  # session key → when this process wrote its row
AGENT_CHARS = UserSession._meta.get_field("user_agent").max_length


def of(caller: Principal) -> QuerySet[UserSession]:
    """Sessions that are not over: a person's own, everybody's for operators, none for team keys."""
    return _alive() if caller.is_operator else own(caller)


def own(caller: Principal) -> QuerySet[UserSession]:
    kind, _, number = caller.id.partition(":")
    return _alive().filter(user_id=int(number)) if kind == "user" else _alive().none()


def _alive() -> QuerySet[UserSession]:
    there = Session.objects.filter(
        session_key=OuterRef("session_key"), expire_date__gt=timezone.now()
    )
    rows: QuerySet[UserSession] = UserSession.objects.filter(Exists(there))
    return rows.select_related("user").order_by("-last_seen_at", "-pk")


@transaction.atomic
def end(*, rows: Iterable[UserSession], actor: Actor) -> int:
    """Returns how many. Sockets of their pages are closed on commit."""
    count = 0
    for row in rows:
        require_unchanged(row)
        before = {"user": row.user.get_username(), "address": row.ip}
        record(actor=actor, tenant_id=None, action="sign_in.end", obj=row, before=before)
        live.recheck_person_on_commit(row.user_id)
        row.end()
        count += 1
    return count


def end_others(request: HttpRequest, user: User, actor: Actor) -> int:
    """All sessions of a person but the one that asks."""
    rows = UserSession.objects.filter(user=user).exclude(session_key=request.session.session_key)
    return end(rows=rows.select_related("user"), actor=actor)


def is_alive(session_key: str | None, user_id: int) -> bool:
    """Whether the session is still this person's: not ended, nor the password changed since."""
    request = HttpRequest()
    request.session = SessionStore(session_key)
    user = get_user(request)
    return bool(user.is_authenticated and user.pk == user_id)


def over() -> QuerySet[UserSession]:
    """Rows of sessions that are over, which may be deleted."""
    there = Session.objects.filter(session_key=OuterRef("session_key"))
    rows: QuerySet[UserSession] = UserSession.objects.filter(~Exists(there))
    return rows


def expired() -> QuerySet[Session]:
    """Django's sessions that may be deleted."""
    return Session.objects.filter(expire_date__lt=timezone.now())


# ---- noting them


def connect() -> None:
    user_logged_in.connect(_signed_in, dispatch_uid="neve_sign_ins")
    user_logged_out.connect(_signed_out, dispatch_uid="neve_sign_ins")


def _signed_in(sender: Any, request: HttpRequest, user: User, **_: Any) -> None:
    if not request.session.session_key:
        request.session.save()
    note(request, user)
    _noted[str(request.session.session_key)] = time.monotonic()


def _signed_out(sender: Any, request: HttpRequest, user: User | None, **_: Any) -> None:
    """Pages of the same session in other tabs hear of it."""
    UserSession.objects.filter(session_key=request.session.session_key).delete()
    if user is not None:
        live.recheck_person_on_commit(user.pk)


def note(request: HttpRequest, user: User) -> None:
    """Writes the row of the session that asks."""
    UserSession.objects.update_or_create(
        session_key=request.session.session_key,
        defaults={
            "user": user,
            "ip": request.META.get("REMOTE_ADDR") or "0.0.0.0",  # noqa: S104  socket files have none
            "user_agent": request.META.get("HTTP_USER_AGENT", "")[:AGENT_CHARS],
            "last_seen_at": timezone.now(),
        },
    )


class Seen:
    """Middleware: notes every few minutes that a session is used, and from where.

    A page that only reads does not wait for the database's write lock: without it, nothing is
    noted.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        key = request.session.session_key
        if key and request.user.is_authenticated and self._is_due(key):
            try:
                with write_lock.or_never(), transaction.atomic():
                    note(request, request.user)
            except DatabaseError:
                _noted[key] = time.monotonic() - SEEN_EVERY_S + AGAIN_S
        return self.get_response(request)

    def _is_due(self, key: str) -> bool:
        now = time.monotonic()
        if now - _noted.get(key, -SEEN_EVERY_S) < SEEN_EVERY_S:
            return False
        if len(_noted) >= MOST_NOTED:
            _noted.clear()
        _noted[key] = now
        return True
