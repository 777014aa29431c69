"""JSON bodies of bounded size: DRF reads the stream itself, so Django's own limit does not apply.

Refused in every body, since RFC 7493 forbids it and databases or logs cannot hold it: text that is
not UTF-8, lone surrogates, NUL, numbers beyond a double, a member that occurs twice.
"""

import json
import math
from collections import Counter
from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from base.problems import Problem
from neve.formats.space import is_plain

# A context of 100,000 blocks (25 million tokens) has 3.5 MB of ids.
MAX_BODY_BYTES = 4 << 20


class BoundedJSONParser(BaseParser):
    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        raw = stream.read(MAX_BODY_BYTES + 1)
        if len(raw) > MAX_BODY_BYTES:
            raise Problem("too-large", f"A body has at most {MAX_BODY_BYTES} bytes.")
        try:
            text = raw.decode()
            body = json.loads(
                text,
                parse_constant=_no_constant,
                parse_float=_finite,
                object_pairs_hook=_once_each,
            )
            if "\\u" in text:  # only an escape can make a surrogate or NUL
                _require_plain_text(body, "")
        except (ValueError, RecursionError) as error:
            raise ParseError(f"The body is not JSON: {error}") from error
        return body


def _require_plain_text(value: Any, path: str) -> None:
    """Raises Problem (malformed) naming the member."""
    if isinstance(value, str):
        if not is_plain(value):
            raise Problem(
                "malformed",
                f"{path or 'body'}: has NUL or half a surrogate pair: {ascii(value)[:60]}",
                **({"field": path} if path else {}),
            )
    elif isinstance(value, dict):
        for name, inner in value.items():
            _require_plain_text(name, path)
            _require_plain_text(inner, f"{path}.{name}".strip("."))
    elif isinstance(value, list):
        for inner in value:
            _require_plain_text(inner, path)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the member {ascii(twice)[:60]} occurs twice")
    return members


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond a double")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
