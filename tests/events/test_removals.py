"""Questions of removal streams: one of a tenant at a time, one for all at a cursor."""

import asyncio
import threading

import pytest
from valkey.exceptions import ConnectionError as Away

from events import removals
from storage.hot_removals import Removals

SLOW, OTHER = 1, 2  # tenants


class Valkey:
    """Answers `OTHER` at once, and `SLOW` once it may."""

    def __init__(self) -> None:
        self.may_answer, self.asked = threading.Event(), []
        self.now = self.most = 0

    def behind(self, tenant_id, space_id, cursor) -> Removals:
        self.asked.append((tenant_id, space_id, cursor))
        if tenant_id == SLOW:
            self.now += 1
            self.most = max(self.most, self.now)
            assert self.may_answer.wait(60)
            self.now -= 1
        if cursor == "away":
            raise Away
        return Removals([], f"{space_id}-{cursor}", False)


@pytest.fixture
def valkey(monkeypatch):
    valkey = Valkey()
    monkeypatch.setattr(removals, "removals_behind", valkey.behind)
    yield valkey
    valkey.may_answer.set()


async def test_a_tenant_whose_answers_are_slow_holds_up_no_other(valkey):
    reading = removals.removals_reading()
    assert removals.removals_reading() is reading
    slow = [reading.ask(SLOW, space, str(n)) for space in (1, 2) for n in range(20)]
    async with asyncio.timeout(30):
        assert (await reading.ask(OTHER, 3, "x")).cursor == "3-x"
    assert not any(task.done() for task in slow)
    valkey.may_answer.set()
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*slow)
    assert [each.cursor for each in answers] == [f"{s}-{n}" for s in (1, 2) for n in range(20)]
    assert valkey.most == 1


async def test_streams_at_one_cursor_share_an_answer(valkey):
    reading = removals.removals_reading()
    tasks = {reading.ask(SLOW, 1, "same") for _ in range(20)}
    assert len(tasks) == 1
    valkey.may_answer.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks)
        await reading.ask(SLOW, 1, "same")  # later: asked anew
    assert len(valkey.asked) == 2


async def test_a_question_that_failed_is_asked_again(valkey):
    reading = removals.removals_reading()
    for _ in range(2):
        with pytest.raises(Away):
            async with asyncio.timeout(30):
                await reading.ask(OTHER, 1, "away")
    assert len(valkey.asked) == 2
