"""The page Tenants, and the form of a new one: quota, policy and first key at once."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET, require_http_methods

from base.problems import Problem
from dashboard.page import page, render_page, require_operator
from dashboard.pages.keys import making
from dashboard.pages.tenant.actions import no_room
from dashboard.pages.tenants.lists import TenantList
from dashboard.pages.tenants.selector import tenant_rows
from dashboard.scope import scope_of
from neve.typed import parse_size, size_typed
from retention.presets import BY_NAME, PRESETS
from retention.services import set_policy
from tenants import issuing, services
from tenants.models import ApiKey
from tenants.principal import Principal, actor_of

FIELDS = ("slug", "name", "hot_bytes", "cold_bytes", "preset", "key")
LABELS = {"slug": "Short name", "hot_bytes": "Hot quota", "cold_bytes": "Cold quota"}


@page(*TenantList.takes())
@require_GET
def tenants(request: HttpRequest, person: Principal) -> HttpResponse:
    scope = scope_of(request, person)
    listing = TenantList(request, scope, tenant_rows(scope.tenants, scope.window))
    if listing.wants_csv:
        return listing.csv()  # type: ignore[return-value]
    return render_page(request, person, "tenants", {"listing": listing})


@page()
@require_http_methods(["GET", "POST"])
def tenant_new(request: HttpRequest, person: Principal) -> HttpResponse:
    """Makes a tenant with its quota, policy and a node key, or nothing."""
    require_operator(person)
    facts: dict[str, Any] = {
        "presets": PRESETS,
        "typed": {"cold_bytes": size_typed(services.DEFAULT_COLD_BYTES), "key": "first node"},
        "errors": {},
        **{name: value for name, value in making.form_facts(person).items() if name == "once"},
    }
    if request.method == "POST":
        facts |= {"typed": request.POST}
        facts |= _made(request, person)
    status = 400 if facts["errors"] else 200
    return render_page(request, person, "tenant_new", facts, status=status)


def _made(request: HttpRequest, person: Principal) -> dict[str, Any]:
    try:
        return making.once(request, lambda: _make(request, person), request.POST)
    except ValidationError as error:
        named = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}
        return {"errors": {name: " ".join(words) for name, words in named.items()}}
    except Problem as problem:
        if problem.kind == "hot-overcommit":
            return {"errors": {"hot_bytes": no_room(problem)}, "may_overcommit": True}
        field = str(problem.members.get("field", ""))
        return {"errors": {field: problem.detail}}


@transaction.atomic
def _make(request: HttpRequest, person: Principal) -> tuple[ApiKey, str]:
    """Raises ValidationError by field, Problem."""
    form, actor = request.POST, actor_of(request, person)
    sizes = _sizes(form)
    preset = BY_NAME.get(form.get("preset", ""))
    if preset is None:
        raise ValidationError({"preset": "Choose a policy."})
    slug = form.get("slug", "").strip()
    tenant = services.create_tenant(
        slug=slug,
        name=form.get("name", "").strip() or slug,
        overcommit="overcommit" in form,
        actor=actor,
        **sizes,
    )
    if preset.values:
        set_policy(tenant=tenant, actor=actor, **preset.values)
    return issuing.make_key(
        caller=person,
        tenant=tenant,
        role=ApiKey.Role.NODE,
        name=form.get("key", "").strip() or "first node",
        actor=actor,
    )


def _sizes(form: Any) -> dict[str, Any]:
    """The quota; an empty hot quota is the default. Raises ValidationError by field."""
    sizes: dict[str, Any] = {}
    errors = {}
    for name in ("hot_bytes", "cold_bytes"):
        text = form.get(name, "").strip()
        if not text:
            continue
        try:
            sizes[name] = parse_size(text)
        except ValueError as error:
            errors[name] = f"{LABELS[name]}: {error}."
    if errors:
        raise ValidationError(errors)
    return sizes
