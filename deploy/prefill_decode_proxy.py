"""A small proxy that lets one vLLM compute prompts and another one answer, with Neve in between.

python -m deploy.prefill_decode_proxy --prefill http://gpu-01:8000 --decode http://gpu-02:8000

Each request goes to a prefill node first, for one token; what that answers in `kv_transfer_params`
goes with the request to a decode node, whose answer is passed on as it comes. Nodes take turns.
Without a prefill node in reach the decode node computes the prompt. An example: it has neither keys
nor limits, so it listens on loopback unless told otherwise. See docs/nodes.md.
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
    """One request of a client. Its answer ends with the connection, so it may be a stream."""

    prefill: Iterator[str]
    decode: Iterator[str]

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        params = asked.get("kv_transfer_params") or {}
        wish = params.get("neve") or {}
        prefilled = self._begin(asked, params)
        if prefilled is not None:
            wish = wish | {"prefilled": prefilled}
        asked["kv_transfer_params"] = params | {"neve": wish}
        try:
            answer = self._post(next(self.decode), asked, DECODE_S)
        except HTTPError as refusal:  # has a status and a body as well
            self._pass_on(refusal)
        except OSError as error:
            self.send_error(502, explain=f"decode: {error}")
        else:
            with answer:
                self._pass_on(answer)

    def _begin(self, asked: dict[str, Any], params: dict[str, Any]) -> Any:
        """Has the prompt computed; what the node says of it, or None: then decode computes it."""
        one = {"max_tokens": 1, "stream": False, "kv_transfer_params": params | HANDS_OVER}
        if "max_completion_tokens" in asked:
            one["max_completion_tokens"] = 1
        prompt = {key: value for key, value in asked.items() if key not in ONLY_DECODE}
        try:
            with self._post(next(self.prefill), prompt | one, PREFILL_S) as answer:
                said = json.load(answer).get("kv_transfer_params") or {}
        except (OSError, ValueError) as error:
            logger.warning("proxy.prefill.failed detail=%s", error)
            return None
        return (said.get("neve") or {}).get("prefilled")

    def _post(self, node: str, body: dict[str, Any], timeout_s: float) -> HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if "Authorization" in self.headers:
            headers["Authorization"] = self.headers["Authorization"]
        request = urllib.request.Request(node + self.path, json.dumps(body).encode(), headers)
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
