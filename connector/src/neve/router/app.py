"""The ASGI applications: which path does what, bodies with a bound, clients that go away.

Clients' port has no figures: what is stored, queues and names are for a port of its own.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final
from urllib.parse import unquote

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from neve import log_events
from neve.api import AsyncNeve
from neve.errors import Misuse
from neve.gateway import Gateway, Prompt, Store
from neve.gateway.prefill import Prefills
from neve.gateway.store import Found
from neve.router.metrics import CONTENT_TYPE, Metrics
from neve.router.options import RouterOptions
from neve.router.router import Router, Served
from neve.router.start import REFRESH_S, Facts, check_pools, decode_facts, facts_or_none
from neve.router.upstream import Asked, new_http

# Of an engine's server, for users; its other paths change the engine.
PASSED: Final = ("/tokenize", "/detokenize", "/version", "/ping")  # and below /v1/
_MOST_LOOKUPS: Final = 64  # at a time; tokens are given, so none needs an engine


class RunningRouter:
    """The router with its clients. `open` asks Neve and the engines once, and raises `Misuse` for
    options that they contradict."""

    def __init__(self, options: RouterOptions, *, endpoint: str, api_key: str) -> None:
        self.options = options
        self._http = new_http()
        self._neve = AsyncNeve(endpoint, api_key, timeout_s=10.0, retries=1)
        self._store = Store(
            endpoint, api_key, deadline_s=options.lookup_deadline_s, most_lookups=_MOST_LOOKUPS
        )
        self._gateway = Gateway(self._store)
        self.served = Served(options.model)
        self.router: Router

    async def open(self) -> None:
        options = self.options
        decode = await decode_facts(self._http, options)
        if decode is not None:
            self.served.model, self.served.needs_key = decode.model, decode.needs_key
        elif not options.model:
            raise Misuse(
                "no decode node answers: name the model, or start one of them first", field="model"
            )
        with_engines = any(section.is_registered for section in options.pools)
        facts = await facts_or_none(self._neve, options.space, with_engines=with_engines)
        registered = () if facts is None else facts.engines
        pools = []
        for section in options.pools:
            urls = dict.fromkeys((*section.urls, *(registered if section.is_registered else ())))
            if not urls:
                raise Misuse(
                    "Neve has no prefill engine of this space: register one, or give urls",
                    field=f"pool {section.name}: registered",
                )
            pools.append(section.options(self.served.model, tuple(urls)))
        await check_pools(self._http, pools)
        more = {} if decode is None or not decode.most_tokens else {"most": decode.most_tokens}
        prefills = Prefills(
            pools,
            http=self._http,
            look_up=self._look_up,
            decode_nodes=len(options.decode),
            most_tokens=more.get("most", 131_072),
        )
        self.router = Router(
            options.decode,
            gateway=self._gateway,
            prefills=prefills,
            http=self._http,
            served=self.served,
            metrics=Metrics(prefills, self._gateway, options.decode),
            engine_key=options.engine_key,
            tells_outcome=options.tells_outcome,
        )
        self._learn(facts)

    async def close(self) -> None:
        await self._store.close()
        await self._neve.close()
        await self._http.aclose()

    async def refresh(self) -> None:
        """Again and again, until cancelled."""
        while True:
            # Soon again while nothing is measured: the first nodes may have just begun.
            prefills = self.router.prefills
            is_measured = prefills.kv is not None and prefills.local.curve() is not None
            is_ready = is_measured and self.served.space is not None
            await asyncio.sleep(REFRESH_S if is_ready else min(2.0, REFRESH_S))
            self.router.forget_keys()
            with suppress(Misuse):  # a node that serves another model by now: requests say so
                if (decode := await decode_facts(self._http, self.options)) is not None:
                    self.served.needs_key = decode.needs_key
            with suppress(Misuse):  # a space that was deleted: look-ups say so
                self._learn(await facts_or_none(self._neve, self.options.space))

    def _learn(self, facts: Facts | None) -> None:
        if facts is not None:
            self.served.space = facts.space
            self.router.prefills.measured(
                kv=facts.kv, prefill_tokens_per_s=facts.prefill_tokens_per_s
            )

    async def _look_up(self, tokens: Any, salt: str) -> Found | None:
        if self.served.space is None:
            return None
        asked = Prompt(tokens=tokens, salt=salt or None)
        lookup = await self._store.look_up(self.served.space, asked)
        return None if lookup is None else lookup.found

    def health(self) -> tuple[int, dict[str, Any]]:
        """200 while a decode node may answer. The rest says what a request finds."""
        nodes = {
            node.name: self._gateway.nodes.is_healthy(node.name) for node in self.options.decode
        }
        pools = {
            pool.name: "lost" if pool.is_lost else "full" if not pool.free_nodes() else "free"
            for pool in self.router.prefills.pools
        }
        is_up = any(nodes.values())
        return 200 if is_up else 503, {
            **{"status": "ok" if is_up else "no decode node answers", "model": self.served.model},
            **{"neve": self._store.is_open and self.served.space is not None},
            **{"space": self.served.space, "decode": nodes, "pools": pools},
        }


def app_of(running: RunningRouter) -> Starlette:
    """What clients reach. `running` is open already; the application closes it."""

    async def health(_: Request) -> Response:
        status, words = running.health()
        return JSONResponse({"status": words["status"]}, status)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        refreshing = asyncio.create_task(running.refresh())
        try:
            yield
        finally:
            refreshing.cancel()
            await running.close()

    routes = [Route("/health", health), Route("/{path:path}", _Passing(running))]
    return Starlette(routes=routes, lifespan=lifespan)


def watching_app_of(running: RunningRouter) -> Starlette:
    """What operators reach, on a port of its own: figures, and names of nodes and pools."""

    async def health(_: Request) -> Response:
        status, words = running.health()
        return JSONResponse(words, status)

    async def metrics(_: Request) -> Response:
        return Response(running.router.metrics.text(), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/health", health), Route("/metrics", metrics)])


class _Passing:
    """All paths of engines. What is beyond a bound is refused with the option's name."""

    def __init__(self, running: RunningRouter) -> None:
        self._running, self._options = running, running.options
        self._requests = self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refuse = self._running.router.refuse
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
        if not _passes(path):
            await refuse(send, 404, "the router has no such path")
            return
        if self._requests >= self._options.most_requests:
            words = f"the router has {self._requests} requests already (most_requests)"
            await refuse(send, 503, words)
            return
        body = bytearray()
        self._requests += 1
        try:
            async with asyncio.timeout(self._options.body_s):
                await self._read(Request(scope, receive), body)
            query = scope["query_string"].decode("latin-1")
            target = f"{path}?{query}" if query else path
            asked = Asked(scope["method"], target, scope["headers"], bytes(body))
        except ClientDisconnect:
            return
        except TimeoutError:
            words = f"the body did not come within {self._options.body_s:g} s (body_s)"
            await refuse(send, 408, words)
            return
        except _Beyond as beyond:
            await refuse(send, beyond.status, str(beyond))
            return
        else:
            await _until_gone(self._running.router.serve(asked, send), receive)
        finally:
            self._requests -= 1
            self._held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Raises `_Beyond`; `body` then has less than a bound."""
        options = self._options
        async for part in request.stream():
            if len(body) + len(part) > options.most_body_bytes:
                most = options.most_body_bytes
                raise _Beyond(413, f"the body has more than {most} bytes (most_body_bytes)")
            if self._held_bytes + len(part) > options.most_held_bytes:
                most = options.most_held_bytes
                words = f"bodies have {most} bytes together already (most_held_bytes)"
                raise _Beyond(503, words)
            body += part
            self._held_bytes += len(part)


class _Beyond(Exception):
    """A bound is reached. `status`: of the refusal."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def _passes(path: str) -> bool:
    """Dots would lead elsewhere behind a server that resolves them."""
    steps = unquote(path).split("/")
    return path in PASSED or (path.startswith("/v1/") and not {".", ".."} & {*steps})


