"""A forgotten password: a link by mail sets a new one, once and within an hour.

Nobody learns from the answer whether an account exists: it is the same in words and in time, since
mails go out beside the request. A second factor is still asked for afterwards.
"""

import threading
from collections.abc import Callable, Iterable

from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.tokens import default_token_generator
from django.core.exceptions import ValidationError
from django.core.mail import EmailMessage
from django.core.mail import get_connection as mail_server
from django.core.validators import validate_email
from django.db import transaction
from django.http import HttpRequest
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_decode, urlsafe_base64_encode

from base import log_events
from base.problems import Problem
from tenants import sign_ins, signing_in
from tenants.audit import Actor, record

MOST_ACCOUNTS = 5  # with one mail address
_sending = threading.BoundedSemaphore(8)  # threads of this process


def is_offered() -> bool:
    """Not without NEVE_URL: a stranger's Host header would say which port, and among several names
    of NEVE_HOSTS which host, the mailed link leads to."""
    env = settings.ENV
    return bool(env.mail_url) and bool(env.password_login) and bool(env.url.netloc)


def ask(request: HttpRequest, *, address: str, link: Callable[[str, str], str]) -> None:
    """Mails a link to each account with the address. `link`: of its number and token.

    Raises Problem (malformed), PermissionDenied after too many requests.
    """
    address = address.strip().lower()
    try:
        validate_email(address)
    except ValidationError as error:
        raise Problem("malformed", "Mail address: need one.", field="email") from error
    signing_in.attempt(request, address, lambda: None, door=signing_in.FORGOTTEN)
    users = get_user_model().objects.filter(email__iexact=address, is_active=True)
    mails = [
        _mail(user, link(urlsafe_base64_encode(force_bytes(user.pk)), _token(user)))
        for user in users.order_by("pk")[:MOST_ACCOUNTS]
        if user.has_usable_password()
    ]
    if mails and _sending.acquire(blocking=False):
        threading.Thread(target=_send, args=(mails,), name="neve-mail", daemon=True).start()


def asked(number: str, token: str) -> User:
    """Whose password the link sets. Raises Problem (not-found)."""
    try:
        pk = int(urlsafe_base64_decode(number))
    except (ValueError, OverflowError):
        pk = 0
    user = get_user_model().objects.filter(pk=pk, is_active=True).first() if pk else None
    is_open = user is not None and user.has_usable_password()
    if user is None or not is_open or not default_token_generator.check_token(user, token):
        raise Problem("not-found", "This link is wrong, was used, or is older than an hour.")
    return user


@transaction.atomic
def reset(number: str, token: str, *, password: str, actor: Actor) -> User:
    """Sets the password and ends all sessions. Raises Problem: not-found, malformed."""
    user = asked(number, token)
    locked: User = get_user_model().objects.select_for_update().get(pk=user.pk)
    asked(number, token)  # another request may have used it
    try:
        validate_password(password, locked)
    except ValidationError as error:
        raise Problem("malformed", " ".join(error.messages), field="password") from error
    locked.set_password(password)
    locked.save(update_fields=["password"])
    record(actor=actor, tenant_id=None, action="password.reset", obj=locked)
    rows = UserSession.objects.filter(user=locked).select_related("user")
    sign_ins.end(rows=rows, actor=actor)
    return locked


def _token(user: User) -> str:
    token: str = default_token_generator.make_token(user)
    return token


def _mail(user: User, url: str) -> EmailMessage:
    words = (
        f"Open this link to choose a new password for {user.get_username()} on Neve, within an "
        f"hour:\n\n{url}\n\nIf you did not ask for this, ignore it: nothing has changed.\n"
    )
    return EmailMessage("A new password on Neve", words, None, [user.email])


def _send(mails: Iterable[EmailMessage]) -> None:
    try:
        mail_server().send_messages(list(mails))
    except OSError as error:
        log_events.MAIL_FAILED.log(about="password", error=type(error).__name__)
    finally:
        _sending.release()
