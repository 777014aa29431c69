"""The node's own tier: blocks that it read twice, in a directory of its own (NVMe or RAM disk).

The index stays the authority: only blocks that `match` found are looked for here, and each is
verified. A block that is not here, or cannot be read in time, is read from where the index says: so
this tier makes no misses. Trouble of its disk opens a breaker; writes and reads have one each.

A block is admitted at its second use here (`Ghosts`), and written in the background, from a copy,
by one thread. `neve.datapath.local_files` says how files are kept.
"""

import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Final

from neve import _core, log_events
from neve.datapath.local_files import (
    LocalFiles,
    empty_for_key,
    note_key,
    space_folder,
    tenant_folder,
)
from neve.datapath.payload import Payload, copy_of
from neve.datapath.status import BreakerState, Status
from neve.datapath.transfer import JobPool, PoolJob, Transfer, Urgency
from neve.errors import Closed, Misuse, NeveError
from neve.formats.block import HEADER_BYTES, PLAIN, as_plain, decode_header, encode_header
from neve.node.session import Session
from neve.node.stats import Stats

# Threads that read files. From a RAM disk each copies some 2.4 GB/s (docs/benchmarks.md).
READERS: Final = min(8, max(4, (os.cpu_count() or 1) // 2))
# A load may spend this share of its time here, at most; the rest is left for the other tiers.
SHARE: Final = 0.5
STALL_S: Final = 1.0  # all loads give up when so long not a byte comes
FAIR_S: Final = 0.05  # reads that were given less say nothing about the disk
COPY_BYTES: Final = 64 << 20  # of one load, copied before it is done: about 10 ms
PENDING_BYTES: Final = 256 << 20  # copies that wait to be written
MOST_GHOSTS: Final = 200_000
LOOK_S: Final = 2.0  # how often to look for files of other engines
_PIECE_BYTES: Final = 64 << 20  # written at a time under the lock

# Index of a block in its transfer, its id and where its payload goes.
Wanted = tuple[int, bytes, Payload]
# Called once, with (block, status) of each.
Settle = Callable[[list[tuple[Wanted, Status]]], None]


class Ghosts:
    """Ids that were used once. For any thread."""

    def __init__(self, most: int = MOST_GHOSTS) -> None:
        self._most = most
        self._ids: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, ids: Iterable[bytes]) -> None:
        with self._lock:
            for id_ in ids:
                self._ids[id_] = None
                self._ids.move_to_end(id_)
            while len(self._ids) > self._most:
                self._ids.popitem(last=False)

    def has(self, id_: bytes) -> bool:
        return id_ in self._ids

    def discard(self, id_: bytes) -> None:
        with self._lock:
            self._ids.pop(id_, None)


class LocalTier:
    """For any thread. `is_open()`: whether the session serves, so that blocks may be kept."""

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        *,
        endpoint_url: str,
        api_key: str,
        session: Session,
        stats: Stats,
        is_open: Callable[[], bool],
    ) -> None:
        """Waits for no disk: the directory is opened by the tier's own thread."""
        self._folder = folder
        self._most_bytes = most_bytes
        self._api_key = api_key
        self._tenant = tenant_folder(endpoint_url, session.tenant_id)
        self._space = space_folder(session.fingerprint)
        self._tag = session.fingerprint[:4]
        self._stats = stats
        self._is_open = is_open
        self._files: LocalFiles | None = None
        self._ghosts = Ghosts()
        self.read_breaker = _core.Breaker()
        self.write_breaker = _core.Breaker()
        self._pool = JobPool(READERS, "neve-local")
        self._watch = _Watch()
        self._condition = threading.Condition()  # of what follows
        self._queue: deque[tuple[bytes, bytes, memoryview]] = deque()
        self._queued: set[bytes] = set()
        self._queued_bytes = 0
        self._revoked = False
        self._closed = False
        self._idle = threading.Event()
        self._said: dict[str, float] = {}  # kind of trouble → when it was logged
        self._writer = threading.Thread(target=self._run, name="neve-local-write", daemon=True)
        self._writer.start()

    @property
    def used_bytes(self) -> int:
        """Of the directory, whoever wrote it, when it was last looked at."""
        return self._files.used_bytes if self._files else 0

    def has(self, id_: bytes) -> bool:
        """Whether a read would be tried now. Waits for nothing."""
        files = self._files
        return (
            files is not None
            and files.has(id_)
            and self.read_breaker.state == BreakerState.CLOSED.value
        )

    def split(self, ids: Sequence[bytes]) -> list[bool]:
        """For each block whether to read it here. May take the probe of a breaker, so each True is
        followed by a `read`."""
        files = self._files
        if files is None or not any(map(files.has, ids)) or not self.read_breaker.allow():
            return [False] * len(ids)
        return [files.has(id_) for id_ in ids]

    def read(self, transfer: Transfer, blocks: Sequence[Wanted], settle: Settle) -> None:
        """Reads blocks of `split` as a part of `transfer`, and settles them all at once, by half
        of its deadline, or once the disk hangs. Their payloads are not written to any more then."""
        files = self._files
        assert files is not None
        now = time.monotonic()
        wanted = [(files.path(id_), id_, payload) for _, id_, payload in blocks]
        reading = _Reading(
            self,
            _core.LocalRead(self._tag, wanted),
            blocks,
            transfer=transfer,
            began=now,
            deadline=now + SHARE * max(0.0, transfer.deadline - now),
            settle=settle,
        )
        self._watch.add(reading)
        try:
            readers = min(READERS, len(blocks))
            self._pool.submit([PoolJob(reading.run) for _ in range(readers)], Urgency.LOAD)
        except Closed:
            reading.end(in_time=False)

    def note(self, ids: Iterable[bytes]) -> None:
        """These blocks were written to the hot tier by this node: their first use."""
        self._ghosts.add(ids)

    def keep(self, blocks: Sequence[tuple[bytes, bytes, Payload]]) -> None:
        """Verified blocks (id, header, payload) that came from another tier: copies those that were
        used before, and writes them in the background. The rest is noted as used once."""
        files = self._files
        fresh, chosen, size_bytes = [], [], 0
        open_ = files is not None and self._is_open() and not self._revoked
        for id_, header, payload in blocks:
            if not self._ghosts.has(id_):
                fresh.append(id_)
            elif (
                open_
                and files is not None
                and not files.has(id_)
                and size_bytes + len(payload) <= COPY_BYTES
            ):
                chosen.append((id_, header, payload))
                size_bytes += len(payload)
        self._ghosts.add(fresh)
        if chosen and self.write_breaker.state != BreakerState.OPEN.value:
            self._enqueue(chosen)

    def flush(self, timeout_s: float) -> bool:
        """Waits until nothing waits to be written, for tests and benchmarks."""
        return self._idle.wait(timeout_s)

    def revoke(self) -> None:
        """The platform does not know our key any more: deletes the tenant's blocks, soon."""
        with self._condition:
            self._revoked = True
            self._queue.clear()
            self._queued.clear()
            self._queued_bytes = 0
            self._condition.notify_all()

    def close(self, deadline: float) -> None:
        """Gives up what waits to be written."""
        with self._condition:
            self._closed = True
            self._queue.clear()
            self._condition.notify_all()
        self._pool.close(deadline)
        self._watch.close()
        self._writer.join(max(0.0, deadline - time.monotonic()))

    # ---- reading

    def end_read(self, statuses: Counter[Status], trouble: str, took_s: float) -> None:
        """What a whole `read` says of the disk: slow is one that sent less than half in time."""
        late, came = statuses[Status.TIMEOUT], statuses[Status.OK]
        if statuses[Status.UNAVAILABLE] or (late > came and took_s >= FAIR_S):
            if self.read_breaker.fail():
                detail = trouble or f"{late} of {statuses.total()} blocks took over {took_s:.1f} s"
                log_events.LOCAL_BREAKER_OPEN.log(folder=self._folder, detail=detail)
        elif came:
            self.read_breaker.succeed()
        else:
            self.read_breaker.forgive()

    def settle_files(self, blocks: Sequence[tuple[Wanted, Status]]) -> None:
        """Marks files as used, deletes bad ones, notes those gone. In a reader's thread."""
        files = self._files
        assert files is not None
        of: dict[Status, list[bytes]] = {}
        for (_, id_, _), status in blocks:
            of.setdefault(status, []).append(id_)
        bad = of.get(Status.CORRUPT, [])
        try:
            # Unless written anew meanwhile: what stands there counts.
            gone = [i for i in of.get(Status.EVICTED, []) if not os.path.exists(files.path(i))]
            files.drop(gone)
            files.delete(bad)
            files.use(of.get(Status.OK, []))
        except OSError as error:  # of a directory that is read-only, for one: it still serves
            files.drop(bad)
            self._note_trouble(error)
        self._stats.count(local_bad_blocks=len(bad))

    # ---- writing

    def _enqueue(self, blocks: Sequence[tuple[bytes, bytes, Payload]]) -> None:
        for id_, header, payload in blocks:
            with self._condition:
                fits = self._queued_bytes + len(payload) <= min(PENDING_BYTES, self._most_bytes)
                if not fits or id_ in self._queued or self._closed:
                    continue
                self._queued.add(id_)
                self._queued_bytes += len(payload)
                self._idle.clear()
            copy = copy_of(payload)
            with self._condition:
                if id_ in self._queued:  # not revoked meanwhile
                    self._queue.append((id_, _plain(header, copy), copy))
                    self._condition.notify_all()

    def _run(self) -> None:
        while not self._closed:
            try:
                if self._revoked:
                    self._empty()
                elif self._files is None:
                    self._open()
                else:
                    self._write(self._take())
            except (OSError, NeveError) as error:
                self._note_trouble(error)
                self._pause()
            except Exception:  # a boundary: one failure must not end the thread
                log_events.LOCAL_FAILED.log(exc_info=True)
                self._pause()

    def _open(self) -> None:
        files = LocalFiles(self._folder, tenant=self._tenant, space=self._space)
        files.look()
        self._files = files
        self._idle.set()
        note_key(self._folder, self._api_key, self._tenant)
        with files.locked():
            files.look(sweep=True)
            self._count_evicted(files.make_room(self._most_bytes))

    def _empty(self) -> None:
        """Deletes, until that worked; then waits for a session, which a new key would give."""
        empty_for_key(self._folder, self._api_key)
        if self._files:
            self._files.forget_all()
        log_events.LOCAL_EMPTIED.log(folder=self._folder)
        self._idle.set()
        with self._condition:
            while not self._closed and not self._is_open():
                self._condition.wait(LOOK_S)
            self._revoked, self._files = False, None

    def _take(self) -> list[tuple[bytes, bytes, memoryview]]:
        """The next blocks to write; none after `LOOK_S`."""
        with self._condition:
            if not self._queue and not self._closed and not self._revoked:
                self._condition.wait(LOOK_S)
            taken, size_bytes = [], 0
            while self._queue and size_bytes < _PIECE_BYTES:
                taken.append(self._queue.popleft())
                size_bytes += len(taken[-1][2])
            return taken

    def _write(self, blocks: Sequence[tuple[bytes, bytes, memoryview]]) -> None:
        files = self._files
        assert files is not None
        try:
            if not blocks:
                files.look()
                return
            if not self.write_breaker.allow():
                return
            try:
                self._write_locked(files, blocks)
            except BaseException:
                self.write_breaker.fail()
                raise
            self.write_breaker.succeed()
        finally:
            with self._condition:
                for id_, _, payload in blocks:
                    self._ghosts.discard(id_)
                    if id_ in self._queued:
                        self._queued.remove(id_)
                        self._queued_bytes -= len(payload)
                if not self._queued:
                    self._idle.set()

    def _write_locked(
        self, files: LocalFiles, blocks: Sequence[tuple[bytes, bytes, memoryview]]
    ) -> None:
        with files.locked():
            files.look(sweep=True)
            for id_, header, payload in blocks:
                size_bytes = HEADER_BYTES + len(payload)
                if files.has(id_) or size_bytes > self._most_bytes:
                    continue
                if self._revoked or not self._is_open():
                    return
                self._count_evicted(files.make_room(self._most_bytes - size_bytes))
                files.write(id_, header, payload)
                self._stats.count(local_write_bytes=size_bytes)

    def _count_evicted(self, files: int) -> None:
        if files:
            self._stats.count(local_evicted_blocks=files)

    def _note_trouble(self, error: Exception) -> None:
        """Logs each kind of trouble once in a minute."""
        kind = f"{type(error).__name__} {getattr(error, 'errno', '')}"
        now = time.monotonic()
        if self._said.get(kind, -60.0) + 60.0 <= now:
            self._said[kind] = now
            log_events.LOCAL_TROUBLE.log(folder=self._folder, detail=error)

    def _pause(self) -> None:
        with self._condition:
            if not self._closed:
                self._condition.wait(1.0)


