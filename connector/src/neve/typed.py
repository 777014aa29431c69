"""What people type: sizes ("2 TiB"), times ("14 d", "1h30m", "PT2H"), moments ("Friday 18:00").

The one reader for pages, REST and commands, which narrow it where they accept less. Each `…_typed`
writes a value so that its parser reads the same value back. Pure.
"""

import re
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

MOST_BYTES = 2**63 - 1
MOST_S = 2**31 - 1
_BINARY = {unit: 1024**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_DECIMAL = {unit: 1000**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_SIZE = re.compile(r"(-?[0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(?:([kmgtp]?)(ib|b)?)", re.ASCII | re.I)
_TIME = re.compile(r"([0-9]{1,10})\s*([a-z]+)\s*", re.ASCII)
# ISO 8601 without months and years, whose lengths differ.
_ISO = re.compile(
    r"p(?=.)(?:\d{1,9}w)?(?:\d{1,9}d)?(?:t(?=.)(?:\d{1,9}h)?(?:\d{1,9}m)?(?:\d{1,9}s)?)?", re.ASCII
)
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3_600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 604_800),
}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_LEADING = re.compile(r"(?:until|till|for|in|on|at)\s+")
_DAY = re.compile(
    r"(today|tomorrow|(?:mon|tues?|wed(?:nes)?|thur?s?|fri|satur|sat|sun)(?:day)?)?"
    r"(?:(?:^|,?\s+(?:at\s+)?)(\d{1,2}):([0-5]\d))?",
    re.ASCII,
)
NO_LIMIT = ("never", "none", "no limit", "unlimited", "")


def parse_size(text: str) -> int:
    """Bytes of "2 TiB", "512GiB", "1.5 T" (binary), "3 GB" (of 1000s), "0".

    Raises ValueError that says which forms are read.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"need a size such as 4 GiB or 512 MiB, got {_shown(text)}")
    number, prefix, suffix = Decimal(found[1]), found[2].lower(), (found[3] or "").lower()
    if number < 0:
        raise ValueError(f"need 0 or more, got {_shown(text)}")
    if number and not prefix and not suffix:
        raise ValueError(f"need a unit such as GiB behind the number, got {_shown(text)}")
    units = _DECIMAL if prefix and suffix == "b" else _BINARY
    size = number * units[prefix]
    if size > MOST_BYTES:
        raise ValueError(f"need less than 8192 PiB, got {_shown(text)}")
    return int(size)


def parse_size_or_none(text: str) -> int | None:
    """As `parse_size`; None for "never", "none" and nothing."""
    return None if text.strip().lower() in NO_LIMIT else parse_size(text)


def parse_seconds(text: str) -> int:
    """Whole seconds, 0 or more, of "14 d", "1 h 30 min", "1h30m", "2w", "PT2H". Units go from the
    longest to the shortest, each once.

    Raises ValueError that says which forms are read.
    """
    plain = text.strip().lower()
    if _ISO.fullmatch(plain):
        plain = plain.removeprefix("p").replace("t", "")
    seconds, at, last = 0, 0, MOST_S
    while at < len(plain):
        found = _TIME.match(plain, at)
        unit = _SECONDS.get(found[2]) if found else None
        if found is None or unit is None or unit >= last:
            break
        seconds, at, last = seconds + int(found[1]) * unit, found.end(), unit
    if not plain or at < len(plain):
        raise ValueError(f"need a time such as 30 min, 6 h or 14 d, got {_shown(text)}")
    return seconds


def parse_time(text: str) -> int | None:
    """As `parse_seconds`, at least 1 s; None for "never" and nothing."""
    if text.strip().lower() in NO_LIMIT:
        return None
    try:
        seconds = parse_seconds(text)
    except ValueError:
        shown = _shown(text)
        raise ValueError(f"need a time such as 30 min, 6 h, 14 d or never, got {shown}") from None
    if not 0 < seconds <= MOST_S:
        raise ValueError(f"need 1 s to 24,855 d, or never, got {_shown(text)}")
    return seconds


def parse_moment(text: str, *, now: datetime) -> datetime:
    """The coming moment of "Friday 18:00", "tomorrow", "18:00", "6 h", "2026-12-04 18:00", also
    behind "until", "for" or "in"; a day without a time ends at its midnight.

    `now`: aware, in the zone that the words mean. Raises ValueError that says which forms are read.
    """
    plain = _LEADING.sub("", text.strip().lower())
    found = _after(plain, now) or _on_a_day(plain, now) or _iso(plain, now)
    if found is None:
        raise ValueError(
            f"need a time such as 6 h, Friday 18:00, tomorrow or 2026-12-04, got {_shown(text)}"
        )
    if found <= now:
        raise ValueError(f"need a time that is still to come, got {_shown(text)}")
    return found


def _after(plain: str, now: datetime) -> datetime | None:
    try:
        # Real hours, also where a clock is set forward.
        return (now.astimezone(UTC) + timedelta(seconds=parse_seconds(plain))).astimezone(
            now.tzinfo
        )
    except (ValueError, OverflowError):
        return None


def _on_a_day(plain: str, now: datetime) -> datetime | None:
    found = _DAY.fullmatch(plain)
    if found is None or not plain:
        return None
    day, hour, minute = found[1] or "", found[2], found[3]
    if hour is not None and int(hour) > 23:
        return None
    if day in ("", "today"):
        ahead = 0
    elif day == "tomorrow":
        ahead = 1
    else:
        ahead = (_weekday(day) - now.weekday()) % 7
    end = _end_of(now, ahead) if hour is None else _at(now, ahead, int(hour), int(minute))
    if end <= now and day != "today":
        later = ahead + (1 if day == "" else 7)
        return _end_of(now, later) if hour is None else _at(now, later, int(hour), int(minute))
    return end


def _weekday(name: str) -> int:
    return next(n for n, day in enumerate(_WEEKDAYS) if day.startswith(name[:3]))


def _iso(plain: str, now: datetime) -> datetime | None:
    try:
        found = datetime.fromisoformat(plain.upper())
        if len(plain) <= len("2026-12-04"):
            found += timedelta(days=1)
        return found if found.tzinfo else found.replace(tzinfo=now.tzinfo)
    except (ValueError, OverflowError):
        return None


def _at(now: datetime, ahead: int, hour: int, minute: int) -> datetime:
    day = (now + timedelta(days=ahead)).date()
    return datetime.combine(day, time(hour, minute), now.tzinfo)


def _end_of(now: datetime, ahead: int) -> datetime:
    return _at(now, ahead + 1, 0, 0)


def size_typed(size_bytes: int | None) -> str:
    """ "2 TiB", "1.5 GiB", and "1000 B" where no larger unit is exact; "none" for None."""
    if size_bytes is None:
        return "none"
    units = zip(("B", "KiB", "MiB", "GiB", "TiB", "PiB"), _BINARY.values(), strict=True)
    for unit, step in reversed([*units]):
        text = f"{Decimal(size_bytes) / step:f}"
        if size_bytes >= step and len(text.partition(".")[2]) <= 2:
            return f"{text} {unit}"
    return f"{size_bytes} B"


def time_typed(seconds: int | None) -> str:
    """ "14 d", "90 min"; "never" for None."""
    if seconds is None:
        return "never"
    for unit, step in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds and seconds % step == 0:
            return f"{seconds // step} {unit}"
    return f"{seconds} s"


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}…"
