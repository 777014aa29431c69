"""The page Explorer."""

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.views.decorators.http import require_GET

from catalog.measures import MEASURES
from catalog.slices import measure_named
from dashboard import marks
from dashboard.page import page, render_page
from dashboard.pages.explorer.selector import (
    AGAINST_WORDS,
    SPLIT_WORDS,
    ChangeList,
    chart_of,
    explorer_of,
    list_class,
    split_of,
    text,
    twin_rows,
)
from dashboard.scope import scope_of
from tenants.principal import Principal

MOST_MARKS = 8  # of the list beside the charts


@page("measure", "split", "against", *ChangeList.takes())
@require_GET
def explorer(request: HttpRequest, person: Principal) -> HttpResponseBase:
    scope = scope_of(request, person)
    measure = measure_named(request.GET.get("measure") or "hit_rate")
    split = split_of(scope, measure, request.GET.get("split", ""))
    found = explorer_of(scope, measure, split, request.GET.get("against") or "before")
    listing = list_class(found)(request, scope, found.table.rows)
    if listing.wants_csv:
        return listing.csv()
    chart = chart_of(found, scope)
    splits = [
        (name, words, scope.here(split=name, page=None, sort=None, cols=None))
        for name, words in SPLIT_WORDS.items()
        if name in measure.splits
    ]
    context = {
        "found": found,
        "listing": listing,
        "measures": MEASURES.values(),
        "splits": splits,
        "against": AGAINST_WORDS,
        "chart": chart,
        "twin": twin_rows(chart, measure),
        "total": text(measure, found.table.total.value),
        "marks": [
            (mark, marks.words_of(mark), marks.url_of(mark, scope))
            for mark in found.marks[:MOST_MARKS]
        ],
        "more_marks": max(0, len(found.marks) - MOST_MARKS),
        "fixed": scope.here(
            range=None, from_=found.span.start_ts, to=min(found.span.end_ts, int(found.now_s))
        ),
    }
    return render_page(request, person, "explorer", context)
