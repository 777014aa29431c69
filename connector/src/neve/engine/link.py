"""One rank's connection to Neve, made in the background and shared within a process.

The engine starts whether or not Neve answers: `client` is None until it does. Scheduler and worker
of one process share the client, so that a node opens one session a space.
"""

import atexit
import threading
from collections.abc import Sequence
from typing import NamedTuple

from neve import log_events
from neve.datapath.client import Client
from neve.engine.options import MOST_SAVE_BUDGET_BYTES, Options
from neve.errors import Misuse, NeveError, Refused
from neve.formats.parts import PartGroup
from neve.formats.space import SpaceIdentity

# The engine's start may wait this long for Neve, so that its first requests already hit.
BOOT_WAIT_S = 2.0
# How long to wait between attempts: short first, for a platform that is just starting.
_RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0)
# A refusal (key, node limit, clashing space) needs a person; try again at this pace. A malformed
# request (a name with half a surrogate pair) needs another configuration: it is not tried again.
_REFUSED_RETRY_S = 30.0


class Engine(NamedTuple):
    """The engine that an adapter belongs to, as the platform shows it."""

    name: str
    version: str
    device: str = ""  # its kind: in a family, KV is equal only on the same kind
    # Digest of the weights that only some tokens reach; "" where they are not at hand.
    selective_weights: str = ""
    model: str = ""  # name under which its server serves the model
    gpus: int = 1  # TP × PP


class Link:
    """Use `acquire` and `release`. All methods may be called from any thread."""

    _shared: dict[tuple[object, ...], "Link"] = {}
    _shared_lock = threading.Lock()

    def __init__(
        self,
        options: Options,
        identity: SpaceIdentity,
        *,
        node: str,
        engine: Engine,
        shards: int,
        groups: Sequence[PartGroup],
    ) -> None:
        self._options = options
        self._groups = groups
        self._shards = shards
        self._identity = identity
        self._node = node
        self._engine = engine
        name = options.family
        self._family = None if name is None else {"name": name, "device": engine.device}
        self._users = 0
        self._closing = threading.Event()
        self._tried = threading.Event()
        self._client: Client | None = None
        self._thread = threading.Thread(target=self._connect, name="neve-connect", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        options: Options,
        identity: SpaceIdentity,
        *,
        engine: Engine,
        node: str | None = None,
        shards: int = 1,
        groups: Sequence[PartGroup] = (),
    ) -> "Link":
        """The process's link for this identity; starts connecting if it is the first.

        `node` defaults to the option; `shards`: blocks that one chunk is cut into. `groups`: see
        `Endpoint.open_session`; it is enough that the worker gives them.
        """
        node = node or options.node
        key = (cls, options, identity, node)
        with cls._shared_lock:
            link = cls._shared.get(key)
            if link is None:
                link = cls(
                    options, identity, node=node, engine=engine, shards=shards, groups=groups
                )
                cls._shared[key] = link
            link._users += 1
        return link

    @property
    def client(self) -> Client | None:
        """The connected client, or None: then serve without Neve."""
        return self._client

    def wait_first_attempt(self, timeout_s: float) -> None:
        """Returns when the first attempt has ended, whichever way, or after `timeout_s`."""
        self._tried.wait(timeout_s)

    def release(self) -> None:
        """Ends one user's use; the last one closes the client, which drains its puts."""
        with self._shared_lock:
            self._users -= 1
            if self._users > 0:
                return
            for key, link in list(self._shared.items()):
                if link is self:
                    del self._shared[key]
        self._close()

    def _close(self) -> None:
        self._closing.set()
        # An attempt under way ends by its own timeout; its client is then closed by `_connect`.
        self._thread.join(timeout=0.2)
        client, self._client = self._client, None
        if client is not None:
            client.close()

    @classmethod
    def _close_all(cls) -> None:
        """At exit: engines that run inside one process are often just dropped."""
        with cls._shared_lock:
            links = list(cls._shared.values())
            cls._shared.clear()
        for link in links:
            link._close()

    def _connect(self) -> None:
        detail = ""
        attempt = 0
        while not self._closing.is_set():
            try:
                client = self._open()
            except NeveError as error:
                if str(error) != detail:
                    detail = str(error)
                    log_events.CONNECT_FAILED.log(
                        endpoint=self._options.endpoint,
                        kind=type(error).__name__,
                        detail=detail,
                    )
                refused = isinstance(error, Refused)
                if isinstance(error, Misuse) or (isinstance(error, Refused) and error.is_malformed):
                    log_events.CONNECT_GIVEN_UP.log(field=error.field)
                    self._tried.set()
                    return
                pause_s = _REFUSED_RETRY_S if refused else _RETRY_S[min(attempt, 4)]
                attempt += 1
            except Exception:
                log_events.CONNECT_BROKEN.log(endpoint=self._options.endpoint, exc_info=True)
                pause_s = _REFUSED_RETRY_S
            else:
                self._client = client
                self._tried.set()
                if self._closing.is_set():
                    self._client = None
                    client.close()
                log_events.CONNECT_OK.log(
                    space=client.session.space_name,
                    chunk_tokens=client.session.chunk_tokens,
                )
                return
            self._tried.set()
            self._closing.wait(pause_s)

    def _described(self) -> dict[str, str | int]:
        """The handshake's `engine`. Platforms before announced engines refuse the address."""
        engine = self._engine
        known: dict[str, str | int] = {"name": engine.name, "version": engine.version}
        if self._options.engine_url is None or not engine.model:
            return known
        known |= {"url": self._options.engine_url, "model": engine.model}
        return known | {"gpus": engine.gpus, "shards": self._shards}

    def _open(self) -> Client:
        identity = self._identity
        space = self._options.space
        if space is not None and identity.tp_size * identity.pp_size > 1:
            # Every rank has its own KV, so a named space becomes one name a rank.
            space = f"{space}-pp{identity.pp_rank}-tp{identity.tp_rank}"
        return Client.connect(
            self._options.endpoint,
            self._options.api_key,
            identity,
            node=self._node,
            engine=self._described(),
            space=space,
            family=self._family,
            selective_weights=self._engine.selective_weights,
            max_chunk_tokens=self._options.max_chunk_tokens,
            near_stores=self._options.near_stores,
            connections=self._options.connections,
            cold_connections=self._options.cold_connections,
            # A worker's staging bounds its puts, but the scheduler may not know its size.
            put_bytes_in_flight=self._options.save_budget_bytes or MOST_SAVE_BUDGET_BYTES,
            shards=self._shards,
            groups=self._groups,
            local_dir=self._options.local_dir,
            local_bytes=self._options.local_bytes,
        )


atexit.register(Link._close_all)
