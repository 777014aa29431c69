"""Requests to engines. Their answers pass as they are: status, headers, bytes, errors, pace."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx

Headers = Sequence[tuple[bytes, bytes]]
CONNECT_S: Final = 3.0
# vLLM's server closes idle connections after five seconds: be earlier than it.
# Source: uvicorn's timeout_keep_alive.
KEEP_S: Final = 2.0
# Of one connection, not of the request or answer. Source: RFC 9110, section 7.6.1.
_OF_CONNECTION: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection"),
    )
)


class Malformed(Exception):
    """The client's request cannot be sent: no engine is at fault."""


class EngineAway(Exception):
    """The engine gave no answer: not a byte of one came."""


@dataclass(frozen=True)
class Asked:
    """A client's request. `target`: path and query."""

    method: str
    target: str
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> str | None:
        found = next((value for key, value in self.headers if key.lower() == name), None)
        return None if found is None else found.decode("latin-1")

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


def new_http() -> httpx.AsyncClient:
    """For requests to engines, which may take as long as they want. No proxies or keys of the
    environment; no redirect is followed, so no key goes elsewhere."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=KEEP_S
        ),
        trust_env=False,
    )


@asynccontextmanager
async def answered(
    http: httpx.AsyncClient, url: str, asked: Asked, body: bytes
) -> AsyncIterator[httpx.Response]:
    """The engine's answer, whose body is yet to come. Raises EngineAway, Malformed.

    Leaving the context ends the request in the engine.
    """
    headers = [
        (key, value.strip(b" \t"))  # blanks around values mean nothing, RFC 9110, section 5.5
        for key, value in asked.headers
        if key.lower() not in _OF_CONNECTION and key.lower() not in (b"host", b"content-length")
    ]
    try:
        request = http.build_request(
            asked.method, url + asked.target, headers=headers, content=body or None
        )
        if not any(key.lower() == b"accept-encoding" for key, _ in headers):
            del request.headers["accept-encoding"]  # httpx's own wish, not the client's
        response = await http.send(request, stream=True)
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise Malformed from error
    except httpx.HTTPError as error:
        raise EngineAway(str(error) or type(error).__name__) from error
    try:
        yield response
    finally:
        await response.aclose()


def passed_headers(response: httpx.Response) -> list[tuple[bytes, bytes]]:
    return [
        (key.lower(), value)
        for key, value in response.headers.raw
        if key.lower() not in _OF_CONNECTION
    ]


@dataclass(frozen=True)
class ServedModel:
    """`most_tokens`: of its context; None if the server does not say."""

    name: str
    most_tokens: int | None


async def served_models(
    http: httpx.AsyncClient, url: str, authorization: str | None
) -> list[ServedModel] | int | None:
    """Of GET /v1/models; its status if that is not 200; None if nothing answers."""
    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        answer = await http.get(
            f"{url}/v1/models", headers=headers, timeout=httpx.Timeout(10.0, connect=CONNECT_S)
        )
        if answer.status_code != 200:
            return answer.status_code
        rows = answer.json()["data"]
        return [
            ServedModel(str(row["id"]), row.get("max_model_len"))
            for row in rows
            if isinstance(row, dict) and "id" in row
        ]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None


def problem(status: int, words: str) -> tuple[int, bytes]:
    """An error of the router's own, in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "router_error"
    return status, json.dumps({"error": {"message": words, "type": kind, "code": status}}).encode()
