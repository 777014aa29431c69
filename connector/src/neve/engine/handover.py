"""Prefill on one engine, decode on another: the decode node waits for the prefill's blocks.

Blocks are stored behind the step, so a decode request may arrive before the last of them. The
prefill's response names the chain by its last block, and the decode node looks it up again for a
bounded time. Blocks that don't arrive are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

# How often a waiting request's blocks are looked up.
ASK_AGAIN_S: Final = 0.005


@dataclass(frozen=True)
class Prefilled:
    """The first `tokens` of a prompt are stored or on their way. `block`: the id of their last
    block, so that nobody waits for blocks of another prompt, model or layout."""

    tokens: int
    block: bytes

    def as_param(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "block": self.block.hex()}


class HandoverOutcome(StrEnum):
    """How a wait ended; the values are a metric's labels."""

    COMPLETE = "complete"
    LATE = "late"
    STRANGE = "strange"  # the block is not of the request's chain


class HandoverWait:
    """One request's wait for the blocks that `prefilled` names."""

    def __init__(self, prefilled: Prefilled) -> None:
        self._prefilled = prefilled
        self._chunks: int | None = None  # None: of another chain
        self._until: float | None = None

    def begin(
        self, ids: Sequence[tuple[bytes, ...]], chunk_tokens: int, *, most: int, until: float
    ) -> None:
        """`ids`: the request's own chain, of which at most `most` chunks can be loaded. Only the
        first call counts."""
        if self._until is None:
            self._until = until
            chunks = self._prefilled.tokens // chunk_tokens
            if 0 < chunks <= len(ids) and ids[chunks - 1][0] == self._prefilled.block:
                self._chunks = min(chunks, most)

    def outcome(self, found_chunks: int, now: float) -> HandoverOutcome | None:
        """How the wait ended, if the first `found_chunks` are found or local; None: it goes on."""
        assert self._until is not None
        if self._chunks is None:
            return HandoverOutcome.STRANGE
        if found_chunks >= self._chunks:
            return HandoverOutcome.COMPLETE
        return HandoverOutcome.LATE if now >= self._until else None
