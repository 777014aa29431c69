"""What-if estimates, from changes in words to a recommendation."""

from dataclasses import replace

import pytest

from neve.errors import Misuse
from neve.planner.changes import Change, difference
from neve.planner.simulate.tiers import Promote, Setting, TierSetting

GIB = 1 << 30
TODAY = Setting(
    hot=TierSetting(64 * GIB, "2q"), cold=TierSetting(512 * GIB, "lru"), block_bytes=1 << 20
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hot": "x2"}, "hot quota 64 GiB → 128 GiB"),
        ({"hot": "+64GiB"}, "hot quota 64 GiB → 128 GiB"),
        ({"hot": "-32GiB"}, "hot quota 64 GiB → 32 GiB"),
        ({"cold": "1TiB"}, "cold quota 512 GiB → 1 TiB"),
        ({"cold": "unlimited"}, "cold quota 512 GiB → unlimited"),
        ({"cold": "none"}, "cold quota 512 GiB → none"),
        ({"local": "100GB"}, "local tier none → 93.13 GiB"),
        ({"cold_lifetime": "30d"}, "lifetime unlimited → 30 d"),
        ({"hot_idle": "1h30m"}, "hot idle time unlimited → 90 min"),
        ({"eviction": "lru"}, "eviction 2q → lru"),
        ({"promote": "never"}, "promotion second → never"),
        ({"promote_window": "10m"}, "promotion window 1 h → 10 min"),
        ({"codec": "2"}, "codec none → 2 ×"),
        ({"hot": "x2", "eviction": "lru"}, "hot quota 64 GiB → 128 GiB, eviction 2q → lru"),
    ],
)
def test_a_change_says_what_differs(given, words):
    assert difference(TODAY, Change.of(given).apply(TODAY)) == words


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "change"),
        ({"hott": "x2"}, "hott"),
        ({"hot": 2}, "hot"),
        ({"hot": "twice"}, "hot"),
        ({"hot": "none"}, "hot"),
        ({"hot": "x0"}, "hot"),
        ({"hot": "-64GiB"}, "hot"),
        ({"hot": "9999999PiB"}, "hot"),
        ({"hot": "x1"}, "hot"),
        ({"cold_lifetime": "soon"}, "cold_lifetime"),
        ({"cold_lifetime": "0s"}, "cold_lifetime"),
        ({"cold_lifetime": "9999d"}, "cold_lifetime"),
        ({"promote": "third"}, "promote"),
        ({"codec": "nan"}, "codec"),
        ({"codec": "0"}, "codec"),
    ],
)
def test_a_change_without_sense_names_its_member(given, field):
    with pytest.raises(Misuse) as refused:
        Change.of(given).apply(TODAY)
    assert refused.value.field == field


def test_nothing_is_relative_to_no_limit():
    unlimited = replace(TODAY, cold=TierSetting(None, "lru"))
    with pytest.raises(Misuse, match="is unlimited today"):
        Change(cold="x2").apply(unlimited)
    assert Change(promote_window="unlimited").apply(TODAY).promote is Promote.EVERY_READ
