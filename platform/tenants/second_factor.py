"""The second factor: codes of an authenticator app (TOTP) and recovery codes.

django-allauth keeps the rows (`allauth.mfa`) and asks for the code between password and session.
Each session notes whether its person has passed, has none, or owes one; `Gate` lets no session in
that owes one, by whatever way it was made, and of those who must have one only to the page that
sets it up. Pages, REST and the admin are behind `Gate`; sockets ask `may_enter`.
"""

import hmac
import time
from collections.abc import Callable
from typing import Any

from allauth.account.authentication import get_authentication_records
from allauth.account.internal.flows.login import record_authentication
from allauth.account.stages import LoginStage, LoginStageController
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import (
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
    yield_hotp_counters_from_time,
)
from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.auth.signals import user_logged_in
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import Resolver404, resolve, reverse

from base.problems import Problem
from base.sealing import Unsealable, seal, unseal
from tenants import signing_in
from tenants.audit import Actor, record

PURPOSE = "second-factor"
NOTE = "neve_second_factor"  # of a session
PASSED, NONE, OWED = "passed", "none", "owed"
NEW_SECRET = "neve_totp_secret"  # noqa: S105  of a session, until its first code proves it
OPTIONAL, OPERATORS, EVERYONE = "optional", "operators", "everyone"
# What a person without the second factor that they must have may open: to set it up, or leave.
OPEN_PAGES = frozenset(
    f"dashboard:{name}" for name in ("second-factor", "second-factor-on", "logout", "login")
)


class Sealed(DefaultMFAAdapter):  # type: ignore[misc]
    """Seals secrets in the database, and names the platform in the app."""

    def encrypt(self, text: str) -> str:
        return seal(text.encode(), purpose=PURPOSE).decode()

    def decrypt(self, encrypted_text: str) -> str:
        return unseal(encrypted_text.encode(), purpose=PURPOSE).decode()

    def get_totp_issuer(self) -> str:
        return f"Neve {settings.ENV.url.hostname or ''}".strip()


class Stage(LoginStage):  # type: ignore[misc]
    """Between the password (or the provider of identities) and the session."""

    key = "second_factor"
    urlname = "dashboard:login-code"

    def handle(self) -> tuple[HttpResponse | None, bool]:
        user, kwargs = self.login.user, self.login.signal_kwargs or {}
        if "sociallogin" in kwargs and settings.ENV.oidc_second_factor == "provider":
            record_authentication(self.request, user, method="mfa", type="provider")
            return None, True
        if user is None or not is_on(user):
            return None, True
        return redirect(self.urlname), True


def pending(request: HttpRequest) -> Stage | None:
    """The sign-in of this browser that waits for a code."""
    stage: Stage | None = LoginStageController.enter(request, Stage.key)
    return stage


def pass_with(request: HttpRequest, stage: Stage, code: str) -> HttpResponse | None:
    """Signs in; None: a wrong code. Raises PermissionDenied after too many wrong ones."""
    user = stage.login.user
    used = signing_in.attempt(
        request, user.get_username(), lambda: _use(user, code), door=signing_in.CODE
    )
    if used is None:
        return None
    record_authentication(request, user, method="mfa", type=used)
    answer: HttpResponse = stage.exit()
    return answer


def is_right(request: HttpRequest, user: User, code: str) -> bool:
    """Uses a code of somebody who is signed in. Raises PermissionDenied as `pass_with`."""
    name = user.get_username()
    return (
        signing_in.attempt(request, name, lambda: _use(user, code), door=signing_in.CODE)
        is not None
    )


def is_on(user: User) -> bool:
    rows = Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP)
    return bool(rows.exists())


def is_required(user: User) -> bool:
    wanted = settings.ENV.second_factor
    return wanted == EVERYONE or (wanted == OPERATORS and user.is_staff)


def new_secret(request: HttpRequest) -> str:
    """Of the browser's session, the same until it is used."""
    if NEW_SECRET not in request.session:
        request.session[NEW_SECRET] = generate_totp_secret()
    return str(request.session[NEW_SECRET])


def picture(user: User, secret: str) -> tuple[str, str]:
    """The `otpauth:` address of a secret, and its QR code as SVG."""
    adapter = Sealed()
    url = adapter.build_totp_url(user, secret)
    svg = adapter.build_totp_svg(url)
    return url, svg[svg.index("<svg") :]


