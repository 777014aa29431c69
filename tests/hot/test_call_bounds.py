"""Each function refuses more than its clients send in a call, before it does anything."""

import pytest
from valkey.exceptions import ResponseError

from neve.formats.keys import BucketKeys
from neve.index.library import Taken, functions_source, load_functions, taken
from neve.index.tier import CALL_IDS, PIN_IDS, BlockTerms, HotTier

pytestmark = pytest.mark.integration

TENANT, SPACE = 7, 3
KEYS = BucketKeys(TENANT, 0)
ID = b"i" * 16
# Values before the ids, values for each id, most ids. Of those without ids: no more values.
SHAPES = {
    **dict.fromkeys(("touch", "promote", "close_segments", "discard"), ((), 1, CALL_IDS)),
    **dict.fromkeys(
        (
            "locate",
            "match",
            "admit",
            "renew_leases",
            "unpin",
            "expire",
            "forget",
            "recount",
            "recount_segments",
        ),
        (("1",), 1, CALL_IDS),
    ),
    "pin": (("1", "-1", "all"), 1, PIN_IDS),
    "flushed": (("1",), 2, CALL_IDS),
    "unplace": ((), 3, CALL_IDS),
    "relocate": (("1",), 4, CALL_IDS),
    "restore": (("1", "3"), 9, CALL_IDS),
    "retain": (("set", *"0000000"), 1, CALL_IDS),
    "set_policy": ((), 2, 20_000),
    **dict.fromkeys(("usage", "recount_begin", "mend"), ((), 0, 0)),
    **dict.fromkeys(("open_segment", "expire_due", "evict", "recount_end"), (("1",), 0, 0)),
    **dict.fromkeys(("lease_dirty", "removals"), (("1", "1", "1"), 0, 0)),
}
TAKE_BLOCK_KEYS = {"commit", "end_strays"}


@pytest.fixture
def call(clean_hot):
    client = clean_hot.client()
    load_functions(client)
    terms = BlockTerms(flush_after_s=None)
    HotTier(client.execute_command, TENANT).set_policy(hot_bytes=10**6, cold_bytes=1, terms=terms)

    def call(name, keys=(), args=(), bookkeeping=KEYS.bookkeeping):
        every = [*bookkeeping, *keys]
        return client.execute_command("FCALL", f"neve_{name}", len(every), *every, *args)

    yield call
    client.close()


def registered():
    lines = functions_source().splitlines()
    return {line.split('"')[1] for line in lines if line.startswith("register(")}


def test_every_function_has_a_bound(clean_hot):
    with clean_hot.client() as client:
        load_functions(client)
        library = client.execute_command("FUNCTION", "LIST", "LIBRARYNAME", "neve")
        assert str(library).count("neve_") == len(registered()) + 1  # neve_taken takes none of it
    assert registered() == SHAPES.keys() | TAKE_BLOCK_KEYS


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_what_clients_send_is_taken_and_one_more_is_not(call, name):
    before, each, most = SHAPES[name]
    one = (ID, *"1" * (each - 1)) if each else ()
    if name in ("close_segments", "recount_segments"):
        one = ("1",)
    call(name, args=(*before, *one * most))
    with pytest.raises(ResponseError, match="TOOMANY"):
        call(name, args=(*before, *one * (most + 1), *("1" if each == 0 else "")))


def test_a_call_with_too_many_blocks_does_nothing(call, clean_hot):
    ids = [n.to_bytes(16, "big") for n in range(CALL_IDS + 1)]
    with clean_hot.client() as client:
        for id_ in ids:
            client.set(KEYS.block(SPACE, id_), b"x", px=60_000)
        keys = [KEYS.block(SPACE, id_) for id_ in ids]
        args = [value for id_ in ids for value in (id_, 1, 16)]
        for name, arguments in (("commit", [SPACE, *args]), ("end_strays", [])):
            with pytest.raises(ResponseError, match="TOOMANY"):
                call(name, keys, arguments)
        assert not client.exists(KEYS.bookkeeping[0])
        assert call("commit", keys[:-1], [SPACE, *args[:-3]]) == [0] * CALL_IDS


