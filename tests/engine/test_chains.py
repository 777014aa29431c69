import pytest

from neve.engine.chains import Chain, Media, Origin
from neve.formats.ids import BlockHasher

HASHERS = [BlockHasher(bytes([rank]) * 32, 4) for rank in range(2)]


def chain_of(tokens, origin=None, chunks=None):
    chain = Chain(tokens, HASHERS, origin or Origin())
    chain.extend(len(tokens) // 4 if chunks is None else chunks)
    return chain


def test_ids_are_those_of_the_whole_prompt_however_it_grew():
    tokens = list(range(4))
    growing = chain_of(tokens)
    for token in range(4, 21):
        tokens.append(token)
        growing.extend(len(tokens) // 4)
    assert growing.ids == chain_of(list(range(21))).ids
    assert len(growing.ids) == 5


def test_every_rank_has_its_own_ids():
    chain = chain_of(list(range(8)))
    assert all(len(set(ids)) == len(HASHERS) for ids in chain.ids)
    assert [ids[1] for ids in chain.ids] == HASHERS[1].chain(range(8), parent=HASHERS[1].root())


def test_every_head_has_its_own_ids_that_follow_from_the_chain():
    tokens = list(range(12))
    chain = Chain(tokens, HASHERS, Origin(salt=b"s"), shards=3)
    chain.extend(1)
    chain.extend(3)
    root = HASHERS[1].root(salt=b"s")
    plain = HASHERS[1].chain(tokens, parent=root)
    assert [list(ids[3:]) for ids in chain.ids] == [HASHERS[1].of_heads(id_, 3) for id_ in plain]
    assert list(chain.parents(0)[3:]) == HASHERS[1].of_heads(root, 3)
    assert len({id_ for ids in chain.ids for id_ in ids}) == 18
    assert not {id_ for ids in chain.ids for id_ in ids} & set(plain)


def test_a_chunk_follows_the_one_before():
    chain = chain_of(list(range(8)))
    assert chain.parents(1) == chain.ids[0]
    assert chain.parents(0) == tuple(h.root() for h in HASHERS)


@pytest.mark.parametrize(
    "origin",
    [
        Origin(salt=b"s"),
        Origin(lora=b"s"),
        Origin(media=(Media(b"img", 0, 2),)),
        Origin(media=(Media(b"img", 1, 2),)),
        Origin(media=(Media(b"gmi", 0, 2),)),
    ],
)
def test_what_decides_the_kv_besides_tokens_changes_the_ids(origin):
    others = [Origin(), Origin(salt=b"t"), Origin(media=(Media(b"img", 0, 3),))]
    first = chain_of(range(8), origin).ids[0]
    assert all(first != chain_of(range(8), other).ids[0] for other in others)


def test_media_changes_ids_from_its_first_chunk_on():
    plain = chain_of(range(16)).ids
    media = chain_of(range(16), Origin(media=(Media(b"img", 6, 5),))).ids
    assert media[0] == plain[0]
    assert all(a != b for a, b in zip(media[1:], plain[1:], strict=True))


def test_media_counts_whether_chunks_are_asked_for_at_once_or_one_by_one():
    origin = Origin(media=(Media(b"img", 6, 5), Media(b"two", 7, 1)))
    slow = chain_of(range(16), origin, chunks=1)
    for chunks in range(2, 5):
        slow.extend(chunks)
    assert slow.ids == chain_of(range(16), origin).ids
