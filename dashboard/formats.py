"""The one place where numbers become words: units live at the edge of the page, nowhere else.

Unknown (None) is "—", zero is "0". Bytes are binary (GiB), durations are shortened to one unit.
Nothing here reads the database.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

UNKNOWN = "—"
_NBSP = "\N{NO-BREAK SPACE}"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNT_UNITS = ("", "k", "M", "G", "T")


@dataclass(frozen=True)
class Quantity:
    """A number in words and its unit, apart, so that a page can set the unit smaller."""

    value: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.value}{_NBSP}{self.unit}" if self.unit else self.value


def _digits(value: float) -> str:
    """Three significant digits, without trailing zeros after the point: 0, 4.2, 71.4, 812."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    text = f"{value:.2f}" if magnitude < 10 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".")


def _scaled(value: float, step: float, units: tuple[str, ...]) -> tuple[float, str]:
    """The value in the largest unit which keeps it at 1 or above, and that unit."""
    divisor, index = 1.0, 0
    # 0.9995 rounds to 1000 of the smaller unit, which reads worse than 1 of the larger.
    while abs(value) / divisor >= step * 0.9995 and index + 1 < len(units):
        divisor *= step
        index += 1
    return value / divisor, units[index]


def bytes_quantity(size_bytes: float | None) -> Quantity:
    if size_bytes is None:
        return Quantity(UNKNOWN)
    value, unit = _scaled(size_bytes, 1024, _BYTE_UNITS)
    return Quantity(_digits(value), unit)


def rate_quantity(bytes_per_s: float | None) -> Quantity:
    quantity = bytes_quantity(bytes_per_s)
    return Quantity(quantity.value, f"{quantity.unit}/s" if quantity.unit else "")


def count_quantity(count: float | None, unit: str = "") -> Quantity:
    """A count, shortened from ten thousand up: 812, 9999, 12.6 M."""
    if count is None:
        return Quantity(UNKNOWN)
    if abs(count) < 10_000:
        return Quantity(_digits(count) if count != int(count) else f"{int(count)}", unit)
    value, prefix = _scaled(count, 1000, _COUNT_UNITS)
    return Quantity(f"{_digits(value)}{prefix}", unit)


def percent_quantity(ratio: float | None) -> Quantity:
    """A ratio of 0…1 as a percentage. Only a true whole reads 100, only a true nothing reads 0."""
    if ratio is None:
        return Quantity(UNKNOWN)
    percent = ratio * 100
    if 0 < percent < 0.1:
        return Quantity("<0.1", "%")
    if 99.9 < percent < 100:
        return Quantity(">99.9", "%")
    return Quantity(f"{percent:.0f}" if percent in (0, 100) else f"{percent:.1f}", "%")


def milliseconds_quantity(milliseconds: float | None) -> Quantity:
    if milliseconds is None:
        return Quantity(UNKNOWN)
    if milliseconds >= 10_000:
        return Quantity(_digits(milliseconds / 1000), "s")
    return Quantity(_digits(milliseconds), "ms")


def duration_quantity(seconds: float | None) -> Quantity:
    """4 s, 3 min, 2 h, 5 d: rounded down, as one says an age."""
    if seconds is None:
        return Quantity(UNKNOWN)
    seconds = max(seconds, 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return Quantity(f"{int(seconds // size)}", unit)
    return Quantity(f"{int(seconds)}", "s")


def ago_text(at: datetime | None, *, now: datetime) -> str:
    """ "3 min ago", "now", or "—" when it never happened."""
    if at is None:
        return UNKNOWN
    age_s = (now - at).total_seconds()
    return "now" if age_s < 1 else f"{duration_quantity(age_s)} ago"


def until_text(at: datetime | None, *, now: datetime) -> str:
    """ "for 2 h", "over", or "—" when there is no end."""
    if at is None:
        return UNKNOWN
    left_s = (at - now).total_seconds()
    return "over" if left_s <= 0 else f"for {duration_quantity(left_s)}"


def clock_text(at: datetime | None, zone: tzinfo = UTC) -> str:
    return UNKNOWN if at is None else at.astimezone(zone).strftime("%H:%M:%S")


def moment_text(at: datetime | None, zone: tzinfo = UTC) -> str:
    return UNKNOWN if at is None else at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def zone_text(at: datetime, zone: tzinfo) -> str:
    """The zone's short name at that time: UTC, CET, +03."""
    return at.astimezone(zone).strftime("%Z")


def points_text(change: float | None) -> str:
    """A change of a ratio in percentage points: "▲ 2.1 pt", "▼ 0.4 pt", "no change", "—"."""
    if change is None:
        return UNKNOWN
    points = round(change * 100, 1)
    if points == 0:
        return "no change"
    return f"{'▲' if points > 0 else '▼'}{_NBSP}{_digits(abs(points))}{_NBSP}pt"


def signed(amount: float) -> str:
    """An amount of money with its sign and cents: +1,250.00, \N{MINUS SIGN}3.50; 0.00 has none."""
    text = f"{amount:+,.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\N{MINUS SIGN}")


# What a chart's script needs to label its axes as this module would: it divides by `step` until
# the number is below it, and writes the unit in that place.
AXES = {
    "bytes": {"step": 1024, "units": [f"{unit}/s" for unit in _BYTE_UNITS]},
    "tokens": {"step": 1000, "units": [f"{unit} tok/s".strip() for unit in _COUNT_UNITS]},
}


_BROWSERS = (
    *(("Edg/", "Edge"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari")),
    *(("curl/", "curl"), ("python", "a Python program")),
)
_SYSTEMS = (
    *(("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows")),
    *(("Mac OS X", "macOS"), ("Linux", "Linux")),
)


def browser_words(user_agent: str) -> str:
    """A browser's name and its system, as far as its header tells."""
    name = next((words for part, words in _BROWSERS if part in user_agent), "")
    system = next((words for part, words in _SYSTEMS if part in user_agent), "")
    if name and system:
        return f"{name} on {system}"
    return name or system or "an unknown program"
