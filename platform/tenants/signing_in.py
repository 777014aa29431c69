"""Passwords and second factors: a limit on attempts, and their audit.

Every password goes through this backend, from whatever form, and every code of a second factor
through `attempt`. An attempt is written before it is checked, so that many at once cannot pass the
limit. Refused attempts write nothing: repeating them lengthens neither the audit trail nor the
lock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from tenants.models import AuditEvent

WINDOW = timedelta(minutes=10)
MOST_OF_NAME = 10  # wrong passwords of one name from one address in WINDOW
MOST_OF_ADDRESS = 100  # of all names from one address in WINDOW

KEPT_REFUSALS = 10_000  # the newest wrong passwords; older ones than WINDOW beyond these go


@dataclass(frozen=True)
class Door:
    """Names of its audit events, and how many wrong attempts of a name it takes in WINDOW.

    `is_any_address`: counted over all addresses, for a guess that few digits make likely.
    """

    trying: str
    good: str
    bad: str
    most_of_name: int | None = None  # None: MOST_OF_NAME
    is_any_address: bool = False


PASSWORD = Door("login.try", "login", "login.fail")
# Of somebody who is signed in, before a change of their own account.
PASSWORD_AGAIN = Door("login.try", "password.check", "login.fail")
# Six digits: ten guesses in ten minutes find a code once in about 15 years.
CODE = Door(
    *("second_factor.try", "second_factor.pass", "second_factor.fail"),
    most_of_name=10,
    is_any_address=True,
)
# Of a link that sets a new password, which is mailed: all are counted.
FORGOTTEN = Door(
    *("password.forgot", "password.forgot", "password.forgot"),
    most_of_name=3,
    is_any_address=True,
)
# Of a link that proves a new address, which is mailed to whatever address somebody types.
ADDRESS = Door(
    *("address.ask", "address.ask", "address.ask"),
    most_of_name=5,
    is_any_address=True,
)
UNSUCCESSFUL = (
    *(PASSWORD.trying, PASSWORD.bad, CODE.trying, CODE.bad),
    *(FORGOTTEN.bad, ADDRESS.bad),
)

Found = TypeVar("Found")


class SignInBackend(ModelBackend):
    """Django's accounts. A refusal stands in `request.locked_until`, for the page that asked.

    With NEVE_PASSWORD_LOGIN=off no password is right.
    """

    def authenticate(
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **others: Any,
    ) -> User | None:
        """Raises PermissionDenied while too many passwords were wrong."""
        if username is None or password is None or not settings.ENV.password_login:
            return None
        check = super().authenticate

        def user() -> User | None:
            return check(request, username=username, password=password, **others)

        return attempt(request, username, user, door=PASSWORD)


def attempt(
    request: HttpRequest | None,
    username: str,
    check: Callable[[], Found | None],
    *,
    door: Door,
) -> Found | None:
    """What `check` finds; None: the attempt was wrong.

    Raises PermissionDenied while too many were wrong.
    """
    address = request.META.get("REMOTE_ADDR", "") if request is not None else ""
    _refuse_locked(request, username, address, door)
    row = AuditEvent.unscoped.create(
        actor_name=username[:200],
        address=address[:64],
        request_id=getattr(request, "request_id", ""),
        action=door.trying,
        object_type="address",
        object_id=address[:64],
    )
    try:
        _refuse_locked(request, username, address, door, row=row)
    except PermissionDenied:
        row.delete()
        raise
    found = check()
    row.action = door.bad if found is None else door.good
    row.save(update_fields=["action"])
    return found


def is_password_of(request: HttpRequest, user: User, password: str) -> bool:
    """Whether somebody who is signed in knows their password. Raises PermissionDenied as above."""

    def found() -> User | None:
        return user if user.check_password(password) else None

    return attempt(request, user.get_username(), found, door=PASSWORD_AGAIN) is not None


def locked_until(
    username: str, address: str, *, door: Door = PASSWORD, row: AuditEvent | None = None
) -> datetime | None:
    """When the next attempt of this name may come from this address; None: now.

    `row`, an attempt, and later ones are not counted.
    """
    now = timezone.now()
    # An attempt whose process died stays a try, and counts as wrong.
    tried: QuerySet[AuditEvent] = AuditEvent.unscoped.filter(
        tenant=None,
        at__gt=now - WINDOW,
        action__in=(door.trying, door.bad),
    )
    if row is not None:
        tried = tried.filter(pk__lt=row.pk)
    here = tried.filter(object_type="address", object_id=address[:64])
    of_name = (tried if door.is_any_address else here).filter(actor_name=username[:200])
    ends = []
    for rows, most in ((of_name, door.most_of_name or MOST_OF_NAME), (here, MOST_OF_ADDRESS)):
        times = list(rows.order_by("-at").values_list("at", flat=True)[:most])
        if len(times) == most:
            ends.append(times[-1] + WINDOW)
    return max(ends, default=None)


def surplus() -> QuerySet[AuditEvent]:
    """Events of wrong passwords that may be deleted: a flood of them must not fill the table."""
    refused = AuditEvent.unscoped.filter(tenant=None, action__in=UNSUCCESSFUL)
    newest = refused.order_by("-pk").values_list("pk", flat=True)
    oldest_kept = newest[KEPT_REFUSALS : KEPT_REFUSALS + 1].first()
    old = refused.filter(at__lt=timezone.now() - WINDOW)
    return old.none() if oldest_kept is None else old.filter(pk__lte=oldest_kept)


def _refuse_locked(
    request: HttpRequest | None,
    username: str,
    address: str,
    door: Door,
    *,
    row: AuditEvent | None = None,
) -> None:
    until = locked_until(username, address, door=door, row=row)
    if until is None:
        return
    if request is not None:
        request.locked_until = until  # type: ignore[attr-defined]
    raise PermissionDenied("too many wrong attempts")
