"""Savings and prices over REST: each team its own, past months at the prices of their time."""

import csv
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from planning import prices
from planning.models import SpaceDay
from support.caller import Caller
from support.rows import make_key, make_space, make_tenant
from tenants.models import AuditEvent
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = 3_600_000_000


@pytest.fixture(autouse=True)
def _now(monkeypatch):
    monkeypatch.setattr(prices.timezone, "now", lambda: NOW)


def add_day(tenant, day, space=None, **counts):
    with tenant_scope(tenant.pk):
        return SpaceDay.objects.create(
            day=day,
            space_number=0 if space is None else space.pk,
            space_name="" if space is None else space.name,
            **counts,
        )


def get(caller, **query):
    answer = caller.send("get", "/api/v1/savings" + query_of(query))
    assert answer.status_code == 200, answer.content
    return answer.json()["rows"]


def query_of(query):
    return "?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else ""


def test_a_month_with_every_term(operator, tenant):
    space = make_space(tenant)
    add_day(
        tenant, date(2026, 11, 3), space, hit_hot_tokens=700, requested_tokens=1000,
        spared_tokens=600, spared_gpu_us=10 * HOUR, load_gpu_us=HOUR, slower_tokens=100,
        slower_gpu_us=HOUR // 2, hot_kib_s=1000 * 2**20 * 3600, cold_kib_s=2**20 * 30 * 86_400 * 10,
        worker_puts=2000, worker_gets=500, cold_requests=500, worker_read_bytes=10**9,
        cold_fetched_bytes=10**9,
    )  # fmt: skip
    change = {
        "valid_from": "2026-11-01", "gpu_hour": "2", "hot_gib_hour": "0.005",
        "cold_gib_month": "0.02", "put_1000": "0.005", "get_1000": "0.001", "egress_gb": "0.1",
    }  # fmt: skip
    assert operator.send("patch", "/api/v1/prices", change).status_code == 200
    (row,) = get(operator, by="space", month="2026-11")
    terms = {}
    for line in row["lines"]:
        terms[line["name"]] = terms.get(line["name"], 0) + Decimal(line["amount"])
    assert terms == {
        "prefill": 20, "loads": -2, "slower": -1, "hot": -5, "cold": Decimal("-0.2"),
        "requests": Decimal("-0.011"), "egress": Decimal("-0.2"),
    }  # fmt: skip
    assert (row["gross"], row["net"]) == ("20.000000", "11.589000")
    assert Decimal(row["costs"]) == Decimal("8.411")
    assert row["space"] == {"id": space.pk, "name": "space"}
    assert set(row["notes"]) == {"running", "slower", "hot_shared"}


def test_past_months_keep_the_prices_of_their_time(operator, tenant):
    for day in (date(2026, 10, 31), date(2026, 11, 9), date(2026, 11, 20)):
        add_day(tenant, day, spared_tokens=1, spared_gpu_us=HOUR)
    for valid_from, price in (("2026-11-01", "4"), (None, "10")):
        change = {"gpu_hour": price} | ({"valid_from": valid_from} if valid_from else {})
        assert operator.send("patch", "/api/v1/prices", change).status_code == 200
    november, october = get(operator, months=2)
    assert (october["month"], october["net"]) == ("2026-10", "2.350000")
    assert "list_prices" in october["notes"]
    assert november["net"] == "14.000000"
    assert [line["price"] for line in november["lines"]] == ["10", "4"]


def test_spaces_add_up_to_their_tenant(operator, tenant):
    for number, name in enumerate("abc", 1):
        space = make_space(tenant, name)
        add_day(
            tenant, date(2026, 11, 3), space, spared_tokens=9, spared_gpu_us=number * 77_777_777
        )
        add_day(tenant, date(2026, 11, 4), space, cold_kib_s=number * 10**12)
    (whole,) = get(operator)
    parts = get(operator, by="space")
    assert len(parts) == 3
    difference = sum(Decimal(row["net"]) for row in parts) - Decimal(whole["net"])
    assert abs(difference) <= Decimal("0.000006")
    for name, total in whole["used"].items():
        assert total == sum(row["used"][name] for row in parts)


def test_a_team_sees_its_own_alone(team, operator, tenant):
    other = make_tenant("other")
    for each in (tenant, other):
        add_day(each, date(2026, 11, 3), spared_tokens=1, spared_gpu_us=HOUR)
    assert [row["tenant"] for row in get(team)] == ["acme"]
    assert [row["tenant"] for row in get(operator)] == ["acme", "other"]
    assert team.send("get", "/api/v1/savings?tenant=other").status_code == 404
    assert team.send("get", "/api/v1/savings/export?tenant=other").status_code == 404
    exported = b"".join(team.send("get", "/api/v1/savings/export").streaming_content)
    assert b"acme" in exported
    assert b"other" not in exported


