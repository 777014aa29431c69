"""The Explorer's figures, of seeded slices with known sums."""

import pytest

from base.problems import Problem
from catalog import slices
from catalog.measures import MEASURES, latency_of
from catalog.models import Slice
from catalog.slices import ALL, Key, Span, Where
from support.rows import make_context, make_space, make_tenant

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

NOW_S = 1_796_040_000.0  # a multiple of every length
HOUR = Span(int(NOW_S) - 3600, int(NOW_S), 60)
BEFORE = Span(int(NOW_S) - 7200, int(NOW_S) - 3600, 60)
RATE = MEASURES["hit_rate"]


def put(tenant, kind, back_s, *, space=None, name="", length_s=60, **counts):
    """A row of the bucket that lies `back_s` before now."""
    Slice.unscoped.create(
        tenant=tenant,
        kind=kind,
        resolution_s=length_s,
        bucket_ts=(int(NOW_S) - back_s) // length_s * length_s,
        space_number=0 if space is None else space.pk,
        name=name,
        **counts,
    )


def rows_of(where, split, measure=RATE, span=HOUR, before=BEFORE):
    return slices.table(where, measure, split, span, before, now_s=NOW_S).rows


def seen(rows):
    return [(row.name, row.value, row.before) for row in rows]


@pytest.fixture
def acme():
    return make_tenant("acme")


@pytest.fixture
def globex():
    return make_tenant("globex")


def test_what_changed_most_comes_first_whichever_way(acme, globex):
    third = make_tenant("initech")
    fresh = make_tenant("new")
    for tenant, then, now in ((acme, 80, 40), (globex, 50, 95), (third, 70, 69)):
        put(tenant, "tenant", 4000, prompt_tokens=100, hit_tokens=then)
        put(tenant, "tenant", 3000, prompt_tokens=50, hit_tokens=now / 2)
        put(tenant, "tenant", 60, prompt_tokens=50, hit_tokens=now / 2)
    put(fresh, "tenant", 60, prompt_tokens=10, hit_tokens=9)
    where = Where.of([acme, globex, third, fresh])
    table = slices.table(where, RATE, "tenant", HOUR, BEFORE, now_s=NOW_S)
    assert seen(table.rows) == [
        ("globex", 0.94, 0.5),
        ("acme", 0.4, 0.8),
        ("initech", 0.68, 0.7),
        ("new", 0.9, None),
    ]
    assert [row.is_worse for row in table.rows] == [False, True, True, False]
    assert (table.total.tokens, table.total.hit_tokens) == (310, 94 + 40 + 68 + 9)
    assert table.total.value == 211 / 310
    assert table.total.before == 200 / 300
    assert [row.share for row in table.rows] == [100 / 310, 100 / 310, 100 / 310, 10 / 310]


def test_parts_add_up_to_their_whole(acme):
    one, two = make_space(acme, "one"), make_space(acme, "two")
    for space, node, tokens, hits in (
        (one, "gpu-1", 100, 90),
        (one, "gpu-2", 60, 6),
        (two, "gpu-1", 40, 20),
        (None, "", 30, 3),
    ):
        put(acme, "place", 60, space=space, name=node, prompt_tokens=tokens, hit_tokens=hits)
    put(acme, "tenant", 60, prompt_tokens=230, hit_tokens=119)
    where = Where.of([acme])
    found = {
        split: {row.name: (row.tokens, row.hit_tokens) for row in rows_of(where, split)}
        for split in ("tenant", "space", "node")
    }
    assert found == {
        "tenant": {"acme": (230, 119)},
        "space": {"one": (160, 96), "two": (40, 20), "other": (30, 3)},
        "node": {"gpu-1": (140, 110), "gpu-2": (60, 6), "other": (30, 3)},
    }
    in_one = rows_of(Where.of([acme], space=one), "node")
    assert {row.name: row.tokens for row in in_one} == {"gpu-1": 100, "gpu-2": 60}
    on_gpu_1 = rows_of(Where.of([acme], node="gpu-1"), "space")
    assert {row.name: row.tokens for row in on_gpu_1} == {"one": 100, "two": 40}
    assert [row.tokens for row in rows_of(Where.of([acme], node="gpu-2"), "tenant")] == [60]


def test_another_tenant_s_rows_do_not_exist(acme, globex):
    for tenant in (acme, globex):
        space = make_space(tenant, f"{tenant.slug}-space")
        for kind, name in (("tenant", ""), ("place", "gpu"), ("context", "c"), ("label", "l")):
            put(
                tenant,
                kind,
                60,
                space=None if kind == "tenant" else space,
                name=name,
                prompt_tokens=100,
                misses={"evicted": 1},
            )
    where = Where.of([acme])
    for split in ("tenant", "space", "node", "label", "context"):
        assert {row.tenant for row in rows_of(where, split)} == {"acme"}, split
        assert sum(row.tokens for row in rows_of(where, split)) == 100
    line = slices.series(where, MEASURES["miss_blocks"], "node", HOUR, None, now_s=NOW_S)
    assert sum(value or 0 for value in line[ALL]) * 60 == pytest.approx(1)
    foreign = Slice.unscoped.get(tenant=globex, kind="place").space_number
    assert rows_of(Where({acme.pk: "acme"}, space_number=foreign), "node") == []


