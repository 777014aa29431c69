"""The memory of a block's payload: one run of bytes, or several (`neve._core.scatter`).

Only the core moves bytes of scattered payloads from and to the network; Python copies them where it
keeps a payload for itself.
"""

from typing import TypeAlias

import numpy as np

from neve import _core
from neve.errors import Misuse
from neve.formats.block import Buffer

Payload: TypeAlias = memoryview | _core.Scattered


def payload_of(buffer: Buffer) -> Payload:
    """The bytes of an object with the buffer protocol, of a tensor with DLPack, or of runs.

    Raises `Misuse` unless its memory is contiguous.
    """
    if isinstance(buffer, _core.Scattered):
        return buffer
    try:
        if hasattr(buffer, "__dlpack__") and not isinstance(buffer, np.ndarray):
            return _core.view(buffer, True).data
        return memoryview(buffer).cast("B")
    except (TypeError, ValueError) as error:
        raise Misuse(f"need contiguous memory: {error}", field="buffers") from error


def copy_of(payload: Payload) -> memoryview:
    """A copy in memory of its own, made without the GIL."""
    if isinstance(payload, _core.Scattered):
        return memoryview(payload.copy())
    return np.frombuffer(payload, np.uint8).copy().data


def fill(payload: Payload, source: Payload) -> None:
    """Overwrites `payload` by as many bytes."""
    data = source if isinstance(source, memoryview) else copy_of(source)
    if isinstance(payload, _core.Scattered):
        payload.fill(data)
    else:
        payload[:] = data
