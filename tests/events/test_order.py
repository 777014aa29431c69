"""Whoever reads on behind number N has missed no event below N, however transactions overlap."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from base.problems import Problem
from events import order
from events.models import Event
from events.reading import Interest, page
from events.services import Subject, emit
from support.rows import make_tenant
from tiering import pruning

pytestmark = pytest.mark.integration

ALL = Interest(None)


def job(name: object) -> Subject:
    return {"type": "job", "id": str(name), "name": "flush"}


def emit_job(name: object, tenant_id: int | None = None) -> None:
    emit("job.done", tenant_id=tenant_id, subject=job(name))


def names(rows: list[Event]) -> list[str]:
    return [row.subject_id for row in rows]


several_writers = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one writer at a time"
)


@several_writers
@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_began_first_and_commits_last_is_not_missed():
    inserted, may_commit = threading.Event(), threading.Event()

    def slow():
        try:
            with transaction.atomic():
                emit_job("first")
                inserted.set()
                assert may_commit.wait(30)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(slow)
        assert inserted.wait(30)
        emit_job("second")
        order.number()
        found, until = page(ALL, 0, 10)
        assert names(found) == ["second"]
        may_commit.set()
        ending.result()
    order.number()
    found, _ = page(ALL, until, 10)
    assert names(found) == ["first"]


@several_writers
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("seed", range(3))
def test_a_reader_beside_writers_and_numberers_gets_each_event_once(seed):
    writers, each = 6, 12
    left = threading.Semaphore(0)
    over = threading.Event()

    def write(writer: int):
        chance = random.Random(seed * 100 + writer)
        try:
            for n in range(each):
                with transaction.atomic():
                    emit_job(f"{writer}-{n}")
                    threading.Event().wait(chance.random() / 200)
                    if undone := chance.random() < 0.2:
                        transaction.set_rollback(True)
                if undone:
                    with transaction.atomic():
                        emit_job(f"{writer}-{n}")
        finally:
            connections.close_all()
            left.release()

    def number():
        try:
            while not over.is_set():
                order.number()
        finally:
            connections.close_all()

    def read() -> list[Event]:
        seen: list[Event] = []
        after = 0
        try:
            is_last = False
            while True:
                found, after = page(ALL, after, 5)
                seen += found
                if not found:
                    if is_last:
                        return seen
                    is_last = over.is_set()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(writers + 3) as pool:
        reader = pool.submit(read)
        numberers = [pool.submit(number) for _ in range(2)]
        writing = [pool.submit(write, writer) for writer in range(writers)]
        for future in writing:
            future.result()
        while Event.unscoped.filter(sequence=None).exists():
            order.number()
        over.set()
        for future in numberers:
            future.result()
        seen = reader.result()
    expected = {f"{writer}-{n}" for writer in range(writers) for n in range(each)}
    assert sorted(names(seen)) == sorted(expected)
    assert [row.sequence for row in seen] == list(range(1, len(expected) + 1))
    for writer in range(writers):
        own = [name for name in names(seen) if name.startswith(f"{writer}-")]
        assert own == [f"{writer}-{n}" for n in range(each)]


@pytest.mark.django_db
class TestRetention:
    def old(self, count: int, tenant_id: int | None = None):
        for n in range(count):
            emit_job(n, tenant_id)
        Event.unscoped.filter(sequence=None).update(at=timezone.now() - timedelta(days=8))
        order.number_all()

    def test_old_events_go_and_a_reader_who_missed_them_is_told(self):
        self.old(3)
        emit_job("young")
        order.number()
        assert pruning.has_work()
        assert pruning.prune()["events"] == 3
        assert not pruning.has_work()
        with pytest.raises(Problem) as refusal:
            page(ALL, 2, 10)
        assert refusal.value.kind == "events-gone"
        assert refusal.value.members == {"kept_after": 3, "newest": 4}
        found, until = page(ALL, 3, 10)
        assert (names(found), until) == (["young"], 4)

    def test_the_position_of_a_tenant_without_events_stays_good(self):
        busy, quiet = make_tenant(), make_tenant()
        self.old(3, busy.pk)
        pruning.prune()
        assert page(Interest(frozenset({quiet.pk})), 0, 10) == ([], 3)
        with pytest.raises(Problem):
            page(Interest(frozenset({busy.pk})), 0, 10)

    def test_numbers_go_on_when_all_events_are_deleted(self):
        self.old(3)
        pruning.prune()
        assert not Event.unscoped.exists()
        emit_job("next")
        order.number()
        assert Event.unscoped.get().sequence == 4

    def test_a_number_that_no_event_has_had_is_refused(self):
        self.old(1)
        with pytest.raises(Problem) as refusal:
            page(ALL, 2, 10)
        assert refusal.value.kind == "events-gone"

    def test_the_oldest_events_of_a_tenant_with_too_many_go(self, settings):
        flooder, other = make_tenant(), make_tenant()
        for n in range(1010):
            emit_job(n, flooder.pk)
        emit_job("other", other.pk)
        order.number_all()
        settings.ENV = settings.ENV.__class__(**{**vars(settings.ENV), "event_limit": 1000})
        assert pruning.prune()["events"] == 10
        with pytest.raises(Problem):
            page(Interest(frozenset({flooder.pk})), 0, 10)
        assert names(page(Interest(frozenset({other.pk})), 0, 10)[0]) == ["other"]