def test_a_new_reason_changed_most(acme):
    put(acme, "tenant", 4000, misses={"never_stored": 1000, "idle": 10})
    put(acme, "tenant", 60, misses={"never_stored": 1020, "unflushed": 700})
    rows = rows_of(Where.of([acme]), "reason", MEASURES["miss_blocks"])
    assert seen(rows) == [
        ("unflushed", 700, 0),
        ("never_stored", 1020, 1000),
        ("idle", 0, 10),
    ]
    assert rows_of(Where.of([acme]), "tenant")[0].main_reason == "never_stored"


def test_tiers_have_one_denominator(acme):
    put(
        *(acme, "tenant", 60),
        **{"prompt_tokens": 100, "hit_tokens": 70, "hit_cold_tokens": 20, "hit_local_tokens": 10},
    )
    table = slices.table(Where.of([acme]), RATE, "tier", HOUR, BEFORE, now_s=NOW_S)
    assert {row.name: row.value for row in table.rows} == {"hot": 0.4, "cold": 0.2, "local": 0.1}
    assert table.total.value == pytest.approx(0.7)
    assert table.total.tokens == 100


def test_labels_of_two_spaces_are_one_and_shares_are_of_all_tokens(acme):
    one, two = make_space(acme, "one"), make_space(acme, "two")
    put(acme, "tenant", 60, prompt_tokens=1000, hit_tokens=500)
    put(acme, "label", 60, space=one, name="chat", prompt_tokens=100, hit_tokens=90)
    put(acme, "label", 60, space=two, name="chat", prompt_tokens=100, hit_tokens=70)
    put(acme, "label", 60, space=one, name="team:red", prompt_tokens=100, hit_tokens=90)
    put(acme, "label", 60, prompt_tokens=50)
    put(acme, "label", 60, space=one, prompt_tokens=25)
    table = slices.table(Where.of([acme]), RATE, "label", HOUR, BEFORE, now_s=NOW_S)
    assert {row.name: (row.value, row.share) for row in table.rows} == {
        "chat": (0.8, 0.2),
        "team:red": (0.9, 0.1),
        "other": (0, 0.05),
        "no label": (0, 0.025),
    }
    assert table.total.tokens == 1000


def test_contexts_of_a_label(acme):
    space = make_space(acme)
    for name, label in (("a", "chat"), ("b", "code")):
        context = make_context(space, name)
        context.label, context.prompt_tokens = label, 100
        context.save()
        put(acme, "context", 60, space=space, name=name, prompt_tokens=100, hit_tokens=50)
    rows = rows_of(Where.of([acme], label="chat"), "context")
    assert [row.name for row in rows] == ["a"]


@pytest.mark.parametrize(
    ("measure", "split", "scope", "words"),
    [
        ("load_p99", "label", {}, "is not counted by label"),
        ("hit_rate", "label", {"node": "gpu-1"}, "not counted by node"),
        ("hot_used", "tenant", {"node": "gpu-1"}, "for whole tenants only"),
        ("read_bytes", "tenant", {"label": "chat"}, "only hits are"),
        ("hit_rate", "reason", {}, "is not counted by reason"),
    ],
)
def test_what_nobody_counts_is_said(acme, measure, split, scope, words):
    table = slices.table(
        Where.of([acme], **scope), MEASURES[measure], split, HOUR, BEFORE, now_s=NOW_S
    )
    assert words in table.why_not
    assert table.rows == []


def test_percentiles_come_from_merged_histograms(acme):
    space = make_space(acme)
    put(acme, "place", 120, space=space, name="gpu-1", load_ms={"<=1": 1, "<=10": 98})
    put(acme, "place", 60, space=space, name="gpu-1", load_ms={"+Inf": 1})
    put(acme, "place", 60, space=space, name="gpu-2", load_ms={"<=2": 4})
    rows = {row.name: row for row in rows_of(Where.of([acme]), "node", MEASURES["load_p50"])}
    assert rows["gpu-2"].value == 1.5  # the middle of 1…2 ms
    latency = rows["gpu-1"].latency
    assert (latency.loads, latency.beyond, latency.within) == (100, 0.01, 0.01)
    assert latency.p1.milliseconds == 1
    assert not latency.p99.is_beyond
    assert latency_of({"<=5": 1, "+Inf": 99}).p99.is_beyond
    assert latency_of({}) is None


