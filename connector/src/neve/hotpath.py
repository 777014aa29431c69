"""The way to the hot tier: a transport behind a breaker, and what each kind of trouble means.

Everything that a node asks of Valkey passes here, so that trouble is judged in one place.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from neve.breaker import Breaker
from neve.errors import DeadlineExceeded, MissReason, NeveError, Unavailable
from neve.hot import HotTier, Tier, commit_args
from neve.keys import BucketKeys, bucket_of
from neve.session import Session
from neve.transport import Call, Operation, ReplyError, Transport, WrongLength

logger = logging.getLogger("neve.hotpath")

# A pipeline that had less time than this and ran out of it says nothing of the server.
FAIR_S: Final = 0.1
FORGET_S: Final = 1.0
_STRANGER_CODES: Final = frozenset(("WRONGPASS", "NOAUTH", "NOPERM"))


def is_stranger(error: object) -> bool:
    """Valkey does not know us or our functions: it was restarted and must be provisioned anew."""
    return isinstance(error, ReplyError) and (
        error.code in _STRANGER_CODES or "function not found" in str(error).lower()
    )


def reason_of(error: object) -> MissReason:
    """Why a block whose operation ended with `error` is a miss."""
    if isinstance(error, DeadlineExceeded):
        return MissReason.TIMEOUT
    if isinstance(error, WrongLength):
        return MissReason.CORRUPT
    if isinstance(error, ReplyError) and error.code == "OOM":
        return MissReason.QUOTA  # the server as a whole is full
    if isinstance(error, ReplyError) and error.code == "WRONGTYPE":
        return MissReason.CORRUPT
    return MissReason.BREAKER


class HotPath:
    """For any thread. `ask_rehandshake` is called (often) while Valkey does not know us."""

    def __init__(
        self, transport: Transport, session: Session, ask_rehandshake: Callable[[], None]
    ) -> None:
        self.breaker = Breaker()
        self._transport = transport
        self._session = session
        self._ask_rehandshake = ask_rehandshake
        self._lock = threading.Lock()
        self._suspended: MissReason | None = None

    @property
    def session(self) -> Session:
        return self._session

    @property
    def closed_for(self) -> MissReason | None:
        """Why asking makes no sense now; None when it does. Takes no probe of the breaker."""
        if self._suspended is not None:
            return self._suspended
        return MissReason.BREAKER if self.breaker.is_open else None

    def adopt(self, session: Session) -> None:
        """Goes on with the address and credentials of another session."""
        with self._lock:
            self._session = session
            self._suspended = None
        self._transport.readdress(session.valkey)
        self.breaker.probe_now()

    def refresh(self, session: Session) -> None:
        """The same session with other policy numbers."""
        with self._lock:
            self._session = session

    def suspend(self, reason: MissReason) -> None:
        """Serves nothing until another session is adopted."""
        self._suspended = reason

    def run(self, operations: Sequence[Operation], *, deadline: float) -> list[Any]:
        """`Transport.run`, unless the breaker is open; reports to the breaker how it went."""
        if self._suspended is not None or not self.breaker.allow():
            return [Unavailable("the breaker is open")] * len(operations)
        started = time.monotonic()
        results = self._transport.run(operations, deadline=deadline)
        trouble = next((result for result in results if _is_trouble(result)), None)
        if trouble is None:
            self.breaker.succeed()
        elif isinstance(trouble, DeadlineExceeded) and time.monotonic() - started < FAIR_S:
            self.breaker.forgive()
        else:
            self.breaker.fail()
            if self.breaker.is_open:
                logger.warning("neve.hot.breaker_open detail=%s", trouble)
            if is_stranger(trouble):
                self._ask_rehandshake()
        return results

    def tier(self, deadline: float) -> HotTier:
        """Typed calls of the index that end by `deadline` and raise what stands in their way."""

        def execute(*args: bytes | str | int | float) -> Any:
            (result,) = self.run([Call(args)], deadline=deadline)
            if isinstance(result, NeveError):
                raise result
            return result

        return HotTier(execute, self._session.tenant_id, self._session.buckets)

    def block_key(self, block_id: bytes) -> bytes:
        session = self._session
        return self._bucket(session, block_id).block(session.space_id, block_id)

    def touch_calls(self, ids: Iterable[bytes]) -> list[Call]:
        return [
            Call(("FCALL", "neve_touch", 7, *keys.bookkeeping, *part))
            for keys, part in self._by_bucket(ids)
        ]

    def commit_calls(
        self, blocks: Sequence[tuple[bytes, int, int]]
    ) -> list[tuple[list[bytes], Call]]:
        """For each bucket the ids it commits and the call; blocks are (id, size_bytes, tokens)."""
        space_id = self._session.space_id
        by_id = {block[0]: block for block in blocks}
        calls = []
        for keys, part in self._by_bucket(by_id):
            block_keys = [keys.block(space_id, id_) for id_ in part]
            args = commit_args(space_id, (by_id[id_] for id_ in part))
            count = 7 + len(part)
            call = Call(("FCALL", "neve_commit", count, *keys.bookkeeping, *block_keys, *args))
            calls.append((part, call))
        return calls

    def forget(self, tier: Tier, ids: Sequence[bytes]) -> None:
        """Drops bad copies from the index, as far as that is possible now. Never raises trouble."""
        try:
            self.tier(time.monotonic() + FORGET_S).forget(tier, ids)
        except NeveError as error:
            logger.warning("neve.hot.forget_failed blocks=%d detail=%s", len(ids), error)

    def _by_bucket(self, ids: Iterable[bytes]) -> Iterator[tuple[BucketKeys, list[bytes]]]:
        session = self._session
        parts: dict[BucketKeys, list[bytes]] = {}
        for id_ in dict.fromkeys(ids):
            parts.setdefault(self._bucket(session, id_), []).append(id_)
        yield from parts.items()

    @staticmethod
    def _bucket(session: Session, block_id: bytes) -> BucketKeys:
        return BucketKeys(session.tenant_id, bucket_of(block_id, session.buckets))


def _is_trouble(result: object) -> bool:
    """Speaks of the server, not of one block."""
    return isinstance(result, NeveError) and reason_of(result) in (
        MissReason.TIMEOUT,
        MissReason.BREAKER,
    )