def test_loads_that_were_slower_are_a_loss_and_hits_without_a_speed_save_nothing(team, tenant):
    add_day(tenant, date(2026, 11, 3), hit_hot_tokens=50, slower_tokens=50, slower_gpu_us=HOUR)
    (row,) = get(team)
    assert (row["gross"], row["net"]) == ("0", "-2.350000")
    SpaceDay.unscoped.update(slower_tokens=0, slower_gpu_us=0)
    (row,) = get(team)
    assert Decimal(row["net"]) == 0
    assert "no_prefill_speed" in row["notes"]


def test_a_hostile_tenants_counts_break_no_sum(operator, tenant):
    add_day(tenant, date(2026, 11, 3), spared_gpu_us=2**53)
    SpaceDay.unscoped.bulk_create(
        SpaceDay(tenant=tenant, day=date(2026, 11, 4), space_number=n, spared_gpu_us=2**53,
                 hot_kib_s=2**57)
        for n in range(1, 1500)
    )  # fmt: skip
    (row,) = get(operator)
    assert Decimal(row["net"]) < Decimal(10) ** 20


def test_an_export_has_the_rows_of_the_list(team, tenant):
    add_day(tenant, date(2026, 11, 3), make_space(tenant, "=cmd"), slower_gpu_us=HOUR)
    text = b"".join(team.send("get", "/api/v1/savings/export?by=space").streaming_content).decode()
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["space"], row["slower"], row["net"]) == ("'=cmd", "2.350000", "-2.350000")
    answer = team.send("get", "/api/v1/savings/export?by=space&format=jsonl")
    line = json.loads(b"".join(answer.streaming_content))
    assert (line["space"], line["net"], line["slower_gpu_us"]) == ("=cmd", "-2.350000", HOUR)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("month=2026-13", "month"), ("month=november", "month"), ("months=0", "months"),
        ("months=37", "months"), ("by=node", "by"), ("tenants=acme", "tenants"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_named(team, query, field):
    answer = team.send("get", f"/api/v1/savings?{query}")
    assert (answer.status_code, answer.json()["field"]) == (400, field)


class TestPrices:
    def test_everyone_reads_and_operators_change(self, team, operator):
        before = team.send("get", "/api/v1/prices").json()
        assert (before["gpu_hour"], before["currency"]) == ("2.35", "USD")
        assert team.send("patch", "/api/v1/prices", {"gpu_hour": "1"}).status_code == 403
        answer = operator.send("patch", "/api/v1/prices", {"gpu_hour": "1.5"})
        assert answer.json()["gpu_hour"] == "1.5"
        assert answer.json()["valid_from"] == "2026-11-20"
        assert [each["gpu_hour"] for each in answer.json()["versions"]] == ["1.5", "2.35"]
        event = AuditEvent.unscoped.get(action="prices.change")
        assert (event.before["gpu_hour"], event.after["gpu_hour"]) == ("2.35", "1.5")

    def test_a_change_of_others_in_between_is_refused(self, operator):
        tag = operator.send("get", "/api/v1/prices")["ETag"]
        with_tag = Caller(make_key(None, "operator"))
        change = {"gpu_hour": "3", "valid_from": "2027-01-01"}
        assert operator.send("patch", "/api/v1/prices", change).status_code == 200
        answer = with_tag.send(
            "patch", "/api/v1/prices", {"gpu_hour": "4"}, headers={"If-Match": tag}
        )
        assert answer.status_code == 412
        fresh = operator.send("get", "/api/v1/prices")["ETag"]
        answer = with_tag.send(
            "patch", "/api/v1/prices", {"gpu_hour": "4"}, headers={"If-Match": fresh}
        )
        assert answer.status_code == 200
        assert len(prices.versions()) == 3

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"gpu_hour": 2.35}, "gpu_hour"), ({"gpu_hour": "-1"}, "gpu_hour"),
            ({"gpu_hour": "1000000.1"}, "gpu_hour"), ({"gpu_hour": "1e3"}, "gpu_hour"),
            ({"currency": "EUR"}, "currency"), ({"currency": "euro"}, "currency"),
            ({"valid_from": "2026-10-31", "gpu_hour": "1"}, "valid_from"),
            ({"valid_from": "2028-01-01", "gpu_hour": "1"}, "valid_from"),
            ({"valid_from": "2026-11-31", "gpu_hour": "1"}, "valid_from"),
            ({"gpu_hours": "1"}, "gpu_hours"),
        ],
    )  # fmt: skip
    def test_a_wrong_change_is_named(self, operator, change, field):
        answer = operator.send("patch", "/api/v1/prices", change)
        assert answer.status_code == 400, answer.content
        assert field in str(answer.json())
        assert len(prices.versions()) == 1

    def test_the_currency_changes_with_a_month(self, operator):
        change = {"currency": "EUR", "valid_from": "2026-11-01"}
        assert operator.send("patch", "/api/v1/prices", change).json()["currency"] == "EUR"
