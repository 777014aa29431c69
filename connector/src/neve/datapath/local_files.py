"""The directory of the node's local tier: which files stand there, and how it keeps its size.

    <local_dir>/lock                       held (flock) by the process that changes files
    <local_dir>/keys/<hash of an API key>  names the tenant's folder, for the day the key is refused
    <local_dir>/<tenant>/<space>/<hh>/<id> a block as it stands in Valkey: header and payload

Specified in docs/formats/local-tier.md. All engines of a host may share a directory; each knows of
the others' files by looking into the folders that changed. Whoever holds the lock is the only
writer, so the size is kept exactly, and a temporary file is one whose writer was killed.

A file's mtime is its rank: each read sets it to the clock, and the longest unread leave first (LRU:
behind an admission at the second use, no order is better, docs/decisions/007-eviction.md). What is
not named like a file of this tier is never touched.
"""

import errno
import fcntl
import heapq
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from neve.errors import DeadlineExceeded
from neve.formats.ids import ID_BYTES

FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
LOCK_S: Final = 1.0
# A folder that changed this shortly before it was read may change again within its clock's tick.
_RACY_S: Final = 0.1
_TENANT: Final = re.compile(r"[0-9a-f]{16}-\d+")
_SPACE: Final = re.compile(r"[0-9a-f]{32}")
_FOLDER: Final = re.compile(r"[0-9a-f]{2}")
_BLOCK: Final = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")
_TEMPORARY: Final = ".tmp"


class File(NamedTuple):
    """`rank`: its mtime when it was last looked at, in seconds; it may be later by now."""

    size_bytes: int
    rank: float


