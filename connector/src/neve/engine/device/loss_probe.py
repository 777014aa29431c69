"""Measures on an engine's own first KV what its lossy codec changes."""

from collections import deque
from typing import Final

import torch

from neve.engine.device.lossy import LossyCodec

# Chunks that are encoded and decoded once more, when they are saved: milliseconds each, then never.
CHUNKS: Final = 4


class LossProbe:
    """Belongs to the engine's thread. Never waits for a device."""

    def __init__(self, codec: LossyCodec) -> None:
        self._codec = codec
        self.left = CHUNKS
        self._pending: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._off = self._whole = 0.0

    def note(self, plain: torch.Tensor) -> None:
        """A chunk's payloads before they are encoded, `[payloads, bytes]`."""
        self.left -= 1
        decoded = torch.empty_like(plain)
        self._codec.decode(self._codec.encode(plain), decoded)
        exact, other = (
            each.view(self._codec.dtype).float().nan_to_num(0.0, 0.0, 0.0)
            for each in (plain, decoded)
        )
        sums = torch.stack([(exact - other).square().sum(), exact.square().sum()])
        event = None
        if plain.device.type == "cuda":
            there, sums = sums, torch.empty(2, pin_memory=True)
            sums.copy_(there, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((sums, event))

    @property
    def error(self) -> float | None:
        """Relative, of all chunks together (see `relative_error`); None: none is measured yet."""
        while self._pending and ((event := self._pending[0][1]) is None or event.query()):
            off, whole = self._pending.popleft()[0].tolist()
            self._off += off
            self._whole += whole
        return float((self._off / self._whole) ** 0.5) if self._whole else None
