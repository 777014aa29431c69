"""Tiers & segments: what fills the tiers, when they are full, what frees dead bytes."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from django.utils.html import strip_tags

from catalog.models import Job, Segment
from catalog.occupancy import occupancies
from catalog.usage import record_gauges
from dashboard.pages.tiers import filling
from dashboard.pages.tiers.reclaim import GRACE, reclaim
from support.rows import make_segment, make_space

pytestmark = [pytest.mark.integration, pytest.mark.django_db]

NOW = datetime(2027, 1, 15, 8, 0, 5, tzinfo=UTC)
GAUGES = dict.fromkeys(
    (
        *("hot_used_bytes", "cold_used_bytes", "cold_dead_bytes", "cold_waiting_bytes"),
        *("dirty_bytes", "dirty_blocks", "dirty_oldest_s", "unstored_blocks"),
    ),
    0,
)


@pytest.mark.parametrize(
    ("used", "quota", "per_s", "expected"),
    [
        (100, 100, 0, 0.0),
        (120, 100, None, 0.0),
        (40, 100, 6, 10.0),
        (40, 100, 0, None),  # it does not grow
        (40, 100, -5, None),
        (40, 100, None, None),  # nothing is known of its growth
        (40, None, 5, None),
        (None, 100, 5, None),
        (0, 10**15, 1, None),  # in 31 million years: not soon
    ],
)
def test_when_a_tier_is_full(used, quota, per_s, expected):
    assert filling.full_in_s(used, quota, per_s) == expected


def test_the_page_shows_what_nodes_read_from_their_own_tiers(people, acme, report):
    at = timezone.now().timestamp() - 120
    report(acme, at, requested_tokens=100, hit_local_tokens=60, local_read_bytes=9_000_000)
    shown = people["operator"].get("/tiers/?range=15m").content.decode()
    line = shown.partition("Nodes' own")[2].partition("in their local tiers")[0]
    assert re.search(r"[1-9][\d.,]*\s+\S*B/s\s+read", strip_tags(line)), strip_tags(line)


def test_growth_is_the_slope_of_the_last_hour(acme, globex):
    for minutes, hot, cold in (
        (90, 0, 9_000),
        (40, 600, 1_000),
        (20, 900, 2_000),
        (10, 1_200, 4_600),
    ):
        at = NOW - timedelta(minutes=minutes)
        gauges = GAUGES | {"hot_used_bytes": hot, "cold_used_bytes": cold}
        record_gauges(tenant_id=acme.pk, at=at, gauges=gauges)
    record_gauges(tenant_id=globex.pk, at=NOW, gauges=GAUGES)
    found = filling.growths((acme, globex), NOW.timestamp())
    assert found == {acme.pk: filling.Growth(600 / 1800, 3_600 / 1800)}  # one sample is no trend
    assert filling.growths((globex,), NOW.timestamp()) == {}


def test_dead_and_waiting_bytes_and_what_frees_them(acme, globex):
    now = timezone.now()
    space, other = make_space(acme), make_space(globex)
    for live_bytes in (1000, 700, 400, 100):  # the last two are half dead: merged next
        make_segment(space, size_bytes=1000, live_bytes=live_bytes)
    waiting = make_segment(space, size_bytes=300, live_bytes=0, state=Segment.State.DELETING)
    Segment.unscoped.filter(pk=waiting.pk).update(unreferenced_at=now - timedelta(minutes=1))
    make_segment(other, size_bytes=1000, live_bytes=0)
    for kind, state, size in (
        ("compact", Job.State.DONE, 600),
        ("compact", Job.State.FAILED, 70),
        ("sweep", Job.State.DONE, 900),
        ("sweep", Job.State.DONE, 1100),
        ("flush", Job.State.DONE, 5),
    ):
        Job.unscoped.create(tenant=acme, kind=kind, state=state, bytes=size, finished_at=now)
    Job.unscoped.create(
        tenant=acme, kind="sweep", state=Job.State.DONE, bytes=9, created_at=now - timedelta(days=2)
    )
    found = reclaim((acme,), occupancies([acme.pk]), now)
    assert (found.taken.live_bytes, found.taken.dead_bytes) == (2200, 1800)
    assert (found.taken.waiting_bytes, found.waiting_segments) == (300, 1)
    assert (found.due_segments, found.due_bytes, found.rest_bytes) == (2, 1500, 300)
    assert found.next_deletion_at == now - timedelta(minutes=1) + GRACE
    assert (found.merges.jobs, found.merges.failed, found.merges.bytes) == (1, 1, 600)
    assert (found.deletions.jobs, found.deletions.bytes) == (2, 2000)
    assert reclaim((), occupancies([]), now).taken.dead_bytes == 0
