"""Whose key a tool call uses."""

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from mcp.server.mcpserver.exceptions import ToolError

from neve.api import AsyncNeve

# An agent waits for the answer, so it hears of trouble soon.
_RETRIES = 2
_BEARER = re.compile(r"Bearer +([!-~]+)", re.IGNORECASE)


class Credentials(Protocol):
    """Makes the client of one tool call."""

    def client(self, headers: Mapping[str, str] | None) -> AbstractAsyncContextManager[AsyncNeve]:
        """`headers`: of the HTTP request that carries the call; None over stdio."""


class OwnKey:
    """All calls use the server's key: over stdio, where the agent is the server's own user."""

    def __init__(self, endpoint: str, api_key: str) -> None:
        self._endpoint = endpoint
        self._api_key = api_key
        self._tls = ssl.create_default_context()

    def __repr__(self) -> str:
        return f"<OwnKey for {self._endpoint}>"

    @asynccontextmanager
    async def client(self, headers: Mapping[str, str] | None) -> AsyncIterator[AsyncNeve]:
        del headers
        async with AsyncNeve(
            self._endpoint, self._api_key, retries=_RETRIES, verify=self._tls
        ) as neve:
            yield neve


class CallersKey:
    """Each call uses the key that its HTTP request brings; the server has none."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._tls = ssl.create_default_context()

    @asynccontextmanager
    async def client(self, headers: Mapping[str, str] | None) -> AsyncIterator[AsyncNeve]:
        key = bearer_key(headers or {})
        if key is None:
            raise ToolError(NO_KEY)
        async with AsyncNeve(self._endpoint, key, retries=_RETRIES, verify=self._tls) as neve:
            yield neve


NO_KEY = "Send your own API key with each request: Authorization: Bearer neve_..."


def bearer_key(headers: Mapping[str, str]) -> str | None:
    """The key of an Authorization header, or None. `headers` compares names without case."""
    found = _BEARER.fullmatch(headers.get("authorization", "").strip())
    return found[1] if found else None
