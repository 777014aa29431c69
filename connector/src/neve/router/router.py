"""One request's way: its tokens, what of them is stored, a prefill pool or none, a decode node.

Whatever goes wrong before the decode node, the decode node gets the request all the same. Prompts
are in no log.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final, TypeVar

import httpx

from neve.gateway import Gateway, Node, Route
from neve.gateway.prefill import Handed, Prefills
from neve.gateway.tokens import tokens_of
from neve.router.metrics import Metrics
from neve.router.upstream import (
    Asked,
    EngineAway,
    Malformed,
    answered,
    passed_headers,
    problem,
    served_models,
)

PROMPTED: Final = ("/v1/completions", "/v1/chat/completions")
_TRIES: Final = 2  # of decode nodes, as long as not a byte of an answer came
_MOST_KEYS: Final = 4096  # of clients, known to be good
_OWN_HEADER: Final = b"x-neve-prefill"
# Larger bodies are parsed, hashed and written in a thread, so that other requests go on.
_SMALL_BYTES: Final = 65_536
# Larger bodies pass unread: no prompt of the model is as long, in JSON. Media may be.
_TOKEN_BYTES, _REST_BYTES = 16, 1 << 18

Send = Callable[[Any], Awaitable[None]]
T = TypeVar("T")


@dataclass
class Served:
    """What is known of model and space. `space`: None until Neve named it. `needs_key`: whether
    decode nodes want a client's key; as long as none said so, they may."""

    model: str = ""
    space: int | None = None
    needs_key: bool = True


