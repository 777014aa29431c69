"""The page API keys: operators make and revoke them; a secret is shown once, when it is made.

A form makes one key even if it is sent twice: its token is claimed like an Idempotency-Key. So no
secret is kept for a redirect.
"""

import hashlib
import json
import secrets
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from base import answers
from base.problems import Problem
from dashboard.page import page, part_of, render_page, require_operator
from tenants.issuing import revoke_key
from tenants.models import ApiKey
from tenants.principal import Principal, actor_of
from tenants.services import issue_key

ROWS = 50
MOST_DAYS = 3650


@page("page")
@require_http_methods(["GET", "POST"])
def keys(request: HttpRequest, person: Principal) -> HttpResponse:
    context: dict[str, object] = {}
    if request.method == "POST":
        require_operator(person)
        try:
            context = _make_once(request, person)
        except ValidationError as error:
            context = {"error": " ".join(error.messages), "typed": request.POST}
        except Problem as problem:
            context = {"error": f"This form was sent before. {problem.detail}"}
    found = person.rows(ApiKey).select_related("tenant")
    context["rows"] = part_of(request, found, ROWS)
    context["now"] = timezone.now()
    context["once"] = secrets.token_urlsafe(16)
    return render_page(request, person, "keys", context, status=400 if "error" in context else 200)


@page()
@require_http_methods(["GET", "POST"])
def revoke(request: HttpRequest, person: Principal, key_id: int) -> HttpResponse:
    """GET says what stops and asks; POST does it."""
    require_operator(person)
    key = get_object_or_404(person.rows(ApiKey), pk=key_id)
    if request.method == "POST":
        revoke_key(caller=person, key=key, actor=actor_of(request, person))
        return redirect("dashboard:keys")
    context = {"asking": key, "rows": [key], "now": timezone.now()}
    return render_page(request, person, "keys", context)


def _make_once(request: HttpRequest, person: Principal) -> dict[str, object]:
    """Facts for the page. Raises: ValidationError for a wrong form; Problem when the form was sent
    before with other values, or is still being answered."""
    sent = {name: value for name, value in request.POST.items() if name != "csrfmiddlewaretoken"}
    claimed = answers.claim(
        caller=f"person:{request.user.pk}",
        key=request.POST.get("once") or secrets.token_urlsafe(16),
        fingerprint=hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest(),
    )
    if claimed.status is not None:
        return {"made_before": claimed.body}
    try:
        key, secret = _make(request, person)
    except BaseException:
        answers.release(claimed)
        raise
    answers.keep(claimed, status=201, body=key.name)
    return {"made": key, "secret": secret}


def _make(request: HttpRequest, person: Principal) -> tuple[ApiKey, str]:
    form = request.POST
    role, name = form.get("role", ""), form.get("name", "").strip()
    if role not in ApiKey.Role.values:
        raise ValidationError("Choose a role.")
    if not name:
        raise ValidationError("Give it a name that says who will use it.")
    tenant = None
    if role != ApiKey.Role.OPERATOR:
        slug = form.get("tenant", "")
        tenant = next((one for one in person.tenants if one.slug == slug), None)
        if tenant is None:
            raise ValidationError("Choose the tenant that the key is for.")
    return issue_key(
        tenant=tenant,
        role=role,
        name=name,
        expires_at=_expiry(form.get("days", "")),
        actor=actor_of(request, person),
    )


def _expiry(days: str) -> datetime | None:
    if not days.strip():
        return None
    if not days.isdigit() or not 0 < int(days) <= MOST_DAYS:
        raise ValidationError(f"Days: a number from 1 to {MOST_DAYS}, or nothing for no end.")
    return timezone.now() + timedelta(days=int(days))
