"""How Python values are written into requests."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from neve.errors import Misuse

Moment = datetime | str  # RFC 3339 with an offset, or an aware datetime
Duration = timedelta | str  # "90s", "30m", "2h", "7d", "1h30m", ISO 8601 such as "PT2H"
Id = str | int | UUID
Labels = Mapping[str, str] | str  # {"team": "blue"}, or "team=blue,stage=test"


class Omit:
    """The type of `OMIT`: a member that is not sent. None is sent, as null."""

    def __repr__(self) -> str:
        return "OMIT"


OMIT: Final = Omit()


def path_part(value: Id) -> str:
    """Percent-encoded, so that no value can name another resource. Raises `Misuse` if empty."""
    text = str(value)
    if not text.strip(".") or not text.strip():
        raise Misuse(f"{text!r} names nothing", field="id")
    return quote(text, safe="")


def query_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Without None and `OMIT`; values as the platform reads them in a query."""
    return {
        name: _in_query(value)
        for name, value in parameters.items()
        if value is not None and not isinstance(value, Omit)
    }


def members(
    given: Mapping[str, Any], *, nullable: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A JSON object: `given` without None, `nullable` without `OMIT` (None is sent, as null)."""
    sent = {name: value for name, value in given.items() if value is not None}
    sent |= {n: value for n, value in (nullable or {}).items() if not isinstance(value, Omit)}
    return {name: _in_body(value) for name, value in sent.items()}


def _in_query(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(_in_query(one) for one in value)
    return str(_in_body(value))


def _in_body(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise Misuse(f"{value} has no time zone: use datetime.now(UTC) and the like")
        return value.isoformat()
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _in_body(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_in_body(one) for one in value]
    return value


def duration_text(value: timedelta) -> str:
    """Whole seconds, such as "7200s"; fractions are rounded up, so that nothing ends early."""
    return f"{-(-value // timedelta(seconds=1))}s"


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(value: Duration) -> int:
    """Whole seconds of "90s", "1h30m", "7d"… or a timedelta. Raises `Misuse`."""
    if isinstance(value, timedelta):
        return -(-value // timedelta(seconds=1))
    if not re.fullmatch(r"(\d+[smhdw])+", value):
        raise Misuse(f"{value!r} is no duration: write 90s, 30m, 2h, 7d or 1h30m")
    return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhdw])", value))