class Router:
    """One event loop. `served` may change while it runs."""

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        gateway: Gateway,
        prefills: Prefills,
        http: httpx.AsyncClient,
        served: Served,
        metrics: Metrics,
        engine_key: str = "",
        tells_outcome: bool = False,
    ) -> None:
        self.served, self.gateway, self.prefills, self.metrics = served, gateway, prefills, metrics
        self._nodes, self._http = tuple(nodes), http
        self._engine_key, self._tells_outcome = engine_key, tells_outcome
        self._good_keys: dict[bytes, None] = {}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Decode nodes, with their space once it is known."""
        return tuple(replace(node, space=self.served.space) for node in self._nodes)

    async def serve(self, asked: Asked, send: Send) -> None:
        """Answers the request. Being cancelled ends it in pool and node."""
        # Strangers ask Neve for nothing, leave no trace among the prefixes, and are not read.
        is_known = self._may_be_prompt(asked) and await self._is_good(asked)
        body = await _aside(asked, _prompted, asked) if is_known else None
        tokens = None if body is None else await self._tokens(asked, body)
        about = dict(body or {})
        if tokens is not None:
            about.pop("messages", None)
            about["prompt"] = tokens
            if len(tokens) > self.prefills.most_tokens:  # the engine refuses it
                del about["prompt"]
                tokens = None
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in asked.headers}
        route = await self.gateway.route(
            headers, about, self.nodes, reads_aside=len(asked.body) > _SMALL_BYTES
        )
        try:
            if tokens is None or body is None:
                raw = asked.body
                if body is not None:
                    raw = await _aside(asked, _with_params, raw, body, route, None)
                await self._ask(asked, raw, route, None, send)
                return
            found = route.found and route.found.with_held(len(tokens), route.held_share)
            salt = body.get("cache_salt")
            async with self.prefills.prepared(
                tokens, found, salt=salt if isinstance(salt, str) else "", node=route.node.name
            ) as handed:
                self.metrics.handed(handed)
                raw = await _aside(asked, _with_params, asked.body, body, route, handed)
                await self._ask(asked, raw, route, handed, send)
        finally:
            self.gateway.nodes.end(route.id)

    async def _ask(
        self, asked: Asked, raw: bytes, route: Route, handed: Handed | None, send: Send
    ) -> None:
        """Sends the node's answer; another node's if the first one gives none."""
        node, tried = route.node, list[str]()
        while True:
            tried.append(node.name)
            try:
                async with answered(self._http, node.url, asked, raw) as response:
                    if response.status_code < 500:
                        self.gateway.nodes.succeed(node.name)
                    await self._stream(response, handed, send)
                    return
            except Malformed:
                await self.refuse(send, 400, "the request's target or a header is malformed")
                return
            except EngineAway:
                self.gateway.nodes.fail(node.name)
                self.gateway.holders.forget(node.name)
                others = [each for each in self.nodes if each.name not in tried]
                healthy = [each for each in others if self.gateway.nodes.is_healthy(each.name)]
                if len(tried) < _TRIES and others:
                    node = min(
                        healthy or others,
                        key=lambda each: self.gateway.nodes.load(each.name).in_flight,
                    )
                    self.gateway.nodes.begin(node.name, route.id)
                    continue
                await self.refuse(send, 502, f"{node.name} does not answer")
                return

    async def _stream(self, response: httpx.Response, handed: Handed | None, send: Send) -> None:
        """Raises httpx.HTTPError if the answer ends early, as the client's then has to."""
        headers = passed_headers(response)
        if handed is not None and self._tells_outcome:
            headers.append((_OWN_HEADER, handed.summary().encode()))
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        self.metrics.answered(response.status_code)
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        async for part in response.aiter_raw():
            if handed is not None and is_stream and response.status_code == 200:
                handed.first_token()
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, send: Send, status: int, words: str) -> None:
        self.metrics.answered(status)
        status, body = problem(status, words)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _tokens(self, asked: Asked, body: Mapping[str, Any]) -> Sequence[int] | None:
        """Of a prompt that a pool may compute; else None."""
        pools = self.prefills.pools
        if not pools or self.served.space is None or body.get("model") != self.served.model:
            return None
        least = min(pool.options.least_tokens for pool in pools)
        if len(asked.body) <= least:  # a token has a byte at least
            return None
        return await tokens_of(
            self._http,
            self._least_busy().url,
            self.served.model,
            body,
            self._authorization(asked),
            reads_aside=len(asked.body) > _SMALL_BYTES,
        )

    def _may_be_prompt(self, asked: Asked) -> bool:
        most = _REST_BYTES + _TOKEN_BYTES * self.prefills.most_tokens
        return asked.method == "POST" and asked.path in PROMPTED and len(asked.body) <= most

    async def _is_good(self, asked: Asked) -> bool:
        """Whether decode nodes take the client's key: a pool must not compute for others."""
        if not self.served.needs_key:
            return True
        given = asked.header(b"authorization")
        if given is None:
            return False
        digest = sha256(given.encode()).digest()
        if digest in self._good_keys:
            return True
        found = await served_models(self._http, self._least_busy().url, given)
        if not isinstance(found, list):
            return False
        if len(self._good_keys) >= _MOST_KEYS:
            self._good_keys.clear()
        self._good_keys[digest] = None
        return True

    def forget_keys(self) -> None:
        """Keys of clients are checked anew, as they may have been revoked."""
        self._good_keys.clear()

    def _authorization(self, asked: Asked) -> str | None:
        own = f"Bearer {self._engine_key}" if self._engine_key else None
        return asked.header(b"authorization") or own

    def _least_busy(self) -> Node:
        nodes = self.gateway.nodes
        healthy = [node for node in self._nodes if nodes.is_healthy(node.name)]
        return min(healthy or self._nodes, key=lambda node: nodes.load(node.name).in_flight)


async def _aside(asked: Asked, what: Callable[..., T], *args: Any) -> T:
    """`what(*args)`, in a thread if the body is not small."""
    if len(asked.body) <= _SMALL_BYTES:
        return what(*args)
    return await asyncio.to_thread(what, *args)


def _prompted(asked: Asked) -> dict[str, Any] | None:
    """The body of a request with a prompt; None: pass it on as it is."""
    try:
        body = json.loads(asked.body)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _with_params(raw: bytes, body: Mapping[str, Any], route: Route, handed: Handed | None) -> bytes:
    """The body for the decode node; `raw` as it is where the engine is to refuse it anyway."""
    given = body.get("kv_transfer_params")
    if route.node.space is None or not (given is None or isinstance(given, Mapping)):
        return raw
    params: Any = route.engine_params(body)
    if handed is not None:
        params = handed.added_to(params)
    return json.dumps({**body, "kv_transfer_params": params}).encode()
