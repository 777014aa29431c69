"""The KV of one sequence, by groups of layers whose KV has one shape.

Sizes are of the whole model, each value once, unless they say "of a rank": tensor parallelism
divides KV heads and states among ranks, and repeats what it can't divide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from neve.formats.parts import PartKind


@dataclass(frozen=True)
class KvGroup:
    """`layers` layers of one kind. `shape`: heads and widths, in words.

    An entry is the KV of `entry_tokens` tokens in one layer: of one token, but with compressed
    attention. A state is one layer's fixed memory of a sequence. `span_tokens`: of a window, the
    reader's own token included, or of a local chunk; None otherwise.
    """

    kind: PartKind
    shape: str
    layers: int
    entry_bytes: int  # or of a state
    rank_entry_bytes: int
    span_tokens: int | None = None
    entry_tokens: int = 1

    @property
    def bytes_per_token(self) -> float:
        """Growth of a long sequence for each token; 0 for windows, local chunks and states."""
        return self.stored_bytes_per_token if self.kind is PartKind.FULL else 0.0

    @property
    def stored_bytes_per_token(self) -> float:
        """KV that a token adds to the store, whatever leaves the engine later; 0 for states."""
        if self.kind is PartKind.STATE:
            return 0.0
        return self.layers * self.entry_bytes / self.entry_tokens

    @property
    def fixed_bytes(self) -> int:
        """What a long sequence holds whatever its length: full windows, local chunks, states."""
        if self.kind is PartKind.FULL:
            return 0
        return self.layers * self.entry_bytes * self._entries(self.span_tokens or 1)

    def bytes_of(self, tokens: int) -> int:
        """What a sequence of `tokens` tokens holds, whole entries only."""
        if self.kind is PartKind.STATE:
            return self.fixed_bytes
        reach = tokens if self.span_tokens is None else min(tokens, self.span_tokens)
        return self.layers * self.entry_bytes * self._entries(reach)

    def _entries(self, tokens: int) -> int:
        return tokens // self.entry_tokens


@dataclass(frozen=True)
class KvSize:
    """The KV of a model. `tp`: tensor parallel ranks. `codec_ratio`: stored bytes ÷ raw bytes."""

    groups: tuple[KvGroup, ...]
    tp: int = 1
    codec_ratio: float = 1.0

    @property
    def bytes_per_token(self) -> float:
        """Growth of a long sequence for each token: full attention."""
        return sum(group.bytes_per_token for group in self.groups)

    @property
    def stored_bytes_per_token(self) -> float:
        """KV that a token adds to the store: all layers but states."""
        return sum(group.stored_bytes_per_token for group in self.groups)

    @property
    def fixed_bytes(self) -> int:
        """What a long sequence holds whatever its length: full windows, local chunks, states."""
        return sum(group.fixed_bytes for group in self.groups)

    def bytes_of(self, tokens: int) -> int:
        """What a sequence of `tokens` tokens holds."""
        return sum(group.bytes_of(tokens) for group in self.groups)

    def block_bytes(self, tokens: int) -> float:
        """KV of a stored block of `tokens` tokens of all ranks, before the codec."""
        return self.stored_bytes_per_token * tokens

    def of_kind(self, *kinds: PartKind) -> Sequence[KvGroup]:
        return [group for group in self.groups if group.kind in kinds]
