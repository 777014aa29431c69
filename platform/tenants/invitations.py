"""Invitations: a link gives its first user a role in a tenant.

The link is the right: it can be used once, ends, and can be revoked. Only its keyed hash is stored.
It names the role, so nobody who accepts can choose another. A second invitation of an address
replaces the first.
"""

import secrets
import smtplib
from collections.abc import Callable
from datetime import timedelta

from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from base import log_events
from base.preconditions import require_unchanged
from base.problems import Problem
from tenants.audit import Actor, record
from tenants.keys import hash_secret
from tenants.models import Invitation, Membership, Tenant
from tenants.scope import tenant_scope

GOOD_FOR = timedelta(days=3)
KEPT = timedelta(days=30)  # after its end
MOST_OPEN = 100  # of a tenant
MOST_MADE = 1000  # of a tenant, ended ones that are kept included
TOKEN_BYTES = 32
USER_NAME_CHARS = 150  # of Django's accounts
GONE = "This invitation was used, was revoked, or has ended. Ask for a new one."


def invite(
    *, tenant: Tenant, email: str, role: str, link: Callable[[str], str], actor: Actor
) -> tuple[Invitation, str | None]:
    """Makes an invitation and mails it. `link`: the address of a token.

    Returns the link only if no mail was sent: the inviter then hands it over. Mail is sent after
    the transaction, so that a slow mail server holds no lock. Raises Problem (malformed,
    limit-reached).
    """
    invitation, token = _make(tenant=tenant, email=email.strip().lower(), role=role, actor=actor)
    address = link(token)
    if not _mail(invitation, address):
        return invitation, address
    invitation.is_mailed = True
    with tenant_scope(tenant.pk):
        invitation.save(update_fields=["is_mailed"])
    return invitation, None


@transaction.atomic
def _make(*, tenant: Tenant, email: str, role: str, actor: Actor) -> tuple[Invitation, str]:
    try:
        validate_email(email)
    except ValidationError as error:
        raise Problem("malformed", "email: need a mail address.", field="email") from error
    if role not in Membership.Role.values:
        raise Problem("malformed", "role: need viewer or team.", field="role")
    now, token = timezone.now(), secrets.token_urlsafe(TOKEN_BYTES)
    with tenant_scope(tenant.pk):
        rows = Invitation.objects.filter(accepted_at=None, revoked_at=None)
        for earlier in rows.filter(email=email).select_for_update():
            _revoke(earlier, actor)
        is_full = rows.filter(expires_at__gt=now).count() >= MOST_OPEN
        if is_full or Invitation.objects.count() >= MOST_MADE:
            raise Problem(
                "limit-reached",
                f"invitations: {MOST_OPEN} of the tenant wait for an answer, or {MOST_MADE} were "
                "made lately.",
                limit="invitations",
                most=MOST_OPEN,
            )
        try:
            with transaction.atomic():
                made = Invitation.objects.create(
                    tenant=tenant,
                    email=email,
                    role=role,
                    token_hmac=hash_secret(token),
                    invited_by=actor.name[:200],
                    expires_at=now + GOOD_FOR,
                )
        except IntegrityError as error:  # another request was faster
            raise Problem("conflict", f"{email} was invited meanwhile.") from error
    after = {"email": email, "role": role, "expires_at": made.expires_at.isoformat()}
    record(actor=actor, tenant_id=tenant.pk, action="invitation.make", obj=made, after=after)
    return made, token


def _mail(invitation: Invitation, address: str) -> bool:
    """Whether the mail server took it."""
    if not settings.ENV.mail_url:
        return False
    tenant = invitation.tenant
    days = GOOD_FOR.days
    words = (
        f"{invitation.invited_by} invites you to {tenant.name} ({tenant.slug}) on Neve as "
        f"{invitation.role}.\n\nOpen this link to accept. It can be used once, within {days} days:"
        f"\n\n{address}\n\nIf you do not know why you got this, ignore it.\n"
    )
    try:
        # A header may have no line break, and names are free text.
        subject = " ".join(f"Invitation to {tenant.name} on Neve".split())
        send_mail(subject, words, None, [invitation.email])
    except (OSError, smtplib.SMTPException) as error:
        log_events.MAIL_FAILED.log(about="invitation", error=type(error).__name__)
        return False
    return True


