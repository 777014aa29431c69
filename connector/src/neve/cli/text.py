"""Text for terminals: names without control characters; sizes, times and shares in words. Pure.

Names, reasons and errors come from other people. What a terminal would obey instead of showing it
(escape sequences, carriage returns, marks that reverse the direction of text) is shown as `\\x1b`.
"""

import unicodedata
from datetime import UTC, datetime, timedelta

from neve.typed import parse_seconds

NOTHING = "—"
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"  # parts of words and emoji, harmless
_STEPS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def printable(value: object, *, keep_lines: bool = False) -> str:
    """The text with each character that a terminal obeys written as an escape.

    `keep_lines`: line feeds and tabs stay.
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if (keep_lines and char in "\n\t")
        or char in _JOINERS
        or unicodedata.category(char) not in _UNSAFE
        else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def size(count: float | None) -> str:
    """Bytes in binary units: 1.5 GiB."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def rate(bytes_per_s: float | None) -> str:
    """Bytes a second in decimal units, as networks are sold: 1.25 GB/s."""
    if bytes_per_s is None:
        return NOTHING
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if bytes_per_s < 1000 or unit == "GB/s":
            break
        bytes_per_s /= 1000
    return f"{bytes_per_s:.0f} {unit}" if unit == "B/s" else f"{bytes_per_s:.1f} {unit}"


def count(number: float | None) -> str:
    return NOTHING if number is None else f"{number:,.0f}"


def share(part: float | None) -> str:
    return NOTHING if part is None else f"{part:.1%}"


def ratio(part: float | None, whole: float | None) -> float | None:
    """None if the whole is 0 or either is unknown."""
    return part / whole if whole and part is not None else None


def moment(text: str | datetime | None) -> datetime | None:
    """Parses RFC 3339."""
    if not text or isinstance(text, datetime):
        return text or None
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def age(text: str | datetime | None, now: datetime) -> str:
    """How long ago: 3h."""
    when = moment(text)
    return NOTHING if when is None else span((now - when).total_seconds())


def left(text: str | datetime | None, now: datetime) -> str:
    """How long until: 3h; `over` if it is past."""
    when = moment(text)
    if when is None:
        return NOTHING
    return span((when - now).total_seconds()) if when > now else "over"


def span(seconds: float | None) -> str:
    """A duration with its largest unit, and the next one below ten: 45s, 1h30m, 12d."""
    if seconds is None:
        return NOTHING
    whole = max(0, int(seconds))
    for place, (unit, length) in enumerate(_STEPS):
        if whole >= length or unit == "s":
            number, rest = divmod(whole, length)
            text = f"{number}{unit}"
            if number < 10 and place + 1 < len(_STEPS):
                below, step = _STEPS[place + 1]
                text += f"{rest // step}{below}" if rest // step else ""
            return text
    raise AssertionError("seconds are the last step")


def when(text: str | datetime | None, now: datetime) -> str:
    """The moment in UTC and its distance: 2026-03-01 12:00 UTC (in 2h)."""
    at = moment(text)
    if at is None:
        return NOTHING
    stamp = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{stamp} ({f'in {left(at, now)}' if at > now else f'{age(at, now)} ago'})"


def duration(text: str) -> timedelta | None:
    """`90s`, `1h30m`, `7d`, `2w`, as `typed.parse_seconds` reads; None for other text."""
    try:
        return timedelta(seconds=parse_seconds(text))
    except (OverflowError, ValueError):  # a million years; other text
        return None
