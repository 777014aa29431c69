"""Parts: a chunk is stored as one block for each KV cache group of its space.

A reader that goes on after n tokens needs, by the group's kind:

    full     all parts before n
    window   those in which its last W - 1 tokens lie (a layer sees W tokens, its own included)
    local    those from the start of the local chunk of W tokens in which token n lies
    state    the one part with the state after exactly n tokens (Mamba, linear attention)

A full or local part has the KV of all tokens of its chunk, a window's only the tail that a reader
at the end of the chunk sees. `neve.formats.ids.BlockHasher.of_groups` gives the parts' ids.

Source: the rules by which vLLM frees blocks, `get_num_skipped_tokens` of `SlidingWindowManager`,
`ChunkedLocalAttentionManager` and `MambaManager` (vllm/v1/core/single_type_kv_cache_manager.py,
0.32).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Protocol, Self

from neve.errors import Misuse
from neve.formats.space import SpaceIdentity, choose_chunk_tokens

MOST_GROUPS = 64


class PartKind(StrEnum):
    """Which tokens a reader of the group needs."""

    FULL = "full"
    WINDOW = "window"
    LOCAL = "local"
    STATE = "state"


class Reader(Protocol):
    """A KV cache group, by what it reads."""

    def needed_from(self, tokens: int) -> int:
        """First token, at the start of an engine block, whose KV computing token `tokens` reads; of
        a state, the start of the block that holds the state after `tokens` tokens."""
        ...


def needed_from(kind: PartKind, span: int | None, block_tokens: int, tokens: int) -> int:
    """See `Reader.needed_from`. `block_tokens`: of an engine block.

    `span`: tokens of a window, the reader's own included, or of a local chunk; None otherwise.
    """
    if kind is PartKind.FULL:
        return 0
    if kind is PartKind.STATE:
        return max(0, tokens - block_tokens)
    assert span is not None
    first = tokens // span * span if kind is PartKind.LOCAL else max(0, tokens - span + 1)
    return first // block_tokens * block_tokens


def stored_blocks(kind: PartKind, span: int | None, block_tokens: int, chunk_tokens: int) -> int:
    """Engine blocks of a chunk that its part holds: the chunk's last ones."""
    all_blocks = chunk_tokens // block_tokens
    if kind is PartKind.STATE:
        return 1
    if kind is PartKind.WINDOW:
        assert span is not None
        return min(all_blocks, max(1, -(-(span - 1) // block_tokens)))
    return all_blocks


@dataclass(frozen=True)
class PartGroup:
    """One KV cache group of a space, as a node describes it. The group's number is its place in the
    space's table of groups, and that of its parts in `BlockHasher.of_groups`.

    `span_tokens`: see `needed_from`. `block_tokens`: of the engine's block. `bytes_per_token`: of
    KV, all layers of the group; 0 for a state. `state_bytes`: of one state; else 0.
    """

    kind: PartKind
    span_tokens: int | None
    block_tokens: int
    bytes_per_token: int = 0
    state_bytes: int = 0

    def __post_init__(self) -> None:
        has_span = self.kind in (PartKind.WINDOW, PartKind.LOCAL)
        if (self.span_tokens is not None) != has_span:
            raise Misuse("only windows and local chunks have one", field="span_tokens")
        for name, least in (("span_tokens", 1), ("block_tokens", 1), *_BYTES):
            value = getattr(self, name)
            if value is None and name == "span_tokens":
                continue
            if type(value) is not int or not least <= value < 2**31:
                raise Misuse(f"need {least} … 2³¹-1, got {value!r:.60}", field=name)

    @classmethod
    def from_dict(cls, raw: object) -> Self:
        """Inverse of `as_dict`. Raises `Misuse` with the missing, unknown or invalid field."""
        if not isinstance(raw, Mapping):
            raise Misuse("need an object", field="groups")
        known = [field.name for field in fields(cls)]
        for name in (*known, *raw):
            if (name in raw) != (name in known):
                problem = "is required" if name in known else "unknown field, remove it"
                raise Misuse(problem, field=str(name)[:60])
        try:
            kind = PartKind(raw["kind"])
        except ValueError:
            raise Misuse(f"need one of {', '.join(PartKind)}", field="kind") from None
        return cls(**{**raw, "kind": kind})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def needed_from(self, tokens: int) -> int:
        """See `Reader.needed_from`."""
        return needed_from(self.kind, self.span_tokens, self.block_tokens, tokens)

    def part_bytes(self, chunk_tokens: int) -> int:
        """Payload of one part."""
        if self.kind is PartKind.STATE:
            return self.state_bytes
        blocks = stored_blocks(self.kind, self.span_tokens, self.block_tokens, chunk_tokens)
        return blocks * self.block_tokens * self.bytes_per_token


_BYTES = (("bytes_per_token", 0), ("state_bytes", 0))


def chunk_tokens_of(
    identity: SpaceIdentity, groups: Sequence[PartGroup], *, max_chunk_tokens: int
) -> int:
    """See `choose_chunk_tokens`, for a space with this table of groups; empty: it has none."""
    return choose_chunk_tokens(
        identity.engine_block_tokens,
        block_bytes_per_token(groups, identity.bytes_per_token),
        max_chunk_tokens=max_chunk_tokens,
    )


def block_bytes_per_token(groups: Sequence[PartGroup], all_bytes_per_token: int) -> int:
    """Of a chunk's largest part. `all_bytes_per_token`: of all layers; the answer without groups
    and for states alone."""
    return max((group.bytes_per_token for group in groups), default=0) or all_bytes_per_token


def needed_parts(groups: Sequence[Reader], chunks: int, chunk_tokens: int) -> tuple[int, ...]:
    """For each group, the number of the last of `chunks` chunks whose parts a reader behind them
    needs."""
    end = chunks * chunk_tokens
    return tuple(chunks - group.needed_from(end) // chunk_tokens for group in groups)


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