def test_lines_are_by_second_and_gaps_are_unknown(acme):
    put(acme, "place", 3600, name="gpu-1", hot_read_bytes=600, cold_read_bytes=60)
    put(acme, "place", 60, name="gpu-1", hot_read_bytes=1200)
    measure = MEASURES["read_bytes"]
    key = Key(acme.pk, 0, "gpu-1")
    lines = slices.series(Where.of([acme]), measure, "node", HOUR, [key], now_s=NOW_S)
    assert list(lines) == [key]
    assert (lines[key][0], lines[key][-1], set(lines[key][1:-1])) == (11, 20, {None})
    assert len(lines[key]) == 60


def test_gauges_are_the_last_and_ages_the_largest(acme, globex):
    for back_s, used, age in ((600, 50, 9), (60, 20, 3)):
        put(acme, "tenant", back_s, hot_used_bytes=used, dirty_oldest_s=age)
    put(globex, "tenant", 60, hot_used_bytes=5, dirty_oldest_s=1)
    where = Where.of([acme, globex])
    in_use = slices.table(where, MEASURES["hot_used"], "tenant", HOUR, BEFORE, now_s=NOW_S)
    assert {row.name: row.value for row in in_use.rows} == {"acme": 20, "globex": 5}
    assert in_use.total.value == 25
    oldest = slices.table(where, MEASURES["dirty_age"], "tenant", HOUR, BEFORE, now_s=NOW_S)
    assert (oldest.total.value, [row.value for row in oldest.rows]) == (9, [9, 1])
    line = slices.series(where, MEASURES["hot_used"], "tenant", HOUR, None, now_s=NOW_S)
    assert line[ALL][-1] == 25


def test_reasons_over_time(acme):
    put(acme, "tenant", 60, misses={"evicted": 60, "idle": 120})
    put(acme, "tenant", 120, misses={"evicted": 120})
    found = slices.reasons(Where.of([acme]), "misses", HOUR, now_s=NOW_S)
    assert list(found) == ["evicted", "idle"]
    assert found["evicted"][-2:] == [2, 1]
    assert found["idle"][-3:] == [None, 0, 2]


def test_since_when(acme):
    for step in range(120):
        hits = 80 if step < 90 else 30
        put(acme, "tenant", 7200 - 60 * step, prompt_tokens=100, hit_tokens=hits)
    where = Where.of([acme])
    rows = rows_of(where, "tenant")
    both = Span(BEFORE.start_ts, HOUR.end_ts, 60)
    lines = slices.series(where, RATE, "tenant", both, [rows[0].key], now_s=NOW_S)
    slices.mark_since(rows, lines, both)
    assert rows[0].since_ts == int(NOW_S) - 1800


@pytest.mark.parametrize(
    ("seconds", "step_s"),
    [(900, 60), (3600, 60), (21_600, 600), (86_400, 1800), (604_800, 21_600), (2_592_000, 21_600)],
)
def test_the_finest_buckets_that_are_kept(seconds, step_s):
    span, before = slices.spans_of(NOW_S - seconds, NOW_S, "before", now_s=NOW_S)
    assert span.step_s == step_s
    assert before == Span(span.start_ts - (span.end_ts - span.start_ts), span.start_ts, span.step_s)
    assert len(span.steps()) <= slices.MOST_POINTS


def test_yesterday_has_coarser_buckets():
    span, before = slices.spans_of(NOW_S - 3600, NOW_S, "yesterday", now_s=NOW_S)
    assert (span.step_s, before.step_s) == (60, 600)
    assert before == Span(span.start_ts - 86_400, span.end_ts - 86_400, 600)


def test_a_window_before_the_oldest_is_said():
    _, before = slices.spans_of(NOW_S - 50 * 86_400, NOW_S, "before", now_s=NOW_S)
    assert before is None
    with pytest.raises(Problem):
        slices.spans_of(NOW_S, NOW_S, "before", now_s=NOW_S)
    with pytest.raises(Problem):
        slices.spans_of(NOW_S - 60, NOW_S, "ever", now_s=NOW_S)


@pytest.mark.parametrize("against", slices.AGAINST)
def test_no_window_has_more_points_than_slices_are_kept(against):
    kept_s = 62 * 86_400
    for start_s, end_s in ((0, NOW_S), (-6e10, 2e11), (NOW_S - 1e9, NOW_S - 9e8)):
        span, before = slices.spans_of(start_s, end_s, against, now_s=NOW_S)
        assert span.end_ts <= NOW_S
        for each in (span, before):
            assert each is None or len(each.steps()) <= kept_s / 21_600 + 2
    for start_s, end_s in ((-6e10, -5e10), (NOW_S + 1, NOW_S + 9)):
        with pytest.raises(Problem, match="before now"):
            slices.spans_of(start_s, end_s, against, now_s=NOW_S)
