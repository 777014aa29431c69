"""Sums of spaces and days: each count once, whatever crashes; bytes held by time and space."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from django.utils import timezone

from catalog.models import NodeSession, Segment
from catalog.sessions import Heartbeat, record_heartbeat
from planning import account
from planning.models import FoldedSession, FoldState, SpaceDay
from storage import s3_requests
from storage.s3 import client
from support.rows import make_session, make_space, make_tenant
from tenants.scope import tenant_scope

pytestmark = [
    pytest.mark.integration,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("valkey_hot", "valkey_bus", "s3"),
]
GIB_KIB = 1 << 20


@pytest.fixture
def held(monkeypatch):
    """What the tenant holds: space → KiB hot, KiB cold. Tests change it."""
    sizes: dict[str, list[int]] = {}
    monkeypatch.setattr(account, "_held", lambda tenant_id: dict(sizes))
    return sizes


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        at = timezone.now()

        def pass_s(self, seconds):
            self.at += timedelta(seconds=seconds)

    clock = Clock()
    monkeypatch.setattr(account.timezone, "now", lambda: clock.at)
    return clock


def beat(session, seq, **counters):
    with tenant_scope(session.tenant_id):
        record_heartbeat(
            session_id=session.pk,
            heartbeat=Heartbeat(seq, counters, {}, {}, "closed"),
        )


def total(tenant, name):
    return sum(SpaceDay.unscoped.filter(tenant=tenant).values_list(name, flat=True))


def test_counts_of_heartbeats_are_folded_once(held):
    tenant = make_tenant()
    space, other = make_space(tenant), make_space(tenant, "other")
    with tenant_scope(tenant.pk):
        first, second = make_session(space, "a"), make_session(other, "b")
    beat(first, 1, hit_hot_tokens=100, requested_tokens=150)
    beat(second, 1, hit_cold_tokens=7)
    assert account.fold(tenant.pk)
    assert account.fold(tenant.pk)  # nothing new
    beat(first, 2, hit_hot_tokens=50)
    beat(first, 2, hit_hot_tokens=50)  # a repeated heartbeat
    account.fold(tenant.pk)
    rows = SpaceDay.unscoped.filter(tenant=tenant)
    found = {row.space_name: (row.hit_hot_tokens, row.hit_cold_tokens) for row in rows}
    assert found == {space.name: (150, 0), other.name: (0, 7)}
    assert total(tenant, "requested_tokens") == 150


def test_a_crash_between_the_writes_neither_loses_nor_doubles(held, monkeypatch):
    tenant = make_tenant()
    with tenant_scope(tenant.pk):
        session = make_session(make_space(tenant), "a")
    beat(session, 1, hit_hot_tokens=10)
    write = account._write

    def write_and_die(tenant_id, sums):
        write(tenant_id, sums)
        raise KeyboardInterrupt

    monkeypatch.setattr(account, "_write", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        account.fold(tenant.pk)
    assert not SpaceDay.unscoped.exists()
    assert not FoldedSession.unscoped.exists()
    monkeypatch.setattr(account, "_write", write)
    beat(session, 2, hit_hot_tokens=5)
    account.fold(tenant.pk)
    assert total(tenant, "hit_hot_tokens") == 15


def test_of_two_runs_at_once_one_adds(held, monkeypatch):
    tenant = make_tenant()
    with tenant_scope(tenant.pk):
        session = make_session(make_space(tenant), "a")
    account.fold(tenant.pk)
    beat(session, 1, hit_hot_tokens=10)
    totals, inner = s3_requests.totals, []

    def overtaken(tenant_id):
        monkeypatch.setattr(s3_requests, "totals", totals)
        inner.append(account.fold(tenant_id))
        return {":puts": 0}

    monkeypatch.setattr(s3_requests, "totals", overtaken)
    assert account.fold(tenant.pk) is False
    assert inner == [True]
    assert total(tenant, "hit_hot_tokens") == 10


def test_a_session_that_ended_between_two_runs_is_folded_to_its_end(held, clock):
    tenant = make_tenant()
    with tenant_scope(tenant.pk):
        session = make_session(make_space(tenant), "a")
    account.fold(tenant.pk)
    beat(session, 1, slower_gpu_us=3, spared_gpu_us=9) if "spared_gpu_us" in account.COUNTED else (
        beat(session, 1, hit_hot_tokens=9)
    )
    NodeSession.unscoped.filter(pk=session.pk).update(ended_at=clock.at)
    clock.pass_s(60)
    account.fold(tenant.pk)
    assert sum(total(tenant, name) for name in account.COUNTED) in (9, 12)


def test_bytes_held_are_integrated_along_straight_lines(held, clock):
    tenant = make_tenant()
    space = make_space(tenant)
    clock.at = datetime(2026, 5, 4, 12, tzinfo=UTC)
    account.fold(tenant.pk)
    held[str(space.pk)] = [GIB_KIB, 4 * GIB_KIB]
    clock.pass_s(60)
    account.fold(tenant.pk)  # a triangle
    clock.pass_s(60)
    account.fold(tenant.pk)  # a rectangle
    row = SpaceDay.unscoped.get(tenant=tenant)
    assert (row.hot_kib_s, row.cold_kib_s) == (90 * GIB_KIB, 360 * GIB_KIB)
    assert row.gap_s == 0


def test_a_gap_over_midnight_is_split_between_the_days_and_noted(held, clock):
    tenant = make_tenant()
    space = make_space(tenant)
    held[str(space.pk)] = [1000, 0]
    clock.at = datetime(2026, 5, 4, 23, tzinfo=UTC)
    account.fold(tenant.pk)
    clock.pass_s(3 * 3600)
    account.fold(tenant.pk)
    rows = SpaceDay.unscoped.filter(tenant=tenant).order_by("day")
    assert [(row.day.day, row.hot_kib_s, row.gap_s) for row in rows] == [
        (4, 3_600_000, 3600),
        (5, 7_200_000, 7200),
    ]


def test_pieces_of_a_falling_line_add_up():
    start = datetime(2026, 5, 4, 18, tzinfo=UTC)
    found = list(account.pieces(start, start + timedelta(days=2)))
    assert [(day, seconds) for day, seconds, _ in found] == [
        (date(2026, 5, 4), 21_600.0), (date(2026, 5, 5), 86_400.0), (date(2026, 5, 6), 64_800.0),
    ]  # fmt: skip
    assert sum(seconds * (1 - middle) for _, seconds, middle in found) == pytest.approx(86_400)


def test_hot_bytes_are_shared_by_bytes_written_and_cold_ones_are_exact(monkeypatch):
    tenant = make_tenant()
    space, other = make_space(tenant), make_space(tenant, "other")
    monkeypatch.setattr(account.hot, "hot_tier", lambda tenant_id: FullTier())
    with tenant_scope(tenant.pk):
        assert account._held(tenant.pk) == {str(space.pk): [50, 0], str(other.pk): [51, 0]}
        for number, written in ((space.pk, 3 << 20), (other.pk, 1 << 20)):
            SpaceDay.objects.create(
                day=timezone.now().date(), space_number=number, hot_write_bytes=written
            )
        Segment.objects.create(
            space=space, object_key="k", size_bytes=5120, state=Segment.State.DELETING
        )
        assert account._held(tenant.pk) == {str(space.pk): [76, 5], str(other.pk): [25, 0]}


class FullTier:
    def usage(self):
        return self

    hot_bytes = 101 * 1024


def test_requests_of_the_platform_are_counted_by_space(held):
    tenant = make_tenant()
    space = make_space(tenant)
    account.fold(tenant.pk)
    bucket, key = account.settings.ENV.s3_bucket, f"v1/t{tenant.pk}/{space.fingerprint[:16]}/x.seg"
    client().put_object(Bucket=bucket, Key=key, Body=b"0123456789")
    client().get_object(Bucket=bucket, Key=key, Range="bytes=2-5")
    client().head_object(Bucket=bucket, Key=key)
    client().list_objects_v2(Bucket=bucket, Prefix=f"v1/t{tenant.pk}/")
    client().delete_object(Bucket=bucket, Key=key)
    s3_requests.PROCESS.send()
    account.fold(tenant.pk)
    account.fold(tenant.pk)
    rows = {row.space_number: row for row in SpaceDay.unscoped.filter(tenant=tenant)}
    assert (rows[space.pk].worker_puts, rows[space.pk].worker_gets) == (1, 2)
    assert rows[space.pk].worker_read_bytes == 4
    assert (rows[0].worker_puts, rows[0].worker_gets) == (1, 0)


def test_requests_count_on_when_the_bus_lost_its_memory(held, monkeypatch):
    tenant = make_tenant()
    for counted in ({":puts": 100}, None, {":puts": 7}, {":puts": 9}):
        monkeypatch.setattr(s3_requests, "totals", lambda id_, found=counted: found)
        account.fold(tenant.pk)
    assert total(tenant, "worker_puts") == 109


def test_sums_stay_when_the_space_goes_and_go_with_the_tenant(held):
    tenant = make_tenant()
    space = make_space(tenant)
    with tenant_scope(tenant.pk):
        session = make_session(space, "a")
    beat(session, 1, hit_hot_tokens=10)
    account.fold(tenant.pk)
    space.delete()
    account.fold(tenant.pk)
    assert SpaceDay.unscoped.get().space_name == "space"
    gone = tenant.pk
    tenant.delete()
    assert not SpaceDay.unscoped.exists()
    assert not FoldState.unscoped.exists()
    assert account.fold(gone) is False


def test_days_older_than_the_setting_go(held, clock):
    tenant = make_tenant()
    kept = account.settings.ENV.keep_savings_days
    with tenant_scope(tenant.pk):
        for age in (kept - 1, kept + 1):
            day = (clock.at - timedelta(days=age)).date()
            SpaceDay.objects.create(day=day, space_number=1)
    account.fold(tenant.pk)
    assert SpaceDay.unscoped.count() == 1


def test_spaces_of_a_day_are_bounded(held, monkeypatch):
    monkeypatch.setattr(account, "MOST_SPACES", 2)
    tenant = make_tenant()
    with tenant_scope(tenant.pk):
        for name in "abcd":
            session = make_session(make_space(tenant, name), name)
            beat(session, 1, hit_hot_tokens=1)
    account.fold(tenant.pk)
    counts = Counter(SpaceDay.unscoped.values_list("space_number", flat=True))
    assert len(counts) == 3
    assert SpaceDay.unscoped.get(space_number=0).hit_hot_tokens == 2
