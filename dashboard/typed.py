"""What people type into forms: sizes ("2 TiB"), times ("14 d"). The inverse of `dashboard.formats`.

Each `…_typed` writes a value so that its parser reads the same value back.
"""

import re
from decimal import Decimal

MOST_BYTES = 2**63 - 1
MOST_S = 2**31 - 1
_BINARY = {unit: 1024**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_DECIMAL = {unit: 1000**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_SIZE = re.compile(r"(-?[0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(?:([kmgtp]?)(ib|b)?)", re.ASCII | re.I)
_TIME = re.compile(r"([0-9]{1,10})\s*([a-z]+)\s*", re.ASCII | re.I)
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3_600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 604_800),
}
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


def parse_time(text: str) -> int | None:
    """Seconds of "14 d", "30 min", "1 h 30 min", "90s"; None for "never" and nothing.

    Raises ValueError that says which forms are read.
    """
    plain = text.strip().lower()
    if plain in NO_LIMIT:
        return None
    seconds, at = 0, 0
    while at < len(plain):
        found = _TIME.match(plain, at)
        if found is None or found[2] not in _SECONDS:
            raise ValueError(f"need a time such as 30 min, 6 h, 14 d or never, got {_shown(text)}")
        seconds += int(found[1]) * _SECONDS[found[2]]
        at = found.end()
    if not 0 < seconds <= MOST_S:
        raise ValueError(f"need 1 s to 24,855 d, or never, got {_shown(text)}")
    return seconds


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
