"""What a request asks of Neve in its `kv_transfer_params`, and what the response says in its own.

`{"neve": {"context": "repo-42", "pin": "2h", "label": "agent", "labels": {"team": "blue"}}}`.
`"explain": true` keeps a record of the request for a day, for the page Why?.
Malformed values are logged and ignored: they must never fail a request.

A proxy that splits prefill from decode sends `{"do_remote_decode": true}` with the prefill, and the
response's `kv_transfer_params` with the decode (as vLLM's examples do): see `neve.engine.handover`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neve import log_events
from neve.engine.handover import Prefilled
from neve.formats import labels
from neve.formats.ids import ID_BYTES
from neve.formats.space import EXACT

# What the platform accepts (`cacheapi.nodes.contexts`): a longer name would lose the context.
MAX_NAME_CHARS = 200
MAX_LABEL_CHARS = 100
MAX_PIN_S = 365 * 86400
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ASKED = ("context", "pin", "label", "labels", "explain")
# Further members of a prefill's response, which proxies pass on unchanged.
_ANSWERED = (
    *("context_id", "stored_tokens", "prefilled", "reused_tokens", "hot", "cold", "local"),
    "codec",
)


@dataclass(frozen=True)
class RequestParams:
    """`name`: the context that the request's chain is reported under; None asks only for figures.

    `hands_over`: another engine continues with this prompt. `prefilled`: another one began it.
    `explain`: keep a record of the request, for the page Why?.
    """

    name: str | None = None
    pin_s: int | None = None
    label: str | None = None
    labels: Mapping[str, str] | None = None
    hands_over: bool = False
    prefilled: Prefilled | None = None
    explain: bool = False


def read_params(params: object) -> RequestParams | None:
    """Reads `kv_transfer_params`; None if they ask nothing of Neve."""
    if not isinstance(params, dict):
        return None
    hands_over = params.get("do_remote_decode") is True
    asked = params.get("neve", {} if hands_over else None)
    if not isinstance(asked, dict):
        if "neve" in params:
            _ignore("neve", asked, "an object")
        return RequestParams(hands_over=True) if hands_over else None
    unknown = [key for key in asked if key not in _ASKED + _ANSWERED]
    if unknown:
        _ignore(f"{unknown[0]!s:.80}", asked[unknown[0]], " or ".join(_ASKED))
    return RequestParams(
        name=_text(asked, "context", MAX_NAME_CHARS),
        pin_s=_seconds(asked.get("pin")),
        label=_text(asked, "label", MAX_LABEL_CHARS),
        labels=_labels(asked.get("labels")),
        hands_over=hands_over,
        prefilled=_prefilled(asked.get("prefilled")),
        explain=_flag(asked, "explain"),
    )


def response_params(
    params: RequestParams,
    *,
    hot_tokens: int,
    cold_tokens: int,
    local_tokens: int = 0,
    stored_tokens: int = 0,
    context_id: str | None = None,
    prefilled: Prefilled | None = None,
    codec: str = EXACT,
) -> dict[str, Any]:
    """The response's `kv_transfer_params`: the context, how many prompt tokens were loaded from
    each tier, and for the engine that continues, which blocks are stored.

    `stored_tokens`: tokens of the context's chain, stored or on their way. `context_id`: the
    platform's, once it is known. `codec`: of the space, if what was loaded is not exact.
    """
    answer: dict[str, Any] = {}
    if params.name is not None:
        answer |= {"context": params.name, "stored_tokens": stored_tokens}
        if context_id is not None:
            answer["context_id"] = context_id
    reused_tokens = hot_tokens + cold_tokens + local_tokens
    answer |= {"reused_tokens": reused_tokens, "hot": hot_tokens, "cold": cold_tokens}
    if local_tokens:  # few nodes have a tier of their own
        answer["local"] = local_tokens
    if codec != EXACT:
        answer["codec"] = codec
    if prefilled is not None:
        answer["prefilled"] = prefilled.as_param()
    return {"neve": answer}


def _text(asked: dict[str, Any], key: str, most: int) -> str | None:
    value = asked.get(key)
    if value is None:
        return None
    if isinstance(value, str) and 0 < len(value.strip()) <= most and value.isprintable():
        return value.strip()
    _ignore(key, value, f"1 to {most} printable characters")
    return None


def _flag(asked: dict[str, Any], key: str) -> bool:
    value = asked.get(key, False)
    if not isinstance(value, bool):
        _ignore(key, value, "true or false")
    return value is True


def _seconds(value: object) -> int | None:
    """Whole seconds of `7200`, `"7200"`, `"90s"`, `"30m"`, `"2h"` or `"1d"`; None if malformed."""
    if value is None:
        return None
    if isinstance(value, str):
        parts = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value.strip())
        seconds = int(parts[1]) * _SECONDS[parts[2] or "s"] if parts else 0
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**31:
        seconds = int(value)
    else:
        seconds = 0
    if 0 < seconds <= MAX_PIN_S:
        return seconds
    _ignore("pin", value, 'seconds, or a number with s, m, h or d such as "2h"; 365d at most')
    return None


def _labels(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if isinstance(value, dict) and len(value) <= labels.MOST_LABELS:
        found = {
            name: text
            for name, text in value.items()
            if isinstance(name, str)
            and isinstance(text, str)
            and labels.is_name(name)
            and labels.is_value(text)
        }
        if len(found) == len(value):
            return found
    _ignore("labels", value, f"an object of at most {labels.MOST_LABELS} names and texts")
    return None


def _prefilled(value: object) -> Prefilled | None:
    if value is None:
        return None
    if isinstance(value, dict):
        tokens, block = value.get("tokens"), value.get("block")
        named = isinstance(block, str) and re.fullmatch(f"[0-9a-f]{{{2 * ID_BYTES}}}", block)
        if named and type(tokens) is int and 0 < tokens < 2**31:
            return Prefilled(tokens, bytes.fromhex(str(block)))
    _ignore("prefilled", value, 'what a prefill answered: {"tokens", "block"}')
    return None


def _ignore(key: str, value: object, wanted: str) -> None:
    log_events.REQUEST_IGNORED.log(field=key, got=f"{value!r:.80}", need=wanted)
