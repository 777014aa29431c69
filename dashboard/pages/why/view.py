"""The page Why?: an answer by its address, or of a prompt that is posted and not kept."""

from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods

from base.problems import Problem
from catalog.models import Space
from contexts import making, why
from contexts.why import Answer
from dashboard.page import page, render_page
from dashboard.pages.why.selector import RequestList, drawn, examples, requests_of
from dashboard.scope import scope_of
from tenants.principal import Principal

MOST_PROMPT = 400_000  # characters


@page(*RequestList.takes())
@require_http_methods(["GET", "POST"])
def why_page(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    context: dict[str, Any] = {"most_prompt": MOST_PROMPT}
    asked = request.GET.get("q", "").strip()
    try:
        if request.method == "POST":
            text = request.POST.get("text", "")
            if _is_name(text):
                return redirect(scope.link("why", q=text.strip()))
            answer: Answer | None = _of_text(person, request.POST.get("in_space", ""), text)
        else:
            answer = why.ask(scope.tenants, asked, space=scope.space) if asked else None
    except Problem as problem:
        context["trouble"], answer = problem.detail, None
    if answer is not None:
        return render_page(
            request,
            person,
            "why",
            context | {"answer": answer, "strips": drawn(answer), "q": asked},
        )
    if "trouble" not in context and not asked:
        listing = RequestList(request, scope, requests_of(scope))
        if listing.wants_csv:
            return listing.csv()
        context |= {"listing": listing, "examples": examples(scope)}
    return render_page(request, person, "why", context | {"q": asked})


def _is_name(text: str) -> bool:
    found = text.strip()
    return bool(found) and len(found) <= why.MOST_TEXT and not any(map(str.isspace, found))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _of_text(person: Principal, number: str, text: str) -> Answer:
    """Raises Problem: malformed, and those of `making.tokens_of`."""
    if not text.strip() or len(text) > MOST_PROMPT:
        raise Problem("malformed", f"Paste 1 to {MOST_PROMPT:,} characters.", field="text")
    rows = person.rows(Space).filter(is_leaving=False).select_related("tenant")
    space = rows.filter(pk=number).first() if _is_number(number) else None
    if space is None:
        raise Problem("malformed", "Choose the space in which the prompt is asked.", field="space")
    return why.of_prompt(space, making.tokens_of(space, making.Wanted(text=text)))
