"""A node's requests to Valkey, and what each kind of failure means.

All requests pass here, so that failures are judged in one place. The breakers, one for each
primary, are the transport's.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from neve import _core, log_events
from neve.datapath.finding import Finding
from neve.datapath.payload import Payload
from neve.datapath.status import BreakerState, Status
from neve.datapath.transfer import Transfer, Urgency
from neve.datapath.transport import ReplyError, Transport, make_keyspace, reply_of
from neve.errors import MissReason, NeveError, Unavailable
from neve.formats.keys import BucketKeys, bucket_of
from neve.index.library import call
from neve.index.tier import CALL_IDS, HotTier, Location, Tier, decode_match
from neve.node.session import Session

# Called once with the status of each block, by the thread that notices the end of the part.
Settle = Callable[[list[Status]], object]

FORGET_S: Final = 1.0
TOUCH_S: Final = 5.0  # nobody waits for it, and running late would count against Valkey
PROMOTE_S: Final = 1.0
_STRANGER_CODES: Final = frozenset(("WRONGPASS", "NOAUTH", "NOPERM"))


@dataclass(frozen=True)
class BlockRef:
    """A block to store: its id and its parent's (16 bytes each), and its tokens."""

    id: bytes
    parent: bytes
    tokens: int


def is_stranger(error: object) -> bool:
    """Valkey does not know us or our functions: it was restarted and must be provisioned anew."""
    return isinstance(error, ReplyError) and (
        error.code in _STRANGER_CODES or "function not found" in str(error).lower()
    )


