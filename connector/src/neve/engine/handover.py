"""Prefill on one engine, decode on another: what the first one promises, how long the other waits.

Blocks are stored behind the step, so a decode request may come before the last of them are there.
The prefill's answer names them by their last one, and the decode node asks for them again for a
bounded time. Nothing is promised for ever: what doesn't come is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

# While a request waits, Neve is asked where its blocks are this often.
ASK_AGAIN_S: Final = 0.005


@dataclass(frozen=True)
class Prefilled:
    """`tokens` from a prompt's start whose blocks are stored or on their way; `block` is the
    last one's id, so that nobody waits for blocks of another prompt, model or layout."""

    tokens: int
    block: bytes

    def as_param(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "block": self.block.hex()}


class HandoverOutcome(StrEnum):
    COMPLETE = "complete"
    LATE = "late"
    STRANGE = "strange"  # of another chain than the request's


class HandoverWait:
    """One request's wait for the blocks that `prefilled` names."""

    def __init__(self, prefilled: Prefilled) -> None:
        self._prefilled = prefilled
        self._chunks = 0
        self._until: float | None = None

    def begin(self, ids: Sequence[tuple[bytes, ...]], chunk_tokens: int, *, until: float) -> None:
        """`ids`: the request's own chain. Only the first call counts."""
        if self._until is None:
            self._until = until
            chunks = self._prefilled.tokens // chunk_tokens
            if 0 < chunks <= len(ids) and ids[chunks - 1][0] == self._prefilled.block:
                self._chunks = chunks

    def outcome(self, found_chunks: int, now: float) -> HandoverOutcome | None:
        """How it ended, when so many chunks from the start are found or need not be; None: on."""
        assert self._until is not None
        if not self._chunks:
            return HandoverOutcome.STRANGE
        if found_chunks >= self._chunks:
            return HandoverOutcome.COMPLETE
        return HandoverOutcome.LATE if now >= self._until else None
