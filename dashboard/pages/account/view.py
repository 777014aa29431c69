"""The page of one's own account: password, address, second factor, sessions, identities, look."""

from collections.abc import Callable
from typing import Any, cast

from allauth.socialaccount.models import SocialAccount
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import mark_safe
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from base.problems import Problem
from dashboard.page import THEMES, page, render_page, theme_of
from dashboard.scope import ZONE_COOKIE, is_zone
from tenants import own_account, second_factor, sign_ins, single_sign_on
from tenants.links import absolute
from tenants.models import ApiKey, Membership
from tenants.principal import Principal, actor_of


def me(request: HttpRequest) -> User:
    """The signed-in person, which `page` saw to."""
    return cast(User, request.user)


YEAR_S = 365 * 86_400
ZONE_KEPT = "neve_zone_kept"  # cookie: the zone is chosen, so the browser's does not replace it


@page("done")
@require_GET
def account(request: HttpRequest, person: Principal) -> HttpResponse:
    return _show(request, person, {"done": DONE.get(request.GET.get("done", ""), "")})


DONE = {
    "password": "Your password is changed, and your other sessions have ended.",
    "address": "Open the link that was mailed to the new address; until then the old one holds.",
    "session": "The session has ended.",
    "sessions": "All other sessions have ended.",
    "off": "The second factor is off.",
    "unlinked": "The identity is unlinked.",
    "look": "Kept in this browser.",
}


@page()
@require_POST
def password(request: HttpRequest, person: Principal) -> HttpResponse:
    def change() -> None:
        own_account.require_owner(request, me(request), request.POST.get("present", ""))
        own_account.change_password(
            request,
            user=me(request),
            password=request.POST.get("new", ""),
            actor=actor_of(request, person),
        )

    return _act(request, person, "password", change)


@page()
@require_POST
def address(request: HttpRequest, person: Principal) -> HttpResponse:
    def link(token: str) -> str:
        return absolute(request, reverse("dashboard:prove-address", args=[token]))

    def change() -> None:
        own_account.require_owner(request, me(request), request.POST.get("present", ""))
        asked = request.POST.get("email", "")
        own_account.ask_to_prove(request, user=me(request), address=asked, link=link)

    return _act(request, person, "address", change)


@require_http_methods(["GET", "POST"])
def prove_address(request: HttpRequest, token: str) -> HttpResponse:
    """The page behind the mailed link. Opening it changes nothing: mail scanners open links."""
    facts: dict[str, Any] = {"theme": theme_of(request)}
    status = 200
    try:
        user, facts["address"] = own_account.asked_to_prove(token)
        facts |= {"name": user.get_username(), "is_owner": request.user == user}
        if request.method == "POST":
            own_account.prove(token, by=request.user)
            facts["is_proven"] = True
    except Problem as problem:
        facts["error"], status = problem.detail, problem.status
    answer = render(request, "pages/account/prove.html", facts, status=status)
    answer._has_been_logged = True  # type: ignore[attr-defined]  # Django would log the token
    return answer


@page()
@require_POST
def look(request: HttpRequest, person: Principal) -> HttpResponse:
    """Theme and zone of this browser; empty follows the system."""
    answer = redirect(f"{reverse('dashboard:account')}?done=look")
    theme, zone = request.POST.get("theme", ""), request.POST.get("zone", "").strip()
    kept: dict[str, str] = {"neve_theme": theme if theme in THEMES else ""}
    if is_zone(zone):
        kept |= {ZONE_COOKIE: zone, ZONE_KEPT: "1"}
    elif zone:
        return _show(request, person, {"error": "There is no such zone."}, status=400)
    else:
        kept[ZONE_KEPT] = ""
    for name, value in kept.items():
        if value:
            answer.set_cookie(
                name, value, max_age=YEAR_S, path=settings.SESSION_COOKIE_PATH, samesite="Lax"
            )
        else:
            answer.delete_cookie(name, path=settings.SESSION_COOKIE_PATH)
    return answer


@page()
@require_POST
def end_session(request: HttpRequest, person: Principal, sign_in_id: int) -> HttpResponse:
    """One's own; operators end everybody's."""
    row: UserSession = get_object_or_404(sign_ins.of(person), pk=sign_in_id)
    sign_ins.end(rows=[row], actor=actor_of(request, person))
    return redirect(f"{reverse('dashboard:account')}?done=session")


@page()
@require_POST
def end_others(request: HttpRequest, person: Principal) -> HttpResponse:
    sign_ins.end_others(request, me(request), actor_of(request, person))
    return redirect(f"{reverse('dashboard:account')}?done=sessions")


