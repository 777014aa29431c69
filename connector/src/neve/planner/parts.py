"""What the KV of a prefix weighs in a space whose chunks have a part for each KV group.

Full attention weighs as much for each token, a window or a state the same for every length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from neve.formats.parts import PartGroup, PartKind


@dataclass(frozen=True)
class PrefixBytes:
    """A prefix of n tokens has `per_token` × n + `fixed` bytes of payload."""

    per_token: float
    fixed: int

    def of(self, tokens: int) -> float:
        return self.per_token * tokens + self.fixed


def loaded_bytes(groups: Sequence[PartGroup], chunk_tokens: int) -> PrefixBytes:
    """What a request loads that goes on behind a prefix of whole chunks.

    Exact from the longest window on, at most this below it and with local chunks.
    """
    return PrefixBytes(
        sum(group.bytes_per_token for group in groups if group.kind is PartKind.FULL),
        sum(
            _parts_at_end(group, chunk_tokens) * group.part_bytes(chunk_tokens)
            for group in groups
            if group.kind is not PartKind.FULL
        ),
    )


def stored_bytes(groups: Sequence[PartGroup], chunk_tokens: int) -> PrefixBytes:
    """What is stored of a prefix if every chunk's parts are, and one state of each state group."""
    return PrefixBytes(
        sum(
            group.part_bytes(chunk_tokens) / chunk_tokens
            for group in groups
            if group.kind is not PartKind.STATE
        ),
        sum(group.state_bytes for group in groups),
    )


def _parts_at_end(group: PartGroup, chunk_tokens: int) -> int:
    """The last chunks of a long prefix whose parts of this group a request needs, at most."""
    span = group.span_tokens or 0
    if group.kind is PartKind.LOCAL:
        return -(-span // chunk_tokens)
    end = (span // chunk_tokens + 2) * chunk_tokens
    return (end - group.needed_from(end) // chunk_tokens * chunk_tokens) // chunk_tokens
