"""Which blocks of several groups a reader needs: against a model of what layers read alone."""

from hypothesis import given
from hypothesis import strategies as st

from neve.engine.groups import (
    KvGroup,
    alignment_tokens,
    blocks_to_skip,
    engine_blocks_of,
    is_split,
    part_groups,
)
from neve.formats.parts import PartGroup, PartKind, resume_at

BLOCK = 4  # the longest engine block, and a multiple of all


def sees(group: KvGroup, position: int) -> set[int]:
    """Tokens before `position` whose KV a layer reads there."""
    first = {
        PartKind.FULL: lambda: 0,
        PartKind.WINDOW: lambda: max(0, position - group.span + 1),
        PartKind.LOCAL: lambda: position - position % group.span,
    }[group.kind]()
    return set(range(first, position))


@st.composite
def groups_of_all_kinds(draw):
    def group(number, kind):
        span = draw(st.integers(1, 60)) if kind in (PartKind.WINDOW, PartKind.LOCAL) else None
        return KvGroup((f"layer{number}",), span, draw(st.sampled_from((1, 2, 4))), 0, kind)

    kinds = draw(st.lists(st.sampled_from(list(PartKind)), min_size=1, max_size=4))
    return [group(number, kind) for number, kind in enumerate(kinds)]


@st.composite
def worlds(draw):
    groups = draw(groups_of_all_kinds())
    per_chunk = draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 8))
    first = draw(st.integers(0, 3))
    local = first * per_chunk + draw(st.integers(0, per_chunk - 1))
    rows = st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))
    stored = draw(st.lists(rows, min_size=chunks, max_size=chunks))
    stored = [[True if here else None for here in row] for row in stored]
    return groups, per_chunk * BLOCK, first, local * BLOCK, stored


@given(worlds())
def test_a_request_goes_on_exactly_where_all_that_it_reads_is_there(world):
    groups, size, first, local, stored = world
    found = resume_at(groups, stored, first=first, chunk_tokens=size, local_tokens=local)

    def has(group: int, token: int) -> bool:
        """The engine's own, or in the stored tail of a chunk."""
        chunk = token // size
        blocks = groups[group].stored_blocks(size)
        tail = (chunk + 1) * size - blocks * groups[group].block_tokens
        there = 0 <= chunk - first < len(stored) and stored[chunk - first][group]
        return token < local or bool(there and token >= tail)

    def reads_all(number: int, end: int) -> bool:
        if groups[number].kind is PartKind.STATE:  # after exactly so many tokens
            return bool(stored[end // size - 1 - first][number])
        return all(has(number, token) for token in sees(groups[number], end))

    def can_go_on(end: int) -> bool:
        return all(reads_all(number, end) for number in range(len(groups)))

    longest = max(
        (n for n in range(1, len(stored) + 1) if can_go_on((first + n) * size)), default=0
    )
    assert found.chunks == longest
    assert (
        resume_at(groups, stored, first=first, chunk_tokens=size, local_tokens=local, most=longest)
        == found
    )


@given(worlds())
def test_what_is_loaded_is_what_is_read_and_not_there(world):
    groups, size, first, local, stored = world
    stored = [[True] * len(groups) for _ in stored]
    found = resume_at(groups, stored, first=first, chunk_tokens=size, local_tokens=local)
    end = (first + found.chunks) * size
    for group, needed in zip(groups, found.needed, strict=True):
        block = group.block_tokens
        state = set(range(end - block, end))  # in the last block, which stands for its tokens
        read = state if group.kind is PartKind.STATE else sees(group, end)
        # As vLLM's: block 0 where nobody sees the tokens.
        table = [
            number + 1 if any(t in read for t in range(number * block, (number + 1) * block)) else 0
            for number in range(end // block)
        ]
        written = set()
        for chunk in range(first + found.chunks - needed, first + found.chunks):
            skip = blocks_to_skip(group, chunk, size, end_tokens=end, local_tokens=local)
            blocks = engine_blocks_of(group, [table], chunk, size)[skip:]
            assert 0 not in blocks
            written.update(token for b in blocks for token in range((b - 1) * block, b * block))
        assert {t for t in read if t >= local} <= written
        # The engine takes every block of the table for filled from now on.
        assert written == {t for t in range(local, end) if table[t // block]}


def test_what_is_stored_of_a_chunk_is_what_a_reader_at_its_end_may_need():
    def blocks(kind, span=None):
        return KvGroup(("a",), span, 16, 0, kind).stored_blocks(256)

    assert blocks(PartKind.WINDOW, 128) == 8  # gpt-oss: half of a chunk
    assert blocks(PartKind.WINDOW, 512) == 16
    assert blocks(PartKind.LOCAL, 8192) == 16  # Llama 4
    assert blocks(PartKind.FULL) == 16
    assert blocks(PartKind.STATE) == 1


def test_a_chunk_has_whole_engine_blocks_of_every_group():
    groups = [KvGroup(("a",), None, 48), KvGroup(("b",), None, 160, 1, PartKind.STATE)]
    assert alignment_tokens(groups) == 480
    assert is_split(groups[1:])
    assert not is_split(groups[:1])


def test_the_platform_hears_of_groups_only_if_chunks_have_parts():
    full, window = KvGroup(("a",), None, 16), KvGroup(("b",), 100, 16, 1, PartKind.WINDOW)
    assert part_groups([full], [1600]) == []
    assert part_groups([full, window], [1600, 800]) == [
        PartGroup(PartKind.FULL, None, 16, 100),
        PartGroup(PartKind.WINDOW, 100, 16, 50),
    ]
