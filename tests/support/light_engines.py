"""Engines and a platform without KV: vLLM's and Neve's routes over HTTP, with times and faults.

A token is a byte of the prompt's text. What a `LightEngine` has computed it stores in a `World`,
behind the answer and over a link if it has one; `LightNeve` tells how much of a prompt is there.
An answer's text depends on the prompt alone, so that answers by any way can be compared.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from support.servers import free_port, wait_until

CHUNK = 64
BYTES_PER_TOKEN = 1000


@dataclass
class World:
    """Stored prompts, by salt: their first tokens, in whole chunks."""

    stored: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    cold_only: bool = False

    def store(self, tokens: list[int], salt: str, at: float) -> None:
        """Its blocks are there from `at` on, by the monotonic clock."""
        whole = len(tokens) // CHUNK * CHUNK
        for end in range(CHUNK, whole + 1, CHUNK):
            key = salt, tuple(tokens[:end])
            self.stored[key] = min(at, self.stored.get(key, at))

    def usable(self, tokens: list[int], salt: str) -> int:
        now, found = time.monotonic(), 0
        for end in range(CHUNK, len(tokens) + 1, CHUNK):
            if self.stored.get((salt, tuple(tokens[:end])), now + 1) > now:
                break
            found = end
        return found


class _LightServer:
    """An ASGI application in a thread."""

    port: int

    def _routes(self) -> list[Route]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.port = self.port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            Starlette(routes=self._routes()),
            host="127.0.0.1",
            port=self.port,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, what="a light server")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.force_exit = self._server.should_exit = True
        self._thread.join(10)


class LightEngine(_LightServer):
    """`calls`: (path, body, headers) of each POST. `cancelled`: requests whose client went away.

    Args:
        s_per_token: of the uncached tokens of a prompt.
        link: bytes/s to the store; None: at once.
        token_s: between two tokens of an answer.
        fails: called with (path, body); returns a response instead of the usual one, or None.
    """

    def __init__(
        self,
        world: World,
        *,
        model: str = "tiny",
        s_per_token: float = 0.0,
        link: float | None = None,
        token_s: float = 0.0,
        port: int = 0,
        fails: Callable[[str, dict[str, Any]], Response | None] | None = None,
    ) -> None:
        self.world, self.model, self.port = world, model, port
        self.s_per_token, self.link, self.token_s = s_per_token, link, token_s
        self.fails = fails
        self.calls: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.computed: list[int] = []  # uncached tokens of each prompt
        self.cancelled = 0
        self.running = 0
        self.waiting = 0  # what /metrics says beside those that run
        self.stores_nothing = False
        self.key = ""  # that /v1 wants, as vLLM's --api-key; "": none
        self._link_free_at = 0.0
        self._turn: asyncio.Lock | None = None

    def bodies(self, path: str = "/v1/completions") -> list[dict[str, Any]]:
        return [body for called, body, _ in self.calls if called == path]

    def _routes(self) -> list[Route]:
        return [
            Route("/health", lambda _: Response()),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]

    async def _metrics(self, _: Request) -> Response:
        labels = f'{{model_name="{self.model}",engine="0"}}'
        return PlainTextResponse(
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            f"vllm:num_requests_waiting{labels} {float(self.waiting)}\n"
        )

    def _refusal(self, request: Request) -> Response | None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        return None

    async def _models(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        row = {"id": self.model, "object": "model", "root": self.model, "max_model_len": 100_000}
        return JSONResponse({"object": "list", "data": [row]})

    async def _body(self, request: Request) -> dict[str, Any] | Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            return JSONResponse({"error": {"message": "no JSON", "code": 400}}, 400)
        self.calls.append((request.url.path, body, dict(request.headers)))
        if self.fails is not None and (answer := self.fails(request.url.path, body)) is not None:
            return answer
        return body

    async def _tokenize(self, request: Request) -> Response:
        body = await self._body(request)
        if isinstance(body, Response):
            return body
        tokens = tokens_of(body)
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": 100_000})

    async def _complete(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        body = await self._body(request)
        if isinstance(body, Response):
            return body
        tokens, salt = tokens_of(body), str(body.get("cache_salt", ""))
        if not isinstance(body.get("max_tokens", 1), int) or body.get("max_tokens", 1) < 1:
            return JSONResponse({"error": {"message": "max_tokens must be positive"}}, 400)
        gone = asyncio.ensure_future(self._gone(request))
        try:
            computing = asyncio.ensure_future(self._compute(tokens, salt))
            await asyncio.wait({gone, computing}, return_when=asyncio.FIRST_COMPLETED)
            if not computing.done():
                computing.cancel()
                self.cancelled += 1
                return Response(status_code=499)
        finally:
            if not body.get("stream"):
                gone.cancel()
        params = self._params(tokens, body)
        words = answer_of(tokens, body.get("max_tokens", 16))
        if body.get("stream"):
            return StreamingResponse(
                self._events(words, gone, is_chat="messages" in body),
                media_type="text/event-stream",
            )
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= (
            {"message": {"role": "assistant", "content": "".join(words)}}
            if "messages" in body
            else {"text": "".join(words)}
        )
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(words)}
        return JSONResponse(
            {"id": "x", "choices": [choice], "usage": usage, "kv_transfer_params": params},
            headers={"X-Engine": self.model},
        )

    async def _compute(self, tokens: list[int], salt: str) -> None:
        self._turn = self._turn or asyncio.Lock()
        self.running += 1
        try:
            async with self._turn:
                new = len(tokens) - min(self.world.usable(tokens, salt), len(tokens) - 1)
                self.computed.append(new)
                await asyncio.sleep(new * self.s_per_token)
            if not self.stores_nothing:
                now = time.monotonic()
                send_s = new * BYTES_PER_TOKEN / self.link if self.link else 0.0
                self._link_free_at = max(now, self._link_free_at) + send_s
                self.world.store(tokens, salt, self._link_free_at)
        finally:
            self.running -= 1

    def _params(self, tokens: list[int], body: dict[str, Any]) -> dict[str, Any] | None:
        asked = body.get("kv_transfer_params") or {}
        whole = len(tokens) // CHUNK * CHUNK
        said: dict[str, Any] = {"reused_tokens": len(tokens) - self.computed[-1]}
        if asked.get("do_remote_decode") and whole:
            block = hashlib.sha256(repr(tokens[:whole]).encode()).hexdigest()[:32]
            said["prefilled"] = {"tokens": whole, "block": block}
        return {"neve": said}

    async def _events(
        self, words: list[str], gone: "asyncio.Future[None]", *, is_chat: bool
    ) -> AsyncIterator[bytes]:
        try:
            for word in words:
                if gone.done():
                    self.cancelled += 1
                    return
                choice = {"delta": {"content": word}} if is_chat else {"text": word}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
                await asyncio.sleep(self.token_s)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            gone.cancel()

    async def _gone(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)


class LightNeve(_LightServer):
    """The routes of /api/v1 that gateways call. `is_away`: answers 503; `hangs`: never answers."""

    def __init__(self, world: World, *, space: int = 3, prefill_tokens_per_s: float | None = None):
        self.world, self.space, self.port = world, space, 0
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.is_away = self.hangs = False
        self.lookups: list[dict[str, Any]] = []
        self.key = "neve_aaaaaaaaaa_" + "k" * 32
        self.engines: list[dict[str, Any]] = []

    def _routes(self) -> list[Route]:
        return [
            Route("/api/v1/lookup", self._lookup, methods=["POST"]),
            Route("/api/v1/spaces", self._spaces),
            Route("/api/v1/spaces/{id}", self._space),
            Route("/api/v1/engines", self._engines),
            Route("/api/v1/me", lambda _: JSONResponse({})),
        ]

    async def _refusal(self, request: Request) -> Response | None:
        while self.hangs:
            await asyncio.sleep(0.02)
        if self.is_away:
            return problem(503, "unavailable")
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return problem(401, "not-authenticated")
        return None

    async def _lookup(self, request: Request) -> Response:
        if (refusal := await self._refusal(request)) is not None:
            return refusal
        body = await request.json()
        self.lookups.append(body)
        if body["space"] != self.space:
            return problem(400, "malformed")
        if "tokens" not in body:
            return problem(409, "no-engine")
        tokens = body["tokens"]
        usable = self.world.usable(tokens, body.get("salt", ""))
        hot = 0 if self.world.cold_only else usable
        whole = len(tokens) // CHUNK * CHUNK
        return JSONResponse(
            {
                **{"tokens": len(tokens), "tail_tokens": len(tokens) - whole},
                **{"hot_tokens": hot, "cold_tokens": usable - hot, "lost_tokens": whole - usable},
                **{"usable_tokens": usable, "usable_hot_tokens": hot, "contexts": []},
                "cost": {
                    **{"load_s": None, "compute_s": None, "verdict": None},
                    **{"basis": "unknown", "nodes": 0},
                },
            }
        )

    async def _spaces(self, request: Request) -> Response:
        if (refusal := await self._refusal(request)) is not None:
            return refusal
        wanted = request.query_params.get("name")
        rows = [] if wanted not in (None, "tiny-space") else [self._row()]
        return JSONResponse({"results": rows, "next": None, "previous": None, "next_cursor": None})

    async def _space(self, request: Request) -> Response:
        if (refusal := await self._refusal(request)) is not None:
            return refusal
        if request.path_params["id"] != str(self.space):
            return problem(404, "not-found")
        speed = {"bytes_per_s": None, "round_trip_s": None}
        decisions = {"load_all": 0, "load_prefix": 0, "recompute": 0, "both": 0}
        even = {
            **{"bytes_per_token": BYTES_PER_TOKEN, "fixed_bytes": 0, "at_tokens": 8192},
            **{"prefill_tokens_per_s": self.prefill_tokens_per_s, "break_even_bytes_per_s": None},
            **{"hot": speed, "cold": speed, "local": speed, "nodes": 1, "basis": "", "verdict": ""},
            **{"decisions_hour": decisions, "decisions_day": decisions},
        }
        return JSONResponse(self._row() | {"break_even": even})

    async def _engines(self, request: Request) -> Response:
        if (refusal := await self._refusal(request)) is not None:
            return refusal
        return JSONResponse({"results": self.engines, "next": None, "next_cursor": None})

    def _row(self) -> dict[str, Any]:
        return {
            **{"id": self.space, "tenant": "demo", "name": "tiny-space", "fingerprint": "00" * 32},
            **{"chunk_tokens": CHUNK, "identity": {"model": "tiny"}, "groups": [], "loss": None},
            "created_at": "2026-11-30T00:00:00Z",
        }


def problem(status: int, kind: str) -> Response:
    body = {"type": f"https://neve.dev/problems/{kind}", "title": kind, "status": status}
    return JSONResponse(body, status, media_type="application/problem+json")


def tokens_of(body: dict[str, Any]) -> list[int]:
    """As the engine's tokeniser makes them; templates join messages by their roles."""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        return [int(token) for token in prompt]
    if prompt is None:
        messages = body["messages"]
        prompt = "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"
    return list(str(prompt).encode())


def answer_of(tokens: list[int], count: int) -> list[str]:
    digest = hashlib.sha256(repr(tokens).encode()).hexdigest()
    return [f"{digest[n % 64]} " for n in range(count)]