@transaction.atomic
def turn_on(request: HttpRequest, *, user: User, code: str, actor: Actor) -> list[str]:
    """Returns the recovery codes. Raises Problem (malformed) for a wrong code, conflict."""
    if is_on(user):
        raise Problem("conflict", "The second factor is on already.")
    secret = new_secret(request)
    counter = _counter_of(secret, code, after=-1)
    if counter is None:
        raise Problem(
            "malformed", "The code is wrong: do the clocks of app and platform agree?", field="code"
        )
    sealed = Sealed().encrypt(secret)
    made = Authenticator.objects.create(
        user=user, type=Authenticator.Type.TOTP, data={"secret": sealed, "counter": counter}
    )
    del request.session[NEW_SECRET]
    request.session[NOTE] = PASSED
    record(actor=actor, tenant_id=None, action="second_factor.on", obj=user, after={"type": "totp"})
    codes: list[str] = _recovery_of(made.user).get_unused_codes()
    return codes


@transaction.atomic
def turn_off(*, user: User, actor: Actor) -> bool:
    """For a person who gave a code, and for operators whose colleague lost theirs."""
    found = Authenticator.objects.filter(user=user)
    was_on = bool(found.delete()[0])
    if was_on:
        before = {"type": "totp"}
        record(actor=actor, tenant_id=None, action="second_factor.off", obj=user, before=before)
    return was_on


@transaction.atomic
def new_recovery_codes(*, user: User, actor: Actor) -> list[str]:
    """Older ones stop working."""
    Authenticator.objects.filter(user=user, type=Authenticator.Type.RECOVERY_CODES).delete()
    record(actor=actor, tenant_id=None, action="second_factor.recovery_codes", obj=user)
    codes: list[str] = _recovery_of(user).get_unused_codes()
    return codes


def recovery_codes_left(user: User) -> int:
    row = Authenticator.objects.filter(user=user, type=Authenticator.Type.RECOVERY_CODES).first()
    try:
        return 0 if row is None else len(RecoveryCodes(row).get_unused_codes())
    except Unsealable:
        return 0


def _recovery_of(user: User) -> Any:
    return RecoveryCodes.activate(user)


def _use(user: User, code: str) -> str | None:
    """The kind of the code, which works once; None: it is wrong."""
    code = "".join(code.split()).replace("-", "")
    try:
        with transaction.atomic():
            return _use_once(user, code)
    except Unsealable:  # another NEVE_SECRET_KEY: `manage.py reset_second_factor` helps
        return None


def _use_once(user: User, code: str) -> str | None:
    rows = Authenticator.objects.select_for_update().filter(user=user)
    for row in rows.filter(type=Authenticator.Type.TOTP):
        secret = Sealed().decrypt(row.data["secret"])
        counter = _counter_of(secret, code, after=row.data.get("counter", -1))
        if counter is not None:
            row.data["counter"] = counter
            row.save(update_fields=["data"])
            row.record_usage()
            return "totp"
    for row in rows.filter(type=Authenticator.Type.RECOVERY_CODES):
        if RecoveryCodes(row).validate_code(code):
            return "recovery code"
    return None


def _counter_of(secret: str, code: str, *, after: int) -> int | None:
    """The time step of a code. One that was used, or an older one, is wrong (RFC 6238, 5.2)."""
    found = None
    for counter in yield_hotp_counters_from_time():
        right = format_hotp_value(hotp_value(secret, counter))
        if hmac.compare_digest(right.encode(), code.encode()) and counter > after:
            found = counter
    return found


# ---- sessions


def connect() -> None:
    user_logged_in.connect(_note, dispatch_uid="neve_second_factor")


def _note(sender: Any, request: HttpRequest, user: User, **_: Any) -> None:
    """Runs at each sign-in, by whatever way."""
    records = get_authentication_records(request, user)
    if any(each.get("method") == "mfa" for each in records):
        request.session[NOTE] = PASSED
    else:
        request.session[NOTE] = OWED if is_on(user) else NONE


def may_enter(user: User, session: Any) -> bool:
    """Whether a signed-in session may see anything beside the page that sets the factor up."""
    note = _note_of(user, session)
    return note == PASSED or (note == NONE and not is_required(user))


def _note_of(user: User, session: Any) -> str:
    note = session.get(NOTE)
    if note is None:  # of before the platform knew second factors
        note = session[NOTE] = OWED if is_on(user) else NONE
    return str(note)


class Gate:
    """Middleware, behind the one that knows the person."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        user = request.user
        if user.is_authenticated and not may_enter(user, request.session):
            if request.session[NOTE] == OWED:
                logout(request)
            elif request.path_info.startswith(("/api/", "/cache/", "/metrics", "/ws/")):
                request.user = AnonymousUser()
            elif _name_of(request.path_info) not in OPEN_PAGES:
                return redirect(reverse("dashboard:second-factor"))
        return self.get_response(request)


def _name_of(path: str) -> str:
    try:
        return str(resolve(path).view_name)
    except Resolver404:
        return ""


def signed_in_lately(request: HttpRequest, *, within_s: float = 600) -> bool:
    """Whether this session's sign-in is that young: for people without a password."""
    records = get_authentication_records(request, request.user)
    return any(time.time() - each.get("at", 0) < within_s for each in records)
