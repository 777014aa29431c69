"""A node without a model: OpenAI-compatible, answers as vLLM with Neve does, fails as told.

Each answer is "x" three times. Tokenises by bytes.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.engine_api import EngineApi

TEXTS = ("/v1/chat/completions", "/v1/completions")


class LightNode(EngineApi):
    """`fails`: status of answers to prompts while set. `goes_on`: cleared, these answers wait, of a
    stream behind its first event; `waiting` counts them.

    `reused_tokens`: told to requests that ask for Neve's figures. `cached_tokens`: in `usage`.
    """

    def __init__(self, model: str = "tiny") -> None:
        super().__init__(model)
        self.fails: int | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.reused_tokens = self.cached_tokens = 256
        self.waiting = 0
        self._counting = threading.Lock()

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Bodies of requests for text, in the order of their arrival."""
        return [body for path, body, _ in self.calls if path in TEXTS]

    def _answer(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if request.path in TEXTS and not body.get("stream"):
            self._wait()
        if request.path in TEXTS and self.fails is not None:
            self.calls.append((request.path, body, request.headers["Authorization"]))
            self._send(request, self.fails, {"error": {"message": "as told", "code": self.fails}})
        elif request.path in TEXTS and body.get("stream"):
            self.calls.append((request.path, body, request.headers["Authorization"]))
            self._stream(request, body)
        else:
            super()._answer(request, body)

    def _wait(self) -> None:
        with self._counting:
            self.waiting += 1
        self.goes_on.wait(60)
        with self._counting:
            self.waiting -= 1

    def _send(self, request: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
        raw = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)

    def _stream(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.end_headers()
        chat = "messages" in body
        events: list[dict[str, Any]] = [
            {"choices": [_choice(chat, n == 2, streamed=True)]} for n in range(3)
        ]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": self._usage(body)})
        for n, event in enumerate(events):
            kind = "chat.completion.chunk" if chat else "text_completion"
            told = {"id": "x-1", "object": kind, "created": 1, "model": self.model, **event}
            request.wfile.write(b"data: " + json.dumps(told).encode() + b"\n\n")
            request.wfile.flush()
            if n == 0:
                self._wait()
        request.wfile.write(b"data: [DONE]\n\n")

    def _usual(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return {"object": "list", "data": [vector], "model": self.model, "usage": usage}
        if path not in TEXTS:
            return super()._usual(path, body)
        chat = path.startswith("/v1/chat")
        answer = {
            "id": "x-1",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1,
            "model": self.model,
            "choices": [_choice(chat, True)],
            "usage": self._usage(body),
        }
        if isinstance((body.get("kv_transfer_params") or {}).get("neve"), dict):
            told = {"reused_tokens": self.reused_tokens, "hot": self.reused_tokens, "cold": 0}
            answer["kv_transfer_params"] = {"neve": told}
        return answer

    def _usage(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = len(json.dumps(body.get("messages", body.get("prompt"))))
        details = {"cached_tokens": self.cached_tokens}
        return {
            **{"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3},
            "prompt_tokens_details": details,
        }


def _choice(chat: bool, ends: bool, *, streamed: bool = False) -> dict[str, Any]:
    text = "x" if streamed else "xxx"
    said = {"role": "assistant", "content": text}
    part = {"delta" if streamed else "message": said} if chat else {"text": text}
    return {"index": 0, "finish_reason": "stop" if ends else None, **part}
