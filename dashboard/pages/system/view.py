"""The page System: for operators what to look after; prices, which operators change."""

from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.dateparse import parse_date
from django.views.decorators.http import require_http_methods

from base.problems import Problem
from dashboard.page import page, render_page, require_operator
from dashboard.pages.system import checks
from neve.planner.prices import LIST_PRICES_FROM, PRICE_NAMES
from planning import prices
from planning.models import PriceVersion
from tenants.principal import Principal, actor_of

LABELS = {
    "gpu_hour": "One GPU, an hour",
    "hot_gib_hour": "One GiB hot, an hour",
    "cold_gib_month": "One GiB in S3, a month",
    "put_1000": "1,000 PUT, POST, COPY, LIST",
    "get_1000": "1,000 GET, HEAD",
    "egress_gb": "One GB read from S3",
}


@page()
@require_http_methods(["GET", "POST"])
def system(request: HttpRequest, person: Principal) -> HttpResponse:
    """POST changes prices from a day on."""
    context: dict[str, Any] = {}
    if request.method == "POST":
        require_operator(person)
        try:
            _change(request, person)
        except Problem as problem:
            context = {"error": problem.detail, "typed": request.POST}
        else:
            return redirect("dashboard:system")
    versions = prices.versions()
    now = prices.in_force(prices.today(), versions)
    typed = context.get("typed", {})
    context |= {
        "now": now,
        "list_prices_from": LIST_PRICES_FROM,
        "list_prices": now.valid_from == LIST_PRICES_FROM,
        "stamp": _stamp(versions),
        "day": typed.get("valid_from") or prices.today().isoformat(),
        "currency": typed.get("currency") or now.currency,
        "fields": [
            (name, LABELS[name], typed.get(name) or prices.shown(getattr(now, name)))
            for name in PRICE_NAMES
        ],
        "versions": [
            (version, [prices.shown(getattr(version, name)) for name in PRICE_NAMES])
            for version in versions
        ],
        "labels": [LABELS[name] for name in PRICE_NAMES],
        "parts": checks.parts() if person.is_operator else [],
    }
    return render_page(
        request, person, "system", context, status=400 if "error" in context else 200
    )


def _stamp(versions: list[PriceVersion]) -> str:
    """Changes with every change of prices."""
    return max(version.updated_at for version in versions).isoformat()


def _change(request: HttpRequest, person: Principal) -> None:
    """Raises Problem: malformed; precondition-failed if the prices changed since the form."""
    form = request.POST
    if form.get("stamp") != _stamp(prices.versions()):
        raise Problem(
            "precondition-failed", "Somebody changed the prices meanwhile: look again, then save."
        )
    changes: dict[str, Any] = {name: _amount(name, form.get(name, "")) for name in PRICE_NAMES}
    prices.change_prices(
        actor=actor_of(request, person),
        valid_from=_day(form.get("valid_from", "")),
        currency=form.get("currency", "").strip(),
        **changes,
    )


def _amount(name: str, text: str) -> Decimal:
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or -amount.as_tuple().exponent > 9:  # type: ignore[operator]
        raise Problem(
            "malformed", f"{LABELS[name]}: need a number such as 2.35, at most 9 decimals.",
            field=name,
        )  # fmt: skip
    return amount


def _day(text: str) -> date:
    try:
        day = parse_date(text.strip())
    except ValueError:
        day = None
    if day is None:
        raise Problem("malformed", "From: need a day such as 2026-12-01.", field="valid_from")
    return day
