"""KV groups of a space, as pages show them."""

from collections import Counter
from dataclasses import dataclass

from catalog.models import Space
from neve.formats.parts import PartGroup


@dataclass(frozen=True)
class GroupRow:
    """`count` equal KV groups. `span_tokens`: None for full attention and states."""

    count: int
    kind: str
    span_tokens: int | None
    bytes_per_token: int
    state_bytes: int


def group_rows(space: Space) -> list[GroupRow]:
    """Equal groups once, in the order of the table; empty if a chunk is one block."""
    counts = Counter(map(PartGroup.from_dict, space.groups))
    return [
        GroupRow(
            count, str(group.kind), group.span_tokens, group.bytes_per_token, group.state_bytes
        )
        for group, count in counts.items()
    ]
