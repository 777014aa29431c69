"""Moves commands and block bytes between this process and its Valkey servers.

The native core (`neve._core`) does all that takes time, in threads that never hold the GIL. Added
here: addresses, errors as exceptions, and one thread that calls back when batches are done. Miss
reasons and statistics are the business of `neve.datapath.client`.
"""

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from neve import _core, log_events
from neve.datapath.status import BreakerState, Status
from neve.errors import Closed, DeadlineExceeded, Misuse, NeveError, Unavailable
from neve.formats.keys import BucketKeys
from neve.node.address import TlsSettings, ValkeyAddress

Argument = bytes | str | int | float
_FOREVER: Final = float("inf")
_MISUSE: Final = ("TOOMANY ", "BADKEYS ")  # how functions refuse a call as a whole


class ReplyError(NeveError):
    """The server answered with an error. `code` is its first word, e.g. `NOPERM`."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


def make_keyspace(
    tenant_id: int, buckets: int, space_id: int, fingerprint: bytes
) -> _core.Keyspace:
    """The keys of one space in all of a tenant's buckets, as the core uses them."""
    keys = [BucketKeys(tenant_id, bucket) for bucket in range(buckets)]
    names = [(each.block(space_id, b""), list(each.arguments)) for each in keys]
    return _core.Keyspace(space_id, fingerprint[:4], names)


class Transport(_core.Core):
    """Connections to the servers of one address. For any thread; nothing here blocks but `execute`,
    `execute_many` and `match`.

    Deadlines are `time.monotonic()` values. In a forked child all but `close` raises
    `RuntimeError`: make another one there.
    """

    def __init__(
        self,
        address: ValkeyAddress,
        *,
        connections: int = 2,
        io_threads: int = 0,
        connect_timeout_s: float = 1.0,
        stall_s: float = 2.0,
        most_bytes: int = 4 << 30,
    ) -> None:
        """Connects when first asked to do something. Raises `ValueError` for unusable TLS files.

        `connections`: for block bytes, to each primary; short commands have another one.
        `most_bytes`: of all batches under way; one more batch than that is dropped.
        """
        super().__init__(
            *_native(address),
            lanes=connections,
            io_threads=io_threads,
            connect_timeout_s=connect_timeout_s,
            stall_s=stall_s,
            most_bytes=most_bytes,
        )
        self._dispatcher = _Dispatcher()

    @property
    def breaker(self) -> BreakerState:
        return BreakerState(super().breaker)

    def match(
        self, keys: _core.Keyspace, ids: Sequence[bytes], *, deadline: float
    ) -> tuple[Status, bytes, str]:
        """Looks a chain up: (OK or what stood in the way, rows for `decode_match`, the trouble).

        The rows end behind the first miss. One round trip, whatever the number of buckets.
        """
        batch = self.look_up(keys, ids, deadline=deadline)
        batch.wait(_FOREVER)
        status, rows = batch.rows()
        return Status(status), rows, batch.trouble

    def call(self, *arguments: Argument, deadline: float, idempotent: bool = False) -> _core.Batch:
        """Any command that has its key (if any) first, or fourth if it is FCALL."""
        return self._call([arguments], deadline, idempotent)

    def execute(self, *arguments: Argument, deadline: float, idempotent: bool = False) -> object:
        """The reply of one command. Raises `ReplyError`, `Misuse`, `Unavailable`,
        `DeadlineExceeded`, `Closed`."""
        batch = self.call(*arguments, deadline=deadline, idempotent=idempotent)
        batch.wait(_FOREVER)  # the core keeps the deadline
        return reply_of(batch)

    def execute_many(
        self,
        commands: Sequence[Sequence[Argument]],
        *,
        deadline: float,
        idempotent: bool = False,
    ) -> list[object]:
        """The replies of many commands, pipelined. Raises as `execute` does, for the first."""
        batch = self._call(commands, deadline, idempotent)
        batch.wait(_FOREVER)
        return [reply_of(batch, index) for index in range(len(commands))]

    def _call(
        self, commands: Sequence[Sequence[Argument]], deadline: float, idempotent: bool
    ) -> _core.Batch:
        raw = [[_encode(argument) for argument in command] for command in commands]
        keys = [_key_of(command) for command in raw]
        return self.submit(raw, keys, deadline=deadline, idempotent=idempotent)

    def when_done(self, batch: _core.Batch, finish: Callable[[], object]) -> None:
        """Calls `finish()` from the transport's thread, unless somebody else claims `batch`."""
        self._dispatcher.watch(batch, finish)

    def unwatch(self, batch: _core.Batch) -> None:
        """For whoever claimed a batch of `when_done`."""
        self._dispatcher.unwatch(batch)

    def readdress(self, address: ValkeyAddress) -> None:
        """Uses other servers or credentials for whatever starts from now on."""
        self.move_to(*_native(address))

    def drain(self, deadline: float) -> None:
        """Waits for the batches of `when_done` to be finished."""
        self._dispatcher.drain(deadline)

    def close(self) -> None:
        """Ends what is under way as CLOSED, and the threads."""
        super().close()
        self._dispatcher.close()


