"""Whom an identity of the provider (OpenID Connect) signs in: matching, roles, no open sign-up.

An identity that was seen before is its account. A new one becomes, in this order,
 1. linked to the account that asked for it on its own page (`connect`);
 2. linked to the one active account whose address is proven to be the identity's verified address;
 3. a new account, if an open invitation names its verified address, or a group has a role here.
Everybody else is refused. An address that neither an operator wrote nor its owner proved links
nothing: else a stranger who typed it first would share the account.

With NEVE_OIDC_ROLES the groups of each sign-in decide about the tenants (and the operators) that it
names: roles are given and taken. Other memberships stay.
"""

from contextlib import suppress
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone

from base import log_events
from base.problems import Problem
from tenants import invitations
from tenants.audit import Actor, record
from tenants.grants import Grant
from tenants.models import Invitation, Membership, Tenant

REFUSAL = "neve_sso_refusal"  # of a session, for the page of the sign-in
MAY_LINK = "neve_may_link"  # of a session: when its person confirmed to link an identity
LINK_WITHIN_S = 300


class Accounts(DefaultAccountAdapter):  # type: ignore[misc]
    """Accounts of allauth: no sign-up, our stage for the second factor, no mails, no messages."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def get_login_stages(self) -> list[str]:
        return ["tenants.second_factor.Stage"]

    def get_client_ip(self, request: HttpRequest) -> str:
        return request.META.get("REMOTE_ADDR") or "0.0.0.0"  # noqa: S104

    def add_message(self, *args: Any, **kwargs: Any) -> None:
        """Pages say it themselves."""

    def respond_user_inactive(self, request: HttpRequest, user: User) -> HttpResponse:
        return refuse(request, "This account is switched off. Ask an operator.")


class Identities(DefaultSocialAccountAdapter):  # type: ignore[misc]
    def list_apps(self, request: Any, provider: Any = None, client_id: Any = None) -> list[Any]:
        """Of the settings only, none of the database."""
        from allauth.socialaccount.adapter import _build_apps_from_settings

        found = _build_apps_from_settings(provider=provider, client_id=client_id)
        return [app for apps in found.values() for app in apps]

    def on_authentication_error(
        self, request: Any, provider: Any, error: Any = None, exception: Any = None, **_: Any
    ) -> None:
        log_events.SSO_FAILED.log(error=str(exception or error)[:200])
        words = "The provider did not confirm who you are. Try again."
        raise ImmediateHttpResponse(refuse(request, words))

    def pre_social_login(self, request: HttpRequest, sociallogin: Any) -> None:
        """Decides as the module says; raises ImmediateHttpResponse for whom it refuses."""
        if sociallogin.state.get("process") == "connect":
            if not request.user.is_authenticated:
                raise ImmediateHttpResponse(redirect("dashboard:login"))
            return
        address = verified_address(sociallogin)
        if not sociallogin.is_existing and address:
            self._match(request, sociallogin, address)
        groups = groups_of(sociallogin)
        if sociallogin.is_existing:
            apply_groups(sociallogin.user, groups)
        elif not (granted(groups) or _invitations_of(address)):
            raise ImmediateHttpResponse(
                refuse(request, "You have no account here. Ask an operator for an invitation.")
            )
        elif not address or get_user_model().objects.filter(email__iexact=address).exists():
            # An address that is not proven, or another account's, is not written down.
            sociallogin.email_addresses, sociallogin.user.email = [], ""

    def _match(self, request: HttpRequest, sociallogin: Any, address: str) -> None:
        owners = proven_owners(address)
        if len(owners) != 1:
            return
        [owner] = owners
        if SocialAccount.objects.filter(user=owner).exists():  # another identity is theirs
            return
        sociallogin.connect(request, owner)
        note_linked(owner, sociallogin.account, Actor(owner.get_username()), by="verified address")

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        return True  # `pre_social_login` has refused the others

    @transaction.atomic
    def save_user(self, request: HttpRequest, sociallogin: Any, form: Any = None) -> User:
        user: User = super().save_user(request, sociallogin, form)
        actor = Actor(user.get_username(), address=request.META.get("REMOTE_ADDR") or "")
        note_linked(user, sociallogin.account, actor, by="new account")
        apply_groups(user, groups_of(sociallogin))
        if not user.is_staff:  # an operator by their groups needs none
            for invitation in _invitations_of(verified_address(sociallogin)):
                with suppress(Problem):  # used meanwhile
                    invitations.accept(invitation=invitation, user=user, actor=actor)
        return user


def refuse(request: HttpRequest, words: str) -> HttpResponse:
    """Back to the sign-in, which says why."""
    request.session[REFUSAL] = words
    return redirect("dashboard:login")


def verified_address(sociallogin: Any) -> str:
    """The identity's address if its provider checked it, else ""."""
    claims = sociallogin.account.extra_data
    if claims.get("email_verified") not in (True, "true"):
        return ""
    return str(claims.get("email") or "").strip().lower()


def proven_owners(address: str) -> list[User]:
    """Active accounts of the address, if an operator wrote it or its owner proved it."""
    people = get_user_model().objects.filter(email__iexact=address, is_active=True)
    unproven = EmailAddress.objects.filter(user__in=people, verified=False, email__iexact=address)
    return list(people.exclude(pk__in=unproven.values("user_id"))[:2])


def groups_of(sociallogin: Any) -> frozenset[str]:
    found = sociallogin.account.extra_data.get(settings.ENV.oidc_groups_claim)
    if isinstance(found, str):
        found = [found]
    return frozenset(each for each in found or () if isinstance(each, str))


def granted(groups: frozenset[str]) -> list[Grant]:
    return [grant for grant in settings.ENV.oidc_roles if grant.group in groups]


@transaction.atomic
def apply_groups(user: User, groups: frozenset[str]) -> None:
    """Gives and takes the roles that NEVE_OIDC_ROLES names. A superuser stays an operator."""
    named = settings.ENV.oidc_roles
    given = granted(groups)
    if any(grant.tenant is None for grant in named) and not user.is_superuser:
        is_operator = any(grant.tenant is None for grant in given)
        if user.is_staff != is_operator:
            user.is_staff = is_operator
            user.save(update_fields=["is_staff"])
    for tenant in Tenant.objects.filter(slug__in={grant.tenant for grant in named if grant.tenant}):
        roles = {grant.role for grant in given if grant.tenant == tenant.slug}
        present = Membership.objects.filter(user=user, tenant=tenant).first()
        if not roles:
            if present is not None:
                present.delete()
            continue
        role = Membership.Role.TEAM if Membership.Role.TEAM in roles else Membership.Role.VIEWER
        if present is None:
            Membership.objects.create(user=user, tenant=tenant, role=role)
        elif present.role != role:
            present.role = role
            present.save(update_fields=["role"])


def note_linked(user: User, account: Any, actor: Actor, *, by: str) -> None:
    claims = account.extra_data
    after = {"issuer": claims.get("iss"), "subject": claims.get("sub"), "by": by}
    record(actor=actor, tenant_id=None, action="identity.link", obj=user, after=after)


def _invitations_of(address: str) -> list[Invitation]:
    """Open ones of all tenants."""
    if not address:
        return []
    rows = Invitation.unscoped.select_related("tenant").filter(
        email=address, accepted_at=None, revoked_at=None, tenant__is_active=True
    )
    return list(rows.filter(expires_at__gt=timezone.now()).order_by("pk"))
