"""Making and rotating keys from a form. A secret is shown once, in the answer that makes it.

A form makes one key even if it is sent twice: its token is claimed like an Idempotency-Key. So no
secret is kept for a redirect.
"""

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest
from django.utils import timezone

from base import answers
from base.problems import Problem
from catalog.models import Space
from dashboard.snippets import endpoint_of, model_of
from neve.typed import parse_time
from tenants.issuing import make_key
from tenants.models import ApiKey, Tenant
from tenants.principal import Principal, actor_of, rows_of

MOST_LIFE_S = 10 * 366 * 86_400
# What a form offers: value, words. "": the role's own scopes.
SCOPES = (
    ("", "what its role may (read, write)"),
    ("read", "read only"),
    ("contexts", "contexts only"),
    ("read,write,keys", "read, write, and make keys"),
)


@dataclass(frozen=True)
class Made:
    """A new key. `secret`: the whole key; `snippet`: commands that use it."""

    key: ApiKey
    secret: str
    snippet: str


def roles_for(person: Principal) -> tuple[str, ...]:
    """The roles of keys that the person may make, the first is offered."""
    if person.is_operator:
        return ("node", "team", "operator")
    return ("team",) if any(person.may_issue_for(one.pk) for one in person.tenants) else ()


def form_facts(person: Principal) -> dict[str, Any]:
    """What the form of a new key needs."""
    return {
        "once": secrets.token_urlsafe(16),
        "roles": roles_for(person),
        "key_tenants": [one for one in person.tenants if person.may_issue_for(one.pk)],
        "key_scopes": SCOPES,
    }


def make_from(
    request: HttpRequest, person: Principal, *, tenant: Tenant | None = None
) -> dict[str, Any]:
    """Facts for the page, of a form that was sent. `tenant`: of the page, if it has one.

    `key_error` and `typed` of a form that is wrong.
    """
    return _refusals(
        request, lambda: once(request, lambda: _make(request, person, tenant), request.POST)
    )


def once(request: HttpRequest, make: Callable[[], tuple[ApiKey, str]], form: Any) -> dict[str, Any]:
    """Facts of the made key, or that the form was sent before. Raises: what `make` raises; Problem
    when the form was sent before with other values, or is still being answered."""
    sent = {name: value for name, value in form.items() if name != "csrfmiddlewaretoken"}
    claimed = answers.claim(
        caller=f"person:{request.user.pk}",
        key=form.get("once") or secrets.token_urlsafe(16),
        fingerprint=hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest(),
    )
    if claimed.status is not None:
        return {"made_before": claimed.body}
    try:
        key, secret = make()
    except BaseException:
        answers.release(claimed)
        raise
    answers.keep(claimed, status=201, body=key.name)
    return {"made": made_of(request, key, secret)}


def made_of(request: HttpRequest, key: ApiKey, secret: str) -> Made:
    return Made(key, secret, _snippet(endpoint_of(request), key, secret))


def _refusals(request: HttpRequest, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return act()
    except ValidationError as error:
        return {"key_error": " ".join(error.messages), "typed": request.POST}
    except Problem as problem:
        return {"key_error": problem.detail, "typed": request.POST}


def _make(request: HttpRequest, person: Principal, tenant: Tenant | None) -> tuple[ApiKey, str]:
    form = request.POST
    role, name = form.get("role", ""), form.get("name", "").strip()
    if role not in ApiKey.Role.values:
        raise ValidationError("Choose a role.")
    if role not in roles_for(person):
        raise Http404("not for this role")
    if not name:
        raise ValidationError("Give it a name that says who will use it.")
    if role == ApiKey.Role.OPERATOR:
        tenant = None
    elif tenant is None:
        slug = form.get("tenant", "").strip()
        tenant = next((one for one in person.tenants if one.slug == slug), None)
        if tenant is None and slug:
            raise ValidationError(f"You see no tenant {slug[:63]}.")
        if tenant is None:
            raise ValidationError("Name the tenant that the key is for.")
    return make_key(
        caller=person,
        tenant=tenant,
        role=role,
        name=name,
        scopes=None if role == ApiKey.Role.NODE else _scopes(form.get("scopes", "")),
        expires_at=end_of(form.get("ends", "")),
        actor=actor_of(request, person),
    )


def _scopes(text: str) -> list[str] | None:
    if not text:
        return None
    if text not in dict(SCOPES):
        raise ValidationError("Choose what the key may do.")
    return text.split(",")


def end_of(text: str) -> datetime | None:
    """ "90 d" from now; None for "never" and nothing. Raises ValidationError."""
    try:
        life_s = parse_time(text)
    except ValueError as error:
        raise ValidationError(f"Ends: {error}.") from error
    if life_s is None:
        return None
    if life_s > MOST_LIFE_S:
        raise ValidationError("Ends: at most 3,660 d, or never.")
    return timezone.now() + timedelta(seconds=life_s)


def _snippet(endpoint: str, key: ApiKey, secret: str) -> str:
    """As docs/nodes.md and docs/teams.md have them."""
    lines = [f"export NEVE_ENDPOINT={endpoint}", f"export NEVE_API_KEY={secret}"]
    if key.role == ApiKey.Role.NODE and key.tenant is not None:
        lines += [
            f"vllm serve {model_of(_newest_space(key.tenant))} \\",
            '  --kv-transfer-config \'{"kv_connector": "NeveConnector", "kv_role": "kv_both",',
            '    "kv_load_failure_policy": "recompute"}\'',
        ]
    else:
        lines.append('curl -H "Authorization: Bearer $NEVE_API_KEY" "$NEVE_ENDPOINT/api/v1/me"')
    return "\n".join(lines)


def _newest_space(tenant: Tenant) -> Space | None:
    found: Space | None = rows_of(Space, (tenant,)).order_by("-created_at").first()
    return found
