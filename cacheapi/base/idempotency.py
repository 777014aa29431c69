"""`Idempotency-Key` on requests that change something: a repetition gets the first one's answer.

Only successful answers are kept. A refusal frees the key, so that the corrected request may use it.
Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

from rest_framework.permissions import SAFE_METHODS
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from base import answers
from base.problems import Problem
from cacheapi.base.access import caller

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
# A string of RFC 9651, or, as most clients send it, the same without quotes.
PATTERN = r'([!#-\[\]-~]{1,255}|"[!#-\[\]-~]{1,255}")'
KEY = re.compile(PATTERN)

Handler = Callable[..., Response]


def once(handler: Handler, request: Request, secret_members: tuple[str, ...]) -> Handler:
    """`handler` itself without the header, else one that runs it once and then repeats its answer.

    The `secret_members` of an answer are kept as null. Raises: Problem (malformed).
    """
    given = request.headers.get(HEADER)
    if given is None or request.method in SAFE_METHODS:
        return handler
    if (match := KEY.fullmatch(given)) is None:
        raise Problem(
            "malformed", f"{HEADER}: need 1 to 255 visible ASCII characters.", field=HEADER
        )

    def answer_once(request: Request, *args: Any, **kwargs: Any) -> Response:
        name, key = caller(request).name, match[0].strip('"')
        row = answers.claim(caller=name, key=key, fingerprint=_fingerprint(request))
        if row.status is not None:
            data = json.loads(row.body) if row.body else None
            return Response(data, status=row.status, headers={REPLAYED: "true"})
        try:
            response = handler(request, *args, **kwargs)
        except BaseException:
            answers.release(row)
            raise
        held = response.data or {}  # of a 204, none
        secrets = {name: None for name in secret_members if name in held}
        data = {**response.data, **secrets} if secrets else response.data
        answers.keep(row, status=response.status_code, body=JSONRenderer().render(data).decode())
        return response

    return answer_once


def _fingerprint(request: Request) -> str:
    body = json.dumps(request.data, sort_keys=True)
    only_if = request.headers.get("If-Match")  # None differs from an empty one
    text = f"{request.method} {request.get_full_path()}\n{only_if}\n{body}"
    return hashlib.sha256(text.encode()).hexdigest()
