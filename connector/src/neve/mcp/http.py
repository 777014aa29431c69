"""The tools over HTTP: who may ask, from where."""

from collections.abc import Sequence

from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from neve.mcp.callers import NO_KEY, bearer_key

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
PATH = "/mcp"
_MOST_BODY_BYTES = 4 << 20


def http_app(
    server: "MCPServer[object]",
    *,
    needs_key: bool,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> ASGIApp:
    """The ASGI application; tools are at /mcp.

    Each request stands alone: there is no session that another caller could take over. Requests
    whose Host is neither loopback nor in `hosts`, or whose Origin is not in `origins`, are
    refused, so that no page in a browser reaches the server, not even by DNS rebinding.

    Args:
        needs_key: every request must bring a key; else 401.
        hosts: other values of Host, such as "mcp.example" or "mcp.example:8443".
        origins: values of Origin, such as "https://app.example"; none by default.
    """
    loopback = [
        name for host in ("127.0.0.1", "localhost", "[::1]") for name in (host, f"{host}:*")
    ]
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        json_response=True,
        max_request_body_size=_MOST_BODY_BYTES,
        transport_security=TransportSecuritySettings(
            allowed_hosts=[*loopback, *hosts], allowed_origins=list(origins)
        ),
    )
    return _NeedsKey(app) if needs_key else app


class _NeedsKey:
    """Answers 401 to requests without a key, before anything reads their body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and bearer_key(Headers(scope=scope)) is None:
            refusal = PlainTextResponse(
                NO_KEY, status_code=401, headers={"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)
