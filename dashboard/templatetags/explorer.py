"""Cells of the Explorer's table."""

from datetime import UTC, datetime

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from catalog.slices import Row
from dashboard.pages.explorer import selector
from neve.planner.causes import cause_of

register = template.Library()


@register.simple_tag
def spark(row: Row) -> SafeString:
    return selector.spark(row)


@register.simple_tag
def change(row: Row, listing: selector.ChangeList) -> SafeString:
    """A bar to the left or right of the middle, and the change in words."""
    words = selector.change_text(listing.found_by.measure, row)
    if row.change is None:
        return format_html("{}", words)
    x, width = selector.change_bar(row, listing.largest)
    is_none = "no change" in words or not row.better
    kind = "muted" if is_none else "bad" if row.is_worse else "well"
    return format_html(
        '<span class="chg"><svg aria-hidden="true"><rect class="f-line" x="46" width="1" '
        'height="12"></rect><rect class="f-{}" x="{}" y="2" width="{}" height="8"></rect></svg>'
        '<b class="{}">{}</b></span>',
        kind,
        f"{x:.1f}",
        f"{width:.1f}",
        {"bad": "down", "well": "up"}.get(kind, "muted"),
        words,
    )


@register.simple_tag(takes_context=True)
def reason(context: template.Context, row: Row) -> SafeString:
    if row.main_reason is None:
        return format_html("{}", "—")
    cause = cause_of(row.main_reason)
    label, group = (cause.label, cause.group) if cause else (row.main_reason, "lost")
    url = context["scope"].link(
        "explorer", measure="miss_blocks", split="reason", tenant=row.tenant or None
    )
    return format_html('<a href="{}"><span class="sw-{}">{}</span></a>', url, group, label)


@register.filter
def instant(ts: int | None) -> datetime | None:
    """Of seconds since 1970."""
    return None if ts is None else datetime.fromtimestamp(ts, UTC)
