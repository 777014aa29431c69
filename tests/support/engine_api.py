"""A server with vLLM's routes that the platform calls, for faults that a real one does not have.

Tokenises by bytes. Each request is kept in `calls`: (path, body, Authorization).
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class EngineApi:
    """`answers`: path → (status, JSON value) for a body; replaces the usual answer."""

    def __init__(self, model: str = "tiny", *, root: str | None = None, api_key: str = "") -> None:
        self.model, self.root, self.api_key = model, root, api_key
        self.calls: list[tuple[str, dict[str, Any], str | None]] = []
        self.answers: dict[str, Answer] = {}

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self, {})

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                outer._answer(self, json.loads(self.rfile.read(size)))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for called, body, _ in self.calls if called == path]

    def _answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        key = request.headers["Authorization"]
        self.calls.append((request.path, body, key))
        if self.api_key and key != f"Bearer {self.api_key}":
            status, answer = 401, {"error": "Unauthorized"}
        elif request.path in self.answers:
            status, answer = self.answers[request.path](body)
        else:
            status, answer = 200, self._usual(request.path, body)
        raw = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)

    def _usual(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": self.model, "root": self.root}]}
        if path == "/tokenize":
            text = body["prompt"] if "prompt" in body else json.dumps(body["messages"])
            return {"tokens": list(text.encode()), "count": len(text)}
        return {"choices": [{"text": "x"}]}
