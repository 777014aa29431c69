"""What a node tells of itself in heartbeats, beside counts.

Any of it may be wrong: a node that lies spoils its own page only.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from neve.formats.loss import Loss
from neve.formats.space import is_plain

MOST_CHANGES = 50
MOST_AGE_S = 30 * 86_400.0


def about_of(raw: object, now: datetime) -> dict[str, Any]:
    """`skew_s`: how far the node's clock is ahead, the heartbeat's way included; `version` of Neve;
    `error`, `error_at`: its last warning or error; `loss`: of its codec (`neve.formats.loss`).
    Members that cannot be read are left out."""
    if not isinstance(raw, Mapping):
        return {}
    found: dict[str, Any] = {}
    if (clock_s := _amount(raw.get("clock_s"), 2**33)) is not None:
        found["skew_s"] = round(clock_s - now.timestamp(), 3)
    for name, most in (("version", 40), ("error", 300)):
        text = raw.get(name)
        if isinstance(text, str) and is_plain(text):
            found[name] = text[:most]
    if (loss := Loss.from_dict(raw.get("loss"))) is not None and is_plain(loss.codec):
        found["loss"] = loss.as_dict()
    age_s = _amount(raw.get("error_age_s"), MOST_AGE_S)
    if "error" in found and age_s is not None:
        found["error_at"] = (now - timedelta(seconds=age_s)).isoformat()
    return found


def with_change(stored: object, at: datetime, state: str) -> list[list[Any]]:
    """The breaker's history with one more change, the oldest first."""
    return [*changes(stored), [int(at.timestamp()), state]][-MOST_CHANGES:]


def changes(stored: object) -> list[list[Any]]:
    """Changes of a JSON column; what is none is left out."""
    if not isinstance(stored, list):
        return []
    return [
        each
        for each in stored
        if isinstance(each, list)
        and len(each) == 2
        and type(each[0]) is int
        and isinstance(each[1], str)
    ]


def _amount(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None