def reply_of(batch: _core.Batch, index: int = 0) -> object:
    """The reply of a `Transport.call` that is done, or its failure, raised.

    `Misuse`: a function refuses what no client sends; the server is well.
    """
    status = Status(batch.statuses()[index])
    reply = batch.reply(index)
    if isinstance(reply, str):
        if reply.startswith(_MISUSE):
            raise Misuse(reply)
        raise ReplyError(reply)
    if status is Status.OK:
        return reply
    trouble = batch.trouble or status.name.lower()
    if status is Status.REFUSED:
        raise ReplyError(trouble)
    if status in (Status.TIMEOUT, Status.CANCELLED):
        raise DeadlineExceeded(f"valkey: {trouble}")
    if status is Status.CLOSED:
        raise Closed("transport is closed")
    raise Unavailable(f"valkey: {trouble}")


class _Dispatcher:
    """One daemon thread, woken once for a burst of finished batches. Started when first needed.

    A batch that a waiter or an event loop claims first never wakes it, and takes no GIL here.
    """

    _all: "weakref.WeakSet[_Dispatcher]" = weakref.WeakSet()

    def __init__(self) -> None:
        self._queue = _core.CompletionQueue()
        self._condition = threading.Condition()
        self._watched: dict[int, tuple[_core.Batch, Callable[[], object]]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, batch: _core.Batch, finish: Callable[[], object]) -> None:
        with self._condition:
            self._watched[batch.serial] = (batch, finish)
            if self._thread is None and not self._closed:
                self._all.add(self)
                self._thread = threading.Thread(target=self._run, name="neve-done", daemon=True)
                self._thread.start()
            closed = self._closed
        batch.notify(self._queue)
        if closed:  # the batch is done already, and no thread is there any more
            self._finish(self._queue.take())

    def unwatch(self, batch: _core.Batch) -> None:
        with self._condition:
            self._watched.pop(batch.serial, None)
            self._condition.notify_all()

    def drain(self, deadline: float) -> None:
        with self._condition:
            while self._watched and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)

    def close(self) -> None:
        """After the core's: everything is done by now, and is finished before this returns."""
        with self._condition:
            self._closed = True
            thread = self._thread
        self._queue.stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._finish(self._queue.take())

    def _run(self) -> None:
        while not self._queue.stopped:
            self._finish(self._queue.wait(_FOREVER))

    def _finish(self, serials: Sequence[int]) -> None:
        for serial in serials:
            with self._condition:
                found = self._watched.get(serial)
            if found is None:
                continue
            try:
                found[1]()
            except Exception:  # a boundary: one broken callback must not stop the others
                log_events.TRANSPORT_CALLBACK_FAILED.log(exc_info=True)
            finally:
                self.unwatch(found[0])

    @classmethod
    def stop_all(cls) -> None:
        """At exit: a thread that comes back from native code while Python ends would abort."""
        for dispatcher in list(cls._all):
            dispatcher._queue.stop()
            if dispatcher._thread is not None:
                dispatcher._thread.join(1.0)


atexit.register(_Dispatcher.stop_all)


def _key_of(command: Sequence[bytes]) -> bytes:
    at = 3 if command[0].upper().startswith(b"FCALL") else 1
    return command[at] if len(command) > at else b""


def _encode(argument: Argument) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


def _native(
    address: ValkeyAddress,
) -> tuple[list[str], str | None, str | None, dict[str, str] | None]:
    tls: dict[str, str] | None = None
    if address.tls:
        settings = address.tls if isinstance(address.tls, TlsSettings) else TlsSettings()
        tls = {name: value for name, value in vars(settings).items() if value is not None}
    return list(address.seeds), address.username, address.password, tls
