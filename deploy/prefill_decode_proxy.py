"""A small proxy for prefill on one vLLM and decode on another, with Neve in between.

python -m deploy.prefill_decode_proxy --prefill http://gpu-01:8000 --decode http://gpu-02:8000

The proxy sends each (chat) completion to a prefill node first, for one token. It adds
`kv_transfer_params` of that response to the request for a decode node, and streams the response of
the decode node to the client. All other requests go to a decode node unchanged. Nodes take turns.
If no prefill node answers, the decode node computes the prompt. This is an example without
authentication or limits, so it listens on loopback by default. See docs/nodes.md.
"""

import argparse
import json
import logging
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any
from urllib.error import HTTPError

logger = logging.getLogger("neve.proxy")

PREFILL_S = 60.0
DECODE_S = 600.0


class Proxy(BaseHTTPRequestHandler):
    """One client request. The end of the response is the end of the connection: it may stream."""

    prefill: Iterator[str]
    decode: Iterator[str]

    def do_GET(self) -> None:
        self._decode(None)

    def do_POST(self) -> None:
        if "Content-Length" not in self.headers:
            self.send_error(411)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        if self.path.endswith("/completions") and isinstance(asked, dict):
            body = json.dumps(self._prefilled(asked)).encode()
        self._decode(body)

    def _prefilled(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The request for the decode node; unchanged if vLLM will refuse it anyway."""
        params = asked.get("kv_transfer_params") or {}
        if not isinstance(params, dict):
            return asked
        wish = params.get("neve", {})
        prefilled = self._begin(asked, params)
        if prefilled is not None:
            wish = (wish if isinstance(wish, dict) else {}) | {"prefilled": prefilled}
        return asked | {"kv_transfer_params": params | {"neve": wish}}

    def _decode(self, body: bytes | None) -> None:
        try:
            answer = self._send(next(self.decode), body, DECODE_S)
        except HTTPError as refusal:  # an HTTPError has status and body, like a response
            self._pass_on(refusal)
        except OSError as error:
            self.send_error(502, explain=f"decode: {error}")
        else:
            with answer:
                self._pass_on(answer)

    def _begin(self, asked: dict[str, Any], params: dict[str, Any]) -> Any:
        """Prefill the prompt; return `prefilled` of the response, or None if the prefill failed."""
        one = {"max_tokens": 1, "stream": False, "kv_transfer_params": params | HANDS_OVER}
        if "max_completion_tokens" in asked:
            one["max_completion_tokens"] = 1
        prompt = {key: value for key, value in asked.items() if key not in ONLY_DECODE}
        try:
            body = json.dumps(prompt | one).encode()
            with self._send(next(self.prefill), body, PREFILL_S) as answer:
                said = json.load(answer).get("kv_transfer_params") or {}
        except (OSError, ValueError) as error:
            logger.warning("proxy.prefill.failed detail=%s", error)
            return None
        return (said.get("neve") or {}).get("prefilled")

    def _send(self, node: str, body: bytes | None, timeout_s: float) -> HTTPResponse:
        """Send the client's path and headers with `body` to a node; a GET if `body` is None."""
        names = ("Content-Type", "Authorization")
        headers = {name: self.headers[name] for name in names if name in self.headers}
        request = urllib.request.Request(node + self.path, body, headers)
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)
        return response

    def _pass_on(self, answer: HTTPResponse | HTTPError) -> None:
        self.send_response(answer.status or 502)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.end_headers()
        while part := answer.read1(65536):
            self.wfile.write(part)
            self.wfile.flush()


HANDS_OVER = {"do_remote_decode": True}
ONLY_DECODE = frozenset(("stream_options", "min_tokens"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefill", action="append", required=True, help="a vLLM's address")
    parser.add_argument("--decode", action="append", required=True, help="a vLLM's address")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8100)
    told = parser.parse_args()
    Proxy.prefill, Proxy.decode = cycle(told.prefill), cycle(told.decode)
    logging.basicConfig(level=logging.INFO)
    ThreadingHTTPServer((told.host, told.port), Proxy).serve_forever()


if __name__ == "__main__":
    main()
