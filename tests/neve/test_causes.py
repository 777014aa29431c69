"""One table of causes: each reason has words, a remedy for pages and shells, and its own label."""

import pytest

from neve.errors import MissReason, Misuse
from neve.planner.causes import CAUSES, ORDINARY, SETTINGS, cause_of, ranked
from neve.planner.changes import Change
from neve.planner.simulate.tiers import Promote, Setting, TierSetting

TODAY = Setting(
    hot=TierSetting(1 << 30, "lru", 3600),
    cold=TierSetting(1 << 30, "refuse"),
    block_bytes=1 << 20,
    promote=Promote.SECOND_READ,
    promote_window_s=60,
    ttl_s=86_400,
    flush_after_s=0,
)


def test_each_reason_of_a_miss_has_a_cause_with_words_of_its_own():
    assert {cause.reason for cause in CAUSES.values()} == {*MissReason, None}  # None: silent nodes
    for cause in CAUSES.values():
        assert all((cause.label, cause.what, cause.remedy, cause.command))
    labels = [cause.label for cause in CAUSES.values()]
    assert len(set(labels)) == len(labels)


def test_whoever_can_be_helped_has_a_lever_that_pages_can_name():
    for cause in CAUSES.values():
        assert cause.levers or cause.is_ordinary
        assert all(SETTINGS[lever.setting] for lever in cause.levers)


def test_changes_of_levers_can_be_tried():
    for cause in CAUSES.values():
        for lever in cause.levers:
            if lever.change:
                try:
                    Change.of(dict(lever.change)).apply(TODAY)
                except Misuse as error:
                    pytest.fail(f"{cause.name}: {error}")


def test_pressure_and_a_policy_that_never_flushes_are_two_causes():
    assert cause_of("evicted").levers[0].setting == "hot_quota"
    assert cause_of("evicted", never_flushes=True).levers[0].setting == "flush_mode"


def test_a_full_cold_quota_is_not_taken_for_hot_pressure():
    assert cause_of("unflushed").label == "refused by cold quota"
    assert cause_of("unflushed").levers[0].setting == "cold_quota"


def test_reasons_of_a_newer_version_are_counted_without_words():
    assert cause_of("of_tomorrow") is None
    found = ranked({"of_tomorrow": 1, "idle": 3})
    assert [(miss.reason, miss.share) for miss in found] == [("idle", 0.75), ("of_tomorrow", 0.25)]
    assert found[1].lever == "update neve here"
    assert frozenset({"never_stored", "expired"}) == ORDINARY