class _Reading:
    """Blocks of one load. It ends once: when all are read, or at its deadline, by the watch.

    The pool's jobs belong to no transfer: their threads may hang, and the transfer ends without.
    """

    def __init__(
        self,
        tier: LocalTier,
        native: _core.LocalRead,
        blocks: Sequence[Wanted],
        *,
        transfer: Transfer,
        began: float,
        deadline: float,
        settle: Settle,
    ) -> None:
        self.deadline = deadline
        self.ended = False
        self._began = began
        self._moved_bytes = 0
        self._tier = tier
        self._native: _core.LocalRead | None = native  # keeps the payloads
        self._blocks = blocks
        self._transfer = transfer
        self._settle = settle
        self._lock = threading.Lock()
        transfer.add_part(cancel=lambda: self.end(in_time=False))

    @property
    def moved_bytes(self) -> int:
        native = self._native
        return self._moved_bytes if native is None else native.moved_bytes

    def run(self) -> None:
        """In several threads at a time."""
        native = self._native
        if native is not None and native.run(self.deadline):
            self.end(in_time=True)

    def end(self, *, in_time: bool) -> None:
        """Not `in_time`: the disk may hang, so it is asked for nothing."""
        with self._lock:
            native, self._native, self.ended = self._native, None, True
        if native is None:
            return
        native.end()
        self._moved_bytes = native.moved_bytes
        statuses = list(map(Status, native.statuses()))
        ended = list(zip(self._blocks, statuses, strict=True))
        try:
            self._settle(ended)
        except Exception:  # a boundary: the transfer must end
            log_events.TRANSFER_JOB_FAILED.log(exc_info=True)
        finally:
            self._transfer.end_job()
            took_s = time.monotonic() - self._began
            self._tier.end_read(Counter(statuses), native.trouble, took_s)
        if in_time:
            self._tier.settle_files(ended)


