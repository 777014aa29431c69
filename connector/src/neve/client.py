"""The node's client: find, load and store KV blocks by their ids.

Trouble in the storage is never an exception here: it is a miss with a reason. Every call that waits
has a deadline; every queue has a bound. A client may be shared by threads.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

from neve.block import Buffer
from neve.breaker import BreakerState
from neve.cold import ColdReader
from neve.errors import MissReason, Misuse, NeveError
from neve.heartbeat import Heart
from neve.hot import Location, Tier
from neve.hotpath import HotPath, reason_of
from neve.ids import BlockHasher
from neve.loading import Loader
from neve.session import Endpoint, Session
from neve.space import MAX_CHUNK_TOKENS, SpaceIdentity
from neve.stats import Stats
from neve.storing import BlockRef, Storer
from neve.transfer import JobPool, Transfer
from neve.transport import SocketTransport, Transport

__all__ = ["BlockRef", "Client", "Location", "Match", "Tier", "Transfer"]

logger = logging.getLogger("neve.client")

MATCH_S: Final = 0.2
TRANSFER_S: Final = 5.0
COLD_CONNECTIONS: Final = 8
PUT_BYTES_IN_FLIGHT: Final = 256 << 20


@dataclass(frozen=True)
class Match:
    """`locations`: of the consecutive prefix. `miss`: why the next block is missing, or None."""

    locations: list[Location] = field(default_factory=list)
    miss: MissReason | None = None


class Client:
    """One node's view of one space. Make it with `connect`; `close` it when done."""

    def __init__(
        self,
        endpoint: Endpoint,
        session: Session,
        transport: Transport,
        *,
        reopen: Callable[[], Session],
        connections: int = 2,
        promote: bool = True,
        put_bytes_in_flight: int = PUT_BYTES_IN_FLIGHT,
    ) -> None:
        """`reopen` makes the handshake that gave `session` again. See `connect`."""
        self.stats = Stats()
        self.hasher = BlockHasher(session.fingerprint, session.chunk_tokens)
        self._endpoint = endpoint
        self._transport = transport
        self._path = HotPath(transport, session, self._ask_rehandshake)
        self._heart = Heart(endpoint, reopen, self._path, self.stats)
        self._hot_pool = JobPool(connections, "neve-hot")
        self._cold_pool = JobPool(COLD_CONNECTIONS, "neve-cold")
        self._cold = ColdReader(
            lambda segments: endpoint.segment_urls(self.session.id, segments),
            connections=COLD_CONNECTIONS,
        )
        self._storer = Storer(
            self._path,
            pool=self._hot_pool,
            lanes=connections,
            stats=self.stats,
            most_bytes=put_bytes_in_flight,
        )
        self._loader = Loader(
            self._path,
            self._cold,
            hot_pool=self._hot_pool,
            cold_pool=self._cold_pool,
            lanes=connections,
            stats=self.stats,
            promote=self._storer.promote if promote else None,
        )
        self._heart.start()

    @classmethod
    def connect(
        cls,
        endpoint_url: str,
        api_key: str,
        identity: SpaceIdentity,
        *,
        node: str,
        engine: Mapping[str, str],
        space: str | None = None,
        max_chunk_tokens: int = MAX_CHUNK_TOKENS,
        connections: int = 2,
        promote: bool = True,
        put_bytes_in_flight: int = PUT_BYTES_IN_FLIGHT,
    ) -> Self:
        """Makes the handshake. Raises `Refused` (fix it first) or `Unavailable` (try later).

        `connections`: to Valkey, for block bytes; short calls use another one.
        `promote`: whether blocks read from S3 are put back into the hot tier.
        """
        endpoint = Endpoint(endpoint_url, api_key)
        open_session = partial(
            endpoint.open_session,
            identity,
            node=node,
            engine=engine,
            space=space,
            max_chunk_tokens=max_chunk_tokens,
        )
        session = open_session()
        return cls(
            endpoint,
            session,
            SocketTransport(session.valkey),
            reopen=open_session,
            connections=connections,
            promote=promote,
            put_bytes_in_flight=put_bytes_in_flight,
        )

    @property
    def session(self) -> Session:
        """The session of now; a renewed handshake gives another one."""
        return self._path.session

    @property
    def breaker(self) -> BreakerState:
        """Of the hot tier."""
        return self._path.breaker.state

    def match(self, ids: Sequence[bytes], *, deadline_s: float = MATCH_S) -> Match:
        """Where the longest stored prefix of a chain is. One round trip per bucket.

        Never raises on trouble: then nothing is found, for the reason TIMEOUT or BREAKER.
        """
        if not ids:
            return Match()
        found = self._match(ids, time.monotonic() + deadline_s)
        tokens = len(ids) * self.session.chunk_tokens
        self.stats.count(requested_blocks=len(ids), requested_tokens=tokens)
        if found.miss is not None:
            self.stats.miss(found.miss, len(ids) - len(found.locations))
        return found

    def _match(self, ids: Sequence[bytes], deadline: float) -> Match:
        if self._path.closed_for is not None:
            return Match(miss=self._path.closed_for)
        try:
            answers = self._path.tier(deadline).match(ids)
        except NeveError as error:
            return Match(miss=reason_of(error))
        except Exception:  # a boundary: an answer that cannot be read must not stop the engine
            logger.exception("neve.match.unreadable")
            return Match(miss=MissReason.BREAKER)
        prefix: list[Location] = []
        for answer in answers:
            if isinstance(answer, MissReason):
                return Match(prefix, answer)
            prefix.append(answer)
        return Match(prefix)

    def get_many(
        self,
        ids: Sequence[bytes],
        buffers: Sequence[Buffer],
        *,
        locations: Sequence[Location],
        deadline_s: float = TRANSFER_S,
    ) -> Transfer:
        """Loads blocks that `match` found into `buffers`; returns at once.

        Each buffer is writable, contiguous, exactly one payload long, and belongs to the client
        until the transfer is done. Where the outcome is not None it may hold garbage. Raises
        `Misuse` only.
        """
        if not len(ids) == len(buffers) == len(locations):
            raise Misuse(
                f"need one of each, got {len(ids)} ids, {len(buffers)} buffers, "
                f"{len(locations)} locations"
            )
        payloads = [_flat(buffer) for buffer in buffers]
        if any(payload.readonly for payload in payloads):
            raise Misuse("must be writable", field="buffers")
        return self._loader.load(ids, payloads, locations, deadline_s=deadline_s)

    def put_many(
        self,
        blocks: Sequence[BlockRef],
        buffers: Sequence[Buffer],
        *,
        deadline_s: float = TRANSFER_S,
    ) -> Transfer:
        """Stores one payload for each block; returns at once. Raises `Misuse` only.

        Outcomes: None (stored, or already there), QUOTA (the tenant's or the server's memory is
        full), BREAKER (not tried: storage in trouble, or too many bytes in flight), TIMEOUT,
        CORRUPT (another value stands there). Buffers must not change until the transfer is done.
        """
        if len(blocks) != len(buffers):
            raise Misuse(f"need one of each, got {len(blocks)} blocks, {len(buffers)} buffers")
        payloads = [_flat(buffer) for buffer in buffers]
        if not all(len(payload) for payload in payloads):
            raise Misuse("must not be empty", field="buffers")
        return self._storer.store(blocks, payloads, deadline_s=deadline_s)

    def forget(self, ids: Sequence[bytes], *, tier: Tier = Tier.HOT) -> None:
        """Drops bad copies of one tier from the index, as far as that is possible now."""
        self._path.forget(tier, ids)

    def report_context(
        self,
        name: str,
        ids: Sequence[bytes],
        *,
        tokens: int,
        label: str | None = None,
        pin_s: float | None = None,
    ) -> str:
        """Tells the platform which chain a named context is. Returns the context's id.

        One HTTP request. Raises `Refused` or `Unavailable`.
        """
        context = {
            "session": self.session.id,
            "name": name,
            "block_ids": [id_.hex() for id_ in ids],
            "tokens": tokens,
            "label": label,
            "pin_s": pin_s,
        }
        return str(self._endpoint.record_context(context).get("id", ""))

    def close(self, *, deadline_s: float = TRANSFER_S) -> None:
        """Finishes what is under way within `deadline_s`; ends the session with the last counters.

        Later calls find and store nothing.
        """
        deadline = time.monotonic() + deadline_s
        self._cold_pool.close(deadline)
        self._hot_pool.close(deadline)
        self._heart.stop(max(0.0, deadline - time.monotonic()) + 1.0)
        self._transport.close()
        self._cold.close()
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_rehandshake(self) -> None:
        self._heart.ask_rehandshake()


def _flat(buffer: Buffer) -> memoryview:
    try:
        return memoryview(buffer).cast("B")
    except (TypeError, ValueError) as error:
        raise Misuse(f"need contiguous memory: {error}", field="buffers") from error
