"""Requests whose KV can't be named yet.

A request waits here while its LoRA adapter's files are read, or while workers compare their weights
after a reset. Belongs to the scheduler's thread.
"""

import time
from dataclasses import dataclass
from typing import Final

from neve.engine.chains import Origin
from neve.engine.handover import HandoverWait
from neve.engine.lora import LoraContents
from neve.engine.resets import Resets
from neve.engine.step import NewRequest
from neve.engine.table import Request, RequestTable

# The engine asks again for this long; then the request is computed.
MOST_PENDING_S: Final = 5.0


@dataclass
class _Pending:
    request: NewRequest
    until: float | None = None  # from the engine's first question on


class PendingRequests:
    """Puts requests into the table, at once or when they can be named."""

    def __init__(self, table: RequestTable, loras: LoraContents, resets: Resets) -> None:
        self._table = table
        self._loras = loras
        self._resets = resets
        self._pending: dict[str, _Pending] = {}

    def knows(self, request_id: str) -> bool:
        return request_id in self._table.requests or request_id in self._pending

    def begin(self, request: NewRequest) -> None:
        """A request whose LoRA adapter can't be read is left alone: it is not known afterwards."""
        self._pending[request.request_id] = _Pending(request)
        self._name(request)

    def is_pending(self, request_id: str) -> bool:
        """Whether the engine shall ask for this request again in the next step."""
        pending = self._pending.get(request_id)
        if pending is None:
            return False
        self._name(pending.request)
        if request_id not in self._pending:
            return False
        now = time.monotonic()
        if pending.until is None:
            pending.until = now + MOST_PENDING_S
        return now < pending.until

    def drop(self, request_id: str) -> None:
        self._pending.pop(request_id, None)

    def _name(self, request: NewRequest) -> None:
        """Moves the request into the table if it can be named; drops it if it never can."""
        lora, epoch = b"", self._resets.epoch
        if request.lora is not None:
            content = self._loras.content(request.lora)
            if content is None:
                return
            if not content:
                del self._pending[request.request_id]
                return
            lora = content
        if epoch is None:
            return
        del self._pending[request.request_id]
        prefilled = request.params.prefilled if request.params is not None else None
        self._table.requests[request.request_id] = Request(
            request,
            Origin(epoch + request.salt, lora, request.media),
            HandoverWait(prefilled) if prefilled is not None else None,
        )
