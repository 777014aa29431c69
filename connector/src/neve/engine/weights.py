"""Names the weights of a local model folder, so that other weights never share a space.

Up to 2 GiB of weights are hashed in full. Of larger ones, small tensors are hashed whole, others at
their first, middle and last 4 KiB. A fine-tune changes these bytes; an edit of only unsampled bytes
goes unseen: set the option `revision` then. Paths and times don't count.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

FULL_HASH_BYTES = 2 << 30
_WINDOW_BYTES = 4096
_WHOLE_TENSOR_BYTES = 64 << 10
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# A safetensors header is JSON; the format caps it at 100 MB.
# Source: https://github.com/huggingface/safetensors#format
_HEADER_LIMIT_BYTES = 100_000_000


def folder_revision(folder: Path, *, full_hash_bytes: int = FULL_HASH_BYTES) -> str | None:
    """16 bytes in hex over names, sizes and contents (sampled if large) of weight files, and the
    model's own code if it has some. `folder` may be a weight file itself.

    None if there is no weight file: then the weights are unknown.
    """
    every = [folder] if folder.is_file() else sorted(folder.iterdir())
    files = [path for path in every if path.suffix in _SUFFIXES and path.is_file()]
    if not files:
        return None
    files += [path for path in every if path.name.endswith((".index.json", ".py"))]
    total = sum(path.stat().st_size for path in files)
    digest = blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for offset, length in _windows(file, path, size, sampled=total > full_hash_bytes):
                file.seek(offset)
                while length > 0:
                    part = file.read(min(length, 8 << 20))
                    if not part:
                        break
                    digest.update(part)
                    length -= len(part)
    return digest.hexdigest()


def _windows(file: BinaryIO, path: Path, size: int, *, sampled: bool) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is hashed of one file."""
    if not sampled or size <= _WHOLE_TENSOR_BYTES:
        yield 0, size
        return
    if path.suffix != ".safetensors":
        step = max(size // 1024, _WINDOW_BYTES)
        yield from ((offset, _WINDOW_BYTES) for offset in range(0, size, step))
        return
    header_bytes = int.from_bytes(file.read(8), "little")
    header_bytes = min(header_bytes, size - 8, _HEADER_LIMIT_BYTES)
    base = 8 + header_bytes
    header: dict[str, Any] = json.loads(file.read(header_bytes))
    yield 0, base
    for name in sorted(header):
        if name == "__metadata__":
            continue
        begin, end = header[name]["data_offsets"]
        if end - begin <= _WHOLE_TENSOR_BYTES:
            yield base + begin, end - begin
        else:
            middle = (begin + end) // 2
            for offset in (begin, middle, end - _WINDOW_BYTES):
                yield base + offset, _WINDOW_BYTES