class _Watch:
    """One daemon thread that ends readings: each at its deadline, all of them when the disk sent
    not a byte for `STALL_S`. Started when first needed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readings: list[_Reading] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, reading: _Reading) -> None:
        with self._condition:
            self._readings.append(reading)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="neve-local-watch", daemon=True
                )
                self._thread.start()
            else:
                self._condition.notify_all()

    def close(self) -> None:
        """Ends all of them."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            readings, self._readings = self._readings, []
        for reading in readings:
            reading.end(in_time=False)

    def _run(self) -> None:
        ended_bytes = moved_bytes = 0
        running: list[_Reading] = []
        while not self._closed:
            with self._condition:
                ended_bytes += sum(each.moved_bytes for each in self._readings if each.ended)
                self._readings = [each for each in self._readings if not each.ended]
                before, now = (running, moved_bytes), time.monotonic()
                running = list(self._readings)
                moved_bytes = ended_bytes + sum(each.moved_bytes for each in running)
                if not before[0] or moved_bytes != before[1]:
                    moved_at = now
                late = [
                    each for each in running if each.deadline <= now or moved_at + STALL_S <= now
                ]
                if not late and not self._closed:
                    soonest = min((each.deadline for each in running), default=inf)
                    pause_s = min(soonest - now, STALL_S / 4) if running else None
                    self._condition.wait(pause_s)
            for reading in late:
                reading.end(in_time=False)


def check_options(folder: str | None, most_bytes: int | None) -> Path | None:
    """The directory, or None: no local tier. Raises `Misuse`."""
    if folder is None and most_bytes is None:
        return None
    if folder is None or most_bytes is None:
        missing = "local_dir" if folder is None else "local_bytes"
        raise Misuse("a local tier needs local_dir and local_bytes", field=missing)
    path = Path(folder)
    if not path.is_absolute():
        raise Misuse(f"need an absolute path, got {folder!r}", field="local_dir")
    return path


def _plain(header: bytes, payload: memoryview) -> bytes:
    """The header of a block that may have come encoded; `payload` is decoded."""
    found = decode_header(header)
    if found.codec == PLAIN:
        return header
    return encode_header(as_plain(found, payload))


def empty_unknown(folder: Path, api_key: str) -> None:
    """The platform does not know this key: deletes its tenant's blocks, if that is possible."""
    try:
        if empty_for_key(folder, api_key):
            log_events.LOCAL_EMPTIED.log(folder=folder)
    except (OSError, NeveError) as error:
        log_events.LOCAL_TROUBLE.log(folder=folder, detail=error)
