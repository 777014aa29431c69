"""Template filters over `dashboard.formats`, and the bar drawn everywhere used/limit is shown."""

from datetime import datetime
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from catalog.models import Job
from dashboard import formats

register = template.Library()


def _quantity(quantity: formats.Quantity) -> SafeString:
    if not quantity.unit:
        return format_html("{}", quantity.value)
    return format_html('{}<span class="unit"> {}</span>', quantity.value, quantity.unit)


@register.filter
def quantity(value: formats.Quantity) -> SafeString:
    return _quantity(value)


@register.filter
def size(size_bytes: float | None) -> SafeString:
    return _quantity(formats.bytes_quantity(size_bytes))


@register.filter
def size_text(size_bytes: float | None) -> str:
    """For attributes, where no markup may stand."""
    return str(formats.bytes_quantity(size_bytes))


@register.filter
def rate(bytes_per_s: float | None) -> SafeString:
    return _quantity(formats.rate_quantity(bytes_per_s))


@register.filter
def count(number: float | None) -> SafeString:
    return _quantity(formats.count_quantity(number))


@register.filter
def percent(ratio: float | None) -> SafeString:
    return _quantity(formats.percent_quantity(ratio))


@register.filter
def milliseconds(number: float | None) -> SafeString:
    return _quantity(formats.milliseconds_quantity(number))


@register.filter
def duration(seconds: float | None) -> SafeString:
    return _quantity(formats.duration_quantity(seconds))


@register.filter
def points(change: float | None) -> str:
    return formats.points_text(change)


@register.filter
def in_points(width: float) -> str:
    """The half width of a ratio's interval in percentage points, without a sign."""
    return f"{width * 100:.1f}\N{NO-BREAK SPACE}pt"


@register.filter
def clock(at: datetime | None) -> str:
    return formats.clock_text(at)


@register.filter
def moment(at: datetime | None) -> str:
    return formats.moment_text(at)


@register.filter
def ago(at: datetime | None) -> SafeString:
    text = formats.ago_text(at, now=timezone.now())
    if at is None:
        return format_html("{}", text)
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        at.isoformat(),
        formats.moment_text(at),
        text,
    )


@register.filter
def until(at: datetime | None) -> str:
    return formats.until_text(at, now=timezone.now())


@register.filter
def took(job: Job) -> SafeString:
    """From start to end, or to now while it runs."""
    if job.started_at is None:
        return _quantity(formats.duration_quantity(None))
    end = job.finished_at or timezone.now()
    return _quantity(formats.duration_quantity((end - job.started_at).total_seconds()))


@register.simple_tag
def bar(label: str, *parts: Any) -> SafeString:
    """A horizontal bar: `parts` alternate kind and ratio (of the whole, 0…1), left to right.

    SVG attributes, not inline styles, carry the widths: the content security policy stays strict.
    """
    rects, x = [], 0.0
    for kind, ratio in zip(parts[::2], parts[1::2], strict=True):
        width = min(max(float(ratio or 0), 0.0), 1.0 - x)
        rects.append((kind, f"{x * 100:.2f}%", f"{width * 100:.2f}%"))
        x += width
    drawn = format_html_join(
        "", '<rect class="fill-{}" x="{}" width="{}" height="100%"></rect>', rects
    )
    return format_html('<svg class="bar" role="img" aria-label="{}">{}</svg>', label, drawn)