class LocalFiles:
    """One tenant's space in the directory. For any thread; methods raise `OSError`."""

    def __init__(self, folder: Path, *, tenant: str, space: str) -> None:
        """Creates the directory if there is none. `tenant`, `space`: see `tenant_folder`."""
        self.folder = folder
        self._space = folder / tenant / space
        self._lock = threading.Lock()  # of what follows
        self._ids: set[bytes] = set()
        self._folders: dict[str, tuple[int, dict[str, File]]] = {}  # path → mtime_ns, its files
        self.used_bytes = 0
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)

    def has(self, id_: bytes) -> bool:
        """Whether the block stood there when its folder was last looked at. No system call."""
        return id_ in self._ids

    def path(self, id_: bytes) -> str:
        name = id_.hex()
        return f"{self._space}/{name[:2]}/{name}"

    def locked(self) -> AbstractContextManager[None]:
        """See `locked`."""
        return locked(self.folder)

    def look(self, *, sweep: bool = False) -> None:
        """Reads the folders that changed. `sweep`, with the lock held: deletes temporary files."""
        with self._lock:
            found = {}
            for path in _folders(self.folder):
                with suppress(FileNotFoundError):
                    found[path] = self._read(path, sweep)
            before, self._folders = self._folders, found
            if before.keys() == found.keys() and all(
                before[path][1] is files for path, (_, files) in found.items()
            ):
                return
            self.used_bytes = sum(
                file.size_bytes for _, files in found.values() for file in files.values()
            )
            prefix = f"{self._space}/"
            self._ids = {
                bytes.fromhex(name)
                for path, (_, files) in found.items()
                if path.startswith(prefix)
                for name in files
            }

    def write(self, id_: bytes, header: bytes, payload: memoryview) -> None:
        """With the lock held: adds a file, whole or not at all. It is not synced: after a crash of
        the host it may be torn, which its checksum tells."""
        path = self.path(id_)
        folder = os.path.dirname(path)
        temporary = path + _TEMPORARY
        for each in (self._space.parent, self._space, folder):
            with suppress(FileExistsError):
                os.mkdir(each, _FOLDER_MODE)
            if os.path.islink(each):  # the size is only kept of what lies here
                raise OSError(errno.ELOOP, "a symbolic link instead of a folder", str(each))
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(temporary, flags, FILE_MODE)
            try:
                _write_all(file, [memoryview(header), payload])
            finally:
                os.close(file)
            os.rename(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        size_bytes = len(header) + len(payload)
        with self._lock:
            _, files = self._folders.setdefault(folder, (0, {}))
            self._folders[folder] = 0, files  # 0: look into it again
            old = files.get(id_.hex())
            files[id_.hex()] = File(size_bytes, time.time())
            self.used_bytes += size_bytes - (old.size_bytes if old else 0)
            self._ids.add(id_)

    def make_room(self, most_bytes: int) -> int:
        """With the lock held: deletes files until `most_bytes` are left. Returns how many went."""
        if self.used_bytes <= most_bytes:
            return 0
        gone = 0
        with self._lock:
            ranked = [
                (file.rank, path, name)
                for path, (_, files) in self._folders.items()
                for name, file in files.items()
            ]
        heapq.heapify(ranked)
        while ranked and self.used_bytes > most_bytes:
            rank, folder, name = heapq.heappop(ranked)
            path = f"{folder}/{name}"
            with suppress(FileNotFoundError):
                now = os.stat(path, follow_symlinks=False).st_mtime
                if now > rank + 0.001:  # read since we looked
                    heapq.heappush(ranked, (now, folder, name))
                    continue
                os.unlink(path)
            self._drop(folder, name)
            gone += 1
        return gone

    def use(self, ids: Sequence[bytes]) -> None:
        """These blocks were read now. A file that has gone is none of the tier any more."""
        for id_ in ids:
            try:
                os.utime(self.path(id_))
            except FileNotFoundError:
                self.drop([id_])

    def delete(self, ids: Sequence[bytes]) -> None:
        for id_ in ids:
            with suppress(FileNotFoundError):
                os.unlink(self.path(id_))
        self.drop(ids)

    def drop(self, ids: Sequence[bytes]) -> None:
        """Their files have gone."""
        for id_ in ids:
            path = self.path(id_)
            self._drop(os.path.dirname(path), id_.hex())

    def forget_all(self) -> None:
        """The tenant's folder has gone."""
        with self._lock:
            self._ids, self._folders, self.used_bytes = set(), {}, 0

    def _drop(self, folder: str, name: str) -> None:
        with self._lock:
            _, files = self._folders.get(folder, (0, {}))
            file = files.pop(name, None)
            self.used_bytes -= file.size_bytes if file else 0
            if folder.startswith(f"{self._space}/"):
                self._ids.discard(bytes.fromhex(name))

    def _read(self, path: str, sweep: bool) -> tuple[int, dict[str, File]]:
        """The folder's mtime (0: look again) and files; those known before are not looked at."""
        changed_ns = os.stat(path).st_mtime_ns
        known_ns, known = self._folders.get(path, (0, {}))
        if known_ns == changed_ns:
            return known_ns, known
        files = {}
        for entry in os.scandir(path):
            if _BLOCK.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    files[entry.name] = known.get(entry.name) or _file(entry)
            elif sweep and _BLOCK.fullmatch(entry.name.removesuffix(_TEMPORARY)):
                with suppress(FileNotFoundError):
                    os.unlink(entry.path)
        is_settled = time.time() - changed_ns / 1e9 > _RACY_S
        return (changed_ns if is_settled else 0), files


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Excludes all other writers of the directory. Raises `DeadlineExceeded` after `LOCK_S`."""
    until = time.monotonic() + LOCK_S
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(folder / "lock", flags, FILE_MODE)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise DeadlineExceeded("another process holds its lock") from None
                time.sleep(0.005)
        yield
    finally:
        os.close(lock)


def tenant_folder(endpoint_url: str, tenant_id: int) -> str:
    """Name of a tenant's folder: tenants of two platforms may have one number."""
    return f"{blake2b(endpoint_url.encode(), digest_size=8).hexdigest()}-{tenant_id}"


def space_folder(fingerprint: bytes) -> str:
    return fingerprint[:16].hex()


def note_key(folder: Path, api_key: str, tenant: str) -> None:
    """Notes whose blocks stand here by this key, for `empty_for_key`."""
    keys = folder / "keys"
    keys.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    name = keys / _key_name(api_key)
    temporary = f"{name}.{os.getpid()}{_TEMPORARY}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(file, "w") as out:
        out.write(tenant)
    os.rename(temporary, name)


def empty_for_key(folder: Path, api_key: str) -> bool:
    """The platform does not know this key any more: deletes all blocks of its tenant.

    Returns whether the key was known here. Raises `OSError`, `DeadlineExceeded`.
    """
    note = folder / "keys" / _key_name(api_key)
    try:
        tenant = note.read_text()
    except FileNotFoundError:
        return False
    if not _TENANT.fullmatch(tenant):
        return False
    with locked(folder):
        while (folder / tenant).exists():
            if (folder / tenant).is_symlink():  # somebody's: nothing was written behind it
                (folder / tenant).unlink()
                break
            with suppress(FileNotFoundError):  # a reader deletes bad files meanwhile
                shutil.rmtree(folder / tenant)
        note.unlink(missing_ok=True)
    return True


def _key_name(api_key: str) -> str:
    return blake2b(api_key.encode(), digest_size=16, person=b"neve local tier").hexdigest()


def _folders(root: Path) -> Iterator[str]:
    for tenant in _named(str(root), _TENANT):
        for space in _named(tenant, _SPACE):
            yield from _named(space, _FOLDER)


def _named(folder: str, pattern: re.Pattern[str]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [
                entry.path
                for entry in entries
                if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []


def _file(entry: os.DirEntry[str]) -> File:
    found = entry.stat(follow_symlinks=False)
    return File(found.st_size, found.st_mtime)


def _write_all(file: int, parts: list[memoryview]) -> None:
    while parts:
        written = os.writev(file, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]
