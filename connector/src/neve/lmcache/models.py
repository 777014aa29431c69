"""One connection to Neve for each model that LMCache's clients name: a space of its own."""

import threading
from collections.abc import Callable
from typing import Final

from neve.datapath.client import Client
from neve.engine.link import BOOT_WAIT_S, Engine, Link
from neve.engine.options import Options
from neve.errors import Misuse
from neve.lmcache.settings import identify

MOST_MODELS: Final = 32  # each has a session and connections

Use = Callable[[Client | None], object]


class Models:
    """Thread-safe."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self._options = options
        self._engine = engine
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._waiting: dict[str, list[Use]] = {}  # while the first attempt to connect is under way
        self._closed = False

    def use(self, model: str, use: Use) -> None:
        """Calls `use` with the model's client, or None while there is none; now, or from a thread
        of its own after the first attempt to connect, `BOOT_WAIT_S` at most.

        Raises `Misuse` for a name that no space can have, and for one model too many.
        """
        with self._lock:
            link = self._links.get(model)
            if link is None and not self._closed:
                link = self._connect(model)
            if model in self._waiting:
                self._waiting[model].append(use)
                return
        use(None if link is None else link.client)

    def _connect(self, model: str) -> Link:
        if len(self._links) >= MOST_MODELS:
            raise Misuse(f"at most {MOST_MODELS} models of one LMCache are stored", field="model")
        identity = identify(model, self._options)
        link = Link.acquire(self._options, identity, engine=self._engine)
        self._links[model], self._waiting[model] = link, []
        threading.Thread(
            target=self._wait, args=(model, link), name="neve-lmcache-boot", daemon=True
        ).start()
        return link

    def _wait(self, model: str, link: Link) -> None:
        link.wait_first_attempt(BOOT_WAIT_S)
        with self._lock:
            waiting = self._waiting.pop(model)
        for use in waiting:
            use(link.client)

    def clients(self) -> dict[str, Client | None]:
        """By model."""
        with self._lock:
            return {model: link.client for model, link in self._links.items()}

    def close(self) -> None:
        """Finishes what is under way, within the clients' deadlines."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.release()