def test_a_block_key_that_is_not_its_ids_stays_outside(call, clean_hot):
    """It would be kept for ever, and no entry would own it."""
    junk = KEYS.block(SPACE, b"j" * 16)
    with clean_hot.client() as client:
        client.set(junk, b"x", px=60_000)
        for id_ in (ID, b"j" * 15, b"j" * 17):
            with pytest.raises(ResponseError, match="BADKEYS"):
                call("commit", [junk], [SPACE, id_, 1, 16])
        assert client.pttl(junk) > 0


@pytest.mark.parametrize("swapped", range(7))
def test_keys_of_another_bucket_or_in_another_place_are_refused(call, swapped):
    other = BucketKeys(TENANT, 1).bookkeeping
    shifted = KEYS.bookkeeping[(swapped + 1) % 7]
    for wrong in (other[swapped], shifted):
        keys = list(KEYS.bookkeeping)
        keys[swapped] = wrong
        with pytest.raises(ResponseError, match="BADKEYS"):
            call("touch", args=[ID], bookkeeping=keys)


def test_one_call_evicts_a_bounded_number_however_many_it_commits(call, clean_hot):
    """Two blocks that each need all the room that 20,000 small ones have."""
    with clean_hot.client() as client:
        tier = HotTier(client.execute_command, TENANT)
        for first in range(0, 20_000, CALL_IDS):
            ids = [n.to_bytes(16, "big") for n in range(first, first + CALL_IDS)]
            pipe = client.pipeline(transaction=False)
            for id_ in ids:
                pipe.set(KEYS.block(SPACE, id_), b"x" * 50, px=60_000)
            pipe.execute()
            tier.commit(SPACE, [(id_, 50, 16) for id_ in ids])
        large = [b"L" * 16, b"M" * 16]
        for id_ in large:
            client.set(KEYS.block(SPACE, id_), b"x" * 999_000, px=60_000)
        tier.commit(SPACE, [(id_, 999_000, 16) for id_ in large])
        assert tier.usage().evicted_blocks == 10_000


def test_a_call_that_no_client_sends_by_mistake_is_counted(call, clean_hot):
    with clean_hot.client() as client:
        before = taken(client).get(TENANT, Taken()).abused_calls
        for ids, abused in ((2000, 0), (100_001, 1), (100_001, 2)):
            with pytest.raises(ResponseError, match="TOOMANY"):
                call("match", args=["0", *[ID] * ids])
            assert taken(client).get(TENANT, Taken()).abused_calls == before + abused


@pytest.mark.parametrize(
    ("space", "size", "tokens"),
    [
        (b"03", b"1", b"16"),
        (b"3e0", b"1", b"16"),
        (b"nan", b"1", b"16"),
        (b"4294967296", b"1", b"16"),
        (b"3", b"0x1", b"16"),
        (b"3", b"1", b"x"),
        (b"3", b"1", b"-1"),
        (b"3", b"1", b"nan"),
    ],
)
def test_a_commit_of_what_is_no_number_leaves_nothing(call, clean_hot, space, size, tokens):
    key = KEYS.tag + b":b:" + space + b":" + ID
    with clean_hot.client() as client:
        client.set(key, b"x", px=60_000)
        with pytest.raises(ResponseError, match="BADKEYS"):
            call("commit", [key], [space, ID, size, tokens])
        assert not client.exists(KEYS.bookkeeping[0])


def test_a_block_of_no_bytes_gets_no_entry(call, clean_hot):
    assert call("commit", [KEYS.block(SPACE, ID)], [SPACE, ID, 0, 16]) == [4]  # VANISHED
    with clean_hot.client() as client:
        assert not client.exists(KEYS.bookkeeping[0])
