"""Parts: a chunk is stored as one block for each KV cache group of its space.

Full attention reads every token before a position, a sliding window of W tokens only the W - 1
tokens before it, and a state stands for all tokens before one position. So a part has the KV of all
tokens of its chunk (full), of the tail that a reader at the end of the chunk still sees (window),
or the state after its last token. `neve.formats.ids.BlockHasher.of_groups` gives the parts' ids.

A reader goes on after n tokens if all full parts before n are there, those window parts in which
the last W - 1 tokens lie, and the state after exactly n tokens.

Source: the rule by which vLLM frees blocks, `get_num_skipped_tokens` of `SlidingWindowManager`
(vllm/v1/core/single_type_kv_cache_manager.py, 0.32).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class PartKind(StrEnum):
    """Which tokens of a chunk a part has: all, the tail of a window, or a state at its end."""

    FULL = "full"
    WINDOW = "window"
    STATE = "state"


class Reader(Protocol):
    """A KV cache group, by what it reads."""

    def needed_from(self, tokens: int) -> int:
        """First token, at the start of an engine block, whose KV computing token `tokens` reads."""
        ...


def needed_from(kind: PartKind, window: int | None, block_tokens: int, tokens: int) -> int:
    """See `Reader.needed_from`. A state needs the part that ends at `tokens`, no earlier one.

    `window`: tokens that a layer sees, its own included. `block_tokens`: of an engine block.
    """
    if kind is PartKind.FULL:
        return 0
    seen = 1 if kind is PartKind.STATE or window is None else window - 1
    return max(0, tokens - seen) // block_tokens * block_tokens


@dataclass(frozen=True)
class Resume:
    """Where a request can go on: after the first `chunks` of the asked ones; 0: nowhere.

    `needed`: for each group the number of the last chunks that it has to load.
    """

    chunks: int
    needed: tuple[int, ...]


def resume_at(
    groups: Sequence[Reader],
    stored: Sequence[Sequence[object | None]],
    *,
    first: int,
    chunk_tokens: int,
    local_tokens: int,
    most: int | None = None,
) -> Resume:
    """The longest stored prefix that every group can go on from.

    `stored[n][p]` is None where group `p` of chunk `first + n` is not stored. The engine has the KV
    of `local_tokens` itself, which end in chunk `first`; only the tokens behind them are needed.
    `most`: chunks to use at most. Costs one pass over `stored`.
    """
    runs = [0] * len(groups)  # chunks without a gap that end here, by group
    best = Resume(0, (0,) * len(groups))
    for number, row in enumerate(stored[:most], 1):
        runs = [run + 1 if at is not None else 0 for run, at in zip(runs, row, strict=True)]
        end = (first + number) * chunk_tokens
        needed = tuple(
            first + number - max(group.needed_from(end), local_tokens) // chunk_tokens
            for group in groups
        )
        if all(run >= count for run, count in zip(runs, needed, strict=True)):
            best = Resume(number, needed)
    return best
