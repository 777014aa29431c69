"""Which blocks of several groups a reader needs: against a model of the attention rule alone."""

from hypothesis import given
from hypothesis import strategies as st

from neve.engine.groups import KvGroup, blocks_to_skip, engine_blocks_of, part_groups
from neve.formats.parts import PartGroup, PartKind, resume_at

BLOCK = 4


def sees(window: int | None, position: int) -> set[int]:
    """Tokens before `position` that attention at `position` reads."""
    return set(range(0 if window is None else max(0, position - window + 1), position))


@st.composite
def worlds(draw):
    windows = draw(st.lists(st.none() | st.integers(2, 60), min_size=1, max_size=3))
    groups = [KvGroup((f"layer{n}",), window, BLOCK) for n, window in enumerate(windows)]
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
        tail = (chunk + 1) * size - groups[group].stored_blocks(size) * BLOCK
        there = 0 <= chunk - first < len(stored) and stored[chunk - first][group]
        return token < local or bool(there and token >= tail)

    def can_go_on(end: int) -> bool:
        return all(
            has(number, token)
            for number, group in enumerate(groups)
            for token in sees(group.window, end)
        )

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
        # As vLLM's: block 0 where nobody sees the tokens.
        table = [
            number + 1 if (number + 1) * BLOCK > group.needed_from(end) else 0
            for number in range(end // BLOCK)
        ]
        written = set()
        for chunk in range(first + found.chunks - needed, first + found.chunks):
            skip = blocks_to_skip(group, chunk, size, end_tokens=end, local_tokens=local)
            blocks = engine_blocks_of(group, [table], chunk, size)[skip:]
            assert 0 not in blocks
            written.update(token for b in blocks for token in range((b - 1) * BLOCK, b * BLOCK))
        assert {t for t in sees(group.window, end) if t >= local} <= written
        # The engine takes every block of the table for filled from now on.
        assert written == {t for t in range(local, end) if table[t // BLOCK]}


def test_a_short_window_stores_a_tail_and_a_long_one_the_whole_chunk():
    assert KvGroup(("a",), 128, 16).stored_blocks(256) == 8  # gpt-oss: half of a chunk
    assert KvGroup(("a",), 512, 16).stored_blocks(256) == 16
    assert KvGroup(("a",), None, 16).stored_blocks(256) == 16


def test_the_platform_hears_of_groups_only_if_chunks_have_parts():
    full, window = KvGroup(("a",), None, 16), KvGroup(("b",), 100, 16)
    assert part_groups([full], [1600]) == []
    assert part_groups([full, window], [1600, 800]) == [
        PartGroup(PartKind.FULL, None, 16, 100),
        PartGroup(PartKind.WINDOW, 100, 16, 50),
    ]
