"""What the overview reads: sums, rates, shares, of the viewer's tenants only."""

from datetime import UTC, datetime, timedelta

import pytest

from catalog.models import Segment
from catalog.usage import record_gauges
from catalog.windows import RANGES, window_of
from dashboard import usage
from dashboard.pages.nodes.selector import sessions
from dashboard.pages.overview import misses, selector
from dashboard.pages.overview.series import series
from dashboard.pages.tiers.selector import moved
from support.rows import make_segment, make_session, make_space
from tenants.principal import rows_of

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

NOW_S = 1_800_000_005.0
START = 1_800_000_000


def window(name: str = "15m"):
    return window_of(RANGES[name], NOW_S)


def test_nothing_reported_is_unknown(acme):
    found = usage.totals((acme,), window())
    assert not found.reported
    assert found.hit_ratio is None
    assert found.load_p99 is None
    assert selector.read_rate_now((acme,), NOW_S) is None
    assert set(series((acme,), window()).hot_tokens) == {None}


def test_totals_sum_tenants_and_heartbeats(acme, globex, report):
    report(acme, START - 30, requested_tokens=100, hit_hot_tokens=40, misses={"evicted": 2})
    report(acme, START - 10, requested_tokens=100, hit_cold_tokens=20, load_ms={"<=10": 4})
    report(globex, START - 10, requested_tokens=200, hit_hot_tokens=100, misses={"evicted": 1})
    found = usage.totals((acme, globex), window())
    assert (found.requested_tokens, found.hit_tokens) == (400, 160)
    assert found.hit_ratio == 0.4
    assert found.misses == {"evicted": 3}
    assert found.load_p99.milliseconds == pytest.approx(9.95)
    assert usage.totals((acme,), window()).requested_tokens == 200


def test_the_hit_rate_is_of_whole_prompts_and_of_whole_blocks(acme, report):
    report(acme, START - 30, requested_tokens=80, tail_tokens=20, hit_hot_tokens=40)
    found = usage.totals((acme,), window())
    assert (found.prompt_tokens, found.hit_ratio, found.block_hit_ratio) == (100, 0.4, 0.5)


def test_the_nodes_own_tier_is_charted_as_one_of_its_own(acme, report):
    report(acme, START - 30, requested_tokens=100, hit_local_tokens=60, hit_hot_tokens=10,
           local_read_bytes=6_000, local_write_bytes=900)  # fmt: skip
    found = usage.totals((acme,), window())
    assert (found.hit_local_tokens, found.hit_ratio) == (60, 0.7)
    drawn = series((acme,), window())
    for values, total in (
        (drawn.local_tokens, 60), (drawn.local_read_bytes, 6_000), (drawn.local_write_bytes, 900),
    ):  # fmt: skip
        assert max(value for value in values if value is not None) > 0, total
    shown = moved((acme,), window())
    assert shown.local_read == pytest.approx(shown.local_written * 6_000 / 900)
    assert moved((), window()).local_read is None


def test_what_lies_before_the_window_is_the_window_before(acme, report):
    report(acme, START - 1200, requested_tokens=10, hit_hot_tokens=1)
    report(acme, START - 20, requested_tokens=10, hit_hot_tokens=5)
    assert usage.totals((acme,), window()).hit_ratio == 0.5
    assert usage.totals((acme,), window().previous()).hit_ratio == 0.1


@pytest.mark.parametrize("name", RANGES)
def test_every_range_holds_the_same_tokens(acme, report, name):
    report(acme, START - 100, requested_tokens=70, hit_hot_tokens=30)
    assert usage.totals((acme,), window(name)).requested_tokens == 70


def test_series_are_rates_by_step_and_silent_steps_are_unknown(acme, report):
    report(acme, START - 20, requested_tokens=1000, hit_hot_tokens=300, hit_cold_tokens=200)
    found = series((acme,), window())
    at = found.ts.index(START - 20)
    assert found.hot_tokens[at] == 30
    assert found.cold_tokens[at] == 20
    assert found.recomputed_tokens[at] == 50
    assert found.hot_tokens[at - 1] is None
    assert found.ts[-1] == START - 10  # the step that began 5 s ago is not drawn yet


def test_several_buckets_make_one_step(acme, report):
    report(acme, START - 120, hot_read_bytes=6_000)
    report(acme, START - 60, hot_read_bytes=6_000)
    found = series((acme,), window("6h"))
    assert found.hot_read_bytes[found.ts.index(START - 120)] == 100


def test_segments_are_the_writes_of_the_cold_tier(acme):
    segment = make_segment(make_space(acme), size_bytes=5_000)
    at = datetime.fromtimestamp(START - 20, UTC)
    rows_of(Segment, (acme,)).filter(pk=segment.pk).update(created_at=at)
    found = series((acme,), window())
    assert found.cold_write_bytes[found.ts.index(START - 20)] == 500


def test_since_gives_only_the_later_steps(acme, report):
    report(acme, START - 20, requested_tokens=1)
    whole = series((acme,), window())
    late = whole.since(START - 20)
    assert late.ts == [START - 20, START - 10]
    assert late.recomputed_tokens == whole.recomputed_tokens[-2:]


def test_the_rate_now_counts_whole_buckets_since_the_first(acme, report):
    report(acme, START - 20, hot_read_bytes=300, cold_read_bytes=100)
    report(acme, START + 1, hot_read_bytes=999_999)  # still running
    assert selector.read_rate_now((acme,), NOW_S) == 20


def test_shares_of_misses_begin_with_the_largest():
    shares = misses.miss_shares({"evicted": 1, "never_stored": 3, "quota": 0})
    assert [(miss.reason, miss.share) for miss in shares] == [
        ("never_stored", 0.75),
        ("evicted", 0.25),
    ]
    assert shares[1].of_largest == pytest.approx(1 / 3)
    assert misses.miss_shares({}) == []


def test_a_share_says_how_it_changed_against_the_window_before():
    shares = misses.miss_shares({"unflushed": 3, "never_stored": 1}, {"never_stored": 4})
    assert [(miss.label, miss.change) for miss in shares] == [
        ("refused by cold quota", 0.75),
        ("never stored", -0.75),
    ]
    assert misses.miss_shares({"unflushed": 3}, {})[0].change is None


def test_gauges_are_the_newest_that_are_known(acme, report):
    for at_s, dirty in ((START - 40, 3), (START - 20, 7)):
        record_gauges(
            tenant_id=acme.pk,
            at=datetime.fromtimestamp(at_s, UTC),
            gauges={"hot_used_bytes": 1, "dirty_blocks": dirty},
        )
    report(acme, START - 5, requested_tokens=1)  # a bucket without gauges
    assert usage.last_gauges((acme,), NOW_S)[acme.pk]["dirty_blocks"] == 7


def test_sessions_that_left_long_ago_are_not_listed(acme):
    now = datetime.now(UTC)
    space = make_space(acme)
    for node, ended, heard in (
        ("open", None, now),
        ("left", now - timedelta(minutes=5), now),
        ("left-long-ago", now - timedelta(hours=2), now),
        ("lost-long-ago", None, now - timedelta(days=2)),
    ):
        session = make_session(space, node)
        session.ended_at, session.last_heartbeat_at = ended, heard
        session.save()
    assert {row.node for row in sessions((acme,), now=now)} == {"open", "left"}
