"""A node withdraws what it announced to routers once it left Neve."""

import threading
from collections.abc import Iterator

import pytest

from neve.engine.events import ChunkRemoved, ChunkStored, RouterEvents
from neve.engine.removals import RemovalReader
from neve.engine.step import BlockSave, NewRequest
from neve.engine.table import Request
from neve.errors import Refused, Unavailable
from support.servers import wait_until

CHUNK, BLOCK = 64, 32
TOKENS = list(range(4 * CHUNK))
HASHES = [bytes([n]) for n in range(len(TOKENS) // BLOCK)]


def ids_of(chunk: int, ranks: int = 2) -> tuple[bytes, ...]:
    return tuple(bytes([chunk, rank]) * 8 for rank in range(ranks))


@pytest.fixture
def events():
    """Three chunks of two ranks are announced."""
    events = RouterEvents(2)
    store(events, Request(NewRequest("r", TOKENS, 4 * CHUNK, engine_hashes=lambda: HASHES), None))
    assert len(events.take()) == 3
    return events


def store(events: RouterEvents, request: Request) -> None:
    for chunk in range(3):
        save = BlockSave("r", ids_of(chunk), (), CHUNK, (), chunk)
        events.expect(request, save, CHUNK // BLOCK)
        events.note_stored([save.ids[0]] * 2)


def hashes_of(*chunks: int) -> list[ChunkRemoved]:
    return [ChunkRemoved(tuple(HASHES[2 * n : 2 * n + 2])) for n in chunks]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_chunk_is_withdrawn_once_a_block_of_any_rank_left(events, rank):
    events.note_removed([ids_of(1)[rank], b"never announced!"])
    assert events.take() == hashes_of(1)
    events.note_removed(ids_of(1))
    events.note_lost([ids_of(1)[0]])
    assert events.take() == []


def test_when_removals_are_unknown_all_is_withdrawn_and_later_chunks_are_announced(events):
    events.note_unknown()
    assert events.take() == hashes_of(0, 1, 2)
    store(events, Request(NewRequest("r", TOKENS, 4 * CHUNK, engine_hashes=lambda: HASHES), None))
    assert [type(each) for each in events.take()] == [ChunkStored] * 3


def test_the_oldest_announced_chunks_are_forgotten_whole(events, monkeypatch):
    monkeypatch.setattr("neve.engine.events._MOST", 2)
    store(events, Request(NewRequest("r", TOKENS, 4 * CHUNK, engine_hashes=lambda: HASHES), None))
    events.take()
    assert len(events._stored) == 2
    assert len(events._first) == 2


@pytest.mark.parametrize("more", [{"salt": b"s"}, {"media": ("picture",)}], ids=str)
def test_chunks_whose_hashes_hold_more_than_tokens_are_not_announced(more):
    events = RouterEvents(2)
    new = NewRequest("r", TOKENS, 4 * CHUNK, engine_hashes=lambda: HASHES, **more)
    store(events, Request(new, None))
    assert events.take() == []


class Link:
    """A link, its client and its session. `answers`: what the platform says in turn."""

    heartbeat_s = 0.001

    def __init__(self, *answers) -> None:
        self._answers = list(answers)
        self.asked: list[str | None] = []
        self.done = threading.Event()
        self.client = self.session = self

    def removals(self, cursor):
        if not self._answers:
            self.done.set()
            return [], cursor, False
        self.asked.append(cursor)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def read() -> Iterator:
    readers = []

    def read(*links):
        readers.append(RemovalReader(links))
        for link in links:
            assert link.done.wait(60)
        return readers[-1].take()

    yield read
    for reader in readers:
        reader.close()
        wait_until(lambda: not reader._thread.is_alive(), what="the end")  # noqa: B023


def test_removals_are_read_page_by_page_from_where_the_last_answer_ended(read):
    link = Link(([], "a", False), ([b"x"], "b", False), ([b"y", b"z"], "c", False))
    assert read(link) == [[b"x"], [b"y", b"z"]]
    assert link.asked == [None, "a", "b"]


def test_an_outage_is_bridged_and_a_reset_is_passed_on(read):
    link = Link(([], "a", False), Unavailable("away"), ([b"x"], "b", False), ([], "c", True))
    assert read(link) == [[b"x"], None]
    assert link.asked == [None, "a", "a", "b"]


def test_whoever_begins_late_does_not_know_what_left_before(read):
    link = Link(Refused("no such session", status=404), ([], "a", False), ([b"x"], "b", False))
    assert read(link) == [None, [b"x"]]


def test_a_fault_does_not_end_the_reading(read):
    link = Link(([], "a", False), ZeroDivisionError(), ([b"x"], "b", False))
    assert read(link) == [[b"x"]]


def test_ranks_with_spaces_of_their_own_are_read_apart(read):
    one, other = Link(([], "a", False), ([b"x"], "b", False)), Link(([], "c", False))
    assert read(one, other) == [[b"x"]]
    assert other.asked == [None]
