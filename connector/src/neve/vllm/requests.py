"""What a request asks of Neve in its `kv_transfer_params`, and what it is told back.

`{"neve": {"context": "repo-42", "pin": "2h", "label": "agent"}}`. Malformed values are reported
and ignored: a request must never fail because of them.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 200
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class ContextWish:
    """The context that a request's chain is reported under; `name` None asks only for figures."""

    name: str | None = None
    pin_s: int | None = None
    label: str | None = None


def read_wish(params: object) -> ContextWish | None:
    """The request's wish, or None when it didn't speak to Neve at all."""
    if not isinstance(params, dict) or "neve" not in params:
        return None
    wish = params["neve"]
    if not isinstance(wish, dict):
        _ignore("neve", wish, "an object")
        return None
    name = _text(wish, "context")
    pin_s = _seconds(wish.get("pin"))
    return ContextWish(name=name, pin_s=pin_s, label=_text(wish, "label"))


def response_params(wish: ContextWish, *, hot_tokens: int, cold_tokens: int) -> dict[str, Any]:
    """The response's `kv_transfer_params`: the context, and how many prompt tokens were reused."""
    told: dict[str, Any] = {} if wish.name is None else {"context": wish.name}
    told |= {"reused_tokens": hot_tokens + cold_tokens, "hot": hot_tokens, "cold": cold_tokens}
    return {"neve": told}


def _text(wish: dict[str, Any], key: str) -> str | None:
    value = wish.get(key)
    if value is None:
        return None
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable():
        return value
    _ignore(key, value, f"1 to {MAX_NAME_CHARS} printable characters")
    return None


def _seconds(value: object) -> int | None:
    """`7200`, `"7200"`, `"90s"`, `"30m"`, `"2h"`, `"1d"` as whole seconds; None when not sane."""
    if value is None:
        return None
    if isinstance(value, str):
        parts = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value.strip())
        seconds = int(parts[1]) * _SECONDS[parts[2] or "s"] if parts else 0
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**31:
        seconds = int(value)
    else:
        seconds = 0
    if 0 < seconds < 2**31:
        return seconds
    _ignore("pin", value, 'seconds, or a number with s, m, h or d such as "2h"')
    return None


def _ignore(key: str, value: object, wanted: str) -> None:
    logger.warning("neve.request.ignored field=%s got=%.80r need=%s", key, value, wanted)
