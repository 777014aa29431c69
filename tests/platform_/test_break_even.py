"""The break-even of spaces: medians of live nodes, bytes of all ranks, decisions of late."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from catalog import recent
from catalog.models import Space
from contexts.break_even import AT_TOKENS, break_evens
from engines.models import Serving
from neve.formats.parts import PartGroup, PartKind
from neve.formats.space import SpaceIdentity
from neve.index.tier import Tier
from neve.planner.breakeven import MARGIN, Prefill, Store, break_even_tokens
from support.rows import IDENTITY, make_engine, make_session, make_space, make_tenant
from tenants.scope import tenant_scope

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

TOKEN = 131_072
SPEEDS = {
    **{"prefill_s_per_token": 1e-4, "hot_bytes_per_s": 13.1072e9, "hot_round_trip_s": 0.09},
    **{"cold_bytes_per_s": 1e9, "cold_round_trip_s": 0.01},
}


def space_of(tenant, name="a", **identity):
    made = SpaceIdentity.from_dict({**IDENTITY, "bytes_per_token": TOKEN, **identity})
    with tenant_scope(tenant.pk):
        return Space.objects.create(
            name=name,
            identity=made.as_dict(),
            chunk_tokens=256,
            fingerprint=made.fingerprint(tenant_id=tenant.pk, chunk_tokens=256).hex(),
        )


def of(space):
    return break_evens([space])[space.pk]


def test_a_space_without_nodes_says_so():
    even = of(space_of(make_tenant()))
    assert even.size.per_token == TOKEN
    assert (even.nodes, even.basis, even.break_even_bytes_per_s) == (0, "unknown", None)
    assert even.tiers[Tier.HOT].wins is even.tiers[Tier.HOT].bytes_per_s is None
    assert "No live node has measured" in even.verdict


def test_the_figures_are_medians_of_live_nodes():
    space = space_of(make_tenant())
    for n, factor in enumerate((0.5, 1, 7)):
        make_session(space, f"n{n}", speeds=SPEEDS | {"prefill_s_per_token": factor * 1e-4})
    make_session(space, "quiet", speeds={})
    gone = {"last_heartbeat_at": timezone.now() - timedelta(hours=2)}
    make_session(space, "silent", speeds={"prefill_s_per_token": 9.0}, **gone)
    make_session(space, "over", speeds={"prefill_s_per_token": 9.0}, ended_at=timezone.now())
    even = of(space)
    assert even.nodes == 3
    assert even.prefill_tokens_per_s == pytest.approx(10_000)
    assert even.break_even_bytes_per_s == pytest.approx(10_000 * TOKEN)
    hot, cold = even.tiers[Tier.HOT], even.tiers[Tier.COLD]
    raw = break_even_tokens(
        Prefill(1e-4), Store(13.1072e9, 0.09), bytes_per_token=TOKEN, margin=MARGIN
    )
    assert 0 <= hot.from_tokens - raw < 256
    assert hot.from_tokens % 256 == 0
    assert (hot.wins, cold.wins, cold.from_tokens) == (True, False, None)
    assert even.verdict == (
        f"Loading from the hot tier beats computing from {hot.from_tokens:,} tokens on; "
        "loading from the cold tier never beats computing."
    )


def test_ranks_with_a_space_each_are_one_engine():
    tenant, other = make_tenant(), make_tenant()
    ranks = [space_of(tenant, f"r{n}", tp_size=2, tp_rank=n) for n in range(2)]
    space_of(other, "foreign", tp_size=2, tp_rank=1, bytes_per_token=7)
    space_of(tenant, "another model", tp_size=2, tp_rank=1, model="m")
    session = make_session(ranks[0], speeds=SPEEDS)  # its engine reports in the first space
    session.totals = {"decided_all": 3}
    session.save()
    for even in break_evens(ranks).values():
        assert even.size.per_token == 2 * TOKEN
        assert even.nodes == 1
        assert even.break_even_bytes_per_s == pytest.approx(2 * 10_000 * TOKEN)
        assert even.decisions_hour["load_all"] == 3


def test_groups_weigh_by_their_kind_and_states_once():
    space = space_of(make_tenant())
    groups = [
        PartGroup(PartKind.FULL, None, 16, 1000),
        PartGroup(PartKind.STATE, None, 16, 0, state_bytes=5_000_000),
    ]
    space.groups = [group.as_dict() for group in groups]
    make_session(space, speeds=SPEEDS)
    even = of(space)
    assert (even.size.per_token, even.size.fixed) == (1000, 5_000_000)
    assert even.break_even_bytes_per_s == pytest.approx((1000 * AT_TOKENS + 5e6) / 0.8192)


def test_blocks_of_kv_heads_count_once_their_number_is_known():
    space = space_of(make_tenant(), layout="by KV head: x")
    make_session(space, speeds=SPEEDS)
    even = of(space)
    assert even.size is even.break_even_bytes_per_s is None
    assert "unknown" in even.verdict
    make_engine(space)
    Serving.unscoped.update(shards=8)
    assert of(space).size.per_token == 8 * TOKEN


def test_decisions_and_bytes_are_of_the_last_hour_and_day():
    space, now = space_of(make_tenant()), timezone.now()
    ago = {s: int((now - timedelta(seconds=s)).timestamp()) for s in (90_000, 4000, 400)}
    marks = [
        [ago[90_000], 5, 0, 0, 0, 0],
        [ago[4000], 15, 1, 0, 1000, 0],
        [ago[400], 20, 1, 2, 4000, 0],
    ]
    totals = {"decided_all": 22, "decided_prefix": 1, "decided_recompute": 2}
    totals |= {"hot_read_bytes": 8000}
    opened = now - timedelta(days=3)
    make_session(space, opened_at=opened, totals=totals, marks=marks, last_heartbeat_at=now)
    ended = {"ended_at": now - timedelta(hours=2), "last_heartbeat_at": now - timedelta(hours=2)}
    make_session(space, "ended", opened_at=now - timedelta(hours=3), totals=totals, **ended)
    even = of(space)
    assert even.decisions_hour == {"load_all": 7, "load_prefix": 0, "recompute": 2}
    assert even.decisions_day == {"load_all": 17 + 22, "load_prefix": 1 + 1, "recompute": 2 + 2}
    assert even.tiers[Tier.HOT].moved_bytes_per_s == pytest.approx(10, rel=0.02)
    assert even.tiers[Tier.COLD].moved_bytes_per_s == 0


def test_marks_are_few_and_reach_a_day_back():
    start = datetime(2025, 1, 1, tzinfo=UTC)
    marks, last = [], start
    for n in range(1, 3 * 24 * 360):  # a heartbeat every 10 s, for three days
        now = start + timedelta(seconds=10 * n)
        if recent.is_due(last, now):
            marks = recent.with_mark(marks, now, {"decided_all": n})
        last = now
    assert len(marks) < 50
    lately = recent.Lately(opened_at=start, last_at=last, totals={"decided_all": n}, stored=marks)
    for window_s, more_s in ((3600, 300), (86400, 3600)):
        counts, took_s = lately.since(last.timestamp() - window_s)
        assert window_s <= took_s <= window_s + more_s
        assert counts["decided_all"] == pytest.approx(took_s / 10, abs=1)
    stored = [[1, 2], "x", None, [1] * 6, [1.5] * 6, [2] * 7]
    assert recent.marks(stored) == [[1] * 6 + [0], [2] * 7]  # 6: before the local tier


@pytest.mark.parametrize("spaces", [1, 6])
def test_the_queries_do_not_grow_with_the_spaces(django_assert_max_num_queries, spaces):
    tenant = make_tenant()
    made = [make_space(tenant, f"s{n}") for n in range(spaces)]
    for each in made:
        make_session(each, speeds=SPEEDS)
    made = list(Space.unscoped.select_related("tenant"))
    with django_assert_max_num_queries(3):
        assert len(break_evens(made)) == spaces
