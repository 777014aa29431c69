"""SQLite's write lock: heartbeats queue for it, pages that only note something never wait."""

import threading

import pytest
from django.db import OperationalError, connection, transaction

from base import write_lock
from support.rows import make_tenant
from tenants.models import Tenant

pytestmark = [
    pytest.mark.integration,
    pytest.mark.sqlite,
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def sqlite():
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL has no such lock")


@pytest.fixture
def held(sqlite):
    """Another thread has the write lock, and the turn."""
    tenant, has, end = make_tenant(), threading.Event(), threading.Event()

    def hold():
        with write_lock.in_turn(), transaction.atomic():
            Tenant.objects.filter(pk=tenant.pk).update(name="held")
            has.set()
            end.wait(60)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(60)
    yield end
    end.set()
    thread.join()


def rename(name: str) -> None:
    with transaction.atomic():
        Tenant.objects.update(name=name)


def busy_timeout() -> int:
    with connection.cursor() as cursor:
        return cursor.execute("PRAGMA busy_timeout").fetchone()[0]


def test_who_need_not_write_gives_up_at_once(held):
    before = busy_timeout()
    with pytest.raises(OperationalError), write_lock.or_never():
        rename("never")
    assert busy_timeout() == before > 0


def test_a_turn_is_waited_for(held):
    names = []

    def write():
        with write_lock.in_turn():
            rename("in turn")
        names.append(Tenant.objects.get().name)
        connection.close()

    thread = threading.Thread(target=write)
    thread.start()
    assert not names
    held.set()
    thread.join()
    assert names == ["in turn"]


def test_a_turn_that_never_comes_is_a_locked_database(held, monkeypatch):
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "timeout", 0.01)
    with pytest.raises(OperationalError, match="locked"), write_lock.in_turn():
        rename("never")
