"""Events and their change commit together."""

import pytest
from django.db import transaction

from events.models import Event
from events.services import Subject, emit, emit_many
from support.rows import make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

JOB: Subject = {"type": "job", "id": "1", "name": "flush"}


def test_an_event_is_written_by_one_insert(django_assert_num_queries):
    tenant = make_tenant()
    with django_assert_num_queries(1):
        emit("job.done", tenant_id=tenant.pk, subject=JOB, data={"kind": "flush"})
    event = Event.unscoped.get()
    assert (event.kind, event.subject_id, event.data) == ("job.done", "1", {"kind": "flush"})
    assert event.sequence is None


def test_many_events_are_written_by_one_insert(django_assert_num_queries):
    tenant = make_tenant()
    with django_assert_num_queries(1):
        emit_many("context.deleted", tenant_id=tenant.pk, items=[(JOB, {})] * 40)
    assert Event.unscoped.count() == 40


def test_a_change_that_is_undone_leaves_no_event():
    tenant = make_tenant()

    @transaction.atomic
    def change():
        emit("job.done", tenant_id=tenant.pk, subject=JOB)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        change()
    assert not Event.unscoped.exists()


def test_kinds_are_declared():
    with pytest.raises(KeyError):
        emit("job.dnoe", tenant_id=None, subject=JOB)


def test_long_names_are_cut():
    emit("job.done", tenant_id=None, subject={"type": "job", "id": "1", "name": "n" * 400})
    assert len(Event.unscoped.get().subject_name) == 200
