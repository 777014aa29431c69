"""The KV of one sequence, by groups of layers whose KV has one shape.

Sizes are of the whole model, each value once, unless they say "of a rank": tensor parallelism
divides KV heads and states among ranks, and repeats what it can't divide.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from neve.errors import Misuse
from neve.formats.parts import PartGroup, PartKind, stored_blocks
from neve.planner.parts import PrefixBytes

ENGINE_BLOCK_TOKENS = 16  # vLLM's default


@dataclass(frozen=True)
class KvGroup:
    """`layers` layers of one kind. `shape`: heads and widths, in words.

    An entry is the KV of `entry_tokens` tokens in one layer: of one token, but with compressed
    attention. A state is one layer's fixed memory of a sequence. `span_tokens`: of a window, the
    reader's own token included, or of a local chunk; None otherwise. `engine_block_tokens`: where
    the engine fixes them, whatever its option says.
    """

    kind: PartKind
    shape: str
    layers: int
    entry_bytes: int  # or of a state
    rank_entry_bytes: int
    span_tokens: int | None = None
    entry_tokens: int = 1
    engine_block_tokens: int | None = None

    @property
    def bytes_per_token(self) -> float:
        """Growth of a long sequence for each token; 0 for windows, local chunks and states."""
        return self.stored_bytes_per_token if self.kind is PartKind.FULL else 0.0

    @property
    def stored_bytes_per_token(self) -> float:
        """KV that a token has in these layers, whatever leaves the engine later; 0 for states."""
        if self.kind is PartKind.STATE:
            return 0.0
        return self.layers * self.entry_bytes / self.entry_tokens

    @property
    def fixed_bytes(self) -> int:
        """What a long sequence holds whatever its length: full windows, local chunks, states."""
        if self.kind is PartKind.FULL:
            return 0
        return self.layers * self.entry_bytes * (self.span_tokens or 1)

    def bytes_of(self, tokens: int) -> int:
        """What a sequence of `tokens` tokens holds, whole entries only. A local chunk counts as
        full, which is its most."""
        if self.kind is PartKind.STATE:
            return self.fixed_bytes
        reach = tokens if self.span_tokens is None else min(tokens, self.span_tokens)
        return self.layers * self.entry_bytes * (reach // self.entry_tokens)

    def block_bytes(
        self, chunk_tokens: int, engine_block_tokens: int = ENGINE_BLOCK_TOKENS
    ) -> float:
        """Payload of the part of a chunk that these layers have: of a window the chunk's tail that
        a reader sees, of a state one state. Chunks are whole engine blocks."""
        if self.kind is PartKind.STATE:
            return self.layers * self.entry_bytes
        block = self.engine_block_tokens or engine_block_tokens
        blocks = stored_blocks(self.kind, self.span_tokens, block, chunk_tokens)
        return self.stored_bytes_per_token * blocks * block

    def part_group(self, engine_block_tokens: int = ENGINE_BLOCK_TOKENS) -> PartGroup:
        """As a space's table of groups has it. Raises `Misuse` for a fraction of a byte a token,
        which that table can't hold."""
        per_token = self.stored_bytes_per_token
        if per_token != int(per_token):
            raise Misuse(f"{per_token} bytes a token are no whole number", field="bytes_per_token")
        is_state = self.kind is PartKind.STATE
        state_bytes = self.layers * self.entry_bytes if is_state else 0
        block = self.engine_block_tokens or engine_block_tokens
        return PartGroup(self.kind, self.span_tokens, block, int(per_token), state_bytes)

    def of_rank(self) -> Self:
        """The group as one TP rank has it."""
        return replace(self, entry_bytes=self.rank_entry_bytes)


@dataclass(frozen=True)
class KvSize:
    """The KV of a model. `family`: its `model_type`. `tp`: tensor parallel ranks. `codec_ratio`:
    bytes before ÷ bytes after the store's codec."""

    family: str
    groups: tuple[KvGroup, ...]
    tp: int = 1
    codec_ratio: float = 1.0

    @classmethod
    def of_layers(cls, family: str, layers: Iterable[KvGroup]) -> Self:
        """`layers`: a group for each, which those of one shape share in the answer."""
        counts: Counter[KvGroup] = Counter()
        for layer in layers:
            counts[replace(layer, layers=1)] += layer.layers
        groups = (replace(layer, layers=count) for layer, count in counts.items())
        order = list(PartKind)
        return cls(family, tuple(sorted(groups, key=lambda each: order.index(each.kind))))

    @property
    def bytes_per_token(self) -> float:
        """Growth of a long sequence for each token: full attention."""
        return sum(group.bytes_per_token for group in self.groups)

    @property
    def stored_bytes_per_token(self) -> float:
        """KV that a token has in all layers but states."""
        return sum(group.stored_bytes_per_token for group in self.groups)

    @property
    def fixed_bytes(self) -> int:
        """What a long sequence holds whatever its length: full windows, local chunks, states."""
        return sum(group.fixed_bytes for group in self.groups)

    @property
    def engine_block_tokens(self) -> int:
        """The least that the engine's block has: vLLM's default, or the most that it fixes."""
        fixed = (group.engine_block_tokens or 0 for group in self.groups)
        return max(ENGINE_BLOCK_TOKENS, *fixed)

    def bytes_of(self, tokens: int) -> int:
        """What a sequence of `tokens` tokens holds in the engine, and a request loads."""
        return sum(group.bytes_of(tokens) for group in self.groups)

    def block_bytes(
        self, chunk_tokens: int, engine_block_tokens: int = ENGINE_BLOCK_TOKENS
    ) -> float:
        """KV of a stored chunk of `chunk_tokens` tokens, all groups and ranks, before the codec."""
        return sum(each.block_bytes(chunk_tokens, engine_block_tokens) for each in self.groups)

    def stored(
        self, chunk_tokens: int, engine_block_tokens: int = ENGINE_BLOCK_TOKENS
    ) -> PrefixBytes:
        """What the store holds of a prefix, after the codec: every chunk's parts, and one state."""
        parts = [
            (group.kind is PartKind.STATE, group.block_bytes(chunk_tokens, engine_block_tokens))
            for group in self.groups
        ]
        per_chunk = sum(size for is_state, size in parts if not is_state)
        states = sum(size for is_state, size in parts if is_state)
        return PrefixBytes(
            per_chunk / chunk_tokens / self.codec_ratio, math.ceil(states / self.codec_ratio)
        )

    def part_groups(self, engine_block_tokens: int = ENGINE_BLOCK_TOKENS) -> list[PartGroup]:
        """For `neve.planner.parts`. See `KvGroup.part_group`."""
        return [group.part_group(engine_block_tokens) for group in self.groups]

    def of_rank(self) -> Self:
        """The KV that one TP rank holds."""
        return replace(self, groups=tuple(group.of_rank() for group in self.groups))