def find(token: str) -> Invitation:
    """An open invitation of an active tenant. Raises Problem (not-found), alike for each reason."""
    row = (
        Invitation.unscoped.select_related("tenant")
        .filter(token_hmac=hash_secret(token), tenant__is_active=True)
        .first()
    )
    if row is None or not row.is_open(timezone.now()):
        raise Problem("not-found", GONE)
    return row


def open_of(tenant: Tenant) -> QuerySet[Invitation]:
    """Those that somebody may still accept."""
    return Invitation.unscoped.filter(
        tenant=tenant, accepted_at=None, revoked_at=None, expires_at__gt=timezone.now()
    )


def ended() -> QuerySet[Invitation]:
    """Invitations of all tenants that may be deleted."""
    return Invitation.unscoped.filter(expires_at__lt=timezone.now() - KEPT)


@transaction.atomic
def accept(*, invitation: Invitation, user: User, actor: Actor) -> Membership:
    """Uses the invitation up. A member keeps the stronger role.

    Raises Problem: not-found if it ended meanwhile, conflict for operators, who need none.
    """
    if user.is_staff:
        raise Problem("conflict", "Operators see every tenant: they need no invitation.")
    now = timezone.now()
    with tenant_scope(invitation.tenant_id):
        taken = Invitation.objects.filter(
            pk=invitation.pk, accepted_at=None, revoked_at=None, expires_at__gt=now
        ).update(accepted_at=now, accepted_by=user)
    if not taken:
        raise Problem("not-found", GONE)
    membership, is_new = Membership.objects.get_or_create(
        tenant=invitation.tenant, user=user, defaults={"role": invitation.role}
    )
    if not is_new and invitation.role == Membership.Role.TEAM != membership.role:
        membership.role = invitation.role
        membership.save(update_fields=["role"])
    record(
        actor=actor,
        tenant_id=invitation.tenant_id,
        action="invitation.accept",
        obj=invitation,
        after={"user": user.get_username(), "role": membership.role},
    )
    return membership


@transaction.atomic
def accept_as_new(*, invitation: Invitation, username: str, password: str, actor: Actor) -> User:
    """Makes an account with the invitation's address, and accepts.

    Raises Problem: malformed (`username`, `password`), not-found; conflict if an account has this
    address, whose owner signs in instead.
    """
    people = get_user_model().objects
    username = username.strip()
    if people.filter(email__iexact=invitation.email).exists():
        raise Problem("conflict", f"{invitation.email} has an account: sign in to accept.")
    try:
        get_user_model().username_validator(username)
    except ValidationError as error:
        raise Problem("malformed", f"User name: {error.messages[0]}", field="username") from error
    if len(username) > USER_NAME_CHARS or people.filter(username__iexact=username).exists():
        raise Problem("malformed", "User name: taken, choose another.", field="username")
    try:
        validate_password(password, get_user_model()(username=username, email=invitation.email))
    except ValidationError as error:
        raise Problem("malformed", " ".join(error.messages), field="password") from error
    try:
        with transaction.atomic():
            user = people.create_user(username, email=invitation.email, password=password)
            # Only a mailed link proves the address: a copied one may have come to somebody else.
            EmailAddress.objects.create(
                user=user, email=invitation.email, verified=invitation.is_mailed, primary=True
            )
    except IntegrityError as error:
        raise Problem("malformed", "User name: taken, choose another.", field="username") from error
    accept(invitation=invitation, user=user, actor=actor)
    return user


@transaction.atomic
def revoke(*, invitation: Invitation, actor: Actor) -> None:
    """The link stops working. Raises Problem (conflict) for one that was used."""
    require_unchanged(invitation)
    if invitation.accepted_at is not None:
        raise Problem("conflict", "The invitation was accepted: remove the member instead.")
    _revoke(invitation, actor)


def _revoke(invitation: Invitation, actor: Actor) -> None:
    with tenant_scope(invitation.tenant_id):
        done = Invitation.objects.filter(
            pk=invitation.pk, accepted_at=None, revoked_at=None
        ).update(revoked_at=timezone.now())
    if done:
        record(
            actor=actor,
            tenant_id=invitation.tenant_id,
            action="invitation.revoke",
            obj=invitation,
            before={"email": invitation.email, "role": invitation.role},
        )
