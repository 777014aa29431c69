"""The page Families, and its one action."""

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from catalog.families import let_try_again
from catalog.models import FamilyMember
from dashboard.page import page, render_page, require_operator
from dashboard.pages.families.lists import MemberList
from dashboard.pages.families.selector import families_without_models, member_rows
from dashboard.scope import scope_of
from tenants.principal import Principal, actor_of


@page(*MemberList.takes())
@require_GET
def families(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    lonely = families_without_models(scope.tenants)
    listing = MemberList(request, scope, member_rows(scope.tenants), lonely=lonely)
    if listing.wants_csv:
        return listing.csv()
    return render_page(request, person, "families", {"listing": listing})


@page()
@require_POST
def try_again(request: HttpRequest, person: Principal, member_id: int) -> HttpResponse:
    """Forgets what was found of a model: its engines prove their KV anew."""
    require_operator(person)
    member = get_object_or_404(person.rows(FamilyMember), pk=member_id)
    let_try_again(member=member, actor=actor_of(request, person))
    return redirect("dashboard:families")
