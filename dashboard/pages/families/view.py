"""The page Families, and its one action."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from catalog.families import let_try_again
from catalog.models import FamilyMember
from dashboard.page import chosen_tenants, page, render_page, require_operator
from dashboard.pages.families.selector import family_rows
from tenants.principal import Principal, actor_of


@page("tenant")
@require_GET
def families(request: HttpRequest, person: Principal) -> HttpResponse:
    rows = family_rows(chosen_tenants(request, person))
    return render_page(request, person, "families", {"rows": rows})


@page()
@require_POST
def try_again(request: HttpRequest, person: Principal, member_id: int) -> HttpResponse:
    """Forgets what was found of a model: its engines prove their KV anew."""
    require_operator(person)
    member = get_object_or_404(person.rows(FamilyMember), pk=member_id)
    let_try_again(member=member, actor=actor_of(request, person))
    return redirect("dashboard:families")
