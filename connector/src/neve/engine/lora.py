"""Names LoRA adapters by their files' content, so that a retrained adapter is another one.

The engine reads an adapter's files once, when it is first used; so does this, on a thread of its
own. If files change later, nobody knows which version the engine uses: from then on the adapter's
requests are served without Neve, until it is loaded under another id or the engine is restarted.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neve import log_events
from neve.engine.step import Lora
from neve.engine.weights import folder_revision

# Larger adapters are sampled (see `neve.engine.weights`): hashing takes 1 s/GB.
FULL_HASH_BYTES: Final = 1 << 30
# Part of the content: rank, scale, which layers.
_CONFIG: Final = "adapter_config.json"

_Files = tuple[tuple[str, int, int, int], ...]  # name, size, mtime in ns, inode


@dataclass
class _Adapter:
    """`read`: folder, its files' state and the content; None if they can't be read. `has_changed`:
    the files were changed after they were read."""

    read: "Future[tuple[Path, _Files, bytes] | None]"
    has_changed: bool = False


class LoraContents:
    """Belongs to the scheduler's thread. Adapters are told apart by the engine's id and path."""

    def __init__(self, find: Callable[[str], Path | None] | None = None) -> None:
        """`find`: an adapter's folder, from its path or its name on a hub."""
        self._find = find or find_folder
        self._adapters: dict[tuple[int, str], _Adapter] = {}
        self._warned: set[tuple[int, str]] = set()
        self._reader = ThreadPoolExecutor(1, "neve-lora")

    def content(self, lora: Lora) -> bytes | None:
        """Names what `lora` computes. None while its files are being read; b"" if the content is
        unknown: then its requests are to be served without Neve."""
        key = (lora.id, lora.path)
        adapter = self._adapters.get(key)
        if adapter is None:
            adapter = self._adapters[key] = _Adapter(self._reader.submit(self._read, lora))
        if not adapter.read.done():
            return None
        read = adapter.read.result()
        if read is None:
            del self._adapters[key]  # the next request tries again
            if key not in self._warned:
                self._warned.add(key)
                log_events.LORA_UNSEEN.log(name=lora.name, path=lora.path)
            return b""
        folder, files, content = read
        if not adapter.has_changed and _files(folder) != files:
            adapter.has_changed = True
            log_events.LORA_CHANGED.log(name=lora.name, path=lora.path)
        return b"" if adapter.has_changed else content

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, lora: Lora) -> tuple[Path, _Files, bytes] | None:
        """On the reader's thread. None if there are no weight files that can be read."""
        try:
            folder = self._find(lora.path) if lora.is_readable else None
            if folder is None:
                return None
            files = _files(folder)
            content = folder_revision(folder, full_hash_bytes=FULL_HASH_BYTES)
            config = folder / _CONFIG
            settings = config.read_bytes() if config.is_file() else b""
            if content is None or _files(folder) != files:
                return None
        except (OSError, ValueError):
            return None
        layout = b"3d" if lora.is_3d else b""
        return folder, files, b"\0".join((content.encode(), settings, layout))


def find_folder(path: str) -> Path | None:
    """The folder, or where this host keeps the hub's copy of that name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, local_files_only=True))
    except Exception:  # no such library, no such name, nothing downloaded
        return None


def _files(folder: Path) -> _Files:
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        states = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return tuple(sorted((name, at.st_size, at.st_mtime_ns, at.st_ino) for name, at in states))
