"""KV cache groups: layers whose engine blocks are allocated and freed together.

Full attention reads every token before a position, a sliding window of W tokens only the W - 1
tokens before it. So a chunk is stored as one block for each group: of full attention the KV of all
its tokens, of a window only the tail that a reader at the end of the chunk still sees. A reader
that goes on after n tokens needs all blocks of full attention before n, and of a window those in
which its last W - 1 tokens lie.

Source: the rule by which vLLM frees blocks, `get_num_skipped_tokens` of `SlidingWindowManager`
(vllm/v1/core/single_type_kv_cache_manager.py, 0.32).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KvGroup:
    """`window`: tokens that a layer sees, its own included; None: all.

    `block_tokens`: tokens of an engine block. `number`: of the group in the engine.
    """

    layers: tuple[str, ...]
    window: int | None
    block_tokens: int
    number: int = 0

    def needed_from(self, tokens: int) -> int:
        """First token, at the start of an engine block, whose KV computing token `tokens` reads."""
        if self.window is None:
            return 0
        return max(0, tokens - self.window + 1) // self.block_tokens * self.block_tokens

    def stored_blocks(self, chunk_tokens: int) -> int:
        """Engine blocks of a chunk that are stored: its last ones."""
        all_blocks = chunk_tokens // self.block_tokens
        if self.window is None:
            return all_blocks
        return min(all_blocks, max(1, -(-(self.window - 1) // self.block_tokens)))


def is_split(groups: Sequence[KvGroup]) -> bool:
    """Whether a chunk is more than one block with the KV of all its tokens."""
    return len(groups) > 1 or groups[0].window is not None


@dataclass(frozen=True)
class Resume:
    """Where a request can go on: after the first `chunks` of the asked ones; 0: nowhere.

    `needed`: for each group the number of the last chunks that it has to load.
    """

    chunks: int
    needed: tuple[int, ...]


def resume_at(
    groups: Sequence[KvGroup],
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


def engine_blocks_of(
    group: KvGroup, tables: Sequence[Sequence[int]], chunk: int, chunk_tokens: int
) -> tuple[int, ...]:
    """The engine blocks that hold the stored tail of chunk number `chunk`, from a request's block
    tables, one for each group. 0 stands for a block that the engine freed, since no token to come
    sees it.
    """
    end = (chunk + 1) * chunk_tokens // group.block_tokens
    return tuple(tables[group.number][end - group.stored_blocks(chunk_tokens) : end])


def blocks_to_skip(
    group: KvGroup, chunk: int, chunk_tokens: int, *, end_tokens: int, local_tokens: int
) -> int:
    """Leading engine blocks of a stored tail that a reader at `end_tokens` must not write: those
    that it has itself, and those that it does not see."""
    begin = (chunk + 1) * chunk_tokens - group.stored_blocks(chunk_tokens) * group.block_tokens
    return max(0, max(group.needed_from(end_tokens), local_tokens) - begin) // group.block_tokens
