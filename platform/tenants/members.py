"""Memberships: people's roles in tenants. `tenants.people_audit` audits the changes."""

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from base.preconditions import require_unchanged
from base.problems import Problem
from tenants.models import Membership, Tenant


def person_named(name: str) -> User:
    """The account with this user name, or the only one with this e-mail address.

    Raises Problem (malformed).
    """
    people = get_user_model().objects
    found = list(people.filter(username=name)[:1]) or list(people.filter(email__iexact=name)[:2])
    if len(found) != 1:
        words = "several accounts have this address" if found else "there is no such account"
        raise Problem("malformed", f"user: {words}; operators make accounts.", field="user")
    return found[0]


def add_member(*, tenant: Tenant, user: User, role: str) -> Membership:
    """Raises Problem (conflict) for a member."""
    try:
        with transaction.atomic():
            return Membership.objects.create(tenant=tenant, user=user, role=role)
    except IntegrityError as error:
        raise Problem("conflict", f"{user} is a member of {tenant}: change the role.") from error


@transaction.atomic
def change_member(*, membership: Membership, role: str) -> Membership:
    """Holds from the person's next request on."""
    require_unchanged(membership)
    membership.role = role
    membership.save(update_fields=["role"])
    return membership


@transaction.atomic
def remove_member(*, membership: Membership) -> None:
    """Ends the person's access with their next request. Keys that they made stay."""
    require_unchanged(membership)
    membership.delete()