async def _until_gone(work: Awaitable[None], receive: Receive) -> None:
    """Does the work, and ends it if the client goes away."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return
        try:
            working.result()
        except httpx.HTTPError as error:
            # The answer has begun: only a connection that breaks tells the client.
            log_events.ROUTER_ANSWER_CUT.log(detail=str(error) or type(error).__name__)
            raise
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def checked(options: RouterOptions, *, endpoint: str, api_key: str) -> dict[str, Any]:
    """What `GET /health` of `metrics_port` would say at the start. Raises `Misuse`."""

    async def asked() -> dict[str, Any]:
        running = RunningRouter(options, endpoint=endpoint, api_key=api_key)
        try:
            await running.open()
            return running.health()[1]
        finally:
            await running.close()

    return asyncio.run(asked())


def server_of(running: RunningRouter) -> uvicorn.Server:
    """For clients."""
    config = uvicorn.Config(
        app_of(running),
        host=running.options.host,
        port=running.options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=30,
    )
    return uvicorn.Server(config)


async def run(running: RunningRouter, server: uvicorn.Server) -> None:
    """Serves clients until `server` ends, and operators beside it. `running` is open already.
    Raises `Misuse` if `metrics_port` is another's."""
    options = running.options
    if options.metrics_port is None:
        await server.serve()
        return
    host, port = options.metrics_host, options.metrics_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        await running.close()
        raise Misuse(f"cannot listen at {host}:{port}: {error}", field="metrics_port") from error
    config = uvicorn.Config(
        watching_app_of(running), log_level="warning", access_log=False, lifespan="off"
    )
    watching = _Beside(config)
    task = asyncio.create_task(watching.serve(sockets=[listening]))
    try:
        await server.serve()
    finally:
        watching.force_exit = watching.should_exit = True
        await task
        listening.close()


class _Beside(uvicorn.Server):
    """A second server of the process: signals are the first one's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    options: RouterOptions,
    *,
    endpoint: str,
    api_key: str,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Runs until it is ended. `started` gets a line once it is ready. Raises `Misuse`."""

    async def whole() -> None:
        running = RunningRouter(options, endpoint=endpoint, api_key=api_key)
        try:
            await running.open()
        except BaseException:
            await running.close()
            raise
        started(json.dumps(running.health()[1]))
        await run(running, server_of(running))

    asyncio.run(whole())
