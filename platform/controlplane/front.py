"""Proxies and caches before the web process: host, port and path prefix of NEVE_URL.

A proxy may pass the prefix on or cut it off, and may name the port or not: `Front` makes all equal,
for HTTP and WebSockets. Requests to the port itself, without the prefix, work too.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[..., Awaitable[None]]  # of a Scope, a Receive and a Send

MOST_BODY_BYTES = 16 << 20  # what takes bodies has narrower limits, and says so

MISMATCH = (
    "uvicorn was started with --root-path {root}, but NEVE_URL has the path prefix {prefix!r}. Set "
    "NEVE_URL to the address that people use, such as https://example.com{root}, and leave "
    "--root-path out.\n"
)


class Front:
    """ASGI: gives every scope the prefix as its `root_path`, and NEVE_URL's port."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.url = settings.ENV.url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        prefix, root = self.url.path, scope.get("root_path", "").rstrip("/")
        if root and root != prefix:
            return await _refuse(scope, send, MISMATCH.format(root=root, prefix=prefix))
        bare = scope["path"].removeprefix(root) if root else scope["path"]
        if prefix and bare == prefix:
            return await _answer(send, 308, b"", (b"location", f"{prefix}/".encode()))
        if bare.startswith(f"{prefix}/"):
            bare = bare.removeprefix(prefix)
        scope = {**scope, "path": prefix + bare, "root_path": prefix}
        scope["headers"] = [self._header(name, value) for name, value in scope["headers"]]
        if scope["type"] == "http":
            receive = _bounded(receive, send)
        return await self.app(scope, receive, send)

    def _header(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        """The public host gets its port back, which some proxies leave out."""
        if name == b"host" and value.decode("latin-1").lower() == self.url.hostname:
            return name, self.url.netloc.encode()
        return name, value


def _bounded(receive: Receive, send: Send) -> Receive:
    """Answers 413 to a body of more than MOST_BODY_BYTES, and ends the request: Django would write
    it to the disk whole, before anything asks for a key."""
    size = 0

    async def receive_some() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size <= MOST_BODY_BYTES:
            return message
        await _answer(send, 413, b"The body is too large.\n")
        return {"type": "http.disconnect"}

    return receive_some


async def _refuse(scope: Scope, send: Send, words: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1011})
    else:
        await _answer(send, 500, words.encode(), (b"content-type", b"text/plain; charset=utf-8"))


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


class SecretsMiddleware:
    """No cache keeps an answer of the platform, unless its view says otherwise: answers hold keys,
    passwords of Valkey, presigned addresses and other people's data."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response.headers.setdefault("Cache-Control", "no-store")
        return response
