"""A router in a thread, before light engines and a light Neve."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn

from neve.router.app import RunningRouter, run, server_of
from neve.router.options import parse_options
from support.light_engines import LightEngine, LightNeve, World
from support.servers import free_port, wait_until


class RouterThread:
    """`neve router` in this process. `inner`: its state; `watching`: its port for operators."""

    def __init__(self, neve: LightNeve, config: dict[str, Any], env: dict[str, str]) -> None:
        self._neve, self._env = neve, env
        self.port, metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.watching = f"http://127.0.0.1:{metrics_port}"
        own = {"port": self.port, "metrics_port": metrics_port, "tells_outcome": True}
        own |= {"lookup_deadline_s": 20}  # the machine may be busy
        self._config = {"space": neve.space, "model": "tiny"} | own | config
        self._error: BaseException | None = None
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> "RouterThread":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        wait_until(self._is_ready, what="router")
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.force_exit = self._server.should_exit = True
        self._thread.join(10)

    def _is_ready(self) -> bool:
        return self._error is not None or (self._server is not None and self._server.started)

    def _run(self) -> None:
        async def whole() -> None:
            options = parse_options(self._config, self._env)
            self.inner = RunningRouter(options, endpoint=self._neve.url, api_key=self._neve.key)
            await self.inner.open()
            self._server = server_of(self.inner)
            await run(self.inner, self._server)

        try:
            asyncio.run(whole())
        except BaseException as error:
            self._error = error


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def neve(world: World) -> Iterator[LightNeve]:
    with LightNeve(world, prefill_tokens_per_s=1000.0) as running:
        yield running


@pytest.fixture
def decode(world: World) -> Iterator[LightEngine]:
    with LightEngine(world) as running:
        yield running


@pytest.fixture
def engine(world: World) -> Iterator[LightEngine]:
    """Of the pool."""
    with LightEngine(world) as running:
        yield running


@pytest.fixture
def pool(engine: LightEngine) -> dict[str, Any]:
    """Its section of the file: faster than the decode nodes as far as it is known."""
    known = {"link_mbit": 8000, "prefill_tokens_per_s": 1e6}
    return {"name": "far", "urls": [engine.url], **known}


@pytest.fixture
def start(neve: LightNeve, decode: LightEngine) -> Iterator[Callable[..., RouterThread]]:
    """Starts a router with these pools before `decode`."""
    with ExitStack() as stack:

        def started(*pools: dict[str, Any], env: Any = None, **more: Any) -> RouterThread:
            config = {"decode": [{"url": decode.url, "name": "a"}], "pool": list(pools), **more}
            return stack.enter_context(RouterThread(neve, config, env or {}))

        yield started
