"""Names LoRA adapters by their files' content, so that one that was trained anew is another.

The engine reads an adapter's files once, when it is first used; so does this, on a thread of its
own. Files that change later may or may not be what the engine uses: from then on its requests are
served without Neve, until the adapter is loaded under another id or the engine starts anew.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neve import log_events
from neve.engine.weights import folder_revision

# Larger adapters are sampled (see `neve.engine.weights`): hashing takes 1 s/GB.
FULL_HASH_BYTES: Final = 1 << 30
# Its content counts as well: rank, scale, which layers.
_CONFIG: Final = "adapter_config.json"

_Files = tuple[tuple[str, int, int, int], ...]


@dataclass
class _Adapter:
    """`content` is None for one that can't be read; `files`: as they were when they were read."""

    found: "Future[tuple[Path, _Files, bytes] | None]"
    spoilt: bool = False


class LoraContents:
    """Belongs to the scheduler's thread. Adapters are told apart by the engine's id and path."""

    def __init__(self, find: Callable[[str], Path | None] | None = None) -> None:
        """`find`: an adapter's folder by its path or its name on a hub."""
        self._find = find or find_folder
        self._adapters: dict[tuple[int, str], _Adapter] = {}
        self._told: set[tuple[int, str]] = set()
        self._reader = ThreadPoolExecutor(1, "neve-adapter")

    def name(self, lora: Any) -> bytes | bool:
        """The name of what `lora` (vLLM's `LoRARequest`) computes; True while it is still read,
        False when it can't be told: then the request is to be served without Neve."""
        key = (int(lora.lora_int_id), str(lora.lora_path))
        adapter = self._adapters.get(key)
        if adapter is None:
            adapter = self._adapters[key] = _Adapter(self._reader.submit(self._read, lora))
        if not adapter.found.done():
            return True
        read = adapter.found.result()
        if read is None:
            del self._adapters[key]  # it may be there at the next request
            if key not in self._told:
                self._told.add(key)
                log_events.LORA_UNSEEN.log(name=lora.lora_name, path=lora.lora_path)
            return False
        folder, files, content = read
        if not adapter.spoilt and _files(folder) != files:
            adapter.spoilt = True
            log_events.LORA_CHANGED.log(name=lora.lora_name, path=lora.lora_path)
        return False if adapter.spoilt else content

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, lora: Any) -> tuple[Path, _Files, bytes] | None:
        """On the reader's thread. None when there are no weight files that can be read."""
        try:
            folder = None
            if not getattr(lora, "tensorizer_config_dict", None):
                folder = self._find(str(lora.lora_path))
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
        layout = b"3d" if getattr(lora, "is_3d_lora_weight", False) else b""
        return folder, files, b"\0".join((content.encode(), settings, layout))


def find_folder(path: str) -> Path | None:
    """The folder, or where the hub's copy of that name lies on this host."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download  # type: ignore[import-not-found]

        return Path(snapshot_download(path, local_files_only=True))
    except Exception:  # no such library, no such name, nothing downloaded
        return None


def _files(folder: Path) -> _Files:
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        states = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return tuple(sorted((name, at.st_size, at.st_mtime_ns, at.st_ino) for name, at in states))
