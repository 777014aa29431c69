"""Recent requests at the platform's door: bounded, each tenant's apart, found by users' ids."""

from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pytest

from catalog import kept_requests, told
from catalog.models import KeptRequest, NodeSession
from neve.node.requests import MOST_SENT, Cells, Kept, RequestRecord
from storage.s3 import ensure_bucket
from support.rows import make_session, make_space, make_tenant
from tenants.models import Tenant
from tenants.scope import tenant_scope
from tiering.removal import remove_tenant

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def tenant():
    return make_tenant()


@pytest.fixture
def session(tenant):
    return make_session(make_space(tenant))


def sent(number=1, name="cmpl-abc-0-1234abcd", age_s=0.0, **more):
    return RequestRecord(name, Kept.SLOW, -age_s, number=number, **more).as_dict(0.0)


def accept(session, *records):
    with tenant_scope(session.tenant_id):
        return kept_requests.accept(tenant=session.tenant, session=session, records=list(records))


def names(tenant, text):
    rows = KeptRequest.unscoped.filter(tenant=tenant)
    return [row.name for row in kept_requests.find(rows, text)]


@pytest.fixture(autouse=True)
def no_bus(monkeypatch):
    """Drops are counted on valkey-bus, which these tests do not start."""
    monkeypatch.setattr(kept_requests, "REQUESTS_DROPPED", Mock())


def test_a_record_is_kept_with_its_space_and_time(session):
    chain = Cells(2, bytes(range(32)))
    assert accept(session, sent(age_s=60, miss_chunk=3, miss_id=bytes(16), chain=chain))
    row = KeptRequest.unscoped.get()
    assert (row.tenant_id, row.space_id) == (session.tenant_id, session.space_id)
    assert abs(datetime.now(UTC) - timedelta(seconds=60) - row.at) < timedelta(seconds=30)
    assert (row.stride, bytes(row.chain), row.miss_chunk) == (2, chain.ids, 3)


@pytest.mark.parametrize(
    "text",
    ["cmpl-abc-0-1234abcd", "cmpl-abc", "abc", "abc-0", " cmpl-abc ", "chatcmpl-abc"],
)
def test_users_find_a_request_by_what_they_have(tenant, session, text):
    accept(session, sent(), sent(2, "cmpl-abcd-0-1234abcd"), sent(3, "other"))
    assert names(tenant, text) == ["cmpl-abc-0-1234abcd"]


@pytest.mark.parametrize("text", ["", "ab", "1234abcd", "cmpl-", "%", "a_c"])
def test_a_part_of_an_id_finds_nothing(tenant, session, text):
    accept(session, sent())
    assert names(tenant, text) == []


def test_a_record_that_is_sent_again_counts_once(session):
    for _ in range(2):
        accept(session, sent(1), sent(2))
    assert KeptRequest.unscoped.count() == 2


def test_a_node_overwrites_its_own_ring_only(tenant, session):
    other = make_session(session.space, "node-2")
    accept(other, sent(1))
    for first in range(0, 2 * kept_requests.SLOTS, MOST_SENT):
        accept(session, *(sent(first + n) for n in range(MOST_SENT)))
    counts = {each: KeptRequest.unscoped.filter(session=each).count() for each in (session, other)}
    assert counts == {session: kept_requests.SLOTS, other: 1}


@pytest.mark.parametrize(
    "records", [None, {}, "x", [7], [{}], [sent()] * (MOST_SENT + 1), [sent() | {"prompt": "x"}]]
)
def test_what_cannot_be_read_is_dropped(tenant, session, records):
    with tenant_scope(tenant.pk):
        assert not kept_requests.accept(tenant=tenant, session=session, records=records)
    assert not KeptRequest.unscoped.exists()


def test_a_tenant_without_samples_keeps_no_requests(tenant, session):
    Tenant.objects.filter(pk=tenant.pk).update(samples_enabled=False)
    session.tenant.refresh_from_db()
    assert not accept(session, sent())
    with tenant_scope(tenant.pk):
        assert kept_requests.terms_of(session.tenant) is None


def test_after_a_day_and_beyond_so_many_rows_the_oldest_leave(session, monkeypatch):
    monkeypatch.setattr(kept_requests, "MOST_ROWS", 3)
    neighbour = make_session(make_space(make_tenant("neighbour")))
    accept(neighbour, sent(1))
    accept(session, *(sent(n, age_s=100 - n) for n in range(6)))
    KeptRequest.unscoped.filter(slot=5).update(at=datetime.now(UTC) - timedelta(hours=25))
    kept_requests.prune()
    rows = KeptRequest.unscoped.order_by("slot")
    left = list(rows.filter(session=session).values_list("slot", flat=True))
    assert left == [2, 3, 4]
    assert rows.filter(session=neighbour).count() == 1


def test_kin_are_spaces_of_the_same_model_and_rank(tenant, session):
    identity = session.space.identity

    def space(name, **other):
        made = make_space(tenant, name)
        made.identity = identity | other
        made.save()
        return made

    fp8 = space("fp8", kv_dtype="fp8")
    space("another model", model="m2")
    space("rank 1", tp_size=2, tp_rank=1)
    with tenant_scope(tenant.pk):
        terms = kept_requests.terms_of(tenant, session.space)
    assert [each["space"] for each in terms["kin"]] == [fp8.pk]


# ---- what a node tells of itself


def test_a_node_tells_its_version_its_clock_and_its_last_error():
    now = datetime.now(UTC)
    raw = {"clock_s": now.timestamp() + 2.5, "version": "9", "error": "x", "error_age_s": 60}
    about = told.about_of(raw, now)
    assert about["skew_s"] == pytest.approx(2.5, abs=0.01)
    assert (about["version"], about["error"]) == ("9", "x")
    assert about["error_at"] == (now - timedelta(seconds=60)).isoformat()


@pytest.mark.parametrize(
    "raw",
    [
        *(None, 7, [], {"clock_s": "now"}, {"clock_s": float("nan")}, {"clock_s": 10**400}),
        {"version": 7, "error": "a\0", "error_age_s": 1},
    ],
)
def test_what_a_node_tells_wrongly_is_left_out(raw):
    assert told.about_of(raw, datetime.now(UTC)) == {}


def test_the_breaker_has_a_bounded_history():
    now, log = datetime.now(UTC), "nonsense"
    for _ in range(60):
        log = told.with_change(log, now, NodeSession.Breaker.OPEN)
    assert len(told.changes(log)) == told.MOST_CHANGES


@pytest.mark.integration
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey_hot", "valkey_bus", "s3")
def test_requests_go_with_their_tenant(tenant, session):
    ensure_bucket()
    accept(session, sent())
    remove_tenant(tenant.pk)
    assert not KeptRequest.unscoped.exists()