@page()
@require_POST
def link(request: HttpRequest, person: Principal) -> HttpResponse:
    """Confirms the person, then offers the way to the provider: a form may not lead there."""
    try:
        if not settings.ENV.oidc_url:
            raise Problem("conflict", "There is no provider of identities.")
        own_account.require_owner(request, me(request), request.POST.get("present", ""))
    except Problem as problem:
        return _show(request, person, {"error": problem.detail}, status=400)
    until = timezone.now().timestamp() + single_sign_on.LINK_WITHIN_S
    request.session[single_sign_on.MAY_LINK] = until
    return _show(request, person, {"may_link": True})


@page()
@require_POST
def unlink(request: HttpRequest, person: Principal, identity_id: int) -> HttpResponse:
    identity = get_object_or_404(SocialAccount, pk=identity_id, user=me(request))

    def change() -> None:
        own_account.require_owner(request, me(request), request.POST.get("present", ""))
        own_account.unlink(user=me(request), identity=identity, actor=actor_of(request, person))

    return _act(request, person, "unlinked", change)


# ---- the second factor, on a page of its own: people who must have it see no other before


@page()
@require_GET
def factor(request: HttpRequest, person: Principal) -> HttpResponse:
    return _factor(request, {})


@page()
@require_POST
def factor_on(request: HttpRequest, person: Principal) -> HttpResponse:
    user, actor = me(request), actor_of(request, person)
    try:
        own_account.require_owner(request, user, request.POST.get("present", ""))
        codes = second_factor.turn_on(
            request, user=user, code=request.POST.get("code", ""), actor=actor
        )
    except Problem as problem:
        return _factor(request, {"error": problem.detail}, status=400)
    sign_ins.end_others(request, user, actor)  # they have not passed
    return _factor(request, {"codes": codes})


@page()
@require_POST
def factor_off(request: HttpRequest, person: Principal) -> HttpResponse:
    try:
        if second_factor.is_required(me(request)):
            raise Problem("forbidden", "This platform requires a second factor of you.")
        _require_code(request)
    except Problem as problem:
        return _factor(request, {"error": problem.detail}, status=400)
    second_factor.turn_off(user=me(request), actor=actor_of(request, person))
    return redirect(f"{reverse('dashboard:account')}?done=off")


@page()
@require_POST
def factor_codes(request: HttpRequest, person: Principal) -> HttpResponse:
    try:
        _require_code(request)
    except Problem as problem:
        return _factor(request, {"error": problem.detail}, status=400)
    actor = actor_of(request, person)
    codes = second_factor.new_recovery_codes(user=me(request), actor=actor)
    return _factor(request, {"codes": codes})


def _require_code(request: HttpRequest) -> None:
    """Raises Problem (forbidden)."""
    try:
        is_right = second_factor.is_right(request, me(request), request.POST.get("code", ""))
    except PermissionDenied as error:
        raise Problem("forbidden", "Too many wrong codes. Try again in ten minutes.") from error
    if not is_right:
        raise Problem("forbidden", "The code is wrong, or was used before.")


def _factor(request: HttpRequest, facts: dict[str, Any], *, status: int = 200) -> HttpResponse:
    user = me(request)
    facts |= {
        "theme": theme_of(request),
        "is_on": second_factor.is_on(user),
        "is_required": second_factor.is_required(user),
        "has_password": user.has_usable_password(),
    }
    if not facts["is_on"]:
        secret = second_factor.new_secret(request)
        url, svg = second_factor.picture(user, secret)
        # Drawn by the library from a base32 text, a user name in percent-encoding and our host.
        facts |= {"secret": secret, "url": url, "svg": mark_safe(svg)}  # noqa: S308
    else:
        facts["codes_left"] = second_factor.recovery_codes_left(user)
    return render(request, "pages/account/factor.html", facts, status=status)


def _act(
    request: HttpRequest, person: Principal, done: str, change: Callable[[], None]
) -> HttpResponse:
    try:
        change()
    except Problem as problem:
        return _show(request, person, {"error": problem.detail}, status=400)
    return redirect(f"{reverse('dashboard:account')}?done={done}")


def _show(
    request: HttpRequest, person: Principal, facts: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    user = me(request)
    memberships = Membership.objects.filter(user=user, tenant__is_active=True)
    facts |= {
        "has_password": user.has_usable_password() and settings.ENV.password_login,
        "memberships": memberships.select_related("tenant").order_by("tenant__slug"),
        "factor_is_on": second_factor.is_on(user),
        "sessions": sign_ins.own(person),
        "session_key": request.session.session_key,
        "identities": SocialAccount.objects.filter(user=user).order_by("pk"),
        "sso": settings.ENV.oidc_name if settings.ENV.oidc_url else "",
        "mail_is_on": bool(settings.ENV.mail_url),
        "keys": person.rows(ApiKey).filter(revoked_at=None).count(),
        "zone_is_kept": ZONE_KEPT in request.COOKIES,
    }
    return render_page(request, person, "account", facts, status=status)