class HotPath:
    """For any thread. `ask_rehandshake` is called (often) while Valkey does not know us."""

    def __init__(
        self, transport: Transport, session: Session, ask_rehandshake: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._session = session
        self._keys = _keyspace(session)
        self._ask_rehandshake = ask_rehandshake
        self._lock = threading.Lock()
        self._suspended: MissReason | None = None
        self._was_open = False

    @property
    def session(self) -> Session:
        return self._session

    @property
    def breaker(self) -> BreakerState:
        return self._transport.breaker

    @property
    def closed_for(self) -> MissReason | None:
        """Why no request would be sent now, or None. Takes no probe of the breaker."""
        if self._suspended is not None:
            return self._suspended
        return MissReason.BREAKER if self._transport.refuses else None

    @property
    def suspended_for(self) -> MissReason | None:
        """Why no request is sent until another session is adopted, or None."""
        return self._suspended

    def adopt(self, session: Session) -> None:
        """Goes on with the address and credentials of another session."""
        with self._lock:
            self._session = session
            self._keys = _keyspace(session)
            self._transport.readdress(session.valkey)
            self._suspended = None

    def refresh(self, session: Session) -> None:
        """The same session with other policy numbers."""
        with self._lock:
            self._session = session

    def suspend(self, reason: MissReason) -> None:
        """Serves nothing until another session is adopted."""
        self._suspended = reason

    def get(
        self,
        transfer: Transfer,
        ids: Sequence[bytes],
        payloads: Sequence[Payload],
        settle: Settle,
        *,
        headers: bytearray | None = None,
    ) -> None:
        """Loads and touches blocks, as a part of `transfer`. `headers`: 64 bytes for each."""
        batch = self._transport.get(
            self._keys, ids, payloads, deadline=transfer.deadline, headers=headers
        )
        self._add(transfer, batch, settle)

    def touch(self, ids: Sequence[bytes]) -> None:
        """Tells the index that these blocks were used, read from elsewhere. Waits for nothing."""
        if ids and self.closed_for is None:
            transfer = Transfer(0, time.monotonic() + TOUCH_S)
            self._index_of(transfer).touch(ids)
            transfer.end_job()

    def put(
        self,
        transfer: Transfer,
        blocks: Sequence[BlockRef],
        payloads: Sequence[Payload],
        settle: Settle,
        *,
        urgency: Urgency,
    ) -> None:
        """Stores and commits blocks, as a part of `transfer`."""
        batch = self._transport.put(
            self._keys,
            [block.id for block in blocks],
            [block.parent for block in blocks],
            [block.tokens for block in blocks],
            payloads,
            deadline=transfer.deadline,
            urgency=urgency,
        )
        self._add(transfer, batch, settle)

    def match(self, ids: Sequence[bytes], *, deadline: float) -> tuple[Status, bytes]:
        """(status, rows for `decode_match`): up to the first miss, or `status` says why not."""
        if self._suspended is not None:
            return Status.BREAKER, b""
        status, rows, trouble = self._transport.match(self._keys, ids, deadline=deadline)
        if status is not Status.OK:
            self._notice({status}, trouble)
        return status, rows

    def tier(self, deadline: float) -> HotTier:
        """Typed calls of the index that end by `deadline` and raise what stands in their way."""

        def execute(*args: bytes | str | int | float) -> Any:
            if self._suspended is not None:
                raise Unavailable("suspended")
            try:
                return self._transport.execute(*args, deadline=deadline, idempotent=True)
            except ReplyError as error:
                if is_stranger(error):
                    self._ask_rehandshake()
                raise

        return HotTier(execute, self._session.tenant_id, self._session.buckets)

    def forget(self, tier: Tier, ids: Sequence[bytes]) -> None:
        """Drops bad copies from the index, if that is possible now. Never raises `NeveError`."""
        try:
            self.tier(time.monotonic() + FORGET_S).forget(tier, ids)
        except NeveError as error:
            log_events.HOT_FORGET_FAILED.log(blocks=len(ids), detail=error)

    def forget_within(self, transfer: Transfer, tier: Tier, ids: Sequence[bytes]) -> None:
        """`forget` as a part of `transfer`: waits for nothing here; the transfer ends after it."""
        self._index_of(transfer, time.monotonic() + FORGET_S).forget(tier, ids)

    def promote_calls(self, ids: Sequence[bytes]) -> list[tuple[list[bytes], _core.Batch]]:
        """Tells the index that cold blocks are being read: (ids, call under way) of each slice.

        A reply has 1 for each id that this node shall store as hot, else 0.
        """
        return self._calls("promote", ids, deadline=time.monotonic() + PROMOTE_S)

    def find(self, finding: Finding, ids: Sequence[bytes]) -> None:
        """Asks where blocks are, as parts of `finding`: all slices at once. Waits for nothing."""
        if self._suspended is not None:
            for id_ in ids:
                finding.answer(id_, self._suspended)
            return
        for part, asked in self._calls("locate", ids, "1", deadline=finding.deadline):
            settle = partial(self._settle_found, finding, part)
            finding.add_native(self._transport, asked, settle)

    def _settle_found(self, finding: Finding, ids: Sequence[bytes], done: _core.Batch) -> None:
        (status,) = self._judge(done)
        answers: list[Location | MissReason] = [status.miss or MissReason.BREAKER] * len(ids)
        try:
            answers = decode_match(cast(bytes, reply_of(done)))
        except NeveError as error:
            if is_stranger(error):
                self._ask_rehandshake()
        except Exception:  # a boundary: an answer that cannot be read must not stop the engine
            log_events.MATCH_UNREADABLE.log(exc_info=True)
        for id_, answer in zip(ids, answers, strict=False):
            finding.answer(id_, answer)

    def _calls(
        self, name: str, ids: Sequence[bytes], *first: str, deadline: float
    ) -> list[tuple[list[bytes], _core.Batch]]:
        """(ids, call under way) of each bucket's slices; each id once."""
        session = self._session
        parts: dict[int, list[bytes]] = {}
        for id_ in dict.fromkeys(ids):
            parts.setdefault(bucket_of(id_, session.buckets), []).append(id_)
        calls = []
        for bucket, members in parts.items():
            keys = BucketKeys(session.tenant_id, bucket)
            for begin in range(0, len(members), CALL_IDS):
                part = members[begin : begin + CALL_IDS]
                command = call(name, keys, *first, *part)
                asked = self._transport.call(*command, deadline=deadline, idempotent=True)
                calls.append((part, asked))
        return calls

    def _index_of(self, transfer: Transfer, deadline: float | None = None) -> HotTier:
        """Its calls are parts of `transfer`, without an answer. They end by `deadline`."""
        until = transfer.deadline if deadline is None else deadline

        def submit(*args: bytes | str | int | float) -> int:
            call = self._transport.call(*args, deadline=until, idempotent=True)
            self._add(transfer, call, lambda statuses: None)
            return 0

        return HotTier(submit, self._session.tenant_id, self._session.buckets)

    def _add(self, transfer: Transfer, batch: _core.Batch, settle: Settle) -> None:
        transfer.add_native(self._transport, batch, lambda done: settle(self._judge(done)))

    def _judge(self, done: _core.Batch) -> list[Status]:
        """Statuses of a batch that is done. Reacts to those that concern the server."""
        raw = done.statuses()
        kinds = {Status(value) for value in set(raw)}
        if not kinds <= _UNREMARKABLE:
            self._notice(kinds, done.trouble)
        return [Status(value) for value in raw]

    def _notice(self, kinds: set[Status], trouble: str) -> None:
        if Status.REFUSED in kinds:
            self._ask_rehandshake()
        is_open = self.breaker is not BreakerState.CLOSED
        if is_open and not self._was_open:
            said = trouble or " ".join(sorted(kind.name.lower() for kind in kinds))
            log_events.HOT_BREAKER_OPEN.log(detail=said)
        self._was_open = is_open


_UNREMARKABLE: Final = frozenset(
    (Status.OK, Status.PRESENT, Status.EVICTED, Status.CORRUPT, Status.QUOTA)
)


def _keyspace(session: Session) -> _core.Keyspace:
    return make_keyspace(session.tenant_id, session.buckets, session.space_id, session.fingerprint)
