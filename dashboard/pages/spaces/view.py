"""The pages Spaces and Compare two spaces."""

from typing import Any

from django.http import Http404, HttpRequest, HttpResponseBase
from django.views.decorators.http import require_GET

from catalog.clashes import compared, flags_to_be
from catalog.models import Space
from contexts.break_even import AT_TOKENS
from dashboard.page import page, render_page
from dashboard.pages.spaces.selector import SpaceList, spaces_of, splits
from dashboard.scope import scope_of
from tenants.principal import Principal


@page(*SpaceList.takes())
@require_GET
def spaces(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    rows = spaces_of(scope)
    if scope.space is not None:
        rows = rows.filter(pk=scope.space.pk)
    listing = SpaceList(request, scope, rows)
    if listing.wants_csv:
        return listing.csv()
    context = {"listing": listing, "splits": splits(scope), "at_tokens": AT_TOKENS}
    return render_page(request, person, "spaces", context)


@page("a", "b")
@require_GET
def compare(request: HttpRequest, person: Principal) -> HttpResponseBase:
    """Without `a` or `b`: the form alone."""
    scope = scope_of(request, person)
    context: dict[str, Any] = {"choices": scope.spaces}
    this, other = (_space(person, request.GET.get(name, "")) for name in ("a", "b"))
    if this is not None and other is not None:
        found = sorted(compared(this, other), key=lambda each: not each.differs)
        differing = [each for each in found if each.differs]
        context |= {
            "fields": found,
            "differing": differing,
            "to_this": flags_to_be([_turned(each) for each in differing]),
            "to_other": flags_to_be(differing),
        }
        context["choices"] = list(dict.fromkeys([*scope.spaces, this, other]))
    context |= {"this": this, "other": other}
    return render_page(request, person, "spaces-compare", context)


def _turned(found: Any) -> Any:
    return type(found)(found.field, found.other, found.this, found.fix)


def _space(person: Principal, number: str) -> Space | None:
    if not number:
        return None
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise Http404("a space is a number")
    found = person.rows(Space).select_related("tenant").filter(pk=number).first()
    if found is None:
        raise Http404("no such space")
    return found
