"""What needs a person is said, with the worst first; what is well is not alarming."""

from datetime import UTC, datetime, timedelta

import pytest

from catalog.models import NodeSession, Store
from dashboard.pages.nodes.selector import node_rows
from dashboard.pages.overview.health import assess, without
from dashboard.probes import Answer, Probe
from dashboard.storage import StorageUse, summed
from dashboard.usage import Totals
from tenants.models import Tenant

NOW = datetime(2026, 3, 1, 12, 3, tzinfo=UTC)
WELL = Answer(True, "3", NOW)
QUIET = Totals(True, 100, 60, 10, 10, 6, 1, 0, None, None, {}, 0, 0)
ACME = Tenant(pk=7, slug="acme")
EMPTY = StorageUse(0, 0, 0, 0, None, 100, 100)


def session(
    node: str,
    *,
    heard_s: float = 1,
    ended: bool = False,
    breaker: str = "closed",
    differing: int = 0,
):
    return NodeSession(
        node=node,
        breaker=breaker,
        last_heartbeat_at=NOW - timedelta(seconds=heard_s),
        ended_at=NOW if ended else None,
        totals={
            "requested_tokens": 10,
            "hit_hot_tokens": 3,
            "hit_cold_tokens": 2,
            "differing_blocks": differing,
        },
    )


def rows(*sessions):
    return node_rows(list(sessions), live_since=NOW - timedelta(seconds=16))


def health(**changes):
    use = changes.pop("use", EMPTY)
    known = {
        "nodes": rows(session("gpu-01")),
        "hot": WELL,
        "cold": WELL,
        "workers": WELL,
        "storage": {ACME.pk: use},
        "all_storage": use,
        "tenants": (ACME,),
        "totals": QUIET,
        "failed_jobs": 0,
        "now": NOW,
    }
    return assess(**{**known, **changes})


def attention(**changes) -> list[str]:
    found = health(**changes).attention
    assert all(item.remedy for item in found)  # each says what to do
    words = [item.words for item in found]
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in words]


def test_all_well_says_what_was_checked():
    found = health()
    assert found.is_well
    assert [fact.words for fact in found.facts] == [
        *("1/1 nodes live", "hot tier ok", "S3 ok", "3 workers", "nothing unflushed")
    ]


def test_full_tiers_that_evict_are_how_a_cache_works():
    assert health(use=StorageUse(100, 100, 0, 0, None, 100, 100)).is_well


def test_what_is_not_known_yet_is_not_broken():
    found = health(hot=Answer(), cold=Answer(), workers=Answer())
    assert found.is_well
    assert [fact.words for fact in found.facts][1:4] == ["hot tier —", "S3 —", "workers —"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hot": Answer(False, "", NOW)}, "hot tier does not answer since 12:03:00 UTC"),
        ({"workers": Answer(False, "", NOW)}, "no worker answers since 12:03:00 UTC"),
        ({"nodes": rows(session("gpu-07", heard_s=200))}, "gpu-07 silent for 3 min"),
        ({"nodes": rows(session("gpu-07", breaker="half_open"))}, "gpu-07 breaker half open"),
        (
            {"nodes": rows(session("gpu-07", differing=1))},
            "gpu-07 serves alone: stored KV is not what it computes",
        ),
        (
            {"use": StorageUse(70, 0, 0, 0, None, 100, 100, hot_room_bytes=2)},
            "hot memory is full at 72 B of 100 B promised",
        ),
        (
            {"use": StorageUse(0, 93, 0, 0, None, 100, 100, cold_full="refuse")},
            "acme at 93.0 % of cold",
        ),
        (
            {"use": StorageUse(1, 0, 1, 1, 46.0, 100, 100)},
            "no flush for 46 s although blocks are due",
        ),
        ({"failed_jobs": 2}, "2 jobs failed"),
    ],
)
def test_trouble_is_said_in_words(changes, words):
    assert attention(**changes) == [words]


def test_a_store_that_is_away_is_named_in_place_of_s3_ok():
    far = Store(name="far", failing_since=NOW)
    assert attention(away=[far]) == ["S3 store far away since 12:03:00 UTC"]
    words = [fact.words for fact in health(away=[far]).facts]
    assert words[2] == "S3 far away"
    assert "S3 ok" not in words


def test_a_tenant_that_was_cut_off_waits_for_somebody():
    gone = Tenant(pk=7, slug="acme", cut_off_at=NOW, cut_off_reason="96 MiB in the hot tier")
    assert attention(tenants=(gone,)) == ["acme cut off since 12:03:00 UTC: 96 MiB in the hot tier"]


def test_denied_and_corrupt_blocks_need_somebody():
    totals = Totals(True, 100, 60, 10, 10, 6, 1, 0, None, None, {"denied": 5, "evicted": 9}, 12, 3)
    assert attention(totals=totals) == [
        "5 blocks missed: S3 refuses what the platform signs",
        "3 blocks failed verification",
    ]


def test_what_an_incident_says_better_is_said_once():
    found = health(totals=Totals(True, 1, 0, 0, 1, 0, 0, 0, None, None, {}, 0, 3), failed_jobs=2)
    assert [each.kind for each in found.attention] == ["", "job_failures"]
    assert [each.kind for each in without(found, {"job_failures"}).attention] == [""]


def test_nodes_are_worst_first_and_those_that_left_are_last():
    found = rows(
        session("b"), session("a"), session("gone", ended=True), session("open", breaker="open"),
        session("silent", heard_s=99),
    )  # fmt: skip
    assert [row.session.node for row in found] == ["silent", "open", "a", "b", "gone"]
    assert found[0].hit_ratio == 0.5


def test_nodes_that_left_do_not_count_as_missing():
    assert health(nodes=rows(session("a"), session("gone", ended=True))).is_well


def test_a_sum_is_unknown_only_where_all_are():
    unknown = StorageUse(None, None, None, None, None, None, None)
    assert summed([unknown, unknown]).hot_ratio is None
    both = summed(
        [StorageUse(10, 0, 4, 1, 3.0, 50, 50), unknown, StorageUse(30, 0, 0, 0, 9.0, 50, 0)]
    )
    assert (both.hot_bytes, both.hot_ratio, both.dirty_oldest_s) == (40, 0.4, 9.0)
    assert both.clean_ratio == pytest.approx(0.36)
    assert (both.unstored_blocks, both.cold_full) == (None, "evict")
    refusing = StorageUse(0, 0, 0, 0, None, 1, 1, unstored_blocks=3, cold_full="refuse")
    assert (summed([refusing, both]).unstored_blocks, summed([refusing, both]).cold_full) == (
        *(3, "mixed"),
    )


def test_a_probe_remembers_since_when():
    answers = iter([None, "ok", "ok"])

    def ask() -> str:
        if (answer := next(answers)) is None:
            raise ConnectionError
        return answer

    probe = Probe("test", ask, every_s=3600)
    assert not probe.ask().is_well
    first = probe.ask()
    again = probe.ask()
    assert first.is_well
    assert again.since == first.since


def test_a_node_that_was_refused_is_said_with_its_field():
    told = {"node": "gpu-2", "kind": "fingerprint-clash", "field": "codec"}
    assert attention(refused=[{**told, "expected": "none", "got": "int8"}]) == [
        "gpu-2 was refused: codec is int8, allowed is none"
    ]
    assert attention(refused=[{"node": "gpu-2", "kind": "node-limit"}]) == [
        "gpu-2 was refused: node limit"
    ]
