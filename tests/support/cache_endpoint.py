"""A small `/cache/v1` over HTTP for tests of the client: real sockets, no Django.

It records the nodes' requests and fails on demand. tests/neve/test_client_platform.py tests the
client with the real platform.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from neve.formats.parts import PartGroup, chunk_tokens_of
from neve.formats.space import SpaceIdentity

API_KEY = "neve_test_secret"
TENANT_ID = 7


class CacheEndpoint:
    """Context manager. Tests change the public attributes while it runs.

    `fail`: status of every response while set; `refused` counts them. `segment_url`: segment
    number -> address.
    """

    def __init__(self, seed: str, *, heartbeat_s: float = 0.1) -> None:
        self.seed = seed
        self.username: str | None = None
        self.password: str | None = None
        self.buckets = 1
        self.space_id = 12
        self.tenant_id = TENANT_ID
        self.heartbeat_s = heartbeat_s
        self.topology = "one"
        self.sample: dict[str, Any] | None = None  # None: as platforms before samples answer
        self.requests: dict[str, Any] | None = None  # None: as platforms before the ring answer
        self.fail: tuple[int, dict[str, Any]] | None = None
        self.refused = 0
        self.on_open: Callable[[], None] = lambda: None
        self.segment_url: Callable[[int], str | None] = lambda number: None
        self.address_s = 3600.0
        self.segment_calls: list[list[int]] = []
        self.opened: list[dict[str, Any]] = []
        self.sessions: dict[str, int] = {}  # id -> last counted seq
        self.heartbeats: list[dict[str, Any]] = []
        self.contexts: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def counted(self, name: str) -> int:
        """Sum of a counter over all counted heartbeats."""
        return sum(heartbeat["counters"].get(name, 0) for heartbeat in self.heartbeats)

    def answer(self, method: str, path: str, key: str, body: Any) -> tuple[int, dict[str, Any]]:
        if self.fail is not None:
            self.refused += 1
            return self.fail
        if key != f"Bearer {API_KEY}":
            return 401, {"title": "Unauthorized", "status": 401, "detail": "unknown key"}
        if (method, path) == ("POST", "/cache/v1/sessions"):
            return 201, self._open(body)
        if (method, path) == ("POST", "/cache/v1/contexts"):
            if body["session"] not in self.sessions:
                return 404, {"title": "Not found", "status": 404, "detail": "no such session"}
            self.contexts.append(body)
            return 201, {"id": "c-1", "blocks": len(body["block_ids"])}
        found = re.fullmatch(
            r"/cache/v1/sessions/([^/?]+)(/heartbeat|/segments\?ids=([\d,]+))?", path
        )
        if found is None or found[1] not in self.sessions:
            return 404, {"title": "Not found", "status": 404, "detail": "no such session"}
        if method == "DELETE":
            del self.sessions[found[1]]
            return 204, {}
        if method == "GET":
            numbers = [int(number) for number in found[3].split(",")]
            self.segment_calls.append(numbers)
            urls = {str(n): url for n in numbers if (url := self.segment_url(n)) is not None}
            return 200, {"segments": urls, "expires_s": self.address_s}
        if body["seq"] > self.sessions[found[1]]:
            self.sessions[found[1]] = body["seq"]
            self.heartbeats.append(body)
        return 200, {
            "policy": {},
            "heartbeat_s": self.heartbeat_s,
            "topology": self.topology,
            **({} if self.sample is None else {"sample": self.sample}),
            **({} if self.requests is None else {"requests": {"one_in": self.requests["one_in"]}}),
        }

    def _open(self, body: dict[str, Any]) -> dict[str, Any]:
        self.opened.append(body)
        self.on_open()
        identity = SpaceIdentity.from_dict(body["identity"])
        groups = [PartGroup.from_dict(group) for group in body.get("groups", ())]
        chunk_tokens = chunk_tokens_of(identity, groups, max_chunk_tokens=body["max_chunk_tokens"])
        fingerprint = identity.fingerprint(tenant_id=self.tenant_id, chunk_tokens=chunk_tokens)
        session = str(uuid.uuid4())
        self.sessions[session] = 0
        return {
            "session": session,
            "tenant": {"id": TENANT_ID, "slug": "test"},
            "space": {
                "id": self.space_id,
                "name": "a space",
                "fingerprint": fingerprint.hex(),
                "chunk_tokens": chunk_tokens,
            },
            "buckets": self.buckets,
            "valkey": {
                "seeds": [self.seed],
                "tls": False,
                "username": self.username,
                "password": self.password,
            },
            "s3": {},
            "policy": {"flush_after_s": 0},
            "heartbeat_s": self.heartbeat_s,
            **({} if self.sample is None else {"sample": self.sample}),
            **({} if self.requests is None else {"requests": self.requests}),
        }


def _handler(endpoint: CacheEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            key = self.headers.get("Authorization", "")
            status, answer = endpoint.answer(self.command, self.path, key, body)
            raw = b"" if status == 204 else json.dumps(answer).encode()
            self.send_response(status)
            kind = "application/problem+json" if status >= 400 else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    return Handler
