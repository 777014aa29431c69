"""What people change on their own account: password, address, linked identities.

Each change needs the password again (or, without one, a sign-in of the last ten minutes), so that a
browser left open gives nothing away for good. An address holds only once its owner opened the link
that was mailed to it: it decides whom single sign-on lets in.
"""

from typing import Any

from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib.auth import get_user_model, update_session_auth_hash
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.auth.password_validation import validate_password
from django.core import signing
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.mail import send_mail
from django.core.validators import validate_email
from django.db import transaction
from django.http import HttpRequest

from base import log_events
from base.problems import Problem
from tenants import second_factor, sign_ins, signing_in
from tenants.audit import Actor, record

SALT = "neve.address"
PROVE_WITHIN_S = 86_400


def require_owner(request: HttpRequest, user: User, password: str) -> None:
    """Raises Problem (forbidden) unless it is the person who owns the account."""
    if not user.has_usable_password():
        if second_factor.signed_in_lately(request):
            return
        raise Problem("forbidden", "Sign out and in again, then do this within ten minutes.")
    try:
        is_right = signing_in.is_password_of(request, user, password)
    except PermissionDenied as error:
        raise Problem("forbidden", "Too many wrong passwords. Try again in ten minutes.") from error
    if not is_right:
        raise Problem("forbidden", "Your present password is wrong.")


@transaction.atomic
def change_password(request: HttpRequest, *, user: User, password: str, actor: Actor) -> None:
    """Ends the person's other sessions. Raises Problem (malformed)."""
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise Problem("malformed", " ".join(error.messages), field="password") from error
    user.set_password(password)
    user.save(update_fields=["password"])
    update_session_auth_hash(request, user)  # a new session key; that of before is gone
    sign_ins.end_others(request, user, actor)
    sign_ins.note(request, user)


def ask_to_prove(request: HttpRequest, *, user: User, address: str, link: Any) -> None:
    """Mails a link to the new address, at most five in ten minutes: it may be a stranger's. `link`:
    the address of a token. Raises Problem."""
    address = address.strip().lower()
    try:
        validate_email(address)
    except ValidationError as error:
        raise Problem("malformed", "Mail address: need one.", field="email") from error
    if not settings.ENV.mail_url:
        raise Problem("conflict", "No mail server is set: ask an operator to change the address.")
    try:
        signing_in.attempt(request, user.get_username(), lambda: None, door=signing_in.ADDRESS)
    except PermissionDenied as error:
        raise Problem("forbidden", "Too many mails. Try again in ten minutes.") from error
    token = signing.dumps([user.pk, address, user.email], salt=SALT)
    words = (
        f"Open this link to confirm that {address} is your address on Neve (user name "
        f"{user.get_username()}), within a day:\n\n{link(token)}\n\nIf you did not ask for this, "
        "ignore it.\n"
    )
    try:
        send_mail("Confirm your address on Neve", words, None, [address])
    except OSError as error:
        log_events.MAIL_FAILED.log(about="address", error=type(error).__name__)
        raise Problem("conflict", "The mail server did not take the mail. Try later.") from error


def asked_to_prove(token: str) -> tuple[User, str]:
    """Whose address, and which. Raises Problem (not-found)."""
    try:
        number, address, before = signing.loads(token, salt=SALT, max_age=PROVE_WITHIN_S)
    except (signing.BadSignature, ValueError) as error:
        raise Problem("not-found", "This link is wrong or too old.") from error
    user = get_user_model().objects.filter(pk=number, email=before, is_active=True).first()
    if user is None:
        raise Problem("not-found", "This link was used, or the address has changed since.")
    return user, address


@transaction.atomic
def prove(token: str, *, by: User | AnonymousUser) -> User:
    """Sets the address. The mail proves who reads it, not who asked: else a stranger who opens the
    link would give their address, and with it their single sign-on, to another's account.

    Raises Problem: not-found; forbidden unless the account's owner is signed in; conflict if it is
    another account's address."""
    user, address = asked_to_prove(token)
    if by != user:
        raise Problem("forbidden", f"Only {user.get_username()} confirms: sign in first.")
    others = get_user_model().objects.filter(email__iexact=address).exclude(pk=user.pk)
    if others.exists():
        raise Problem("conflict", "Another account has this address.")
    user.email = address
    user.save(update_fields=["email"])
    EmailAddress.objects.filter(user=user).delete()
    EmailAddress.objects.create(user=user, email=address, verified=True, primary=True)
    return user


@transaction.atomic
def unlink(*, user: User, identity: SocialAccount, actor: Actor) -> None:
    """Raises Problem (conflict) if the person could not sign in any more."""
    others = SocialAccount.objects.filter(user=user).exclude(pk=identity.pk)
    if not others.exists() and not (user.has_usable_password() and settings.ENV.password_login):
        raise Problem("conflict", "It is your only way to sign in.")
    before = {"issuer": identity.extra_data.get("iss"), "subject": identity.extra_data.get("sub")}
    record(actor=actor, tenant_id=None, action="identity.unlink", obj=user, before=before)
    identity.delete()
