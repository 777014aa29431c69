"""JSON bodies with a bound: DRF reads the stream itself, past Django's own limit."""

import json
from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

from controlplane.problems import Problem

# A context of 100,000 blocks (25 million tokens) has 3.5 MB of ids.
MAX_BODY_BYTES = 4 << 20


class BoundedJSONParser(BaseParser):
    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        raw = stream.read(MAX_BODY_BYTES + 1)
        if len(raw) > MAX_BODY_BYTES:
            raise Problem("too-large", f"A body has at most {MAX_BODY_BYTES} bytes.")
        try:
            return json.loads(raw, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ParseError(f"The body is not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
