"""Template filters over `dashboard.formats`, and the bar drawn everywhere used/limit is shown."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from catalog.models import Job
from dashboard import formats
from dashboard.incidents import link_of
from dashboard.lists import Cell
from dashboard.pages.jobs.folding import words_of

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
def browser(user_agent: str) -> str:
    return formats.browser_words(user_agent)


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


# Times are in the reader's zone, which `render_page` makes the current one.


@register.filter
def clock(at: datetime | None) -> str:
    return formats.clock_text(at, timezone.get_current_timezone())


@register.filter
def moment(at: datetime | None) -> str:
    return formats.moment_text(at, timezone.get_current_timezone())


@register.filter
def clock_short(at: datetime) -> str:
    return formats.clock_text(at, timezone.get_current_timezone())[:5]


@register.filter
def day_short(at: datetime) -> str:
    """30 Nov"""
    local = at.astimezone(timezone.get_current_timezone())
    return f"{local.day}\N{NO-BREAK SPACE}{local:%b}"


@register.filter
def local_input(at: datetime) -> str:
    """As `<input type="datetime-local">` takes it."""
    return at.astimezone(timezone.get_current_timezone()).strftime("%Y-%m-%dT%H:%M")


@register.filter
def zone_of(at: datetime | None) -> str:
    """The short name of the reader's zone then, or now."""
    return formats.zone_text(at or timezone.now(), timezone.get_current_timezone())


@register.filter
def ago(at: datetime | None) -> SafeString:
    text = formats.ago_text(at, now=timezone.now())
    if at is None:
        return format_html("{}", text)
    return format_html(
        '<time datetime="{}" title="{} {}">{}</time>',
        at.isoformat(),
        moment(at),
        zone_of(at),
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


@register.simple_tag(takes_context=True)
def scope_link(context: Any, name: str, *args: Any, **changes: object) -> str:
    """The address of a page in the reader's scope: `{% scope_link 'node' node.pk range='6h' %}`."""
    address: str = context["scope"].link(name, *args, **changes)
    return address


@register.filter
def signed_s(seconds: float) -> str:
    """One decimal, with a sign unless it is 0.0."""
    text = f"{seconds:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


@register.filter
def job_words(kind: str) -> str:
    """A kind of job as people say it: "compaction"."""
    return words_of(kind)


@register.simple_tag(takes_context=True)
def here(context: Any, **changes: object) -> str:
    """The address of this page with changed parameters: `{% here split='node' page=None %}`."""
    address: str = context["scope"].here(**changes)
    return address


@register.simple_tag(takes_context=True)
def scope_fields(context: Any, *without: str) -> SafeString:
    """Hidden fields that keep the address in a form of GET, but for the parameters that it sets."""
    return format_html_join(
        "", '<input type="hidden" name="{}" value="{}">', context["scope"].fields(*without)
    )


@register.simple_tag(takes_context=True)
def picker_fields(context: Any) -> SafeString:
    """`scope_fields` of the form of the page's pickers."""
    return scope_fields(context, "tenant", *context["pickers"])


@register.simple_tag
def miss_change(now: float, before: float) -> SafeString:
    """A share of misses against the one before: more is worse."""
    points = round(100 * (now - before), 1)
    if points == 0:
        return SafeString('<span class="muted">·</span>')
    kind, sign = ("down", "▲") if points > 0 else ("up", "▼")
    return format_html('<span class="{}">{} {} pt</span>', kind, sign, f"{abs(points):g}")


@register.simple_tag
def spark_line(path: str) -> SafeString:
    """A sparkline; nothing without a path. Its figure stands beside it."""
    if not path:
        return SafeString("<span></span>")
    return format_html(
        '<svg class="spark" viewBox="0 0 74 26" aria-hidden="true"><path d="{}"/></svg>', path
    )


@register.simple_tag
def reason_bar(group: str, ratio: float) -> SafeString:
    """The share of a miss reason, in its colour. The figure stands beside it."""
    width = f"{min(max(ratio, 0.0), 1.0) * 100:.2f}%"
    return format_html(
        '<svg class="bar clear" aria-hidden="true">'
        '<rect class="f-{}" width="{}" height="100%"/></svg>',
        group,
        width,
    )


@register.simple_tag
def share_change(change: float, is_ordinary: bool) -> SafeString:
    """How the share of a reason changed: more of one that can be mended is worse."""
    points = round(100 * change)
    if points == 0:
        return SafeString('<span class="muted">·</span>')
    kind = "muted" if is_ordinary else "down" if points > 0 else "up"
    return format_html('<span class="{}">{} {}</span>', kind, "▲▼"[points < 0], abs(points))


@register.simple_tag(takes_context=True)
def node_link(context: Any, session: Any) -> str:
    """The page of a node session, or the list of nodes."""
    scope = context["scope"]
    own = {"tenant": session.tenant.slug, "q": session.node}
    return link_of(scope, ("node", (session.pk,), {}), ("nodes", (), own))


@register.simple_tag(takes_context=True)
def tenant_link(context: Any, tenant: Any) -> str:
    """The page of a tenant, or the list of tenants."""
    scope = context["scope"]
    return link_of(scope, ("tenant", (tenant.slug,), {}), ("tenants", (), {"tenant": tenant.slug}))


_VALUES: dict[str, Callable[[Any], Any]] = {
    "count": count,
    "size": size,
    "rate": rate,
    "percent": percent,
    "ms": milliseconds,
    "duration": duration,
    "ago": ago,
    "moment": moment,
    "until": until,
}


@register.simple_tag(takes_context=True)
def list_cell(context: Any, cell: Cell, is_head: bool) -> SafeString:
    """A cell of a list: `<th>` or `<td>`. Not a template, since pages have hundreds."""
    column = cell.column
    if column.kind == "html":
        with context.push(cell=cell, row=cell.row):
            inner = context.template.engine.get_template(column.template).render(context)
    else:
        value = _list_value(cell)
        inner = format_html('<a href="{}">{}</a>', cell.url, value) if cell.url else value
        if cell.note:
            inner = format_html("{} <small>{}</small>", inner, cell.note)
    name = "num" if column.is_number else {"bar": "draw", "moment": "nowrap"}.get(column.kind, "")
    kind = f' class="{name}"' if name else ""
    start, end = (f'<th scope="row"{kind}>', "</th>") if is_head else (f"<td{kind}>", "</td>")
    return SafeString(f"{start}{inner}{end}")


def _list_value(cell: Cell) -> SafeString:
    """A cell's value as its column's kind reads."""
    column, value = cell.column, cell.value
    if column.kind == "state":
        return format_html('<span class="state {}">{}</span>', value, cell.words or value)
    if cell.words:
        return format_html("{}", cell.words)
    if column.kind == "bar":
        return bar(column.label, column.colour, value)
    if column.kind == "count" and column.unit:
        return _quantity(formats.count_quantity(value, column.unit))
    if column.kind in _VALUES:
        return format_html("{}", _VALUES[column.kind](value))
    return format_html("{}", formats.UNKNOWN if value is None or value == "" else value)
