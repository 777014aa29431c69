"""Usage over REST: periods, steps, and splits by tenant, tier, space and node."""

import time
from datetime import UTC, datetime

import pytest

from catalog.models import Segment, UsageRollup
from support.rows import make_segment, make_session, make_space, make_tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

HOUR = 3600
NOW = int(time.time()) // HOUR * HOUR
AGO = NOW - 5 * HOUR


def bucket(tenant, ts, resolution_s=HOUR, **counts):
    with tenant_scope(tenant.pk):
        UsageRollup.objects.create(resolution_s=resolution_s, bucket_ts=ts, **counts)


def at(ts):
    return datetime.fromtimestamp(ts, UTC).isoformat()


def ask(caller, **query):
    answer = caller.get("/api/v1/usage", query)
    assert answer.status_code == 200, answer.content
    return answer.json()


def refusal(caller, **query):
    answer = caller.get("/api/v1/usage", query)
    return answer.status_code, answer.json().get("field")


def test_a_period_is_cut_into_aligned_steps(team, tenant):
    for n in range(5):
        bucket(
            tenant,
            AGO + n * HOUR,
            requested_tokens=10,
            misses={"idle": 1},
            hot_used_bytes=n,
            dirty_oldest_s=9 - n,
        )
    period = {"from": at(AGO + 60), "to": at(AGO + 4 * HOUR)}
    found = ask(team, step="2h", **period)
    assert found["resolution_s"] == 2 * HOUR
    start = AGO - AGO % (2 * HOUR)
    assert all((point["bucket_ts"] - start) % (2 * HOUR) == 0 for point in found["points"])
    hours = 4 if start == AGO else 5  # both ends are moved out to whole steps
    assert sum(point["requested_tokens"] for point in found["points"]) == 10 * hours
    whole = ask(team, step="1d", **{"from": at(AGO)})["points"]
    assert sum(point["misses"]["idle"] for point in whole) == 5
    assert whole[-1]["hot_used_bytes"] == 4  # the last sample
    assert max(point["dirty_oldest_s"] for point in whole) == 9


def test_without_a_step_the_finest_that_is_kept_and_fits_is_chosen(team, tenant):
    def resolution_s(seconds):
        return ask(team, **{"from": at(time.time() - seconds)})["resolution_s"]

    assert [resolution_s(n) for n in (HOUR, 5 * HOUR, 20 * HOUR, 13 * 86400)] == [10, 30, 60, 900]
    assert resolution_s(90 * 86400) == 4 * HOUR


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"by": "team"}, "by"),
        ({"step": "7s"}, "step"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2020-01-01T00:00:00Z", "step": "1m"}, "step"),
        ({"from": "2020-01-01T00:00:00Z", "range": "1h"}, "range"),
        ({"to": "2020-01-01T00:00:00Z"}, "to"),
        ({"from": "2020-01-02T00:00:00Z", "to": "2020-01-01T00:00:00Z"}, "from"),
        ({"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T00:00:00Z", "step": "1h"}, "step"),
    ],
)
def test_what_no_series_can_be_is_refused_by_name(team, query, field):
    assert refusal(team, **query) == (400, field)


def test_a_split_by_tenant_has_a_series_each(operator, team, tenant):
    other = make_tenant("other")
    for n in range(2):
        bucket(tenant, AGO + n * HOUR, requested_tokens=10, hit_hot_tokens=1, hit_cold_tokens=2)
        bucket(other, AGO + n * HOUR, requested_tokens=50, hot_used_bytes=n, cold_used_bytes=7)
    query = {"by": "tenant", "from": at(AGO), "step": "1h"}
    found = ask(operator, **query)["groups"]
    assert [(group["id"], group["totals"]["requested_tokens"]) for group in found] == [
        *(("other", 100), ("acme", 20)),
    ]
    assert found[0]["totals"]["used_bytes"] == 8
    assert [point["hit_tokens"] for point in found[1]["points"]] == [3, 3]
    assert found[1]["totals"]["used_bytes"] is None
    assert [group["id"] for group in ask(team, **query)["groups"]] == ["acme"]
    assert [group["id"] for group in ask(operator, tenant="other", **query)["groups"]] == ["other"]
    assert team.get("/api/v1/usage", {**query, "tenant": "other"}).status_code == 404


def test_a_split_by_tier(team, tenant):
    local_ = {"hit_local_tokens": 2, "local_read_bytes": 6, "local_write_bytes": 8}
    segment = make_segment(make_space(tenant), size_bytes=70)
    Segment.unscoped.filter(pk=segment.pk).update(created_at=at(AGO + 60))
    cold_ = {"hit_cold_tokens": 3, "cold_read_bytes": 9, "cold_used_bytes": 4}
    bucket(tenant, AGO, hit_hot_tokens=5, **cold_, **local_)
    hot, cold, local = ask(team, by="tier", step="1h", **{"from": at(AGO)})["groups"]
    assert (hot["id"], hot["totals"]["hit_tokens"], hot["totals"]["used_bytes"]) == ("hot", 5, None)
    assert (cold["totals"]["hit_tokens"], cold["totals"]["read_bytes"]) == (3, 9)
    assert (cold["totals"]["requested_tokens"], cold["totals"]["used_bytes"]) == (None, 4)
    assert (local["totals"]["hit_tokens"], local["totals"]["read_bytes"]) == (2, 6)
    assert [each["totals"]["written_bytes"] for each in (hot, cold, local)] == [0, 70, 8]
    assert cold["points"][0]["bucket_ts"] == AGO
    assert cold["points"][0]["written_bytes"] == 70


def test_a_split_by_space_or_node_sums_whole_sessions(team, tenant):
    one, two = make_space(tenant, "one"), make_space(tenant, "two")
    make_session(one, "gpu-1/a", totals={"requested_tokens": 10, "hit_hot_tokens": 1})
    make_session(one, "gpu-2", totals={"requested_tokens": 20})
    make_session(two, "gpu-1/b", totals={"requested_tokens": 5, "strange": 7})
    strange = make_tenant()
    make_session(make_space(strange), "gpu-1", totals={"requested_tokens": 1000})

    def split(by):
        groups = ask(team, by=by)["groups"]
        assert all(group["points"] == [] for group in groups)
        return [(group["name"], group["totals"]["requested_tokens"]) for group in groups]

    assert split("space") == [("one", 30), ("two", 5)]
    assert split("node") == [("gpu-2", 20), ("gpu-1", 15)]
    (first, _) = ask(team, by="space")["groups"]
    assert (first["id"], first["tenant"]) == (str(one.pk), "acme")
    assert (first["totals"]["hit_tokens"], first["totals"]["used_bytes"]) == (1, None)
    assert (
        ask(team, by="node", **{"from": "2020-01-01T00:00:00Z", "to": "2020-02-01T00:00:00Z"})[
            "groups"
        ]
        == []
    )
