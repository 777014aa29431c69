"""A receiver of webhooks that verifies as Standard Webhooks says, with the reference library."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks.webhooks import Webhook


class Receiver:
    """`with Receiver() as receiver:` listens on a loopback port.

    `status`: of its answers. `hangs`: it reads requests and answers none before the end.
    """

    def __init__(self, port: int = 0) -> None:
        self.status, self.answer, self.hangs = 204, b"", False
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.refused: list[int] = []
        self._over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                if receiver.hangs:
                    receiver._over.wait(60)
                if 200 <= receiver.status < 300:
                    receiver.requests.append((headers, body))
                else:
                    receiver.refused.append(receiver.status)
                self.send_response(receiver.status)
                self.send_header("Content-Length", str(len(receiver.answer)))
                self.end_headers()
                self.wfile.write(receiver.answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]

    def verified(self, secret: str) -> list[dict[str, Any]]:
        """The bodies. Raises WebhookVerificationError for a signature that is wrong."""
        return [Webhook(secret).verify(body, headers) for headers, body in self.requests]
